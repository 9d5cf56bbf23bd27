"""Many JSON values in one body, told apart as it comes: an array, or one value per line."""

import re
from collections.abc import Iterator
from typing import Final

from tramontane.errors import BodyTooLarge, InvalidInput, InvalidJSON

#: A value as its bytes, or why there is none.
Item = bytes | InvalidInput

_OUTSIDE: Final = re.compile(rb'["\[\]{},]')
_INSIDE: Final = re.compile(rb'["\\]')
_BLANK: Final = b" \t\r\n"


class Lines:
    """JSONL. Blank lines are passed over. largest: bytes of one line; a longer one is read to its end, and not kept."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._line = bytearray()
        self._too_long = False

    def feed(self, block: bytes) -> Iterator[Item]:
        """The values that end in this block."""
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            self._keep(block[start:end])
            start = end + 1
            yield from self.end()
        self._keep(block[start:])

    def end(self) -> Iterator[Item]:
        """The last value, which no line feed follows."""
        line, too_long = bytes(self._line).strip(), self._too_long
        self._line.clear()
        self._too_long = False
        if too_long:
            yield BodyTooLarge("", f"the line is over {self._largest} bytes")
        elif line:
            yield line

    def _keep(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > self._largest:
            self._too_long = True
            self._line.clear()
        elif not self._too_long:
            self._line += piece


class Elements:
    """The elements of a JSON array. largest: bytes of one; a longer one is read to its end, and not kept.

    A body that is no array raises InvalidJSON. One that breaks off, or goes on after its end, ends with an error.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._element = bytearray()
        self._too_long = False
        self._depth = 0
        self._quoted = False
        self._escaped = False
        #: None before the array.
        self._open: bool | None = None
        self._elements = 0

    def feed(self, block: bytes) -> Iterator[Item]:
        """The elements that end in this block."""
        at = 0
        if self._open is None:
            at = len(block) - len(block.lstrip(_BLANK))
            if at == len(block):
                return
            if block[at : at + 1] != b"[":
                raise InvalidJSON(
                    "", "the body must be a JSON array of jobs, or one job per line (application/x-ndjson)"
                )
            self._open = True
            at += 1
        start = at
        while self._open and at < len(block):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_INSIDE if self._quoted else _OUTSIDE).search(block, at)
            if found is None:
                break
            at = found.end()
            if self._ends(found[0]):
                self._keep(block[start : at - 1])
                start = at
                yield from self._take(last=found[0] == b"]")
        if self._open:
            self._keep(block[start:])
        elif block[start:].strip(_BLANK):
            yield InvalidJSON("", "something follows the array")

    def end(self) -> Iterator[Item]:
        """What is wrong with the end of the body, if anything is."""
        if self._open is None:
            raise InvalidJSON("", "the body is empty")
        if self._open:
            yield InvalidJSON("", "the array breaks off")

    def _ends(self, mark: bytes) -> bool:
        """Whether an element ends here; keeps the books on nesting and quotes."""
        if mark == b"\\":
            self._escaped = True
        elif mark == b'"':
            self._quoted = not self._quoted
        elif mark in b"[{":
            self._depth += 1
        elif mark == b"," or self._depth == 0:
            return self._depth == 0
        else:
            self._depth -= 1
        return False

    def _take(self, *, last: bool) -> Iterator[Item]:
        element, too_long = bytes(self._element).strip(_BLANK), self._too_long
        self._element.clear()
        self._too_long = False
        self._open = not last
        if too_long:
            yield BodyTooLarge("", f"the element is over {self._largest} bytes")
        elif element or not last or self._elements:
            # `[]` has none; in `[1,]` and `[,1]` there is one missing.
            yield element or InvalidJSON("", "an element is missing before or after a comma")
        self._elements += 1

    def _keep(self, piece: bytes) -> None:
        if len(self._element) + len(piece) > self._largest:
            self._too_long = True
            self._element.clear()
        elif not self._too_long:
            self._element += piece

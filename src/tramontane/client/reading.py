"""What a reader knows of a job, and whether what comes next fits. Pure.

Frames tile a job's log: each says which events it covers, where its text begins, and the last one how long the whole
text is and what its SHA-256 is. So a reader can tell that it has every character, once.
"""

import dataclasses
import hashlib

from tramontane.client.faults import ProtocolGap
from tramontane.client.frames import ServerEvent
from tramontane.wire import utf16_length


class Reading:
    """A cursor, and the visible text. One that begins after an event knows only the text from there on.

    Offsets count UTF-16 units, as on the wire.
    """

    def __init__(self, after: int = 0) -> None:
        #: seq of the last event that was taken.
        self.cursor = after
        #: The last event of the job was taken.
        self.ended = False
        #: Offset at which our text begins: 0, or for a reading that began later what the first chunk says.
        self._base: int | None = 0 if after == 0 else None
        self._length = 0
        self._pieces: list[str] = []
        self._hash = hashlib.sha256()

    @property
    def text(self) -> str:
        """The visible text."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def copy(self) -> "Reading":
        """Another one that knows the same."""
        twin = Reading(self.cursor)
        twin.ended, twin._base, twin._length = self.ended, self._base, self._length
        twin._pieces, twin._hash = list(self._pieces), self._hash.copy()
        return twin

    def take(self, event: ServerEvent) -> ServerEvent | None:
        """The event, or what of it is new; None for one that is known.

        Raises ProtocolGap, having taken nothing, for what cannot follow what is known.
        """
        if event.seq <= self.cursor:
            return None
        if event.first > self.cursor + 1:
            raise ProtocolGap(f"the stream skips from event {self.cursor} to {event.first}")
        match event.type:
            case "chunk":
                event = self._add(event)
            case "attempt":
                self._cut(int(event.data.get("keep", 0)))
            case "complete" | "error":
                self._check(event)
        self.cursor, self.ended = event.seq, event.final
        return event

    def _add(self, event: ServerEvent) -> ServerEvent:
        content = str(event.data.get("content", ""))
        off = int(event.data.get("off", self._length))
        if self._base is None:
            self._base = self._length = off
        if off > self._length:
            raise ProtocolGap(f"text is missing: event {event.seq} begins at {off}, and {self._length} are here")
        if off < self._length or event.first <= self.cursor:
            content = _from(content, self._length - off)
            fresh = {"off": self._length, "from": self.cursor + 1, "content": content}
            event = dataclasses.replace(event, data={**event.data, **fresh})
        self._append(content)
        return event

    def _append(self, content: str) -> None:
        self._pieces.append(content)
        self._length += utf16_length(content)
        self._hash.update(content.encode("utf-8", "surrogatepass"))

    def _cut(self, keep: int) -> None:
        if self._base is None:
            self._base = self._length = keep
        if keep == self._length:
            return
        if keep > self._length:
            raise ProtocolGap(f"text is missing: {keep} are to be kept, and {self._length} are here")
        text = _up_to(self.text, keep - self._base) if keep > self._base else ""
        self._base = min(self._base, keep)
        self._length = self._base
        self._pieces, self._hash = [], hashlib.sha256()
        self._append(text)

    def _check(self, event: ServerEvent) -> None:
        length, digest = event.data.get("len"), event.data.get("sha256")
        if self._base is None:
            return
        if length is not None and length != self._length:
            raise ProtocolGap(f"the text is {length} long, and {self._length} are here")
        if self._base == 0 and digest is not None and digest != self._hash.hexdigest():
            raise ProtocolGap("the text is not the one that the server sent: its SHA-256 is another")


def _from(text: str, units: int) -> str:
    return text[units:] if text.isascii() else _utf16(text)[2 * units :].decode("utf-16-le", "surrogatepass")


def _up_to(text: str, units: int) -> str:
    return text[:units] if text.isascii() else _utf16(text)[: 2 * units].decode("utf-16-le", "surrogatepass")


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")

"""Bytes from a socket into the payloads of Mistral's event stream.

Mistral puts one JSON object on one `data:` line. Blocks of bytes end anywhere, also inside a character, so only
whole lines leave this file. Lines end with LF or CRLF; the CR stays on, because JSON takes it for a space.
"""

from tramontane.errors import MalformedAnswer

#: A line longer than this is no chunk of an answer: the largest known ones (references, images) stay far below.
LONGEST_LINE = 4 * 2**20


class Frames:
    """The lines of one stream: feed it blocks as they come, get payloads as they are complete."""

    __slots__ = ("_rest", "_rest_size")

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rest_size = 0

    def feed(self, block: bytes) -> list[bytes]:
        """What follows `data:` on the lines that `block` completes; comments, `id:`, `event:`, `retry:` are left out.

        Raises MalformedAnswer for a line over the limit: it is never gathered to its end.
        """
        if b"\n" not in block:
            self._keep(block)
            return []
        if self._rest:
            block = b"".join((*self._rest, block))
            self._rest.clear()
            self._rest_size = 0
        lines = block.split(b"\n")
        rest = lines.pop()
        if rest:
            self._keep(rest)
        return [line[5:] for line in lines if line.startswith(b"data:")]

    def _keep(self, tail: bytes) -> None:
        # Pieces are joined once, when their line ends: a line that drips in byte by byte costs no more than its length.
        self._rest.append(tail)
        self._rest_size += len(tail)
        if self._rest_size > LONGEST_LINE:
            raise MalformedAnswer(f"Mistral sent a line of more than {LONGEST_LINE} bytes")

"""Server-Sent Events on the wire: how a committed event becomes a frame, and how a client reads frames. Pure.

A frame is `event`, `data`, `id`, in that order: a client that loses the connection before the blank line has not
moved its cursor. Control frames (comments, `retry`) never carry an id. See the WHATWG rules, HTML 9.2.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tramontane.models import Event

MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
HEARTBEAT: Final = b": hb\n\n"
#: A heartbeat that the script of a page can see, which a comment is not; without an id, so it moves no cursor.
PING: Final = b"event: ping\ndata: {}\n\n"


def opening(heartbeat_seconds: float) -> bytes:
    """What a stream says first, before any event: how soon to come back, and how often to expect a sign of life."""
    return b"retry: 500\n: tramontane 1 hb=%d\n\n" % round(heartbeat_seconds * 1000)


def retry(milliseconds: int) -> bytes:
    """Ask the client to wait this long before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def frame(job_id: str, event: Event, heartbeat_seconds: float, start: int | None = None) -> bytes:
    """The frame of a committed event: our envelope, then the event's own fields from the log, untouched.

    start: the first event that it covers, when it stands for several.
    """
    kind, seq, name = event.type, event.seq, job_id.encode()
    covers = b"" if start is None or start == seq else b',"from":%d' % start
    more = b""
    if kind == "start":
        more = b',"eventsUrl":"/api/jobs/%b/events","heartbeatMs":%d' % (name, round(heartbeat_seconds * 1000))
    # Mistral's own JSON is in there as it came; a line break of its layout would end our line.
    own = event.body[1:].replace(b"\n", b" ").replace(b"\r", b" ")
    comma = b"" if own == b"}" else b","
    # In one go: this is made for every word of every job.
    return b'%b%b","seq":%d%b,"attempt":%d%b%b%b\nid: %d\n\n' % (
        _beginning(kind), name, seq, covers, event.attempt, more, comma, own, seq,
    )  # fmt: skip


@lru_cache(64)
def _beginning(kind: str) -> bytes:
    return f'event: {kind}\ndata: {{"type":"chat:{kind}","jobId":"'.encode()


@dataclass(frozen=True, slots=True)
class Message:
    """What a stream dispatches at a blank line: the event's name, its data, and the cursor from then on."""

    event: str
    data: str
    id: str


class Parser:
    """Reads a stream however it was cut, by the WHATWG rules. What has no blank line yet is not dispatched."""

    def __init__(self) -> None:
        #: The cursor: an id counts from the blank line of its block on, with or without data in the block.
        self.last_id = ""
        #: Milliseconds that the server asked us to wait before coming back; None until it does.
        self.retry: int | None = None
        self._rest: list[bytes] = []
        self._began = False
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, block: bytes) -> list[Message]:
        """The messages that are complete with this block."""
        messages = []
        for line in self._lines(block):
            if line:
                self._field(line)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        return messages

    def _lines(self, block: bytes) -> list[bytes]:
        """Whole lines without their ends. A CR ends its line at once; an LF that follows it is part of that end."""
        if self._after_cr and block:
            self._after_cr = False
            block = block.removeprefix(b"\n")
        pieces = block.splitlines(keepends=True)  # of bytes: at CR, LF and CRLF, nowhere else
        rest = b"" if not pieces or pieces[-1].endswith((b"\r", b"\n")) else pieces.pop()
        lines = []
        for piece in pieces:
            lines.append(self._without_bom(b"".join((*self._rest, piece.rstrip(b"\r\n")))))
            self._rest.clear()
        if rest:
            self._rest.append(rest)
        elif pieces:
            self._after_cr = pieces[-1].endswith(b"\r")
        return lines

    def _without_bom(self, line: bytes) -> bytes:
        if self._began:
            return line
        self._began = True
        return line.removeprefix(b"\xef\xbb\xbf")

    def _field(self, line: bytes) -> None:
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) < 10:
                self.retry = int(value)

    def _dispatch(self) -> Message | None:
        self.last_id = self._id
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None

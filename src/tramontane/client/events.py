"""The events of a job as frozen values: the fields of the wire in snake_case."""

from datetime import datetime
from typing import Any, ClassVar, Final

import msgspec

from tramontane.client.faults import ProtocolGap
from tramontane.client.frames import ServerEvent


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What every event has. `seq` is the cursor: to go on later, ask for what comes after it."""

    type: ClassVar[str]
    job_id: str
    seq: int
    #: The attempt that wrote it, from 1.
    attempt: int


class StreamStart(StreamEvent, frozen=True, kw_only=True):
    """The job runs for the first time."""

    type: ClassVar[str] = "start"
    request_id: str | None = None
    model: str | None = None
    timestamp: datetime | None = None


class StreamChunk(StreamEvent, frozen=True, kw_only=True):
    """A piece of the answer. It may cover several events of the log, and then begins with `from_seq`."""

    type: ClassVar[str] = "chunk"
    content: str = ""
    #: Length of the text before it, in UTF-16 units.
    off: int = 0
    from_seq: int = msgspec.field(name="from", default=0)
    #: Mistral's content deltas so far.
    token_count: int = 0
    #: What the model thinks aloud; not part of the text.
    thinking: str | None = None


class StreamTool(StreamEvent, frozen=True, kw_only=True):
    """Fragments of tool calls, as Mistral sent them."""

    type: ClassVar[str] = "tool"
    tool_calls: list[dict[str, Any]] = []


class StreamAttempt(StreamEvent, frozen=True, kw_only=True):
    """A later attempt goes on: cut the text to `keep` UTF-16 units, and read on."""

    type: ClassVar[str] = "attempt"
    keep: int = 0
    mode: str | None = None
    reason: str | None = None


class StreamComplete(StreamEvent, frozen=True, kw_only=True):
    """The whole answer was told. `len` and `sha256` are of the text, and have been checked."""

    type: ClassVar[str] = "complete"
    finish_reason: str | None = None
    len: int | None = None
    sha256: str | None = None
    total_tokens: int = 0
    attempts: int = 1
    #: Mistral's own.
    usage: dict[str, Any] | None = None


class StreamError(StreamEvent, frozen=True, kw_only=True):
    """The job has ended without an answer; `partial`: there is some text all the same."""

    type: ClassVar[str] = "error"
    error: str = ""
    code: str = ""
    retryable: bool = False
    partial: bool = False
    len: int | None = None


_KINDS: Final = {
    kind.type: kind for kind in (StreamStart, StreamChunk, StreamTool, StreamAttempt, StreamComplete, StreamError)
}


def typed(event: ServerEvent) -> StreamEvent | None:
    """The value of an event; None for a kind of a later server. Raises ProtocolGap for one without its fields."""
    kind = _KINDS.get(event.type)
    if kind is None:
        return None
    fields = event.data | ({"from": event.first} if kind is StreamChunk else {})
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ProtocolGap(f"event {event.seq} is none of ours: {error}") from None

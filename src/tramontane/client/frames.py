"""A frame of a stream as an event: what the server says, before anybody has checked it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from tramontane.client.transport import Lost
from tramontane.models import FINAL_EVENTS
from tramontane.sse import Message


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of a job as the server tells it. `data` is the frame's JSON object."""

    seq: int
    type: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """True for the last event of a job."""
        return self.type in FINAL_EVENTS

    @property
    def first(self) -> int:
        """The first event that the frame covers, by its seq; the last one is its own."""
        return int(self.data.get("from", self.seq))


def read_frame(message: Message) -> ServerEvent | None:
    """The event of a frame; None for what has no place in the log, such as a ping. Raises Lost for what is no JSON."""
    try:
        fields = msgspec.json.decode(message.data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise Lost("the stream is garbled") from None
    seq = fields.get("seq")
    return ServerEvent(seq, message.event, fields) if isinstance(seq, int) and message.id == str(seq) else None

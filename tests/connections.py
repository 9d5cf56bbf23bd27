"""A reader's connection that only notes what it is told."""

import msgspec

from tramontane import sse


class Connection:
    """Takes what it is told, until it has had `room` blocks."""

    def __init__(self, *, room: int = 1000) -> None:
        self.told: list[bytes] = []
        self.room = room

    def write(self, block: bytes) -> bool:
        self.told.append(block)
        return len(self.told) < self.room

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The events that each frame covers."""
        messages = sse.Parser().feed(b"".join(self.told))
        events = [msgspec.json.decode(message.data) for message in messages]
        return [(event.get("from", event["seq"]), event["seq"]) for event in events]

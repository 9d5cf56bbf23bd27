"""The newest events of one job, as all its readers in this process share them."""

import asyncio
from collections import deque
from typing import Final

from tramontane import sse
from tramontane.ids import show_id
from tramontane.models import Event, JobKey
from tramontane.tiling import framing

#: Bytes of events that a tail keeps.
_RING: Final = 256 * 1024
#: Events that a reader looks at in one go: about what a write of merged chunks holds.
_MOST: Final = 1000


class Tail:
    """The newest frames of one job."""

    def __init__(self, key: JobKey, head: int, heartbeat: float) -> None:
        self.key = key
        self.job_id = show_id("job", key.id)
        #: seq of the last frame in the ring, and of the last before its first.
        self.head = head
        self.base = head
        self.readers = 0
        #: What came last came from an attempt of this process.
        self.fed_here = False
        #: The log was deleted; what is in the ring can still be read.
        self.gone = False
        #: The frame of the last event, encoded once for all who are at the head; and whether nothing follows it.
        self.last = b""
        self.ended = False
        self.frame = framing(self.job_id, heartbeat)
        self._heartbeat = heartbeat
        self._events: deque[Event] = deque()  # nothing that the garbage collector would look through
        self._size = 0
        self._waiting: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        self._create_future = loop.create_future
        self._now = loop.time
        self.woken_at = self._now()

    def extend(self, events: list[Event]) -> None:
        """Take in the events after `head`."""
        for event in events:
            assert event.seq == self.head + 1, "the log is dense"
            self.last = sse.frame(self.job_id, event, self._heartbeat)
            self.ended = event.final
            self._events.append(event)
            self._size += len(event.body)
            self.head = event.seq
        while self._size > _RING and len(self._events) > 1:
            self._size -= len(self._events.popleft().body)
            self.base += 1
        self.wake()

    def after(self, cursor: int) -> list[Event]:
        """Events after a cursor that is not before `base`: all, or as many as one write may hold."""
        skip, count = cursor - self.base, len(self._events)
        # By index: a deque finds its ends quickly, an iterator would walk there.
        return [self._events[index] for index in range(skip, min(skip + _MOST, count))]

    def wake(self) -> None:
        """Let all readers look again."""
        self.woken_at = self._now()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def change(self) -> asyncio.Future[None]:
        """Comes with the next `wake`."""
        future = self._create_future()
        self._waiting.append(future)
        return future

"""The newest events of one job, as all its readers in this process share them.

A reader that has everything says how it is written to, and what comes next goes straight to its connection: one
frame, encoded once, without a wake-up of anybody's task. Who is behind, or can take no more, reads for himself.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from tramontane import sse
from tramontane.ids import show_id
from tramontane.models import FINAL_EVENTS, Event, JobKey
from tramontane.tiling import framing, joined

#: Writes to one reader, and says whether it can take more.
Tell = Callable[[bytes], bool]

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
        self._waiting: list[asyncio.Future[int]] = []
        self._told: dict[asyncio.Future[int], Tell] = {}
        loop = asyncio.get_running_loop()
        self._create_future = loop.create_future
        self._now = loop.time
        #: When it last grew, and when readers last had a reason to look.
        self.grown_at = self.woken_at = self._now()

    def extend(self, events: list[Event]) -> None:
        """Take in the events after `head`, and tell them to those who have all before them."""
        before = head = self.head
        for event in events:
            head += 1
            assert event.seq == head, "the log is dense"
            self._events.append(event)
            self._size += len(event.body)
        self.head = head
        if self._size > _RING:
            self._trim()
        self.last = sse.frame(self.job_id, event, self._heartbeat)
        self.ended = event.type in FINAL_EVENTS
        self.grown_at = self.woken_at = self._now()
        if self._told:
            self._tell(events, before)
        if self._waiting:
            _release(self._waiting, self.head)
            self._waiting = []

    def _trim(self) -> None:
        while self._size > _RING and len(self._events) > 1:
            self._size -= len(self._events.popleft().body)
            self.base += 1

    def after(self, cursor: int) -> list[Event]:
        """Events after a cursor that is not before `base`: all, or as many as one write may hold."""
        skip, count = cursor - self.base, len(self._events)
        # By index: a deque finds its ends quickly, an iterator would walk there.
        return [self._events[index] for index in range(skip, min(skip + _MOST, count))]

    def wake(self) -> None:
        """Let all readers look again."""
        self.woken_at = self._now()
        _release((*self._waiting, *self._told), self.head)
        self._waiting, self._told = [], {}

    def change(self) -> asyncio.Future[int]:
        """Comes with the next `wake` or event."""
        future = self._create_future()
        self._waiting.append(future)
        return future

    def follow(self, tell: Tell) -> asyncio.Future[int]:
        """Tell a reader that has everything what comes, until it has to look for itself: then this comes.

        It gives the last seq that it was told. Whoever awaits it may give it up at any time, and then says `forget`.
        """
        future = self._create_future()
        self._told[future] = tell
        return future

    def forget(self, told: asyncio.Future[int]) -> None:
        """Tell this reader no more: on a quiet job, nothing else would let go of its connection for long."""
        self._told.pop(told, None)

    def _tell(self, events: list[Event], before: int) -> None:
        block = self.last
        if len(events) > 1:
            write = joined(events, before, self.frame)
            if write.taken < len(events):  # more than one write: each takes it at his own pace
                _release(self._told, before)
                self._told = {}
                return
            block = write.block
        full = []
        for future, tell in self._told.items():
            if future.done() or not tell(block) or self.ended:
                full.append(future)
        if full:
            for future in full:
                del self._told[future]
            _release(full, self.head)


def _release(futures: Iterable[asyncio.Future[int]], seq: int) -> None:
    for future in futures:
        if not future.done():
            future.set_result(seq)

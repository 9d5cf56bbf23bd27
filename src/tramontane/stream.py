"""One reader of a job's log: its cursor, and what comes next for it."""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from tramontane import sse
from tramontane.listener import OUTAGES
from tramontane.models import Event
from tramontane.places import Place
from tramontane.store import EventStore
from tramontane.tail import Tail, Tell
from tramontane.tiling import Restart, joined, single

#: Events per query of a reader that is behind the ring, at first and at most.
_BEHIND: Final = 100
_FAR_BEHIND: Final = 1000
#: Seconds after which a connection ends, ± 20 %: readers move on to processes that are new, and not all at once.
_AGE: Final = 600.0


class Keeper(Protocol):
    """Whoever keeps the streams of a process: wakes them, ends them, and is told when one is closed."""

    @property
    def draining(self) -> bool: ...

    @property
    def silence(self) -> float: ...

    def release(self, stream: "Stream", tail: Tail) -> None: ...


class Stream:
    """One reader: an async iterator of bytes to send. It ends after the final event, or when the server drains.

    With `tell` set it gives nothing more once its reader has everything, since what comes is told straight away. It
    gives an empty block when that is over: the reader may have to be waited for.
    """

    #: How its reader is written to, and whether there is room for more.
    tell: Tell | None = None

    #: More than one chunk that waits becomes one frame; what these void is left out.
    merges = True
    restarts: Sequence[Restart] = ()
    #: What is said in silence.
    heartbeat = sse.HEARTBEAT
    #: Given back with the stream.
    place: Place | None = None
    #: When the write that is under way began, by the loop's clock; and what ends it.
    writing_since = math.inf

    def __init__(self, streams: Keeper, events: EventStore, tail: Tail, after: int, *, ended: bool) -> None:
        #: The cursor already stands on the final event: there is nothing to say, and never will be.
        self.ended = ended
        self.let_go: Callable[[], object] = self.close
        self._streams = streams
        self._events = events
        self._tail = tail
        #: seq of the last event that was looked at, and of the last that was told: what lies between is void.
        self._cursor = self._told = after
        self._limit = _BEHIND
        self._closed = False
        self._waiting: asyncio.Future[int] | None = None
        self._now = asyncio.get_running_loop().time
        self._said_at = self._now()
        #: When it has lasted long enough, by the loop's clock.
        self.until = self._said_at + _AGE * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        while not self.ended:
            if self._cursor < self._tail.head and not self._streams.draining:
                if block := await self._next():
                    return block
            elif block := self._due():
                return block
            elif self._tail.gone:
                # Retention or erasure came in between; the reader asks again and is told so.
                break
            # No timer per event: a beat wakes those that have been silent for long.
            elif self.tell is not None and self.merges and self._told == self._cursor == self._tail.head:
                await self._follow(self.tell)
                return b""
            else:
                self._waiting = self._tail.change()
                await self._waiting
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        """What comes after the cursor. Empty when all that was looked at is void, or the log has gone."""
        tail = self._tail
        if self._cursor == self._told == tail.head - 1 and tail.last:
            # At the head: the one frame that all of them share.
            self._told = self._cursor = tail.head
            self._said_at = self._now()
            self.ended = tail.ended
            return tail.last
        try:
            events = tail.after(self._cursor) if self._cursor >= tail.base else await self._behind()
        except OUTAGES:
            return self._come_back()
        if not events:
            self.ended = tail.gone = True  # the log has gone, even for those who would read on
            return b""
        return self._write(events)

    def _due(self) -> bytes:
        """What is said to a reader that has everything: that this stream ends, or still lives."""
        now = self._now()
        if self._streams.draining or now >= self.until:
            return self._come_back()
        if now >= self._said_at + self._streams.silence:
            self._said_at = now
            return self.heartbeat
        return b""

    def look(self) -> None:
        """Let it look again, should it wait for what comes."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(self._tail.head)

    def leave(self) -> None:
        """Its reader has gone: end, whatever comes."""
        self.ended = True
        self.look()

    def close(self) -> None:
        """Stop reading. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._streams.release(self, self._tail)
            # Both know their connection, which knows us: thousands that end together must not wait for a collection.
            self.tell, self.let_go, self._waiting = None, _nothing, None
            if self.place is not None:
                self.place.leave()

    async def _follow(self, tell: Tell) -> None:
        """Have the reader told what comes, until there is something else to do."""
        tail = self._tail
        self._waiting = told = tail.follow(tell)
        try:
            self._cursor = self._told = await told
        finally:
            tail.forget(told)
        self._said_at = max(self._said_at, tail.grown_at)
        self.ended = self.ended or (tail.ended and self._cursor == tail.head)

    def _come_back(self) -> bytes:
        """The last that is said by a stream that goes on elsewhere; its reader has the cursor."""
        self.ended = True
        return sse.retry(random.randrange(2000))  # noqa: S311 - so that not all come back at once

    async def _behind(self) -> list[Event]:
        """What comes next for a reader that is behind the ring, from the log."""
        return await self._events.history(self._tail.key, self._cursor, limit=self._limit)

    def _write(self, events: list[Event]) -> bytes:
        """As much of these as one write may hold. The rest is not kept: a reader that is stuck holds one write."""
        if self.merges:
            write = joined(events, self._told, self._tail.frame, restarts=self.restarts)
        else:
            write = single(events, self._told, self._tail.frame)
        whole = write.taken == len(events)
        self._limit = min(_FAR_BEHIND, 2 * self._limit if whole else write.taken + write.taken // 4 + 1)
        self._cursor = events[write.taken - 1].seq
        self._told = write.told
        self._said_at = self._now()
        self.ended = events[write.taken - 1].final
        return write.block


def _nothing() -> None:
    """What ends a stream that is over."""

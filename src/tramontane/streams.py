"""Following a job: its committed events after a cursor, then what comes, up to the final one.

Readers pull from the log; nobody pushes to them. Correctness is the cursor's: hints only say when to look. Per process
one `Tail` for each followed job holds the newest frames, encoded once for all its readers and read for all tails by
one query per round; a reader that is further behind reads the log itself.
"""

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from typing import Final

from tramontane import sse
from tramontane.errors import InvalidCursor, StreamExpired
from tramontane.ids import show_id
from tramontane.listener import Listener
from tramontane.models import Batch, Event, Job, JobKey
from tramontane.store import EventStore, JobStore
from tramontane.tasks import beside
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

_CHANNEL: Final = "tramontane_events"
#: Bytes of frames that a tail keeps.
_RING: Final = 256 * 1024
#: Bytes of one write to a reader; after it others have their turn.
_WRITE: Final = 16 * 1024
_ROUND: Final = 500  # events of one job per query
_BEHIND: Final = 100  # events per query of a reader that is behind the ring: about one write
#: Seconds: a hint comes together with what `appended` says of the same commit, and then there is nothing to read.
_HINT_DELAY: Final = 0.001
_UNKNOWN: Final = 2**31  # a head above all others
_SAFETY_POLL: Final = 1.0  # seconds that a lost hint costs


class Tail:
    """The newest frames of one job."""

    def __init__(self, key: JobKey, head: int) -> None:
        self.key = key
        self.job_id = show_id("job", key.id)
        #: seq of the last frame in the ring, and of the last before its first.
        self.head = head
        self.base = head
        self.readers = 0
        #: The log was deleted; what is in the ring can still be read.
        self.gone = False
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._size = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._now = asyncio.get_running_loop().time
        self.woken_at = self._now()

    def extend(self, events: list[Event], heartbeat: float) -> None:
        """Take in the events after `head`."""
        for event in events:
            assert event.seq == self.head + 1, "the log is dense"
            frame = sse.frame(self.job_id, event, heartbeat)
            self._frames.append((frame, event.final))
            self._size += len(frame)
            self.head = event.seq
        while self._size > _RING and len(self._frames) > 1:
            self._size -= len(self._frames.popleft()[0])
            self.base += 1
        self.wake()

    def after(self, cursor: int) -> list[tuple[bytes, bool]]:
        """Frames after a cursor that is not before `base`."""
        skip = cursor - self.base
        return [self._frames[index] for index in range(skip, len(self._frames))]

    def wake(self) -> None:
        """Let all readers look again."""
        self.woken_at = self._now()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def change(self) -> None:
        """Wait for the next `wake`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future


class Streams:
    """All streams of a process. Run `run` beside them."""

    def __init__(self, jobs: JobStore, events: EventStore, listener: Listener, *, heartbeat: float) -> None:
        self.heartbeat = heartbeat
        #: Seconds of silence after which a beat is due; beats are looked for four times per heartbeat.
        self.silence = heartbeat * 0.75
        self.draining = False
        self._jobs = jobs
        self._events = events
        self._listener = listener
        self._tails: dict[JobKey, Tail] = {}
        #: By the id as a hint writes it.
        self._by_id: dict[str, Tail] = {}
        #: Tails to read, and the highest head that somebody told of.
        self._dirty: dict[Tail, int] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Feed the tails until cancelled; a failing database is tried again."""
        await self._listener.add(_CHANNEL, self._hint)
        async with beside(self._beat()):
            await self._follow()

    async def _beat(self) -> None:
        """Wake the readers of tails that have been silent."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.heartbeat / 4)
            for tail in self._tails.values():
                if now() >= tail.woken_at + self.silence:
                    tail.wake()

    async def _follow(self) -> None:
        now = asyncio.get_running_loop().time
        poll_at = check_at = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._news.wait()
                    await asyncio.sleep(_HINT_DELAY)
            self._news.clear()
            try:
                if now() >= poll_at:  # on time, however much news there is of others
                    poll_at = now() + _SAFETY_POLL
                    self._dirty.update(dict.fromkeys(self._tails.values(), _UNKNOWN))
                if now() >= check_at:
                    check_at = now() + self.heartbeat
                    await self._end_gone()
                await self._feed()
            except Exception as error:  # noqa: BLE001 - the outermost loop of a service
                log(logger, logging.WARNING, "streams.read_failed", error=error)

    def wake(self, job: Job | JobKey) -> None:
        """A job's log has grown, to `head` if the job as it is now is given; this process knows it before any hint."""
        key, head = (job.key, job.head) if isinstance(job, Job) else (job, _UNKNOWN)
        if tail := self._tails.get(key):
            self._mark(tail, head)

    def appended(self, batch: Batch, head: int) -> None:
        """A batch of this process is in the log, its last event being `head`: readers here need not read it again."""
        tail = self._tails.get(batch.key)
        if tail is None or tail.head >= head:
            return
        first = head - len(batch.events) + 1
        if tail.head != first - 1:
            self.wake(batch.key)
            return
        events = enumerate(batch.events, first)
        tail.extend(
            [Event(seq=seq, attempt=batch.attempt, type=event.type, body=event.body) for seq, event in events],
            self.heartbeat,
        )

    async def open(self, key: JobKey, after: int, *, job: Job | None = None) -> "Stream":
        """A stream of the events after a cursor. Close it. A caller that has just read the job may bring it.

        Raises NotFound; InvalidCursor for one past the head; StreamExpired when the events are past their retention.
        """
        job = job or await self._jobs.get(key)
        if after > job.head:
            raise InvalidCursor(f"{after} is past the last event, {job.head}", past_head=True)
        if job.events_pruned_at is not None:
            raise StreamExpired("the events are past their retention; the job itself has the result")
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = self._by_id[str(key.id)] = Tail(key, job.head)
        tail.readers += 1
        # Registered first, read afterwards: what is committed in between is seen by one of the two.
        self.wake(key)
        return Stream(self, self._events, tail, after, ended=job.state.final and after == job.head)

    async def wait_for_end(self, key: JobKey, seconds: float) -> None:
        """Wait until the job is final, at most so long. Raises NotFound."""
        job = await self._jobs.get(key)
        if job.state.final or job.events_pruned_at is not None:
            return
        stream = await self.open(key, job.head)
        try:
            async with asyncio.timeout(seconds):
                async for _ in stream:
                    pass
        except TimeoutError:
            pass
        finally:
            stream.close()

    def drain(self) -> None:
        """End all streams: their readers come back, with their cursors, to whoever is there then."""
        self.draining = True
        for tail in self._tails.values():
            tail.wake()

    def release(self, tail: Tail) -> None:
        """A reader has gone."""
        tail.readers -= 1
        if tail.readers == 0:
            self._tails.pop(tail.key, None)
            self._by_id.pop(str(tail.key.id), None)
            self._dirty.pop(tail, None)

    async def _feed(self) -> None:
        dirty, self._dirty = self._dirty, {}
        cursors = {tail.key: tail.head for tail, head in dirty.items() if tail.head < head}
        if not cursors:
            return
        for key, events in (await self._events.read(cursors, limit=_ROUND)).items():
            tail = self._tails.get(key)
            if tail is None or tail.head != cursors[key]:
                continue
            tail.extend(events, self.heartbeat)
            if len(events) == _ROUND:
                self.wake(key)

    async def _end_gone(self) -> None:
        """End the streams of jobs whose events were deleted: nothing will come any more, not even a final event."""
        for key in await self._events.gone(list(self._tails)):
            if (tail := self._tails.get(key)) is not None:
                tail.gone = True
                tail.wake()

    def _hint(self, payload: str) -> None:
        if not payload:
            self._dirty.update(dict.fromkeys(self._tails.values(), _UNKNOWN))
            self._news.set()
            return
        for pair in payload.split(","):
            identity, _, head = pair.partition(":")
            tail = self._by_id.get(identity)
            if tail is not None and int(head) > tail.head:
                self._mark(tail, int(head))

    def _mark(self, tail: Tail, head: int) -> None:
        self._dirty[tail] = max(head, self._dirty.get(tail, 0))
        self._news.set()


class Stream:
    """One reader: an async iterator of bytes to send. It ends after the final event, or when the server drains."""

    def __init__(self, streams: Streams, events: EventStore, tail: Tail, after: int, *, ended: bool) -> None:
        #: The cursor already stands on the final event: there is nothing to say, and never will be.
        self.ended = ended
        self._streams = streams
        self._events = events
        self._tail = tail
        self._cursor = after
        self._closed = False
        self._now = asyncio.get_running_loop().time
        self._said_at = self._now()
        #: Read from the log and not yet sent: a reader that is behind reads nothing twice.
        self._read: list[tuple[bytes, bool]] = []

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        while not self.ended:
            if self._streams.draining:
                self.ended = True
                return sse.retry(random.randrange(2000))  # noqa: S311 - so that not all come back at once
            if frames := await self._next():
                return self._some(frames)
            if self._tail.gone:
                # Retention or erasure came in between; the reader asks again and is told so.
                break
            # No timer per event: a beat wakes those that have been silent for long.
            await self._tail.change()
            if self._now() >= self._said_at + self._streams.silence and not await self._next():
                self._said_at = self._now()
                return sse.HEARTBEAT
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop reading. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._streams.release(self._tail)

    async def _next(self) -> list[tuple[bytes, bool]]:
        if self._read:
            return self._read
        if self._cursor >= self._tail.base:
            return self._tail.after(self._cursor)
        key = self._tail.key
        events = (await self._events.read({key: self._cursor}, limit=_BEHIND)).get(key, [])
        self._tail.gone = self._tail.gone or not events
        job_id, heartbeat = self._tail.job_id, self._streams.heartbeat
        self._read = [(sse.frame(job_id, event, heartbeat), event.final) for event in events]
        return self._read

    def _some(self, frames: list[tuple[bytes, bool]]) -> bytes:
        """As many frames as one write may hold, at least one."""
        taken: list[bytes] = []
        size = 0
        for frame, final in frames:
            if taken and size + len(frame) > _WRITE:
                break
            taken.append(frame)
            size += len(frame)
            self.ended = self.ended or final
        self._said_at = self._now()
        self._cursor += len(taken)
        self._read = self._read[len(taken) :]
        return b"".join(taken)

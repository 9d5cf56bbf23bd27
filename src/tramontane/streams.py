"""Following a job: its committed events after a cursor, then what comes, up to the final one.

Readers pull from the log by their cursor; hints only say when to look. Per process one `Tail` for each followed job
holds the newest frames, encoded once for all its readers and read for all tails by one query per round; a reader that
is further behind reads the log itself, and one that has everything may leave it to the tail to write what comes.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from tramontane.continuity import said
from tramontane.errors import InvalidCursor, StreamExpired
from tramontane.ids import show_id
from tramontane.listener import Listener
from tramontane.models import Batch, Event, Job, JobKey
from tramontane.store import EventStore, JobStore
from tramontane.stream import Stream
from tramontane.tail import Tail
from tramontane.tasks import beside
from tramontane.telemetry import log
from tramontane.tiling import Restart

logger = logging.getLogger(__name__)

_CHANNEL: Final = "tramontane_events"
_ROUND: Final = 500  # events of one job per query
#: Seconds: a hint comes together with what `appended` says of the same commit, and then there is nothing to read.
_HINT_DELAY: Final = 0.001
#: … and that long for a job which this process runs: the loop may be busy, and its own hints mostly tell it nothing.
_OWN_HINT_DELAY: Final = 0.05
_UNKNOWN: Final = 2**31  # a head above all others
_SAFETY_POLL: Final = 1.0  # seconds that a lost hint costs
#: A reader that takes nothing for this long (seconds) is let go; it resumes by its cursor.
_STUCK: Final = 30.0
#: The same once the server stops: then a write has had its time.
_LAST_WRITE: Final = 0.5


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
        self._open: set[Stream] = set()
        self._tails: dict[JobKey, Tail] = {}
        #: By the id as a hint writes it.
        self._by_id: dict[str, Tail] = {}
        #: Tails to read, and the highest head that somebody told of.
        self._dirty: dict[Tail, int] = {}
        #: The same of tails that are fed here; looked at together, a little later.
        self._doubtful: dict[Tail, int] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Feed the tails until cancelled; a failing database is tried again."""
        await self._listener.add(_CHANNEL, self._hint)
        async with beside(self._beat()):
            await self._follow()

    async def _beat(self) -> None:
        """Wake the readers of tails that have been silent, and those that are old; let go of who takes nothing."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(self.heartbeat, _STUCK) / 4)
            self._wake_due(now())
            self._let_go(now() - _STUCK)

    def _wake_due(self, now: float) -> None:
        # Not in the loop above: its variables would keep the last stream alive, and with it a connection.
        for tail in self._tails.values():
            if now >= tail.woken_at + self.silence:
                tail.wake()
        for stream in self._open:
            if stream.until <= now:
                stream.look()

    def _let_go(self, since: float) -> None:
        # Looked at together, now and then: a timer for each write would cost more than the write.
        for stream in [one for one in self._open if one.writing_since <= since]:
            stream.let_go()

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
        tail.fed_here = True
        tail.extend([Event(seq=seq, attempt=batch.attempt, type=event.type, body=event.body) for seq, event in events])

    async def open(
        self, key: JobKey, after: int | None, *, compact: bool | None = None, job: Job | None = None
    ) -> Stream:
        """A stream of the events after a cursor, None being the head. Close it. A caller that knows the job brings it.

        compact: True leaves out what a restart has voided, as does None from the beginning; False gives each event a
        frame of its own, however far behind the reader is.
        Raises NotFound; InvalidCursor for one past the head; StreamExpired when the events are past their retention.
        """
        job = job or await self._jobs.get(key)
        after = job.head if after is None else after
        if after > job.head:
            raise InvalidCursor(f"{after} is past the last event, {job.head}", past_head=True)
        if job.events_pruned_at is not None:
            raise StreamExpired(
                "the events are past their retention; the job itself has the result", job_id=show_id("job", key.id)
            )
        restarts: Sequence[Restart] = ()
        if job.attempt > 1 and (compact or (compact is None and after == 0)):
            restarts = _restarts(await self._events.told(key, head=job.head, types=["attempt"]))
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = self._by_id[str(key.id)] = Tail(key, job.head, self.heartbeat)
        tail.readers += 1
        # Registered first, read afterwards: what is committed in between is seen by one of the two.
        self.wake(key)
        stream = Stream(self, self._events, tail, after, ended=job.state.final and after == job.head)
        stream.merges, stream.restarts = compact is not False, restarts
        self._open.add(stream)
        return stream

    async def text(self, job: Job) -> str | None:
        """What the job has said up to its head; None once its events are past their retention."""
        if job.events_pruned_at is not None:
            return None
        return said(await self._events.told(job.key, head=job.head, types=["chunk", "attempt"])).text

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

    def readers(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def drain(self) -> None:
        """End all streams: their readers come back, with their cursors, to whoever is there then."""
        self.draining = True
        for tail in self._tails.values():
            tail.wake()
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST_WRITE, lambda: self._let_go(loop.time()))

    def release(self, stream: Stream, tail: Tail) -> None:
        """A reader has gone."""
        self._open.discard(stream)
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
            tail.fed_here = False
            tail.extend(events)
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
            if tail is None or int(head) <= tail.head:
                continue
            if not tail.fed_here:
                self._mark(tail, int(head))
                continue
            if not self._doubtful:
                asyncio.get_running_loop().call_later(_OWN_HINT_DELAY, self._settle)
            self._doubtful[tail] = max(int(head), self._doubtful.get(tail, 0))

    def _settle(self) -> None:
        doubtful, self._doubtful = self._doubtful, {}
        for tail, head in doubtful.items():
            if head > tail.head and tail.readers:
                self._mark(tail, head)

    def _mark(self, tail: Tail, head: int) -> None:
        self._dirty[tail] = max(head, self._dirty.get(tail, 0))
        self._news.set()


def _restarts(events: Sequence[Event]) -> list[Restart]:
    """Those of a job's `attempt` events that void what was told before them."""
    bodies = [(event.seq, msgspec.json.decode(event.body)) for event in events]
    return [Restart(seq, body["keep"]) for seq, body in bodies if body["mode"] == "restart"]

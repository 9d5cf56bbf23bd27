"""Following a job: every reader sees every event once, in order, whatever becomes of the hints."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from connections import Connection
from lives import T0, Lives, at, batch, chunk, ending, in_the_background, until

from tramontane import sse, tail, tiling
from tramontane import stream as one_stream
from tramontane import streams as module
from tramontane.database import Database
from tramontane.errors import InvalidCursor, NotFound, StreamExpired
from tramontane.ids import new_id
from tramontane.listener import Callback, Listener
from tramontane.models import Attempt, Event, Job, JobKey, NewEvent, State
from tramontane.store import EventStore
from tramontane.stream import Stream
from tramontane.streams import Streams
from tramontane.wire import utf16_length


class Hints(Listener):
    """A listener whose hints are the test's to give. By itself it delivers none."""

    def __init__(self) -> None:
        self.callback: Callback | None = None
        self.added = asyncio.Event()

    async def add(self, channel: str, callback: Callback) -> None:
        assert channel == "tramontane_events"
        self.callback = callback
        self.added.set()

    def hint(self, payload: str) -> None:
        assert self.callback is not None
        self.callback(payload)


class Counted(EventStore):
    """The real log, how often a read of it began, and how often one ended."""

    reads = 0
    ended = 0

    async def read(self, cursors: dict[JobKey, int], *, limit: int = 500) -> dict[JobKey, list[Event]]:
        self.reads += 1
        events = await super().read(cursors, limit=limit)
        self.ended += 1
        return events

    async def history(self, key: JobKey, after: int, *, limit: int) -> list[Event]:
        self.reads += 1
        events = await super().history(key, after, limit=limit)
        self.ended += 1
        return events


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def hints() -> Hints:
    return Hints()


@pytest.fixture
def never_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAFETY_POLL", 3600.0)


@pytest.fixture
async def streams(lives: Lives, hints: Hints) -> AsyncIterator[Streams]:
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=30.0)
    async with in_the_background(streams.run()):
        await hints.added.wait()
        yield streams


class Reader:
    """What one client has read, frame by frame."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.messages: list[sse.Message] = []
        self.parser = sse.Parser()

    @property
    def ids(self) -> list[int]:
        return [int(message.id) for message in self.messages]

    async def read(self, count: int) -> None:
        """Read until there are so many events."""
        async with asyncio.timeout(8):
            while len(self.messages) < count:
                self.messages += self.parser.feed(await anext(self.stream))

    async def rest(self) -> None:
        """Read to the end."""
        async with asyncio.timeout(8):
            async for block in self.stream:
                self.messages += self.parser.feed(block)


@asynccontextmanager
async def reading(streams: Streams, key: JobKey, after: int = 0) -> AsyncIterator[Reader]:
    stream = await streams.open(key, after)
    try:
        yield Reader(stream)
    finally:
        stream.close()


async def write(lives: Lives, attempt: Attempt, number: int, text: str = "x") -> None:
    assert await lives.events.append([batch(attempt, number, chunk(text))], T0) != [None]


# What this process has appended itself


@pytest.mark.usefixtures("never_polled")
async def test_what_was_appended_here_is_handed_over_without_being_read_again(lives: Lives, hints: Hints) -> None:
    log = Counted(lives.pool)
    streams = Streams(lives.jobs, log, hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)

        async def looked() -> bool:
            return log.reads == 2  # for what the reader had missed, and for what came while it was being registered

        await until(looked)
        for number in (1, 2):
            written = batch(attempt, number, chunk("x"), chunk("y"))
            [head] = await lives.events.append([written], T0)
            assert head is not None
            streams.appended(written, head)
            hints.hint(f"{attempt.job.key.id}:{head}")
        await reader.read(5)
        assert reader.ids == [1, 2, 3, 4, 5]
        assert log.reads == 2


@pytest.mark.usefixtures("never_polled")
async def test_a_hint_may_come_before_what_was_appended_here_is_handed_over(
    lives: Lives, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HINT_DELAY", 0.0)
    log = Counted(lives.pool)
    streams = Streams(lives.jobs, log, hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)

        async def looked() -> bool:
            return log.ended == 2  # as above; from here on nothing is read that nobody asks for

        await until(looked)
        for number in (1, 2, 3):
            written = batch(attempt, number, chunk("x"))
            [head] = await lives.events.append([written], T0)
            assert head is not None
            if number > 1:  # by now the job is known as one of this process
                read = log.reads
                hints.hint(f"{attempt.job.key.id}:{head}")
                for _ in range(5):  # time enough to read it
                    await lives.log(attempt.job.key)
                assert log.reads == read
            streams.appended(written, head)
            await reader.read(head)
        assert reader.ids == [1, 2, 3, 4]


@pytest.mark.usefixtures("never_polled")
async def test_what_another_process_writes_to_a_job_of_this_one_comes_by_its_hint(lives: Lives, hints: Hints) -> None:
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        written = batch(attempt, 1, chunk("x"))
        assert await lives.events.append([written], T0) == [2]
        streams.appended(written, 2)
        await reader.read(2)
        cancelled = await lives.jobs.cancel(attempt.job.key, T0)
        hints.hint(f"{attempt.job.key.id}:{cancelled.head}")
        await reader.rest()
        assert reader.messages[-1].event == "error"


@pytest.mark.usefixtures("never_polled")
async def test_what_is_handed_over_late_or_with_a_gap_before_it_does_no_harm(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        first, second = batch(attempt, 1, chunk("a")), batch(attempt, 2, chunk("b"))
        await lives.events.append([first], T0)
        await lives.events.append([second], T0)
        streams.appended(second, 3)
        await reader.read(3)
        streams.appended(first, 2)
        streams.appended(second, 3)
        await lives.jobs.end([ending(attempt)])
        streams.wake(attempt.job.key)
        await reader.rest()
        assert reader.ids == [1, 2, 3, 4]


# What a reader gets


async def test_a_reader_gets_what_is_there_then_what_comes_and_ends_with_the_final_event(
    lives: Lives, streams: Streams
) -> None:
    attempt = await lives.running()
    await write(lives, attempt, 1)
    async with reading(streams, attempt.job.key) as reader:
        await reader.read(2)
        await write(lives, attempt, 2)
        streams.wake(attempt.job.key)
        await reader.read(3)
        await lives.jobs.end([ending(attempt)])
        streams.wake(attempt.job.key)
        await reader.rest()
    assert [message.event for message in reader.messages] == ["start", "chunk", "chunk", "complete"]
    assert reader.ids == [1, 2, 3, 4]
    assert msgspec.json.decode(reader.messages[1].data)["content"] == "x"


async def test_a_stream_resumes_from_every_cursor_without_gap_or_duplicate(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    for number in range(1, 4):
        await write(lives, attempt, number)
    async with reading(streams, attempt.job.key) as first:
        await first.read(4)
        # The second half is in a ring by now, the first half only in the log.
        for number in range(4, 7):
            await write(lives, attempt, number)
        streams.wake(attempt.job.key)
        await first.read(7)
        await lives.jobs.end([ending(attempt)])
        streams.wake(attempt.job.key)
        for cursor in range(8):
            async with reading(streams, attempt.job.key, cursor) as reader:
                await reader.rest()
            assert reader.ids == list(range(cursor + 1, 9))
        await first.rest()
    assert first.ids == list(range(1, 9))


async def test_two_readers_share_the_encoded_frames(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as one, reading(streams, attempt.job.key) as two:
        await one.read(1)
        await two.read(1)
        await write(lives, attempt, 1)
        streams.wake(attempt.job.key)
        first, second = await anext(one.stream), await anext(two.stream)
    assert first is second or first == second
    assert first.startswith(b"event: chunk\n")


async def test_a_reader_that_stands_on_the_final_event_has_ended(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    await lives.jobs.end([ending(attempt)])
    async with reading(streams, attempt.job.key, 2) as reader:
        assert reader.stream.ended
        await reader.rest()
    assert reader.messages == []


async def test_a_cursor_past_the_head_is_refused(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    with pytest.raises(InvalidCursor) as caught:
        await streams.open(attempt.job.key, 2)
    assert caught.value.past_head


async def test_an_unknown_job_and_a_pruned_log_are_refused(lives: Lives, streams: Streams) -> None:
    with pytest.raises(NotFound):
        await streams.open(JobKey(tenant="default", id=new_id()), 0)
    attempt = await lives.running()
    await lives.jobs.end([ending(attempt)])
    await lives.events.prune(ended_before=at(100), now=at(100))
    with pytest.raises(StreamExpired):
        await streams.open(attempt.job.key, 0)


# Hints


@pytest.mark.usefixtures("never_polled")
async def test_what_is_committed_between_opening_and_the_first_read_is_read(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    stale: Job = await lives.jobs.get(attempt.job.key)
    # The reader knows the job as it was; nobody hints at what came since.
    await write(lives, attempt, 1)
    stream = await streams.open(attempt.job.key, 1, job=stale)
    reader = Reader(stream)
    await reader.read(1)
    stream.close()
    assert reader.ids == [2]


async def test_without_any_hint_the_safety_poll_suffices(
    lives: Lives, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAFETY_POLL", 0.02)
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        for number in range(1, 4):
            await write(lives, attempt, number)
            await reader.read(number + 1)
        await lives.jobs.end([ending(attempt)])
        await reader.rest()
    assert reader.ids == [1, 2, 3, 4, 5]


async def test_a_lost_hint_is_made_good_however_busy_other_jobs_are(
    lives: Lives, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAFETY_POLL", 0.1)
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=30.0)
    quiet, busy = await lives.running(), await lives.running()

    async def keep_busy() -> None:
        while True:
            streams.wake(busy.job)
            await asyncio.sleep(0.001)

    async with (
        in_the_background(streams.run(), keep_busy()),
        reading(streams, quiet.job.key) as reader,
        reading(streams, busy.job.key),
    ):
        await reader.read(1)
        await write(lives, quiet, 1)
        await reader.read(2)
    assert reader.ids == [1, 2]


@pytest.mark.usefixtures("never_polled")
async def test_hints_that_come_twice_late_or_in_another_order_change_nothing(
    lives: Lives, streams: Streams, hints: Hints
) -> None:
    attempt = await lives.running()
    shown = attempt.job.key.id
    async with reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        for number in range(1, 5):
            await write(lives, attempt, number)
        for payload in (f"{shown}:4", f"{shown}:2", f"{shown}:5,{new_id()}:7", f"{shown}:5", f"{shown}:1", ""):
            hints.hint(payload)
        await reader.read(5)
        await lives.jobs.end([ending(attempt)])
        hints.hint(f"{shown}:6")
        hints.hint(f"{shown}:6")
        await reader.rest()
    assert reader.ids == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("never_polled")
async def test_an_empty_hint_means_look_at_all(lives: Lives, streams: Streams, hints: Hints) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        await write(lives, attempt, 1)
        hints.hint("")
        await reader.read(2)


async def test_a_commit_elsewhere_reaches_readers_by_the_listener(lives: Lives, database: Database) -> None:
    listener = Listener(database.connect)
    streams = Streams(lives.jobs, lives.events, listener, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(listener.run(), streams.run()):
        await listener.listening.wait()
        async with reading(streams, attempt.job.key) as reader:
            await reader.read(1)
            await write(lives, attempt, 1)
            await reader.read(2)
    assert reader.ids == [1, 2]


async def test_a_failing_database_is_asked_again(lives: Lives, hints: Hints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAFETY_POLL", 0.02)

    class Flaky(EventStore):
        failures = 3

        async def read(self, cursors: dict[JobKey, int], *, limit: int = 500) -> dict[JobKey, list[Event]]:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("away")
            return await super().read(cursors, limit=limit)

    streams = Streams(lives.jobs, Flaky(lives.pool), hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key, 1) as reader:
        await write(lives, attempt, 1)
        await reader.read(1)


# Much to read


async def test_a_reader_far_behind_the_ring_reads_the_log_and_misses_nothing(
    lives: Lives, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "_RING", 2000)
    monkeypatch.setattr(module, "_ROUND", 7)
    monkeypatch.setattr(tiling, "WRITE", 900)
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as slow, reading(streams, attempt.job.key) as fast:
        await slow.read(1)
        for number in range(1, 11):
            events = [chunk("😀" * 50) for _ in range(5)]
            await lives.events.append([batch(attempt, number, *events)], T0)
            streams.wake(attempt.job.key)
            await fast.read(1 + 5 * number)
        await lives.jobs.end([ending(attempt)])
        streams.wake(attempt.job.key)
        await slow.rest()
        await fast.rest()
    assert slow.ids == fast.ids == list(range(1, 53))


async def told(lives: Lives, attempt: Attempt, number: int, *texts: str) -> None:
    """Write chunks that follow on each other, and on what is there."""
    off = sum(
        utf16_length(msgspec.json.decode(event.body).get("content", "")) for event in await lives.log(attempt.job.key)
    )
    events = []
    for text in texts:
        events.append(chunk(text, off))
        off += utf16_length(text)
    assert await lives.events.append([batch(attempt, number, *events)], T0) != [None]


async def test_a_reader_that_is_behind_gets_adjacent_chunks_as_one(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    await told(lives, attempt, 1, "a", "😀", "c")
    async with reading(streams, attempt.job.key) as reader, reading(streams, attempt.job.key, 2) as other:
        await reader.read(2)
        await other.read(1)
        await told(lives, attempt, 2, "d", "e")
        streams.wake(attempt.job.key)
        await reader.read(3)
        await other.read(2)
    first, second = (msgspec.json.decode(message.data) for message in reader.messages[1:])
    assert (first["from"], first["seq"], first["off"], first["content"]) == (2, 4, 0, "a😀c")
    assert (second["from"], second["seq"], second["off"], second["content"]) == (5, 6, 4, "de")
    assert [msgspec.json.decode(message.data)["from"] for message in other.messages] == [3, 5]


async def test_a_reader_at_the_head_gets_every_chunk_as_it_comes(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        for number, text in enumerate("abc", 1):
            await told(lives, attempt, number, text)
            streams.wake(attempt.job.key)
            await reader.read(1 + number)
    assert reader.ids == [1, 2, 3, 4]
    assert all("from" not in msgspec.json.decode(message.data) for message in reader.messages)


async def test_who_asks_for_it_gets_each_event_in_a_frame_of_its_own(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    await told(lives, attempt, 1, *"abcdef")
    stream = await streams.open(attempt.job.key, 0, compact=False)
    reader = Reader(stream)
    await reader.read(7)
    stream.close()
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7]


async def restarted(lives: Lives) -> Attempt:
    """A job that said "abc", was restarted from "a", and has said "ax" since: events 1 to 6."""
    attempt = await lives.running()
    await told(lives, attempt, 1, *"abc")
    again = NewEvent("attempt", b'{"mode":"restart","keep":1,"reason":"stall"}')
    await lives.events.append([batch(attempt, 2, again, chunk("x", 1))], T0)
    await lives.pool.execute("UPDATE jobs SET attempt = 2 WHERE id = $1", attempt.job.key.id)
    return attempt


@pytest.mark.parametrize(
    ("after", "compact", "spans"),
    [
        (0, None, [(1, 1), (2, 2), (3, 5), (6, 6)]),
        (0, True, [(1, 1), (2, 2), (3, 5), (6, 6)]),
        (2, True, [(3, 5), (6, 6)]),
        (3, True, [(4, 5), (6, 6)]),
        (2, None, [(3, 4), (5, 5), (6, 6)]),
        (0, False, [(number, number) for number in range(1, 7)]),
    ],
)
async def test_what_a_restart_has_voided_is_left_out_and_covered(
    lives: Lives, streams: Streams, after: int, compact: bool | None, spans: list[tuple[int, int]]
) -> None:
    attempt = await restarted(lives)
    stream = await streams.open(attempt.job.key, after, compact=compact)
    reader = Reader(stream)
    await reader.read(len(spans))
    stream.close()
    events = [msgspec.json.decode(message.data) for message in reader.messages]
    assert [(event.get("from", event["seq"]), event["seq"]) for event in events] == spans


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
async def test_what_is_left_out_is_covered_wherever_a_read_ends(
    lives: Lives, streams: Streams, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(one_stream, "_BEHIND", at_a_time)
    monkeypatch.setattr(one_stream, "_FAR_BEHIND", at_a_time)
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as first:  # from here on the ring has it
        await first.read(1)
        await told(lives, attempt, 1, *"abc")
        again = NewEvent("attempt", b'{"mode":"restart","keep":0,"reason":"stall"}')
        await lives.events.append([batch(attempt, 2, again)], T0)
        await lives.pool.execute("UPDATE jobs SET attempt = 2 WHERE id = $1", attempt.job.key.id)
        streams.wake(attempt.job.key)
        while first.ids[-1] < 5:
            await first.read(len(first.ids) + 1)
        async with reading(streams, attempt.job.key) as second:
            await second.read(2)
    assert [msgspec.json.decode(message.data).get("from") for message in second.messages] == [None, 2]
    assert second.ids == [1, 5]


async def test_a_stream_may_begin_at_the_head(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    await told(lives, attempt, 1, "a")
    stream = await streams.open(attempt.job.key, None)
    reader = Reader(stream)
    await told(lives, attempt, 2, "b")
    streams.wake(attempt.job.key)
    await reader.read(1)
    stream.close()
    assert reader.ids == [3]


async def test_a_reader_that_is_behind_keeps_one_write_in_memory_and_no_more(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    await lives.events.append([batch(attempt, 1, *[chunk("x" * 10_000) for _ in range(60)])], T0)
    async with reading(streams, attempt.job.key) as reader:
        block = await anext(reader.stream)
        held = [value for value in vars(reader.stream).values() if isinstance(value, list | bytes)]
    assert len(block) <= 16 * 1024
    assert held == []


async def test_text_so_far_is_what_readers_see(lives: Lives, streams: Streams) -> None:
    attempt = await restarted(lives)
    assert await streams.text(await lives.jobs.get(attempt.job.key)) == "ax"


async def test_one_write_is_bounded_and_holds_at_least_one_frame(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    small = [chunk("x" * 1000) for _ in range(40)]
    await lives.events.append([batch(attempt, 1, *small, chunk("y" * 100_000))], T0)
    await lives.jobs.end([ending(attempt)])
    async with reading(streams, attempt.job.key) as reader:
        sizes = [len(block) async for block in reader.stream]
    assert max(sizes[:-2]) <= 16 * 1024
    assert sum(size > 100_000 for size in sizes) == 1
    assert len(sizes) == 5


# Readers that are told what comes


async def append(lives: Lives, streams: Streams, attempt: Attempt, number: int, text: str = "x") -> None:
    written = batch(attempt, number, chunk(text, number - 1))
    [head] = await lives.events.append([written], T0)
    assert head is not None
    streams.appended(written, head)


async def test_a_reader_at_the_head_is_told_what_comes_and_its_task_is_left_alone(
    lives: Lives, streams: Streams
) -> None:
    attempt = await lives.running()
    connection = Connection()
    stream = await streams.open(attempt.job.key, 1)
    stream.tell = connection.write
    reading = asyncio.ensure_future(collect(stream))
    await until_waiting(stream)
    waiting = stream._waiting
    for number in (1, 2, 3):
        await append(lives, streams, attempt, number)
    assert len(connection.told) == 3
    assert stream._waiting is waiting
    await lives.jobs.end([ending(attempt)])
    streams.wake(attempt.job.key)
    assert await reading == [b""]
    stream.close()

    assert connection.spans == [(2, 2), (3, 3), (4, 4), (5, 5)]


async def test_a_reader_that_was_full_gets_the_rest_from_where_it_left_off(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    connection = Connection(room=1)
    stream = await streams.open(attempt.job.key, 1)
    stream.tell = connection.write
    waiting = asyncio.ensure_future(anext(stream))
    await until_waiting(stream)
    for number in (1, 2, 3):
        await append(lives, streams, attempt, number)
    assert await waiting == b""
    rest = await anext(stream)
    stream.close()

    assert connection.spans == [(2, 2)]
    [message] = sse.Parser().feed(rest)
    assert (message.id, msgspec.json.decode(message.data)["from"]) == ("4", 3)


async def test_a_reader_that_has_to_look_while_more_comes_is_told_nothing_twice(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    connection = Connection()
    stream = await streams.open(attempt.job.key, 1)
    stream.tell = connection.write
    waiting = asyncio.ensure_future(anext(stream))
    await until_waiting(stream)
    stream.look()
    await append(lives, streams, attempt, 1)
    assert await waiting == b""
    connection.write(await anext(stream))
    stream.close()

    assert connection.spans == [(2, 2)]


async def test_a_reader_that_was_told_much_for_long_comes_back_all_the_same(lives: Lives, hints: Hints) -> None:
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=0.05)
    streams.silence = 3600.0  # so much is told that no beat wakes it
    attempt = await lives.running()
    async with in_the_background(streams.run()):
        stream = await streams.open(attempt.job.key, 1)
        stream.tell = lambda _: True
        reading = asyncio.ensure_future(collect(stream))
        await until_waiting(stream)
        stream.until = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            *_, last = await reading
        stream.close()
    assert last.startswith(b"retry: ")


async def test_a_reader_that_leaves_is_told_no_more(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    connection = Connection()
    stream = await streams.open(attempt.job.key, 1)
    stream.tell = connection.write
    reading = asyncio.ensure_future(collect(stream))
    await until_waiting(stream)
    stream.leave()
    assert await reading == [b""]
    await append(lives, streams, attempt, 1)
    stream.close()
    assert connection.told == []


async def collect(stream: Stream) -> list[bytes]:
    return [block async for block in stream]


async def until_waiting(stream: Stream) -> None:
    """Return once a reader has everything, and its task waits."""
    async with asyncio.timeout(8):
        while stream._waiting is None or stream._waiting.done():  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.001)


# Ends


async def test_silence_is_broken_by_heartbeats(lives: Lives, hints: Hints) -> None:
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=0.01)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        assert [await anext(reader.stream) for _ in range(2)] == [sse.HEARTBEAT] * 2
        await lives.jobs.end([ending(attempt)])
        streams.wake(attempt.job.key)
        await reader.rest()
    assert reader.ids == [1, 2]


async def test_draining_ends_all_streams_with_a_wish_when_to_come_back(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as reader, reading(streams, attempt.job.key) as other:
        await reader.read(1)
        waiting = asyncio.ensure_future(anext(reader.stream))
        await asyncio.sleep(0)
        streams.drain()
        last = await waiting
        assert sse.Parser().feed(last) == []
        assert last.startswith(b"retry: ")
        assert [block async for block in reader.stream] == []
        await other.rest()
        assert other.messages == []


async def test_a_connection_ends_when_it_is_old_and_its_reader_comes_back(
    lives: Lives, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await lives.running()
    with monkeypatch.context() as brief:
        brief.setattr(one_stream, "_AGE", 0.0)
        async with reading(streams, attempt.job.key) as old:
            first, last = [block async for block in old.stream]
    assert last.startswith(b"retry: ")
    [message] = sse.Parser().feed(first)
    await write(lives, attempt, 1)
    async with reading(streams, attempt.job.key, int(message.id)) as young:
        await young.read(1)
    assert young.ids == [2]


async def test_a_database_that_is_away_ends_a_stream_properly(lives: Lives, hints: Hints) -> None:
    class Away(EventStore):
        async def history(self, key: JobKey, after: int, *, limit: int) -> list[Event]:
            raise ConnectionError("away")

    streams = Streams(lives.jobs, Away(lives.pool), hints, heartbeat=30.0)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        last = [block async for block in reader.stream]
    assert [block.startswith(b"retry: ") for block in last] == [True]


async def test_a_write_that_takes_too_long_is_let_go(
    lives: Lives, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STUCK", 0.02)
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=30.0)
    attempt = await lives.running()
    async with (
        in_the_background(streams.run()),
        reading(streams, attempt.job.key) as stuck,
        reading(streams, attempt.job.key) as well,
    ):
        gone = asyncio.Event()
        stuck.stream.let_go = gone.set
        well.stream.let_go = lambda: pytest.fail("this one writes nothing")
        stuck.stream.writing_since = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await gone.wait()


Deletion = Callable[[Lives, JobKey], Awaitable[object]]


async def erase(lives: Lives, key: JobKey) -> None:
    await lives.jobs.erase(key, at(10))


async def prune(lives: Lives, key: JobKey) -> None:
    await lives.events.prune(ended_before=at(100), now=at(100))


@pytest.mark.parametrize("delete", [erase, prune])
async def test_a_stream_whose_events_are_deleted_before_it_saw_the_end_ends(
    lives: Lives, hints: Hints, delete: Deletion
) -> None:
    streams = Streams(lives.jobs, lives.events, hints, heartbeat=0.05)
    attempt = await lives.running()
    async with in_the_background(streams.run()), reading(streams, attempt.job.key) as reader:
        await reader.read(1)
        await lives.jobs.cancel(attempt.job.key, at(1))
        await delete(lives, attempt.job.key)
        await reader.rest()
    assert reader.ids in ([1], [1, 2])


async def test_a_reader_behind_the_ring_ends_at_once_when_its_events_are_deleted(
    lives: Lives, streams: Streams
) -> None:
    attempt = await lives.running()
    await write(lives, attempt, 1)
    async with reading(streams, attempt.job.key) as reader:
        await lives.jobs.cancel(attempt.job.key, at(1))
        await erase(lives, attempt.job.key)
        await reader.rest()
    assert reader.messages == []


async def test_what_nobody_follows_is_forgotten(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    async with reading(streams, attempt.job.key) as one:
        async with reading(streams, attempt.job.key):
            pass
        one.stream.close()
        assert streams._tails == {}
        assert streams._by_id == {}
    one.stream.close()


# Waiting for the end


async def test_who_waits_for_the_end_is_answered_when_it_comes(lives: Lives, streams: Streams) -> None:
    attempt = await lives.running()
    waiting = asyncio.ensure_future(streams.wait_for_end(attempt.job.key, 8))
    await write(lives, attempt, 1)
    streams.wake(attempt.job.key)
    assert not waiting.done()
    await lives.jobs.end([ending(attempt, State.FAILED, events=(NewEvent("error", b"{}"),))])
    streams.wake(attempt.job.key)
    await waiting
    assert (await lives.jobs.get(attempt.job.key)).state == State.FAILED


async def test_who_waits_for_an_end_that_was_or_does_not_come_is_answered_too(lives: Lives, streams: Streams) -> None:
    ended, running = await lives.running(), await lives.running()
    await lives.jobs.end([ending(ended)])
    await streams.wait_for_end(ended.job.key, 3600)
    await streams.wait_for_end(running.job.key, 0.01)
    with pytest.raises(NotFound):
        await streams.wait_for_end(JobKey(tenant="red", id=running.job.key.id), 1)

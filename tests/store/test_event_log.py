"""The log: dense, fenced, written once, and readable from every cursor."""

import asyncio
from datetime import timedelta

import msgspec
import pytest
from lives import T0, Lives, at, at_once, batch, chunk, ending, new_job, requeue

from tramontane import queue
from tramontane.database import Database
from tramontane.ids import new_id
from tramontane.models import Attempt, Batch, JobKey, NewEvent


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


@pytest.fixture(autouse=True)
async def worker(lives: Lives) -> None:
    await lives.worker(slots=1000)


async def test_appended_events_follow_the_start_in_order(lives: Lives) -> None:
    attempt = await lives.running()
    assert await lives.events.append([batch(attempt, 1, chunk("a"), chunk("b"))], T0) == [3]
    assert await lives.events.append([batch(attempt, 2, chunk("c"))], T0) == [4]
    log = await lives.log(attempt.job.key)
    assert [(event.seq, event.attempt, event.type) for event in log] == [
        (1, 1, "start"),
        (2, 1, "chunk"),
        (3, 1, "chunk"),
        (4, 1, "chunk"),
    ]
    assert [msgspec.json.decode(event.body)["content"] for event in log[1:]] == ["a", "b", "c"]
    assert (await lives.jobs.get(attempt.job.key)).head == 4


async def test_a_body_comes_back_byte_for_byte(lives: Lives) -> None:
    attempt = await lives.running()
    bodies = [
        b'{"content":"a\\u0000b"}',
        '{"content":"😀 \\ud83d\\ude00 é"}'.encode(),
        b'{ "b" : 1.0, "a":1e2, "b":2 }',
        b'{"content":""}',
        b"{}",
        b'{"content":"%s"}' % (b"x" * 2**20),
    ]
    await lives.events.append([batch(attempt, 1, *(NewEvent("chunk", body) for body in bodies))], T0)
    assert [event.body for event in await lives.log(attempt.job.key, 1)] == bodies


async def test_events_are_readable_from_every_cursor(lives: Lives) -> None:
    attempt = await lives.running()
    for number in range(1, 6):
        await lives.events.append([batch(attempt, number, chunk("a"), chunk("b"))], T0)
    key = attempt.job.key
    for cursor in range(12):
        assert [event.seq for event in await lives.log(key, cursor)] == list(range(cursor + 1, 12))
        few = (await lives.events.read({key: cursor}, limit=3)).get(key, [])
        assert [event.seq for event in few] == list(range(cursor + 1, 12))[:3]


async def test_one_read_follows_several_jobs_each_from_its_own_cursor(lives: Lives) -> None:
    first, second, third = [await lives.running() for _ in range(3)]
    await lives.events.append([batch(one, 1, chunk("a"), chunk("b")) for one in (first, second, third)], T0)
    events = await lives.events.read({first.job.key: 0, second.job.key: 2, third.job.key: 3})
    assert {key: [event.seq for event in read] for key, read in events.items()} == {
        first.job.key: [1, 2, 3],
        second.job.key: [3],
    }


async def test_one_statement_appends_for_many_jobs_and_refuses_only_those_that_lost(lives: Lives) -> None:
    good, ended, requeued = [await lives.running() for _ in range(3)]
    await lives.jobs.end([ending(ended)])
    await lives.jobs.requeue(requeue(requeued, at(60)), T0)
    unknown = Batch(key=JobKey(tenant="default", id=new_id()), attempt=1, number=1, events=(chunk("x"),))
    heads = await lives.events.append(
        [batch(ended, 1, chunk("x")), batch(good, 1, chunk("y")), unknown, batch(requeued, 1, chunk("z"))], T0
    )
    assert heads == [None, 2, None, None]
    assert await lives.types(ended.job.key) == ["start", "complete"]
    assert await lives.types(requeued.job.key) == ["start"]


async def test_a_zombie_writes_nothing_once_another_attempt_runs(lives: Lives) -> None:
    zombie = await lives.running()
    await lives.take_over(zombie)
    await lives.limits.admit(at(1))
    live = await lives.start(zombie.job.key, now=at(1))
    assert await lives.events.append([batch(zombie, 1, chunk("old"))], at(1)) == [None]
    assert await lives.events.append([batch(live, 1, chunk("new"))], at(1)) == [2]
    assert await lives.types(live.job.key) == ["start", "chunk"]


async def test_two_attempts_of_one_job_in_one_append_are_told_apart(lives: Lives) -> None:
    zombie = await lives.running()
    await lives.take_over(zombie)
    await lives.limits.admit(at(1))
    live = await lives.start(zombie.job.key, now=at(1))
    other = await lives.running()
    heads = await lives.events.append(
        [batch(zombie, 1, chunk("old")), batch(live, 1, chunk("new")), batch(other, 1, chunk("x"))], at(1)
    )
    assert heads == [None, 2, 2]
    assert (await lives.last_body(live.job.key))["content"] == "new"


async def test_a_batch_repeated_after_an_unknown_commit_is_written_once_and_accepted(lives: Lives) -> None:
    attempt = await lives.running()
    first = batch(attempt, 1, chunk("a"), chunk("b"))
    assert await lives.events.append([first], T0) == [3]
    assert await lives.events.append([first], T0) == [3]
    assert await lives.types(attempt.job.key) == ["start", "chunk", "chunk"]


async def test_a_batch_that_skips_a_number_is_refused(lives: Lives) -> None:
    attempt = await lives.running()
    assert await lives.events.append([batch(attempt, 2, chunk("b"))], T0) == [None]


async def test_batches_of_a_new_attempt_count_from_one_again(lives: Lives) -> None:
    first = await lives.running()
    await lives.events.append([batch(first, 1, chunk("a"))], T0)
    await lives.jobs.requeue(requeue(first, T0), T0)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    assert await lives.events.append([batch(second, 1, chunk("b"))], T0) == [3]


async def test_concurrent_writers_of_many_jobs_leave_dense_logs(lives: Lives) -> None:
    attempts = [await lives.running() for _ in range(8)]

    async def write(order: int) -> None:
        # Each writer brings the same batches, in another order: what was there first stays, the rest is a repeat.
        for number in range(1, 11):
            batches = [batch(one, number, chunk(f"{number}")) for one in attempts]
            batches = batches[order:] + batches[:order]
            assert await lives.events.append(batches, T0) == [number + 1] * 8

    barrier = [write(order) for order in range(0, 8, 2)]
    outcomes = await at_once(list(barrier))
    # A writer that was overtaken by two numbers finds a later head than it asked for; nothing else may happen.
    assert all(outcome is None or isinstance(outcome, AssertionError) for outcome in outcomes)
    for attempt in attempts:
        log = await lives.log(attempt.job.key)
        assert [event.seq for event in log] == list(range(1, 12))
        assert [msgspec.json.decode(event.body)["content"] for event in log[1:]] == [str(n) for n in range(1, 11)]


async def test_a_hint_names_the_job_and_its_head_and_comes_after_the_commit(
    lives: Lives, any_database: Database
) -> None:
    attempt = await lives.running()
    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await any_database.connect()
    try:
        await connection.add_listener("tramontane_events", lambda *call: heard.put_nowait(call[3]))
        await lives.events.append([batch(attempt, 1, chunk("a"))], T0)
        async with asyncio.timeout(5):
            assert await heard.get() == f"{attempt.job.key.id}:2"
    finally:
        await connection.close()


async def test_a_hint_for_three_hundred_jobs_is_an_empty_one(lives: Lives, any_database: Database) -> None:
    jobs = await lives.submit(*(new_job() for _ in range(300)))
    by_key = {key: entry_id for entry_id, _, key in await lives.entries()}
    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await any_database.connect()
    try:
        await connection.add_listener("tramontane_events", lambda *call: heard.put_nowait(call[3]))
        started = await lives.jobs.start(
            [queue.Entry(by_key[job.key], job.key) for job in jobs], worker_id=lives.worker_id, now=T0
        )
        attempts = [one for one in started if isinstance(one, Attempt)]
        assert len(attempts) == 300
        assert await lives.events.append([batch(one, 1, chunk("a")) for one in attempts], T0) == [2] * 300
        await lives.jobs.end([ending(one) for one in attempts])
        async with asyncio.timeout(5):
            assert [await heard.get() for _ in range(3)] == ["", "", ""]
    finally:
        await connection.close()


async def test_pruning_takes_old_logs_and_keeps_what_lives(lives: Lives) -> None:
    old, young, running = [await lives.running() for _ in range(3)]
    await lives.jobs.end([ending(old, at=at(0)), ending(young, at=at(100))])
    assert await lives.events.prune(ended_before=at(50), now=at(60)) == 1
    assert await lives.log(old.job.key) == []
    assert (await lives.jobs.get(old.job.key)).events_pruned_at == at(60)
    assert (await lives.jobs.contents(old.job.key)).result == b'{"content":"Hi"}'
    assert await lives.types(young.job.key) == ["start", "complete"]
    assert await lives.types(running.job.key) == ["start"]
    assert await lives.events.prune(ended_before=at(50), now=at(61)) == 0


async def test_pruning_takes_small_bites_oldest_first(lives: Lives) -> None:
    attempts = [await lives.running() for _ in range(5)]
    await lives.jobs.end([ending(one, at=T0 + timedelta(seconds=n)) for n, one in enumerate(attempts)])
    assert await lives.events.prune(ended_before=at(100), now=at(100), limit=3) == 3
    assert [bool(await lives.log(one.job.key)) for one in attempts] == [False, False, False, True, True]
    assert await lives.events.prune(ended_before=at(100), now=at(100), limit=3) == 2

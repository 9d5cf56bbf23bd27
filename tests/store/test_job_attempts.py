"""Start, end and requeue: each attempt is fenced by its number, and what belongs together is written together."""

import asyncio
import dataclasses
from typing import Any

import asyncpg
import msgspec
import pytest
from lives import T0, UNAVAILABLE, Lives, at, at_once, batch, chunk, ending, new_job, requeue

from tramontane import queue
from tramontane.database import Database
from tramontane.errors import AttemptLost, NotFound
from tramontane.ids import new_id
from tramontane.models import Attempt, Failure, JobKey, NewEvent, Past, State
from tramontane.store import JobStore


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


@pytest.fixture(autouse=True)
async def worker(lives: Lives) -> None:
    await lives.worker(slots=1000)


async def refused(lives: Lives, *args: Any, **fields: Any) -> bool:
    [outcome] = await lives.jobs.end([ending(*args, **fields)])
    return isinstance(outcome, AttemptLost)


# Start


async def test_a_start_raises_the_fence_and_opens_the_log(lives: Lives) -> None:
    [job] = await lives.submit(new_job(request_id='a "b" \\ é', model="mistral-large"))
    attempt = await lives.start(job.key, now=at(1))
    assert (attempt.job.state, attempt.job.attempt, attempt.job.head) == (State.RUNNING, 1, 1)
    assert attempt.job.started_at == at(1)
    assert attempt.request == b'{"model":"mistral-small-latest","messages":[{"role":"user","content":"Hello!"}]}'
    assert await lives.types(job.key) == ["start"]
    assert await lives.last_body(job.key) == {
        "status": "started",
        "requestId": 'a "b" \\ é',
        "model": "mistral-large",
        "timestamp": "2026-11-22T06:46:01.000Z",
    }
    [record] = await lives.jobs.attempts(job.key)
    assert (record.attempt, record.outcome, record.started_at, record.ended_at) == (1, "running", at(1), None)


async def test_fifty_claimers_of_one_admission_start_one_attempt(lives: Lives) -> None:
    [job] = await lives.submit(new_job(attempts=100))
    entry = await lives.entry_of(job.key)
    other_entry = queue.Entry(entry.id + 1000, job.key)
    claims = [other_entry] * 49
    claims.insert(17, entry)
    stores = [JobStore(lives.pool) for _ in claims]
    outcomes = await at_once(
        [store.start([claim], worker_id=new_id(), now=T0) for store, claim in zip(stores, claims, strict=True)]
    )
    started = [attempt for [attempt] in outcomes if attempt is not None]
    assert len(started) == 1
    assert (await lives.jobs.get(job.key)).attempt == 1
    assert await lives.types(job.key) == ["start"]


async def test_one_admission_is_good_for_one_start(lives: Lives) -> None:
    attempt = await lives.running()
    await lives.jobs.requeue(requeue(attempt, T0), T0)
    stray = queue.Entry(attempt.entry_id, attempt.job.key)
    assert await lives.jobs.start([stray], worker_id=new_id(), now=T0) == [None]
    assert (await lives.jobs.get(attempt.job.key)).state == State.QUEUED


async def test_a_stray_entry_of_a_running_job_goes_and_its_attempt_runs_on(lives: Lives) -> None:
    attempt = await lives.running()
    stray = queue.Entry(attempt.entry_id + 1000, attempt.job.key)
    assert await lives.jobs.start([stray], worker_id=new_id(), now=T0) == [None]
    assert (await lives.jobs.get(attempt.job.key)).state == State.RUNNING
    assert [entry for entry, _, _ in await lives.entries()] == [attempt.entry_id]


async def test_a_group_of_starts_begins_those_that_may(lives: Lives) -> None:
    first, second, ended = await lives.submit(new_job(), new_job(), new_job())
    entries = [await lives.entry_of(job.key) for job in (first, ended, second)]
    await lives.jobs.cancel(ended.key, T0)
    outcomes = await lives.jobs.start(entries, worker_id=lives.worker_id, now=T0)
    keys = [one.job.key if isinstance(one, Attempt) else one for one in outcomes]
    assert keys == [first.key, None, second.key]
    assert sorted(entry for entry, _, _ in await lives.entries()) == sorted([entries[0].id, entries[2].id])


async def test_an_entry_that_cannot_be_cleared_stays_and_disturbs_no_start_beside_it(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    [good, ended] = await lives.submit(new_job(), new_job())
    entries = [await lives.entry_of(job.key) for job in (good, ended)]
    await lives.jobs.cancel(ended.key, T0)

    async def fail(*_: object) -> None:
        raise ConnectionError("the wire is cut")

    with monkeypatch.context() as patch:
        patch.setattr(queue, "remove", fail)
        [attempt, error] = await lives.jobs.start(entries, worker_id=lives.worker_id, now=T0)
    assert isinstance(attempt, Attempt)
    assert isinstance(error, ConnectionError), "for the worker to leave the entry alone"
    assert [entry_id for entry_id, _, _ in await lives.entries()] == [entry.id for entry in entries]
    assert await lives.jobs.start(entries[1:], worker_id=lives.worker_id, now=T0) == [None]


@pytest.mark.parametrize("fate", ["ended", "erased", "unknown"])
async def test_an_entry_of_a_job_that_is_over_is_removed_and_runs_nothing(lives: Lives, fate: str) -> None:
    [job] = await lives.submit()
    entry = await lives.entry_of(job.key)
    await lives.jobs.cancel(job.key, T0)
    if fate == "erased":
        await lives.jobs.erase(job.key, T0)
    if fate == "unknown":
        await lives.pool.execute("DELETE FROM jobs")
    assert await lives.jobs.start([entry], worker_id=new_id(), now=T0) == [None]
    assert await lives.entries() == []


async def test_a_taken_over_job_counts_as_crashed_and_waits_for_admission_without_its_old_entry(lives: Lives) -> None:
    attempt = await lives.running()
    await lives.take_over(attempt, now=at(20))
    job = await lives.jobs.get(attempt.job.key)
    assert (job.state, job.attempt, job.failures, job.run_at) == (State.QUEUED, 1, 1, at(20))
    assert job.admitted_at is None
    assert await lives.entries() == []
    [record] = await lives.jobs.attempts(job.key)
    assert (record.outcome, record.ended_at) == ("lost", at(20))
    assert record.failure is not None
    assert record.failure.code == "interrupted"


async def test_a_take_over_wakes_admission(lives: Lives, any_database: Database) -> None:
    attempt = await lives.running()
    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await any_database.connect()
    try:
        await connection.add_listener("tramontane_admission", lambda *call: heard.put_nowait(call[3]))
        await lives.take_over(attempt)
        async with asyncio.timeout(5):
            assert await heard.get() == ""
    finally:
        await connection.close()


async def test_a_later_attempt_is_told_what_the_earlier_ones_have_left_and_says_nothing_by_itself(lives: Lives) -> None:
    first = await lives.running()
    told = (chunk("half"), NewEvent("tool", b"{}"), NewEvent("attempt", b'{"mode":"restart","keep":2}'))
    await lives.events.append([batch(first, 1, *told)], T0)
    await lives.take_over(first)
    await lives.limits.admit(at(1))
    second = await lives.start(first.job.key, now=at(1))
    assert (second.job.attempt, second.job.started_at) == (2, T0)
    start, *left = await lives.log(first.job.key)
    assert (start.type, second.job.head, first.past) == ("start", 4, None)
    assert [event.type for event in left] == ["chunk", "tool", "attempt"]
    assert second.past == Past(reason="worker_lost", events=tuple(left), usages=(), unreported=1)


@pytest.mark.parametrize(("failure", "reason"), [(UNAVAILABLE, "upstream"), (None, "handover")])
async def test_the_reason_of_an_attempt_is_how_the_one_before_it_ended(
    lives: Lives, failure: Failure | None, reason: str
) -> None:
    first = await lives.running()
    await lives.jobs.requeue(requeue(first, T0, failure), T0)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    assert second.past is not None
    assert second.past.reason == reason


async def test_usage_is_kept_by_attempt_and_summed_up_when_the_last_worker_is_lost(lives: Lives) -> None:
    first = await lives.running(attempts=2)
    given = dataclasses.replace(requeue(first, T0), usage='{"total_tokens": 5}')
    await lives.jobs.requeue(given, T0)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    assert second.past == Past(reason="upstream", usages=(b'{"total_tokens": 5}',), unreported=0)
    await lives.take_over(second)
    job = await lives.jobs.get(first.job.key)
    assert (job.state, job.usage) == (State.FAILED, '{"total_tokens": 5}')
    records = await lives.jobs.attempts(job.key)
    assert [(record.usage, record.unreported) for record in records] == [('{"total_tokens": 5}', False), (None, True)]


async def test_whether_a_job_is_resumed_is_the_jobs_own(lives: Lives) -> None:
    [job, other] = await lives.submit(new_job(resume="never"), new_job())
    assert (job.resume, other.resume) == ("never", "auto")
    assert (await lives.jobs.get(job.key)).resume == "never"


async def test_a_job_that_crashes_its_workers_fails_after_its_attempts(lives: Lives) -> None:
    [job] = await lives.submit(new_job(attempts=2))
    first = await lives.start(job.key)
    await lives.take_over(first, now=at(10))
    await lives.limits.admit(at(10))
    second = await lives.start(job.key, now=at(10))
    await lives.events.append([batch(second, 1, chunk("so far 😀"))], at(11))
    entry = queue.Entry(second.entry_id, second.job.key)
    [outcome] = await lives.jobs.start([entry], worker_id=new_id(), now=at(20))
    job = await lives.jobs.get(second.job.key)
    assert outcome == job, "whoever has ended it is told"
    assert (job.state, job.failures, job.completed_at) == (State.FAILED, 2, at(20))
    assert job.failure is not None
    assert (job.failure.code, job.failure.retryable) == ("interrupted", True)
    assert await lives.types(job.key) == ["start", "chunk", "error"]
    body = await lives.last_body(job.key)
    assert (body["code"], body["partial"], body["len"], body["final"]) == ("interrupted", True, 9, True)
    assert [record.outcome for record in await lives.jobs.attempts(job.key)] == ["lost", "failed"]
    assert await lives.entries() == []


# End


async def test_an_ending_writes_state_result_events_and_entry_together(lives: Lives) -> None:
    attempt = await lives.running()
    rest = (chunk("last"), NewEvent("complete", b'{"totalTokens":1}'))
    done = ending(attempt, events=rest, result=b'{"b":1.0, "a":2}', usage='{"total_tokens": 7}', correlation_id="c-1")
    [job] = await lives.jobs.end([done])
    assert not isinstance(job, AttemptLost)
    assert job == await lives.jobs.get(attempt.job.key)
    assert (job.state, job.head, job.failures, job.completed_at) == (State.COMPLETED, 3, 0, at(9))
    assert job.usage == '{"total_tokens": 7}'
    assert (await lives.jobs.contents(job.key)).result == b'{"b":1.0, "a":2}'
    assert await lives.types(job.key) == ["start", "chunk", "complete"]
    assert await lives.entries() == []
    [record] = await lives.jobs.attempts(job.key)
    assert (record.outcome, record.ended_at, record.correlation_id) == ("completed", at(9), "c-1")


async def test_a_failure_is_kept_with_the_job_and_its_attempt(lives: Lives) -> None:
    attempt = await lives.running()
    [job] = await lives.jobs.end([ending(attempt, State.FAILED)])
    assert not isinstance(job, AttemptLost)
    assert (job.state, job.failures, job.failure) == (State.FAILED, 1, UNAVAILABLE)
    [record] = await lives.jobs.attempts(job.key)
    assert (record.outcome, record.failure) == ("failed", UNAVAILABLE)
    assert (await lives.jobs.contents(job.key)).result is None


async def test_a_group_of_endings_ends_those_that_hold_their_fence(lives: Lives) -> None:
    attempts = [await lives.running() for _ in range(4)]
    await lives.jobs.cancel(attempts[1].job.key, T0)
    outcomes = await lives.jobs.end(
        [
            ending(attempts[0], result=b'{"n":0}'),
            ending(attempts[1]),
            ending(attempts[2], State.FAILED, events=(chunk("x"), chunk("y"), NewEvent("error", b"{}"))),
            ending(attempts[3], result=b'{"n":3}'),
        ]
    )
    assert [isinstance(one, AttemptLost) for one in outcomes] == [False, True, False, False]
    assert (await lives.jobs.contents(attempts[0].job.key)).result == b'{"n":0}'
    assert (await lives.jobs.contents(attempts[3].job.key)).result == b'{"n":3}'
    assert await lives.types(attempts[2].job.key) == ["start", "chunk", "chunk", "error"]
    assert await lives.types(attempts[1].job.key) == ["start", "error"]
    assert [key for _, _, key in await lives.entries()] == [attempts[1].job.key]


async def test_a_repeated_end_finds_itself_and_writes_nothing_twice(lives: Lives) -> None:
    attempt = await lives.running()
    [first] = await lives.jobs.end([ending(attempt)])
    assert await lives.jobs.end([ending(attempt)]) == [first]
    assert await lives.types(attempt.job.key) == ["start", "complete"]


async def test_an_end_after_a_cancel_is_lost_and_changes_nothing(lives: Lives) -> None:
    attempt = await lives.running()
    cancelled = await lives.jobs.cancel(attempt.job.key, at(3))
    assert await refused(lives, attempt)
    assert await lives.jobs.get(attempt.job.key) == cancelled
    assert await lives.types(attempt.job.key) == ["start", "error"]
    assert (await lives.jobs.contents(attempt.job.key)).result is None
    assert len(await lives.entries()) == 1


async def test_an_end_after_a_take_over_is_lost_even_while_the_next_attempt_runs(lives: Lives) -> None:
    zombie = await lives.running()
    await lives.take_over(zombie)
    assert await refused(lives, zombie)
    await lives.limits.admit(at(1))
    live = await lives.start(zombie.job.key, now=at(1))
    assert await refused(lives, zombie)
    assert (await lives.jobs.get(live.job.key)).state == State.RUNNING
    assert [entry for entry, _, _ in await lives.entries()] == [live.entry_id]
    assert not await refused(lives, live)


async def test_two_attempts_of_one_job_in_one_group_of_endings_are_told_apart(lives: Lives) -> None:
    zombie = await lives.running()
    await lives.take_over(zombie)
    await lives.limits.admit(at(1))
    live = await lives.start(zombie.job.key, now=at(1))
    old, new = await lives.jobs.end(
        [ending(zombie, State.FAILED), ending(live, result=b'{"of":"the living"}')],
    )
    assert isinstance(old, AttemptLost)
    assert not isinstance(new, AttemptLost)
    assert new.state == State.COMPLETED
    assert (await lives.jobs.contents(live.job.key)).result == b'{"of":"the living"}'
    assert await lives.types(live.job.key) == ["start", "complete"]


async def test_a_connection_killed_in_the_middle_of_an_ending_leaves_all_as_it_was(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await lives.running()
    remove = queue.remove

    async def kill_first(connection: Any, entry_ids: Any) -> None:
        # All is written, nothing is committed.
        assert await connection.fetchval("SELECT state FROM jobs") == "completed"
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        await lives.pool.execute("SELECT pg_terminate_backend($1)", backend)
        await remove(connection, entry_ids)

    with monkeypatch.context() as patch:
        patch.setattr(queue, "remove", kill_first)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await lives.jobs.end([ending(attempt)])
    assert (await lives.jobs.get(attempt.job.key)).state == State.RUNNING
    assert await lives.types(attempt.job.key) == ["start"]
    assert len(await lives.entries()) == 1
    [job] = await lives.jobs.end([ending(attempt)])
    assert not isinstance(job, AttemptLost)
    assert (job.state, job.head) == (State.COMPLETED, 2)


# Requeue


async def test_a_failed_attempt_waits_until_its_time_and_its_entry_goes(lives: Lives) -> None:
    attempt = await lives.running()
    job = await lives.jobs.requeue(requeue(attempt, at(20)), at(2))
    assert (job.state, job.failures, job.run_at, job.admitted_at) == (State.QUEUED, 1, at(20), None)
    assert await lives.entries() == []
    [record] = await lives.jobs.attempts(job.key)
    assert (record.outcome, record.ended_at, record.failure) == ("failed", at(2), UNAVAILABLE)
    assert (await lives.limits.admit(at(19.9))).admitted == ()
    assert (await lives.limits.admit(at(20))).admitted == (job.key,)


async def test_a_hand_over_is_no_failure_and_may_run_at_once(lives: Lives) -> None:
    attempt = await lives.running()
    job = await lives.jobs.requeue(requeue(attempt, at(2), None), at(2))
    assert (job.state, job.failures, job.failure) == (State.QUEUED, 0, None)
    assert [record.outcome for record in await lives.jobs.attempts(job.key)] == ["handover"]
    assert (await lives.limits.admit(at(2))).admitted == (job.key,)


async def test_a_requeue_of_a_lost_attempt_is_refused_and_changes_nothing(lives: Lives) -> None:
    attempt = await lives.running()
    cancelled = await lives.jobs.cancel(attempt.job.key, T0)
    with pytest.raises(AttemptLost):
        await lives.jobs.requeue(requeue(attempt, at(1)), T0)
    assert await lives.jobs.get(attempt.job.key) == cancelled
    assert len(await lives.entries()) == 1


# Tenants


async def test_no_verb_finds_another_tenants_job(lives: Lives) -> None:
    attempt = await lives.running(tenant="blue")
    theirs = JobKey(tenant="red", id=attempt.job.key.id)
    for verb in (lives.jobs.get, lives.jobs.contents):
        with pytest.raises(NotFound):
            await verb(theirs)
    for ask in (lives.jobs.cancel, lives.jobs.erase):
        with pytest.raises(NotFound):
            await ask(theirs, T0)
    assert await lives.jobs.attempts(theirs) == []
    assert await lives.log(theirs) == []
    assert await refused(lives, attempt, key=theirs)
    assert await lives.events.append([msgspec.structs.replace(batch(attempt, 1, chunk("x")), key=theirs)], T0) == [None]
    with pytest.raises(AttemptLost):
        await lives.jobs.requeue(dataclasses.replace(requeue(attempt, at(1)), key=theirs), T0)
    assert (await lives.jobs.get(attempt.job.key)).state == State.RUNNING

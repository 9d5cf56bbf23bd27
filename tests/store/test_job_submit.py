"""Submit: what it writes, what it writes together, and what an Idempotency-Key promises."""

import hashlib
from typing import Any

import pytest
from lives import T0, Lives, at, at_once, new_job

from tramontane import queue
from tramontane.database import Database
from tramontane.errors import IdempotencyMismatch
from tramontane.models import NewJob, State, Submitted
from tramontane.store import JobStore


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


def keyed(key: str, body: bytes = b"one", **fields: Any) -> NewJob:
    return new_job(idempotency_key=key, idempotency_hash=hashlib.sha256(body).digest(), **fields)


async def count(lives: Lives, table: str) -> int:
    number: int = await lives.pool.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def test_a_submitted_job_is_queued_and_has_every_field_that_was_given(lives: Lives) -> None:
    asked = new_job(priority=7, metadata='{"team":"blue"}', attempts=5, backoff_kind="fixed", backoff_seconds=0.25)
    [submitted] = await lives.submit(asked)
    job = await lives.jobs.get(asked.key)
    assert job == submitted
    assert (job.state, job.attempt, job.failures, job.head) == (State.QUEUED, 0, 0, 0)
    assert (job.priority, job.attempts, job.backoff_kind, job.backoff_seconds) == (7, 5, "fixed", 0.25)
    assert job.metadata == '{"team": "blue"}'
    assert (job.created_at, job.run_at, job.started_at, job.completed_at) == (T0, T0, None, None)
    assert (await lives.jobs.contents(asked.key)).request == asked.request


async def test_a_submit_admits_at_once_what_may_run_and_puts_one_entry_for_it(lives: Lives) -> None:
    await lives.worker(slots=2)
    jobs = await lives.submit(new_job(), new_job(), new_job())
    assert [key for _, _, key in await lives.entries()] == [jobs[0].key, jobs[1].key]
    admitted = [(await lives.jobs.get(job.key)).admitted_at for job in jobs]
    assert admitted == [T0, T0, None]


async def test_without_a_worker_a_job_waits_without_an_entry(lives: Lives) -> None:
    [job] = await lives.submit()
    assert job.admitted_at is None
    assert await lives.entries() == []


async def test_a_submit_that_fails_half_way_leaves_nothing(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    await lives.worker()

    async def fail(*_: object) -> None:
        raise ConnectionError("the wire is cut between the job and its entry")

    monkeypatch.setattr(queue, "put", fail)
    with pytest.raises(ConnectionError):
        await lives.submit()
    assert [await count(lives, table) for table in ("jobs", "job_contents", "events")] == [0, 0, 0]
    assert await lives.entries() == []


async def test_a_request_is_kept_byte_for_byte(lives: Lives) -> None:
    odd = b'{"b" : 1.0, "a":1e2,  "text":"\\u0000 \\ud83d\\ude00 \xf0\x9f\x98\x80", "b": 2}'
    [job] = await lives.submit(new_job(request=odd))
    assert (await lives.jobs.contents(job.key)).request == odd


async def test_the_same_key_and_body_replay_the_first_job(lives: Lives) -> None:
    [first] = await lives.jobs.submit([keyed("k")], T0)
    [again] = await lives.jobs.submit([keyed("k")], at(5))
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job.key == first.job.key
    assert await count(lives, "jobs") == 1
    assert await count(lives, "job_contents") == 1


async def test_a_replay_shows_the_job_as_it_is_by_now(lives: Lives) -> None:
    [first] = await lives.submit(keyed("k"))
    await lives.jobs.cancel(first.key, at(1))
    [again] = await lives.submit(keyed("k"), now=at(2))
    assert again.state == State.CANCELLED


async def test_the_same_key_with_another_body_is_refused_and_writes_nothing(lives: Lives) -> None:
    await lives.submit(keyed("k"))
    [refused] = await lives.jobs.submit([keyed("k", b"two")], T0)
    assert isinstance(refused, IdempotencyMismatch)
    assert await count(lives, "jobs") == 1


async def test_one_key_of_two_tenants_is_two_keys(lives: Lives) -> None:
    jobs = await lives.submit(keyed("k", tenant="blue"), keyed("k", tenant="red"))
    assert len({job.key for job in jobs}) == 2


async def test_duplicates_within_one_group_are_one_job(lives: Lives) -> None:
    await lives.worker()
    outcomes = await lives.jobs.submit([keyed("k"), keyed("k"), keyed("k", b"two"), new_job()], T0)
    first, again, other, plain = outcomes
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert isinstance(plain, Submitted)
    assert isinstance(other, IdempotencyMismatch)
    assert sorted([first.replayed, again.replayed]) == [False, True]
    assert first.job.key == again.job.key
    assert await count(lives, "jobs") == 2
    assert len(await lives.entries()) == 2


async def test_fifty_submits_of_one_key_at_once_give_one_job(lives: Lives) -> None:
    await lives.worker()
    outcomes = await at_once([JobStore(lives.pool).submit([keyed("k")], T0) for _ in range(50)])
    submitted = [one for [one] in outcomes]
    assert len({one.job.key for one in submitted}) == 1
    assert [one.replayed for one in submitted].count(False) == 1
    assert await count(lives, "jobs") == 1
    assert len(await lives.entries()) == 1


async def test_groups_with_crossing_keys_do_not_block_each_other(lives: Lives) -> None:
    for round_ in range(10):
        keys = [f"{round_}/{number}" for number in range(8)]
        ascending = [keyed(key) for key in keys]
        descending = [keyed(key) for key in reversed(keys)]
        outcomes = await at_once([lives.jobs.submit(ascending, T0), lives.jobs.submit(descending, T0)])
        assert all(isinstance(one, Submitted) for outcome in outcomes for one in outcome)
    assert await count(lives, "jobs") == 80


async def test_a_submit_repeated_after_an_unknown_outcome_finds_its_own_job(lives: Lives) -> None:
    await lives.worker()
    asked = new_job()
    [first] = await lives.jobs.submit([asked], T0)
    [again] = await lives.jobs.submit([asked], at(1))
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert again.job.key == first.job.key
    assert not again.replayed
    assert len(await lives.entries()) == 1


async def test_a_submit_that_loses_its_earlier_job_to_an_erasure_writes_nothing_of_its_group(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lives.submit(keyed("k"))

    async def erased_meanwhile(*_: object) -> dict[object, object]:
        return {}

    monkeypatch.setattr(lives.jobs, "_earlier", erased_meanwhile)
    with pytest.raises(KeyError):
        await lives.jobs.submit([new_job(), keyed("k")], T0)
    assert await count(lives, "jobs") == 1


async def test_a_job_for_later_waits_without_an_entry(lives: Lives) -> None:
    await lives.worker()
    [job] = await lives.submit(new_job(run_at=at(60)))
    assert (job.state, job.admitted_at) == (State.QUEUED, None)
    assert await lives.entries() == []


async def test_a_submit_that_cannot_admit_wakes_admission(lives: Lives, any_database: Database) -> None:
    heard = []
    connection = await any_database.connect()
    try:
        await connection.add_listener("tramontane_admission", lambda *call: heard.append(call[3]))
        await lives.submit()
        await connection.execute("SELECT 1")
    finally:
        await connection.close()
    assert heard == [""]

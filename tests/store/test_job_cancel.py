"""Cancel, erase, sweep and find: what users ask of jobs, and what maintenance mends."""

import asyncio
from datetime import timedelta

import pytest
from lives import T0, Lives, at, at_once, batch, chunk, ending, new_job, requeue

from tramontane import queue
from tramontane.database import Database
from tramontane.errors import JobNotEnded, NotFound
from tramontane.ids import new_id
from tramontane.models import JobFilter, JobKey, NewEvent, State

MINUTE = timedelta(minutes=1)


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


@pytest.fixture(autouse=True)
async def worker(lives: Lives) -> None:
    await lives.worker(slots=1000)


# Cancel


async def test_a_job_that_waits_is_cancelled_with_one_final_event(lives: Lives) -> None:
    [job] = await lives.submit(new_job(run_at=at(60)))
    job = await lives.jobs.cancel(job.key, at(1))
    assert (job.state, job.attempt, job.completed_at, job.head) == (State.CANCELLED, 0, at(1), 1)
    assert await lives.types(job.key) == ["error"]
    assert await lives.last_body(job.key) == {
        "error": "the job was cancelled",
        "code": "cancelled",
        "retryable": False,
        "partial": False,
        "len": 0,
        "final": True,
    }
    assert (await lives.limits.admit(at(20))).admitted == ()


async def test_an_admitted_job_is_cancelled_and_its_slot_is_free_again(lives: Lives) -> None:
    await lives.limits.stop(lives.worker_id, T0)
    await lives.worker(slots=1)
    first, second = await lives.submit(new_job(), new_job())
    entry = await lives.entry_of(first.key)
    await lives.jobs.cancel(first.key, T0)
    assert (await lives.limits.admit(T0)).admitted == (second.key,)
    assert await lives.jobs.start([entry], worker_id=lives.worker_id, now=T0) == [None]


async def test_a_running_job_is_cancelled_and_its_worker_is_told(lives: Lives, any_database: Database) -> None:
    attempt = await lives.running()
    await lives.events.append([batch(attempt, 1, chunk("Hi 😀 é"), NewEvent("tool", b"{}"))], T0)
    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await any_database.connect()
    try:
        await connection.add_listener("tramontane_ch_pgqueuer", lambda *call: heard.put_nowait(call[3]))
        job = await lives.jobs.cancel(attempt.job.key, at(2))
        async with asyncio.timeout(5):
            while "cancellation_event" not in (message := await heard.get()):
                pass
    finally:
        await connection.close()
    assert f"[{attempt.entry_id}]" in message
    assert (job.state, job.failures) == (State.CANCELLED, 0)
    body = await lives.last_body(job.key)
    # UTF-16 units: the emoji is a pair.
    assert (body["len"], body["partial"]) == (7, True)
    assert [record.outcome for record in await lives.jobs.attempts(job.key)] == ["cancelled"]


async def test_the_length_at_a_cancel_is_that_of_the_visible_text(lives: Lives) -> None:
    first = await lives.running()
    await lives.events.append([batch(first, 1, chunk("so much text"))], T0)
    await lives.jobs.requeue(requeue(first, T0), T0)
    waiting = await lives.running()
    await lives.events.append([batch(waiting, 1, chunk("a"), chunk("b", off=1))], T0)
    await lives.jobs.requeue(requeue(waiting, at(50)), T0)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    cut = NewEvent("attempt", b'{"mode":"restart","keep":3,"reason":"upstream"}')
    await lives.events.append([batch(second, 1, cut)], T0)
    await lives.jobs.cancel(first.job.key, at(1))
    await lives.jobs.cancel(waiting.job.key, at(1))
    assert (await lives.last_body(first.job.key))["len"] == 3
    # Readers still see the text of the attempt that failed.
    assert (await lives.last_body(waiting.job.key))["len"] == 2


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED])
async def test_an_ended_job_stays_as_it_is(lives: Lives, state: State) -> None:
    attempt = await lives.running()
    [ended] = await lives.jobs.end([ending(attempt, state)])
    assert await lives.jobs.cancel(attempt.job.key, at(20)) == ended
    assert len(await lives.log(attempt.job.key)) == 2


async def test_fifty_cancels_at_once_write_one_final_event(lives: Lives) -> None:
    attempt = await lives.running()
    jobs = await at_once([lives.jobs.cancel(attempt.job.key, at(n)) for n in range(50)])
    assert len({job.completed_at for job in jobs}) == 1
    assert await lives.types(attempt.job.key) == ["start", "error"]


async def test_of_a_cancel_and_an_ending_at_once_one_wins_and_the_log_has_one_end(lives: Lives) -> None:
    for _ in range(10):
        attempt = await lives.running()
        await at_once([lives.jobs.cancel(attempt.job.key, at(1)), lives.jobs.end([ending(attempt)])])
        job = await lives.jobs.get(attempt.job.key)
        events = await lives.types(job.key)
        assert events == ["start", "complete" if job.state == State.COMPLETED else "error"]


async def test_an_unknown_job_cannot_be_cancelled(lives: Lives) -> None:
    with pytest.raises(NotFound):
        await lives.jobs.cancel(JobKey(tenant="default", id=new_id()), T0)


# Erase


async def test_an_erased_job_leaves_its_row_and_nothing_that_was_said(lives: Lives) -> None:
    [job] = await lives.submit(
        new_job(idempotency_key="k", idempotency_hash=b"h", metadata='{"to":"me"}', request_id="req-secret")
    )
    attempt = await lives.start(job.key)
    await lives.jobs.end([ending(attempt, State.FAILED)])
    await lives.jobs.erase(job.key, at(10))
    for verb in (lives.jobs.get, lives.jobs.contents):
        with pytest.raises(NotFound):
            await verb(job.key)
    assert await lives.log(job.key) == []
    row = await lives.pool.fetchrow("SELECT * FROM jobs")
    assert row is not None
    assert (row["state"], row["erased_at"], row["error_code"]) == ("failed", at(10), "upstream_unavailable")
    assert (row["metadata"], row["idempotency_key"], row["error_message"]) == (None, None, None)
    assert row["request_id"] == ""
    assert await lives.pool.fetchval("SELECT count(*) FROM job_contents") == 0
    assert await lives.pool.fetchval("SELECT error_message FROM job_attempts") is None
    assert await lives.jobs.find("default", JobFilter(), before=None, limit=10) == []


async def test_the_key_of_an_erased_job_is_free_again(lives: Lives) -> None:
    [job] = await lives.submit(new_job(idempotency_key="k", idempotency_hash=b"h"))
    await lives.jobs.cancel(job.key, T0)
    await lives.jobs.erase(job.key, T0)
    [again] = await lives.submit(new_job(idempotency_key="k", idempotency_hash=b"other"))
    assert again.key != job.key


async def test_a_job_that_has_not_ended_is_not_erased(lives: Lives) -> None:
    attempt = await lives.running()
    [waiting] = await lives.submit()
    for key in (attempt.job.key, waiting.key):
        with pytest.raises(JobNotEnded):
            await lives.jobs.erase(key, T0)
        await lives.jobs.get(key)


async def test_a_second_erasure_and_a_cancel_after_one_find_nothing(lives: Lives) -> None:
    [job] = await lives.submit()
    await lives.jobs.cancel(job.key, T0)
    await lives.jobs.erase(job.key, T0)
    with pytest.raises(NotFound):
        await lives.jobs.erase(job.key, T0)
    with pytest.raises(NotFound):
        await lives.jobs.cancel(job.key, T0)


# Sweep


async def test_an_admitted_job_without_an_entry_is_admitted_anew(lives: Lives) -> None:
    [job] = await lives.submit()
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    assert len(await lives.jobs.sweep(at(61), older_than=MINUTE)) == 1
    assert (await lives.jobs.get(job.key)).admitted_at is None
    await lives.limits.beat(lives.worker_id, at(61))
    assert (await lives.limits.admit(at(61))).admitted == (job.key,)
    assert (await lives.start(job.key, now=at(61))).job.failures == 0


async def test_a_running_job_without_an_entry_counts_as_crashed(lives: Lives) -> None:
    attempt = await lives.running()
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    assert len(await lives.jobs.sweep(at(61), older_than=MINUTE)) == 1
    job = await lives.jobs.get(attempt.job.key)
    assert (job.state, job.failures, job.admitted_at) == (State.QUEUED, 1, None)


async def test_an_entry_held_as_failed_stands_for_nothing(lives: Lives) -> None:
    attempt = await lives.running()
    await lives.pool.execute("UPDATE tramontane_pgqueuer SET status = 'failed', queue_manager_id = NULL")
    assert len(await lives.jobs.sweep(at(61), older_than=MINUTE)) == 1
    assert (await lives.jobs.get(attempt.job.key)).failures == 1
    assert await lives.entries() == []


async def test_the_sweeper_leaves_healthy_young_and_ended_jobs_alone(lives: Lives) -> None:
    healthy = await lives.running()
    [admitted, scheduled] = await lives.submit(new_job(), new_job(run_at=at(1000)))
    young = await lives.running(now=at(10))
    ended = await lives.running()
    await lives.jobs.end([ending(ended)])
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer WHERE id = $1", young.entry_id)
    before = [await lives.jobs.get(key) for key in (healthy.job.key, admitted.key, scheduled.key, young.job.key)]
    assert await lives.jobs.sweep(at(61), older_than=MINUTE) == []
    assert [await lives.jobs.get(job.key) for job in before] == before


async def test_the_sweeper_looks_again_at_what_changed_while_it_looked(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await lives.running()

    async def meanwhile(_: object, keys: list[JobKey]) -> list[JobKey]:
        await lives.take_over(first)
        await lives.limits.admit(at(1))
        await lives.start(first.job.key, now=at(1))
        return keys

    monkeypatch.setattr(queue, "without_entry", meanwhile)
    await lives.jobs.sweep(at(61), older_than=MINUTE)
    job = await lives.jobs.get(first.job.key)
    assert (job.state, job.attempt, job.failures) == (State.RUNNING, 2, 1)


async def test_two_sweepers_at_once_count_a_crash_once(lives: Lives) -> None:
    attempts = [await lives.running() for _ in range(5)]
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    await at_once([lives.jobs.sweep(at(61), older_than=MINUTE) for _ in range(4)])
    assert [(await lives.jobs.get(one.job.key)).failures for one in attempts] == [1] * 5


async def test_the_queues_own_log_is_pruned_by_age(lives: Lives) -> None:
    attempt = await lives.running()
    await lives.jobs.end([ending(attempt)])
    assert await lives.pool.fetchval("SELECT count(*) FROM tramontane_pgqueuer_log") > 0
    now = await lives.pool.fetchval("SELECT now()")
    await lives.jobs.prune_queue_log(now - timedelta(hours=1))
    assert await lives.pool.fetchval("SELECT count(*) FROM tramontane_pgqueuer_log") > 0
    await lives.jobs.prune_queue_log(now + timedelta(hours=1))
    assert await lives.pool.fetchval("SELECT count(*) FROM tramontane_pgqueuer_log") == 0


# Find


async def test_jobs_are_found_newest_first_page_by_page(lives: Lives) -> None:
    jobs = await lives.submit(*(new_job() for _ in range(5)))
    keys = [job.key for job in sorted(jobs, key=lambda job: job.key.id, reverse=True)]
    first = await lives.jobs.find("default", JobFilter(), before=None, limit=2)
    rest = await lives.jobs.find("default", JobFilter(), before=first[-1].key.id, limit=10)
    assert [job.key for job in first + rest] == keys
    assert await lives.jobs.find("red", JobFilter(), before=None, limit=10) == []


@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(state=State.CANCELLED),
        JobFilter(model="mistral-large"),
        JobFilter(request_id="req-7"),
        JobFilter(created_after=at(5)),
        JobFilter(metadata=(("team", "blue"), ("size", "s"))),
    ],
    ids=lambda wanted: next(name for name in wanted.__dataclass_fields__ if getattr(wanted, name)),
)
async def test_each_filter_finds_the_one_job_that_fits(lives: Lives, wanted: JobFilter) -> None:
    await lives.submit(new_job(), new_job(metadata='{"team":"blue"}'))
    blue = new_job(metadata='{"team":"blue","size":"s"}', model="mistral-large", request_id="req-7")
    await lives.submit(blue, now=at(5))
    await lives.jobs.cancel(blue.key, at(6))
    assert [job.key for job in await lives.jobs.find("default", wanted, before=None, limit=10)] == [blue.key]


@pytest.mark.parametrize("wanted", [JobFilter(request_id="\0"), JobFilter(metadata=(("a\0", "b"),))])
async def test_a_filter_that_no_text_can_match_finds_nothing(lives: Lives, wanted: JobFilter) -> None:
    await lives.submit(new_job(metadata='{"a":"b"}'))
    assert await lives.jobs.find("default", wanted, before=None, limit=10) == []


async def test_an_entry_is_put_once_however_often_it_is_asked_for(lives: Lives) -> None:
    [job] = await lives.submit()
    async with lives.pool.acquire() as connection:
        await queue.put(connection, [job.key], [0])
    assert len(await lives.entries()) == 1

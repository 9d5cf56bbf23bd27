"""Admission on the store: never over the rate, never over the slots, best priority first, each job once."""

from datetime import datetime, timedelta

import pytest
from lives import T0, Lives, at, at_once, ending, new_job, requeue

from tramontane.database import Database
from tramontane.errors import ConfigurationError
from tramontane.models import Job, JobKey, State


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


async def submit_before_any_worker(lives: Lives, count: int) -> list[Job]:
    return await lives.submit(*(new_job() for _ in range(count)))


async def started_at(lives: Lives) -> list[datetime]:
    rows = await lives.pool.fetch("SELECT started_at FROM job_attempts ORDER BY started_at")
    return [row["started_at"] for row in rows]


# The rate


async def test_no_second_sees_more_starts_than_the_rate(lives: Lives) -> None:
    await submit_before_any_worker(lives, 45)
    await lives.worker(slots=100, rate=10)
    for tenth in range(40):
        await lives.round(at(tenth / 10 + 0.03))
    times = await started_at(lives)
    assert len(times) == 40
    for begin in times:
        assert sum(begin <= time < begin + timedelta(seconds=1) for time in times) <= 10


async def test_a_start_counts_when_it_happens_however_late_that_is(lives: Lives) -> None:
    jobs = await submit_before_any_worker(lives, 20)
    await lives.worker(rate=10)
    assert len((await lives.limits.admit(T0)).admitted) == 10
    assert (await lives.limits.admit(at(5))).admitted == ()
    for job in jobs[:10]:
        await lives.start(job.key, now=at(6))
    assert await lives.round(at(6.9)) == []
    assert len(await lives.round(at(7))) == 10


async def test_what_a_submit_lets_through_counts_for_the_rate_too(lives: Lives) -> None:
    await lives.worker(rate=10)
    for tenth in range(10):
        for job in await lives.submit(*(new_job() for _ in range(3)), now=at(tenth / 10)):
            if job.key in [key for _, _, key in await lives.entries()]:
                await lives.start(job.key, now=at(tenth / 10))
    assert len(await started_at(lives)) == 10
    assert len(await lives.round(at(1))) == 3


async def test_retries_count_for_the_rate_too(lives: Lives) -> None:
    await lives.worker(rate=2)
    attempt = await lives.running()
    await lives.jobs.requeue(requeue(attempt, T0), T0)
    assert (await lives.limits.admit(at(0.1))).admitted == (attempt.job.key,)
    second = await lives.start(attempt.job.key)
    await lives.jobs.requeue(requeue(second, T0), T0)
    assert (await lives.limits.admit(at(0.2))).admitted == ()
    assert (await lives.limits.admit(at(1))).admitted == (attempt.job.key,)


async def test_a_rate_below_one_spreads_starts_over_seconds(lives: Lives) -> None:
    await submit_before_any_worker(lives, 5)
    await lives.worker(rate=0.5)
    counts = [len(await lives.round(at(second))) for second in range(7)]
    assert counts == [1, 0, 1, 0, 1, 0, 1]


async def test_a_rate_of_zero_is_no_limit(lives: Lives) -> None:
    await submit_before_any_worker(lives, 60)
    await lives.worker(slots=50, rate=0)
    assert len((await lives.limits.admit(T0)).admitted) == 50


async def test_a_full_round_asks_for_the_next_at_once(lives: Lives) -> None:
    await submit_before_any_worker(lives, 501)
    await lives.worker(slots=1000, rate=0)
    first = await lives.limits.admit(T0)
    assert (len(first.admitted), first.next_at) == (500, T0)
    second = await lives.limits.admit(T0)
    assert (len(second.admitted), second.next_at) == (1, None)


async def test_the_rate_says_when_to_look_again(lives: Lives) -> None:
    await submit_before_any_worker(lives, 12)
    await lives.worker(rate=10)
    await lives.round(T0)
    assert (await lives.limits.admit(at(0.5))).next_at == at(1)
    assert (await lives.limits.admit(at(1))).next_at is None


async def test_while_others_are_about_to_start_only_their_start_tells_when_to_look_again(lives: Lives) -> None:
    await submit_before_any_worker(lives, 12)
    await lives.worker(rate=10)
    admission = await lives.limits.admit(T0)
    assert (len(admission.admitted), admission.next_at) == (10, None)


async def test_the_newest_workers_rate_is_the_fleets(lives: Lives) -> None:
    await submit_before_any_worker(lives, 20)
    await lives.worker(rate=10)
    await lives.worker(rate=3)
    assert len((await lives.limits.admit(T0)).admitted) == 3


async def test_a_clock_that_is_behind_lets_no_more_through(lives: Lives) -> None:
    await submit_before_any_worker(lives, 40)
    await lives.worker(rate=10)
    assert len(await lives.round(T0)) == 10
    assert len(await lives.round(at(-0.5))) == 0
    assert len(await lives.round(at(1))) == 10
    assert len(await lives.round(at(0.2))) == 0


async def test_a_clock_that_was_wrong_by_far_stops_nobody(lives: Lives) -> None:
    await submit_before_any_worker(lives, 20)
    await lives.worker(rate=10, now=at(3600))
    assert len(await lives.round(at(3600))) == 10
    await lives.limits.beat(lives.worker_id, T0)
    assert len(await lives.round(T0)) == 10


# Slots


async def test_only_as_many_run_as_there_are_slots(lives: Lives) -> None:
    jobs = await submit_before_any_worker(lives, 5)
    await lives.worker(slots=2)
    assert (await lives.limits.admit(T0)).admitted == (jobs[0].key, jobs[1].key)
    assert (await lives.limits.admit(T0)).admitted == ()
    attempt = await lives.start(jobs[0].key)
    assert (await lives.limits.admit(T0)).admitted == ()
    await lives.jobs.end([ending(attempt)])
    assert (await lives.limits.admit(T0)).admitted == (jobs[2].key,)


async def test_slots_of_all_live_workers_count(lives: Lives) -> None:
    await submit_before_any_worker(lives, 10)
    await lives.worker(slots=2)
    await lives.worker(slots=3)
    assert len((await lives.limits.admit(T0)).admitted) == 5


async def test_a_dead_workers_slots_stop_counting_after_three_heartbeats(lives: Lives) -> None:
    await submit_before_any_worker(lives, 10)
    dead = await lives.worker(slots=3, heartbeat=10)
    await lives.worker(slots=2, heartbeat=10)
    await lives.limits.beat(lives.worker_id, at(25))
    assert dead != lives.worker_id
    await lives.limits.beat(dead, T0)
    assert len((await lives.limits.admit(at(30))).admitted) == 2


async def test_a_beat_keeps_slots_counting(lives: Lives) -> None:
    await submit_before_any_worker(lives, 10)
    worker = await lives.worker(slots=3, heartbeat=10)
    await lives.limits.beat(worker, at(29))
    assert len((await lives.limits.admit(at(58))).admitted) == 3


async def test_a_stopped_workers_slots_count_no_longer(lives: Lives) -> None:
    await submit_before_any_worker(lives, 10)
    worker = await lives.worker(slots=3)
    await lives.limits.stop(worker, T0)
    assert (await lives.limits.admit(T0)).admitted == ()


async def test_more_in_flight_than_slots_admits_nothing_and_breaks_nothing(lives: Lives) -> None:
    await submit_before_any_worker(lives, 10)
    big = await lives.worker(slots=5, rate=10)
    await lives.limits.admit(T0)
    await lives.worker(slots=1, rate=10)
    await lives.limits.stop(big, T0)
    admission = await lives.limits.admit(at(2))
    assert (admission.admitted, admission.next_at) == ((), None)


async def test_workers_not_seen_for_long_are_forgotten(lives: Lives) -> None:
    await lives.worker()
    await lives.worker(now=at(100))
    await lives.limits.forget_workers(at(50))
    assert await lives.pool.fetchval("SELECT count(*) FROM workers") == 1


async def test_a_worker_with_another_heartbeat_is_refused_while_one_lives(lives: Lives) -> None:
    await lives.worker(heartbeat=10)
    with pytest.raises(ConfigurationError, match="TRAMONTANE_HEARTBEAT is 3 s here, and 10 s"):
        await lives.worker(heartbeat=3, now=at(29))
    assert await lives.pool.fetchval("SELECT count(*) FROM workers") == 1
    await lives.worker(heartbeat=3, now=at(30))


async def test_of_two_heartbeats_that_come_at_once_one_is_refused(lives: Lives) -> None:
    outcomes = await at_once([lives.worker(heartbeat=1 + number % 2) for number in range(8)])
    refused = [one for one in outcomes if isinstance(one, ConfigurationError)]
    assert len(refused) == 4
    assert await lives.pool.fetchval("SELECT count(DISTINCT heartbeat_seconds) FROM workers") == 1


# Order


async def test_the_best_priority_goes_first_and_equals_in_the_order_of_submission(lives: Lives) -> None:
    low, high, first, second = await lives.submit(
        new_job(priority=-5), new_job(priority=5), new_job(priority=0), new_job(priority=0)
    )
    await lives.worker(slots=1)
    order: list[JobKey] = []
    for _ in range(4):
        order += (await lives.limits.admit(T0)).admitted
        await lives.jobs.cancel(order[-1], T0)
    assert order == [high.key, first.key, second.key, low.key]


async def test_entries_carry_the_priority_to_the_queue(lives: Lives) -> None:
    await lives.worker()
    await lives.submit(new_job(priority=5), new_job(priority=-1))
    rows = await lives.pool.fetch("SELECT priority FROM tramontane_pgqueuer ORDER BY id")
    assert sorted(row["priority"] for row in rows) == [-1, 5]


async def test_a_scheduled_job_of_high_priority_does_not_stand_in_the_way(lives: Lives) -> None:
    await lives.worker(slots=1)
    [later] = await lives.submit(new_job(priority=100, run_at=at(20)))
    [now] = await lives.submit(new_job())
    assert now.key == (await lives.entries())[0][2]
    await lives.jobs.cancel(now.key, T0)
    admission = await lives.limits.admit(at(1))
    assert (admission.admitted, admission.next_at) == ((), at(20))
    assert (await lives.limits.admit(at(20))).admitted == (later.key,)


async def test_a_job_whose_time_has_come_goes_before_a_lower_priority(lives: Lives) -> None:
    [later] = await lives.submit(new_job(priority=100, run_at=at(20)))
    await lives.submit(new_job())
    await lives.worker(slots=1, now=at(20))
    assert (await lives.limits.admit(at(20))).admitted == (later.key,)


async def test_a_submit_lets_the_one_that_waits_longer_go_first(lives: Lives) -> None:
    [waiting] = await lives.submit()
    await lives.worker(slots=1)
    await lives.submit()
    assert [key for _, _, key in await lives.entries()] == [waiting.key]


# At once


async def test_fifty_rounds_at_once_admit_no_job_twice_and_never_over_the_limits(lives: Lives) -> None:
    await submit_before_any_worker(lives, 60)
    await lives.worker(slots=40, rate=25)
    rounds = await at_once([lives.limits.admit(at(number % 10 / 20)) for number in range(50)])
    keys = [key for admission in rounds for key in admission.admitted]
    assert len(keys) == len(set(keys)) == 25
    assert sorted(key.id for _, _, key in await lives.entries()) == sorted(key.id for key in keys)
    for key in keys:
        await lives.start(key, now=at(0.5))
    more = await at_once([lives.limits.admit(at(2)) for _ in range(20)])
    assert sum(len(admission.admitted) for admission in more) == 15


async def test_submits_and_rounds_at_once_keep_to_the_slots(lives: Lives) -> None:
    await lives.worker(slots=7)
    rounds = [lives.limits.admit(T0) for _ in range(10)]
    await at_once([*(lives.submit() for _ in range(20)), *rounds])
    await lives.limits.admit(T0)
    rows = await lives.pool.fetch("SELECT state FROM jobs WHERE admitted_at IS NOT NULL")
    assert [row["state"] for row in rows] == [State.QUEUED] * 7
    assert len(await lives.entries()) == 7


async def test_a_round_without_waiting_says_that_somebody_else_decides(lives: Lives) -> None:
    from tramontane.store.limits import admit

    await lives.submit()
    await lives.worker()
    async with lives.pool.acquire() as first, first.transaction():
        assert not (await admit(first, T0, wait=False)).busy
        async with lives.pool.acquire() as second, second.transaction():
            assert (await admit(second, T0, wait=False)).busy


async def test_a_tenant_with_ever_new_models_takes_part_with_a_hundred_of_them_and_holds_up_nobody(
    lives: Lives,
) -> None:
    await lives.submit(*(new_job(tenant="a", model=f"model-{number:03}") for number in range(150)))
    await lives.submit(new_job(tenant="b"), new_job(tenant="b", model="z"))
    await lives.worker(slots=1000)
    first = (await lives.limits.admit(T0)).admitted
    assert sorted(key.tenant for key in first) == ["a"] * 100 + ["b"] * 2
    assert len((await lives.limits.admit(T0)).admitted) == 50

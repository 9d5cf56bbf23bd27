"""Jobs that end as they wait: past their deadline, or for a budget that is spent."""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from lives import T0, Lives, at, batch, chunk, ending, new_job, requeue

from tramontane.database import Database
from tramontane.models import Job, Money, NewEvent, State
from tramontane.overdue import Overdue
from tramontane.store import OverdueStore

USAGE = '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}'


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


@pytest.fixture
def overdue(lives: Lives) -> OverdueStore:
    return OverdueStore(lives.pool)


async def spent(lives: Lives, *, tokens: int, cost: str = "0", day: datetime = T0) -> None:
    await lives.pool.execute(
        "INSERT INTO spendings (tenant_id, day, model, prompt_tokens, cost) VALUES ('default', $1, 'm', $2, $3)",
        day.date(),
        tokens,
        Decimal(cost),
    )


async def test_a_job_that_waits_past_its_deadline_fails_unspent(lives: Lives, overdue: OverdueStore) -> None:
    [late] = await lives.submit(new_job(deadline=at(10)))
    [later] = await lives.submit(new_job(deadline=at(11)))

    assert await overdue.expire(at(9.9)) == []
    assert await overdue.next_deadline() == at(10)
    [ended] = await overdue.expire(at(10))

    job = await lives.jobs.get(late.key)
    assert ended == job
    assert (job.state, job.attempt, job.failures, job.completed_at) == (State.FAILED, 0, 0, at(10))
    assert job.failure is not None
    assert (job.failure.code, job.failure.retryable) == ("deadline_exceeded", False)
    assert await lives.types(late.key) == ["error"]
    assert (await lives.last_body(late.key))["code"] == "deadline_exceeded"
    assert (await lives.jobs.get(later.key)).state == State.QUEUED


async def test_an_admitted_job_is_not_started_past_its_deadline(lives: Lives, overdue: OverdueStore) -> None:
    await lives.worker()
    [job] = await lives.submit(new_job(deadline=at(10)))
    entry = await lives.entry_of(job.key)

    assert await lives.jobs.start([entry], worker_id=lives.worker_id, now=at(10)) == [None]
    assert await lives.entries() == []
    [ended] = await overdue.expire(at(10))
    assert ended.key == job.key


async def test_the_queue_entry_of_an_expired_job_starts_nothing(lives: Lives, overdue: OverdueStore) -> None:
    await lives.worker()
    [job] = await lives.submit(new_job(deadline=at(10)))
    entry = await lives.entry_of(job.key)
    await overdue.expire(at(10))
    assert await lives.jobs.start([entry], worker_id=lives.worker_id, now=at(9)) == [None]
    assert await lives.entries() == []
    assert (await lives.jobs.get(job.key)).state == State.FAILED


async def test_a_running_job_goes_on_past_its_deadline(lives: Lives, overdue: OverdueStore) -> None:
    await lives.worker()
    attempt = await lives.running(deadline=at(10))
    assert await overdue.expire(at(11)) == []
    [job] = await lives.jobs.end([ending(attempt, at=at(12))])
    assert isinstance(job, Job)
    assert job.state == State.COMPLETED


async def test_a_second_attempt_must_start_in_time_too_and_what_was_said_and_paid_stays(
    lives: Lives, overdue: OverdueStore
) -> None:
    await lives.worker()
    attempt = await lives.running(deadline=at(10))
    await lives.events.append([batch(attempt, 1, chunk("Hello"))], at(2))
    given_up = requeue(attempt, at(20))
    await lives.jobs.requeue(replace(given_up, usage=USAGE), at(5))
    [job] = await overdue.expire(at(10))
    assert job.usage == USAGE
    assert (await lives.last_body(job.key))["len"] == 5
    assert (await lives.last_body(job.key))["partial"] is True
    assert job.failures == 1


async def test_a_bite_at_a_time_and_every_job_once(lives: Lives, overdue: OverdueStore) -> None:
    jobs = await lives.submit(*[new_job(deadline=at(1)) for _ in range(250)])
    woken: list[Job] = []
    counted: list[Job] = []
    service = Overdue(overdue, woken.append, counted.append)
    assert await service.tick(at(2)) == at(2)
    assert await service.tick(at(2)) == at(2)
    assert await service.tick(at(2)) is None
    assert sorted(job.key.id for job in woken) == sorted(job.key.id for job in jobs)
    assert counted == woken


@pytest.mark.parametrize(
    ("columns", "tokens", "cost", "fails"),
    [
        ({"daily_tokens": 100, "on_budget": "fail"}, 100, "0", True),
        ({"daily_tokens": 100, "on_budget": "fail"}, 99, "5", False),
        ({"daily_cost": Decimal("0.5"), "on_budget": "fail"}, 9999, "0.5", True),
        ({"daily_cost": Decimal("0.5"), "on_budget": "fail"}, 9999, "0.49", False),
        ({"daily_tokens": 100, "on_budget": "queue"}, 100, "0", False),
        ({"on_budget": "fail"}, 100, "9", False),
    ],
)
async def test_jobs_beyond_a_budget_fail_where_the_tenant_wants_that(
    lives: Lives, overdue: OverdueStore, columns: dict[str, Any], tokens: int, cost: str, fails: bool
) -> None:
    await lives.tenant(**columns)
    await spent(lives, tokens=tokens, cost=cost)
    await lives.submit(new_job(), new_job(tenant="other"), new_job(run_at=at(3600)))
    ended = await overdue.exhaust(at(1))
    assert [(job.key.tenant, job.failure and job.failure.code) for job in ended] == (
        [("default", "budget_exhausted")] if fails else []
    )


@pytest.mark.parametrize("budget", ["daily_tokens", "daily_cost"])
async def test_a_budget_of_nothing_is_spent_before_anything_is_used(
    lives: Lives, overdue: OverdueStore, budget: str
) -> None:
    await lives.tenant(on_budget="fail", **{budget: 0})
    [job] = await lives.submit(new_job())
    [ended] = await overdue.exhaust(at(1))
    assert ended.key == job.key


async def test_a_budget_begins_anew_at_midnight_utc(lives: Lives, overdue: OverdueStore) -> None:
    await lives.tenant(daily_tokens=100, on_budget="fail")
    await spent(lives, tokens=100)
    await lives.submit(new_job())
    assert await overdue.exhaust(T0.replace(day=23, hour=0)) == []
    assert len(await overdue.exhaust(T0.replace(hour=23, minute=59))) == 1


async def test_what_an_attempt_has_used_is_written_with_its_end_and_once(lives: Lives) -> None:
    await lives.worker()
    attempt = await lives.running()
    euro = Money(amount=Decimal("0.000123"), currency="EUR")
    end = ending(attempt, own_usage=USAGE, usage=USAGE, cost=euro)
    await lives.jobs.end([end])
    [repeated] = await lives.jobs.end([end])

    assert isinstance(repeated, Job)
    assert (repeated.cost, repeated.currency) == ("0.000123", "EUR")
    row = await lives.pool.fetchrow("SELECT * FROM spendings")
    assert row is not None
    assert tuple(row) == ("default", T0.date(), "mistral-small-latest", 1, 10, 5, Decimal("0.000123"))


async def test_costs_of_all_attempts_are_summed_and_an_unpriced_one_takes_nothing_away(lives: Lives) -> None:
    await lives.worker()
    attempt = await lives.running(attempts=9)
    for second, amount in ((1, "0.10"), (2, "0.2"), (3, None)):
        price = amount and Money(amount=Decimal(amount), currency="EUR")
        await lives.jobs.requeue(replace(requeue(attempt, T0), usage=USAGE, cost=price or None), at(second))
        [key] = (await lives.limits.admit(at(second))).admitted
        attempt = await lives.start(key, now=at(second))
    last = Money(amount=Decimal("0.005"), currency="EUR")
    [job] = await lives.jobs.end([ending(attempt, own_usage=USAGE, cost=last)])

    assert isinstance(job, Job)
    assert (job.cost, job.currency) == ("0.305", "EUR")
    assert await lives.pool.fetchval("SELECT sum(attempts) FROM spendings") == 4
    assert await lives.pool.fetchval("SELECT sum(cost) FROM spendings") == Decimal("0.305")


async def test_a_refused_ending_spends_nothing(lives: Lives) -> None:
    await lives.worker()
    attempt = await lives.running()
    await lives.jobs.cancel(attempt.job.key, at(1))
    [before] = await lives.pool.fetch("SELECT * FROM spendings")
    await lives.jobs.end([ending(attempt, own_usage=USAGE, events=(NewEvent("complete", b"{}"),))])
    assert await lives.pool.fetch("SELECT * FROM spendings") == [before]

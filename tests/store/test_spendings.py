"""What a tenant's day is charged for attempts that Mistral may have billed and reported nothing of."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from lives import T0, Lives, at, at_once, batch, chunk, ending, new_job, requeue

from tramontane.database import Database
from tramontane.models import Attempt, NewEvent, State
from tramontane.prices import read_prices
from tramontane.store import JobStore

#: A million tokens of a prompt cost 1, of an answer 10.
PRICES = '[[price]]\nmodel = "*"\nfrom = 2026-01-01\ninput = 1\noutput = 10\ncurrency = "EUR"\n'
MODEL = "mistral-small-latest"
USAGE = '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}'


@pytest.fixture
async def lives(any_database: Database) -> Lives:
    lives = Lives(any_database)
    lives.jobs = JobStore(any_database.pool, prices=read_prices(PRICES, "prices"))
    await lives.worker(slots=1000)
    return lives


async def running(lives: Lives, **fields: Any) -> Attempt:
    """An attempt for which 150 tokens were set aside: 50 of the prompt, 100 of the answer."""
    return await lives.running(prompt_tokens=50, max_tokens=100, **fields)


async def spendings(lives: Lives) -> list[tuple[Any, ...]]:
    rows = await lives.pool.fetch(
        "SELECT day, model, attempts, prompt_tokens, completion_tokens, cost FROM spendings ORDER BY day"
    )
    return [tuple(row) for row in rows]


async def counted(lives: Lives) -> list[tuple[str, bool, int]]:
    rows = await lives.pool.fetch("SELECT outcome, unreported, tokens FROM job_attempts ORDER BY attempt")
    return [tuple(row) for row in rows]


SET_ASIDE = [(T0.date(), MODEL, 1, 50, 100, Decimal("0.00105"))]


async def cancelled(lives: Lives, attempt: Attempt) -> None:
    await lives.jobs.cancel(attempt.job.key, at(1))


async def lost(lives: Lives, attempt: Attempt) -> None:
    await lives.take_over(attempt, now=at(1))


async def swept(lives: Lives, attempt: Attempt) -> None:
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    await lives.jobs.sweep(at(61), older_than=timedelta(minutes=1))


async def timed_out(lives: Lives, attempt: Attempt) -> None:
    await lives.jobs.requeue(replace(requeue(attempt, at(5)), unreported=True), at(1))


async def failed(lives: Lives, attempt: Attempt) -> None:
    await lives.jobs.end([ending(attempt, State.FAILED, unreported=True)])


@pytest.mark.parametrize(
    ("end", "attempts", "outcome"),
    [
        (cancelled, 3, "cancelled"),
        (lost, 3, "lost"),
        (lost, 1, "failed"),
        (swept, 3, "lost"),
        (swept, 1, "failed"),
        (timed_out, 3, "failed"),
        (failed, 1, "failed"),
    ],
)
async def test_an_attempt_of_which_nothing_is_reported_is_charged_with_what_was_set_aside(
    lives: Lives, end: Any, attempts: int, outcome: str
) -> None:
    attempt = await running(lives, attempts=attempts)
    await end(lives, attempt)
    assert await counted(lives) == [(outcome, True, 150)]
    assert await spendings(lives) == SET_ASIDE
    assert (await lives.jobs.get(attempt.job.key)).cost is None, "which is what Mistral reported, and no estimate"


async def test_where_readers_were_told_of_more_than_was_set_aside_that_is_charged(lives: Lives) -> None:
    attempt = await running(lives)
    told = [NewEvent("chunk", b'{"off":%d,"content":"a","tokenCount":%d}' % (n, n * 100)) for n in (1, 2, 3)]
    await lives.events.append([batch(attempt, 1, *told, NewEvent("tool", b"{}"))], T0)
    await lives.jobs.cancel(attempt.job.key, at(1))
    assert await counted(lives) == [("cancelled", True, 350)]
    assert await spendings(lives) == [(T0.date(), MODEL, 1, 50, 300, Decimal("0.00305"))]


async def test_what_earlier_attempts_said_is_not_charged_again(lives: Lives) -> None:
    first = await running(lives)
    await lives.events.append([batch(first, 1, NewEvent("chunk", b'{"off":0,"content":"a","tokenCount":400}'))], T0)
    await lives.jobs.requeue(replace(requeue(first, T0), usage=USAGE), T0)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    await lives.jobs.cancel(second.job.key, at(1))
    assert await counted(lives) == [("failed", False, 15), ("cancelled", True, 150)]
    [(_, _, attempts, prompt, completion, _)] = await spendings(lives)
    assert (attempts, prompt, completion) == (2, 10 + 50, 5 + 100)


async def test_a_job_that_waits_is_cancelled_for_nothing(lives: Lives) -> None:
    [job, scheduled] = await lives.submit(new_job(), new_job(run_at=at(60)))
    again = await running(lives)
    await lives.jobs.requeue(replace(requeue(again, at(60)), usage=USAGE), T0)
    for key in (job.key, scheduled.key, again.job.key):
        await lives.jobs.cancel(key, at(1))
    assert await counted(lives) == [("failed", False, 15)]
    assert [attempts for _, _, attempts, *_ in await spendings(lives)] == [1]


async def test_an_attempt_that_mistral_refused_is_charged_with_nothing(lives: Lives) -> None:
    attempt = await running(lives)
    await lives.jobs.requeue(requeue(attempt, at(5)), at(1))
    assert await counted(lives) == [("failed", False, 0)]
    assert await spendings(lives) == []


async def test_a_repeat_charges_nothing_twice(lives: Lives) -> None:
    attempt = await running(lives)
    await at_once([lives.jobs.cancel(attempt.job.key, at(n)) for n in range(5)])
    await lives.jobs.end([ending(attempt, own_usage=USAGE)])
    await at_once([lives.jobs.requeue(replace(requeue(attempt, at(5)), unreported=True), at(1)) for _ in range(2)])
    assert [attempts for _, _, attempts, *_ in await spendings(lives)] == [1]

    end = ending(await running(lives), State.FAILED, unreported=True)
    await at_once([lives.jobs.end([end]) for _ in range(5)])
    assert [attempts for _, _, attempts, *_ in await spendings(lives)] == [2]


async def test_the_day_is_that_of_the_attempts_end(lives: Lives) -> None:
    midnight = T0.replace(hour=0, minute=0) + timedelta(days=1)
    today, tomorrow = await running(lives), await running(lives)
    ends = [
        ending(today, State.FAILED, unreported=True, at=midnight - timedelta(microseconds=1)),
        ending(tomorrow, State.FAILED, unreported=True, at=midnight),
    ]
    await lives.jobs.end(ends)
    assert [day for day, *_ in await spendings(lives)] == [T0.date(), midnight.date()]


async def test_without_a_price_its_tokens_are_charged_all_the_same(lives: Lives, any_database: Database) -> None:
    attempt = await running(lives)
    await lives.events.append([batch(attempt, 1, chunk("Hi"))], T0)
    await JobStore(any_database.pool).cancel(attempt.job.key, at(1))
    assert await spendings(lives) == [(T0.date(), MODEL, 1, 50, 100, Decimal(0))]

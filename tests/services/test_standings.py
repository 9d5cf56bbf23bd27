"""Standings: who is taken, who is sent away and for how long, and how seldom that is counted."""

from datetime import datetime

import pytest
from lives import T0, Lives, at, new_job

from tramontane.database import Database
from tramontane.errors import BudgetExhausted, Overloaded, QueueFull
from tramontane.standings import Standings
from tramontane.store import StandingStore


class Counted(StandingStore):
    """A store that tells how often it was asked to count."""

    counts = 0

    async def waiting(self, *, most: int, tenant: str | None = None) -> int:
        self.counts += 1
        return await super().waiting(most=most, tenant=tenant)


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


@pytest.fixture
def store(lives: Lives) -> Counted:
    return Counted(lives.pool)


async def empty(lives: Lives) -> None:
    await lives.pool.execute("UPDATE jobs SET state = 'cancelled', completed_at = $1 WHERE state = 'queued'", T0)


async def test_as_many_are_taken_as_there_is_room_for(lives: Lives, store: Counted) -> None:
    await lives.submit(*[new_job() for _ in range(4)], new_job(run_at=at(99)))
    standings = Standings(store, queue_limit=10)
    assert await standings.take("default", 3, at(1)) == 3
    assert await standings.take("default", 3, at(1)) == 2
    with pytest.raises(Overloaded):
        await standings.take("other", 1, at(1))


async def test_a_count_is_made_once_a_second_while_there_is_room(store: Counted) -> None:
    standings = Standings(store, queue_limit=1000)
    for step in range(200):
        await standings.take("default", 1, at(step / 100))
    assert store.counts == 2


async def test_whoever_would_be_sent_away_is_counted_for_anew_but_not_all_the_time(
    lives: Lives, store: Counted
) -> None:
    jobs = [new_job() for _ in range(5)]
    await lives.submit(*jobs)
    standings = Standings(store, queue_limit=5)
    with pytest.raises(Overloaded):
        await standings.take("default", 1, at(0))
    await empty(lives)
    with pytest.raises(Overloaded):
        await standings.take("default", 1, at(0.01))
    assert await standings.take("default", 1, at(0.5)) == 1
    assert store.counts == 2


async def test_a_tenants_own_limit_is_its_own(lives: Lives, store: Counted) -> None:
    await lives.tenant(queue_limit=2)
    await lives.submit(new_job(tenant="other"), new_job())
    standings = Standings(store, queue_limit=0)
    assert await standings.take("default", 9, T0) == 1
    with pytest.raises(QueueFull):
        await standings.take("default", 1, T0)
    assert await standings.take("other", 9, T0) == 9


async def test_places_that_were_not_needed_are_there_again(lives: Lives, store: Counted) -> None:
    await lives.tenant(queue_limit=5)
    standings = Standings(store, queue_limit=10)
    assert await standings.take("default", 9, T0) == 5
    standings.give_back("default", 3, T0)
    assert await standings.take("default", 9, at(0.01)) == 3
    assert await standings.take("other", 9, at(0.01)) == 5
    assert store.counts == 2


async def test_what_was_counted_since_has_none_to_give_back(lives: Lives, store: Counted) -> None:
    standings = Standings(store, queue_limit=5)
    await standings.take("default", 4, T0)
    await lives.submit(new_job())
    assert await standings.take("default", 1, at(2)) == 1
    standings.give_back("default", 3, T0)  # the count of two seconds later knows of one job, and one is to come
    assert await standings.take("default", 9, at(2.01)) == 3


async def test_the_time_to_come_back_follows_from_the_pace_of_the_last_minute(lives: Lives, store: Counted) -> None:
    await lives.worker(now=at(30))
    for number in range(30):
        await lives.running(now=at(30), model=f"model-{number}")
    await lives.tenant(id="full", queue_limit=0)
    await lives.tenant(id="large", queue_limit=1000)
    standings = Standings(store, queue_limit=0)
    # 30 starts in a minute: one place takes two seconds, and a hundredth of a thousand twenty.
    with pytest.raises(QueueFull) as one:
        await standings.take("full", 1, at(40))
    assert one.value.retry_after == 1.0
    await standings.take("large", 1000, at(40))
    with pytest.raises(QueueFull) as many:
        await standings.take("large", 1, at(40.01))
    assert many.value.retry_after == 20.0


@pytest.mark.parametrize(
    ("now", "seconds"), [(T0.replace(hour=23, minute=59, second=30), 30), (T0.replace(hour=12, minute=0), 43200)]
)
async def test_a_spent_budget_says_how_long_it_is_until_midnight(
    lives: Lives, store: Counted, now: datetime, seconds: int
) -> None:
    await lives.tenant(daily_tokens=0, on_budget="fail")
    with pytest.raises(BudgetExhausted) as raised:
        await Standings(store, queue_limit=0).take("default", 1, now)
    assert raised.value.retry_after == seconds


async def test_a_nearly_spent_budget_is_logged_once_a_day(
    lives: Lives, store: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    await lives.tenant(daily_tokens=10)
    await lives.pool.execute(
        "INSERT INTO spendings (tenant_id, day, model, completion_tokens) VALUES ('default', $1, 'm', 9)", T0.date()
    )
    standings = Standings(store, queue_limit=0)
    for second in range(5):
        await standings.take("default", 1, at(second))
    assert [record.message for record in caplog.records] == ["budget.nearly_spent"]
    assert standings.budget_used("default") == 0.9
    await standings.take("default", 1, T0.replace(day=23))
    assert standings.budget_used("default") is None

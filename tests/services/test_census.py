"""The census: what is there, exactly while it is little, at a price that does not grow when it is much."""

from datetime import timedelta

import pytest
from lives import T0, Lives, at, new_job

from tramontane.database import Database
from tramontane.store import CensusStore
from tramontane.store import census as module


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


async def test_it_counts_jobs_by_where_they_stand(lives: Lives) -> None:
    await lives.worker(slots=2)
    await lives.running()
    await lives.submit(new_job(), new_job(), new_job(), new_job(run_at=at(3600)))
    census = await CensusStore(lives.pool).take(T0)
    assert census.jobs == {"waiting": 2, "scheduled": 1, "admitted": 1, "running": 1}
    assert (census.workers, census.slots) == (1, 2)


async def test_the_oldest_is_whoever_may_run_longest_of_all_tenants(lives: Lives) -> None:
    await lives.submit(new_job(tenant="a", run_at=at(900)), now=T0)  # scheduled: it does not wait yet
    await lives.submit(new_job(tenant="b", priority=9, run_at=at(50)), now=at(50))
    await lives.submit(new_job(tenant="a", run_at=at(40)), now=at(40))
    await lives.submit(new_job(tenant="a", priority=9, run_at=at(60)), now=at(60))
    assert (await CensusStore(lives.pool).take(at(70))).oldest_at == at(40)


async def test_of_nothing_there_is_nothing(lives: Lives) -> None:
    census = await CensusStore(lives.pool).take(T0)
    assert (census.oldest_at, census.workers, sum(census.jobs.values())) == (None, 0, 0)


async def test_a_worker_that_is_silent_is_not_counted(lives: Lives) -> None:
    await lives.worker(heartbeat=10.0)
    assert (await CensusStore(lives.pool).take(T0 + timedelta(seconds=31))).workers == 0


async def test_past_what_is_counted_one_by_one_the_planners_estimate_stands_in(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EXACT", 50)
    await lives.submit(*(new_job() for _ in range(120)))
    store = CensusStore(lives.pool)
    assert (await store.take(T0)).jobs["waiting"] == 50, "nobody has analyzed yet: at least so many"
    await lives.pool.execute("ANALYZE jobs")
    assert (await store.take(T0)).jobs["waiting"] == 120

"""Maintenance: one tick does every duty, and a duty that fails keeps no other from its turn."""

from datetime import datetime, timedelta

import pytest
from lives import T0, Lives, at, ending

from tramontane.database import Database
from tramontane.maintenance import Maintenance
from tramontane.models import State
from tramontane.store import DeliveryStore


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def maintenance(lives: Lives) -> Maintenance:
    return Maintenance(
        lives.jobs,
        lives.events,
        lives.limits,
        DeliveryStore(lives.pool),
        heartbeat=10.0,
        retention=3600.0,
        webhook_retention=86400.0,
    )


async def test_one_tick_sweeps_prunes_and_forgets(lives: Lives, maintenance: Maintenance) -> None:
    orphan, old = await lives.running(), await lives.running()
    await lives.jobs.end([ending(old, at=at(0))])
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    day = T0 + timedelta(days=1, seconds=1)
    await maintenance.tick(day)
    assert (await lives.jobs.get(orphan.job.key)).state == State.QUEUED
    assert await lives.log(old.job.key) == []
    assert await lives.pool.fetchval("SELECT count(*) FROM workers") == 0


async def test_events_are_kept_for_their_retention_and_orphans_for_one_heartbeat(
    lives: Lives, maintenance: Maintenance
) -> None:
    orphan, old = await lives.running(), await lives.running()
    await lives.jobs.end([ending(old, at=T0)])
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    await maintenance.tick(at(10))
    assert (await lives.jobs.get(orphan.job.key)).state == State.RUNNING
    await maintenance.tick(at(3600))
    assert len(await lives.log(old.job.key)) == 2
    await maintenance.tick(at(3601))
    assert await lives.log(old.job.key) == []


async def test_a_duty_that_fails_keeps_no_other_from_its_turn(
    lives: Lives, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await lives.running()
    await lives.jobs.end([ending(old, at=T0)])

    async def fail(now: datetime, *, older_than: timedelta) -> int:
        raise ConnectionError("away")

    monkeypatch.setattr(lives.jobs, "sweep", fail)
    await maintenance.tick(at(7200))
    assert await lives.log(old.job.key) == []

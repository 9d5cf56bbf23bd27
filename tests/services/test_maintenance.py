"""Maintenance: one tick does every duty, and a duty that fails keeps no other from its turn."""

from datetime import datetime, timedelta

import msgspec
import pytest
from lives import T0, Lives, at, at_once, batch, chunk, ending, new_job
from told import Told, callback, judged

from tramontane.database import Database
from tramontane.errors import NotFound
from tramontane.maintenance import Maintenance
from tramontane.models import Job, State
from tramontane.store import DeliveryStore, RetentionStore
from tramontane.webhooks.models import Exchange

HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def counted() -> list[Job]:
    """Jobs that ended by maintenance."""
    return []


@pytest.fixture
def maintenance(lives: Lives, counted: list[Job]) -> Maintenance:
    return Maintenance(
        lives.jobs,
        lives.events,
        lives.limits,
        DeliveryStore(lives.pool),
        RetentionStore(lives.pool),
        counted.append,
        heartbeat=10.0,
        retention=HOUR,
        result_retention=30 * DAY,
        job_retention=400 * DAY,
        webhook_retention=DAY,
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


async def test_of_what_the_sweep_mends_the_jobs_that_end_by_it_are_counted(
    lives: Lives, maintenance: Maintenance, counted: list[Job]
) -> None:
    once, _ = await lives.running(attempts=1), await lives.running(attempts=2)
    await lives.submit()
    await lives.pool.execute("DELETE FROM tramontane_pgqueuer")
    await maintenance.tick(at(20))
    assert counted == [await lives.jobs.get(once.job.key)]
    assert counted[0].state == State.FAILED


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


async def rows(lives: Lives, table: str) -> int:
    return int(await lives.pool.fetchval(f"SELECT count(*) FROM {table}"))


async def test_a_result_is_deleted_after_its_retention_and_its_row_stays_for_the_books(
    lives: Lives, maintenance: Maintenance
) -> None:
    old, young = await lives.running(), await lives.running()
    await lives.jobs.end([ending(old, at=T0), ending(young, at=at(1))])
    moment = at(30 * DAY + 0.5)
    await maintenance.tick(moment)
    job = await lives.jobs.get(old.job.key)
    assert (job.contents_pruned_at, job.state) == (moment, State.COMPLETED)
    with pytest.raises(NotFound):
        await lives.jobs.contents(old.job.key)
    assert (await lives.jobs.contents(young.job.key)).result is not None
    assert (await lives.jobs.get(young.job.key)).contents_pruned_at is None
    assert len(await lives.jobs.attempts(old.job.key)) == 1


async def test_a_row_is_deleted_in_the_end_with_all_that_hangs_on_it(lives: Lives, maintenance: Maintenance) -> None:
    old = await lives.running(callback=callback())
    await lives.jobs.end([ending(old, at=T0)])
    await maintenance.tick(at(399 * DAY))
    assert (await rows(lives, "jobs"), await rows(lives, "job_attempts")) == (1, 1)
    await maintenance.tick(at(401 * DAY))
    for table in ("jobs", "job_attempts", "job_contents", "events", "callbacks", "messages", "deliveries"):
        assert await rows(lives, table) == 0, table


async def test_what_has_not_ended_is_kept_however_old_it_is(lives: Lives, maintenance: Maintenance) -> None:
    [waiting] = await lives.submit(new_job(run_at=at(1000 * DAY)))
    await maintenance.tick(at(999 * DAY))
    assert (await lives.jobs.contents(waiting.key)).request


async def test_events_do_not_outlive_the_result_that_they_tell(lives: Lives) -> None:
    old = await lives.running()
    await lives.jobs.end([ending(old, at=T0)])
    store = RetentionStore(lives.pool)
    assert await store.expire_contents(ended_before=at(1), now=at(60)) == 1
    assert await lives.log(old.job.key) == []
    assert (await lives.jobs.get(old.job.key)).events_pruned_at == at(60)


async def test_a_callback_is_kept_as_long_as_a_replay_would_send_to_it(lives: Lives) -> None:
    told, untold = await lives.running(callback=callback()), await lives.running(callback=callback())
    await lives.jobs.end([ending(told, at=T0), ending(untold, at=T0)])
    await lives.pool.execute("DELETE FROM messages WHERE job_id = $1", untold.job.key.id)
    assert await RetentionStore(lives.pool).expire_contents(ended_before=at(1), now=at(60)) == 2
    assert await lives.jobs.callback(told.job.key) is not None
    assert await lives.jobs.callback(untold.job.key) is None


async def test_retention_goes_in_bites_and_two_at_once_share_the_work(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.store.retention._BITE", 2)
    running = [await lives.running() for _ in range(5)]
    await lives.jobs.end([ending(attempt, at=T0) for attempt in running])
    store = RetentionStore(lives.pool)
    bites = await at_once([store.expire_contents(ended_before=at(1), now=at(60)) for _ in range(2)])
    assert max(bites) <= 2
    while await store.expire_contents(ended_before=at(1), now=at(60)):
        pass
    assert await rows(lives, "job_contents") == 0
    assert await store.forget_jobs(ended_before=at(1)) == 2


async def test_spendings_and_recoveries_are_forgotten(lives: Lives, maintenance: Maintenance) -> None:
    await lives.pool.execute(
        "INSERT INTO spendings (tenant_id, day, model) VALUES ('a', $1::date, 'm'), ('a', $1::date + 1, 'm')", T0.date()
    )
    await lives.pool.execute(
        "INSERT INTO recoveries (tenant_id, id, endpoint_id, since, until, wanted, state, total, created_at, ended_at)"
        " VALUES ('a', gen_random_uuid(), gen_random_uuid(), $1, $1, 'all', 'completed', 0, $1, $1),"
        " ('a', gen_random_uuid(), gen_random_uuid(), $1, $1, 'all', 'running', 0, $1, NULL)",
        T0,
    )
    await maintenance.tick(at(401 * DAY))
    assert await rows(lives, "spendings") == 1
    assert await rows(lives, "recoveries") == 1, "the one that runs"


async def test_erasing_leaves_nothing_of_what_was_said_in_any_table(database: Database) -> None:
    word = "zanzibar"
    request = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": word}]})
    told = Told(database)
    await told.senders()
    attempt = await told.running(request=request, metadata=f'{{"about": "{word}"}}', callback=callback())
    await told.events.append([batch(attempt, 1, chunk(word))], at(1))
    await told.jobs.end([ending(attempt, result=msgspec.json.encode({"content": word}))])
    await told.admit(at(9))
    echo = Exchange(status=200, headers=(("x-echo", word),), body=word.encode())
    await told.record(judged(await told.load_one(at(9)), echo, at(9)))
    assert await tables_with(told, word) != []
    await told.jobs.erase(attempt.job.key, at(10))
    assert await tables_with(told, word) == []


async def tables_with(lives: Lives, word: str) -> list[str]:
    """Tables of ours in which a word stands, in text or in bytes."""
    names = await lives.pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'tramontane'")
    wanted = (word, word.encode().hex())
    found = []
    for row in names:
        lines = await lives.pool.fetch(f'SELECT t::text AS line FROM "{row["tablename"]}" t')
        if any(one in line["line"] for line in lines for one in wanted):
            found.append(row["tablename"])
    return found

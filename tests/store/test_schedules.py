"""Schedules: each of their times makes one job, whatever crashes and however many look at the clock."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from lives import T0, Lives, at_once, new_job

from tramontane.database import Database
from tramontane.errors import Conflict, InvalidInput, NotFound
from tramontane.models import CatchUp, Schedule
from tramontane.schedules import MOST_MISSED, Schedules, Template, job_now
from tramontane.standings import Standings
from tramontane.store import ScheduleStore, StandingStore
from tramontane.store.schedules import MOST

MINUTE = timedelta(minutes=1)


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


@pytest.fixture
def store(lives: Lives) -> ScheduleStore:
    return ScheduleStore(lives.pool)


@pytest.fixture
def schedules(store: ScheduleStore) -> Schedules:
    return Schedules(store)


def limited(lives: Lives, *, queue_limit: int = 0) -> Schedules:
    """Schedules that mind how many jobs wait."""
    return Schedules(ScheduleStore(lives.pool), Standings(StandingStore(lives.pool), queue_limit=queue_limit))


async def end_all(lives: Lives) -> None:
    await lives.pool.execute("UPDATE jobs SET state = 'cancelled', completed_at = $1 WHERE state = 'queued'", T0)


async def add(schedules: Schedules, cron: str = "* * * * *", **fields: Any) -> Schedule:
    given: dict[str, Any] = {
        "name": "a",
        "timezone": "UTC",
        "job": b'{"messages":[]}',
        "template": Template(job=new_job(), request_id=None),
        "catch_up": CatchUp.ONE,
        "active": True,
        "now": T0,
    }
    return await schedules.add(fields.pop("tenant", "default"), cron=cron, **(given | fields))


async def minutes(lives: Lives) -> list[str]:
    """For which times jobs were made."""
    rows = await lives.pool.fetch("SELECT idempotency_key AS key FROM jobs ORDER BY id")
    return [row["key"].split("T")[1][:5] for row in rows]


async def test_each_time_makes_one_job(lives: Lives, schedules: Schedules) -> None:
    made = await add(schedules)
    assert made.next_at == T0 + MINUTE
    assert await schedules.tick(T0 + 0.9 * MINUTE) == T0 + MINUTE
    assert await minutes(lives) == []
    assert await schedules.tick(T0 + MINUTE) == T0 + 2 * MINUTE
    assert await schedules.tick(T0 + MINUTE) == T0 + 2 * MINUTE
    assert await schedules.tick(T0 + 2 * MINUTE) == T0 + 3 * MINUTE
    assert await minutes(lives) == ["06:47", "06:48"]

    shown = await schedules.get("default", made.id)
    assert (shown.last_at, shown.next_at) == (T0 + 2 * MINUTE, T0 + 3 * MINUTE)
    job = await lives.pool.fetchrow("SELECT * FROM jobs ORDER BY id DESC LIMIT 1")
    assert job is not None
    assert (job["id"], job["schedule_id"], job["run_at"]) == (shown.last_job, made.id, T0 + 2 * MINUTE)


async def test_several_processes_fire_one_time_once(lives: Lives, schedules: Schedules) -> None:
    for number in range(30):
        await add(schedules, name=f"s{number}")
    await at_once([schedules.tick(T0 + MINUTE) for _ in range(6)])
    await schedules.tick(T0 + MINUTE)
    assert await lives.pool.fetchval("SELECT count(*) FROM jobs") == 30
    assert await lives.pool.fetchval("SELECT count(DISTINCT schedule_id) FROM jobs") == 30


async def test_a_crash_before_the_commit_neither_loses_a_time_nor_doubles_it(
    lives: Lives, schedules: Schedules, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(schedules)

    async def crash(*_: Any) -> None:
        raise RuntimeError("between the job and the clock")

    with monkeypatch.context() as patched:
        patched.setattr("tramontane.store.schedules._move", crash)
        with pytest.raises(RuntimeError):
            await schedules.tick(T0 + MINUTE)
    assert await minutes(lives) == []
    await schedules.tick(T0 + MINUTE)
    assert await minutes(lives) == ["06:47"]


@pytest.mark.parametrize(
    ("catch_up", "late", "expected"),
    [
        (CatchUp.SKIP, 2.5, ["06:51"]),  # the last one is only half a minute late
        (CatchUp.ONE, 2.5, ["06:51"]),
        (CatchUp.ALL, 2.5, ["06:47", "06:49", "06:51"]),
    ],
)
async def test_missed_times_are_made_up_for_as_the_schedule_says(
    lives: Lives, schedules: Schedules, catch_up: CatchUp, late: float, expected: list[str]
) -> None:
    await add(schedules, "1-59/2 * * * *", catch_up=catch_up)
    assert await schedules.tick(T0 + 5.5 * MINUTE) == T0 + 7 * MINUTE
    assert await minutes(lives) == expected


async def test_skip_makes_nothing_of_a_time_long_past(lives: Lives, schedules: Schedules) -> None:
    await add(schedules, "0 7 * * *", catch_up=CatchUp.SKIP)
    assert await schedules.tick(T0.replace(hour=9)) == T0.replace(day=23, hour=7, minute=0)
    assert await minutes(lives) == []


@pytest.mark.parametrize("gone", [timedelta(hours=5), timedelta(days=400)])
async def test_all_is_bounded_and_the_latest_times_are_those_made_up_for(
    lives: Lives, schedules: Schedules, gone: timedelta
) -> None:
    await add(schedules, catch_up=CatchUp.ALL)
    now = T0 + gone
    assert await schedules.tick(now) == now + MINUTE
    assert await lives.pool.fetchval("SELECT count(*) FROM jobs") == MOST_MISSED
    assert (await minutes(lives))[-1] == f"{now:%H:%M}"


async def test_a_deadline_counts_from_each_start(lives: Lives, schedules: Schedules) -> None:
    template = Template(job=new_job(deadline=T0 + timedelta(hours=2)), request_id="mine")
    await add(schedules, "0 7 * * *", template=template)
    now = datetime(2026, 11, 22, 7, tzinfo=UTC)
    await schedules.tick(now)
    row = await lives.pool.fetchrow("SELECT deadline, request_id FROM jobs")
    assert row is not None
    assert tuple(row) == (now + timedelta(hours=2), "mine")


async def test_a_paused_schedule_rests_and_makes_nothing_up_when_it_goes_on(lives: Lives, schedules: Schedules) -> None:
    made = await add(schedules, catch_up=CatchUp.ALL)
    paused = await schedules.change(dataclasses.replace(made, active=False), template=None, now=T0)
    assert await schedules.tick(T0 + 10 * MINUTE) is None
    active = await schedules.change(dataclasses.replace(paused, active=True), template=None, now=T0 + 20 * MINUTE)
    assert (paused.next_at, active.next_at) == (None, T0 + 21 * MINUTE)
    await schedules.tick(T0 + 21 * MINUTE)
    assert await minutes(lives) == ["07:07"]


async def test_a_schedule_that_cannot_be_read_any_more_stops_and_says_why(
    lives: Lives, schedules: Schedules, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = await add(schedules, name="broken"), await add(schedules, name="good")
    await lives.pool.execute("UPDATE schedules SET template = '{}' WHERE id = $1", broken.id)
    lost = await add(schedules, name="lost")
    await lives.pool.execute("UPDATE schedules SET timezone = 'Europe/Atlantis' WHERE id = $1", lost.id)
    await schedules.tick(T0 + MINUTE)

    for stopped, reason in ((broken, "give it again"), (lost, "Europe/Atlantis")):
        shown = await schedules.get("default", stopped.id)
        assert (shown.active, shown.next_at) == (False, None)
        assert shown.reason is not None
        assert reason in shown.reason
    assert (await schedules.get("default", good.id)).last_job is not None
    assert [record.message for record in caplog.records].count("schedule.stopped") == 2


async def test_a_tenant_has_its_own_names_and_schedules(schedules: Schedules) -> None:
    made = await add(schedules)
    await add(schedules, tenant="other")
    with pytest.raises(Conflict):
        await add(schedules)
    with pytest.raises(NotFound):
        await schedules.get("other", made.id)
    with pytest.raises(NotFound):
        await schedules.delete("other", made.id)
    with pytest.raises(NotFound):
        await schedules.change(dataclasses.replace(made, tenant="third"), template=None, now=T0)
    assert [one.tenant for one in await schedules.list("default")] == ["default"]


async def test_two_who_change_a_schedule_at_once_do_not_undo_each_other(schedules: Schedules) -> None:
    made = await add(schedules)
    await schedules.change(dataclasses.replace(made, cron="0 6 * * *"), template=None, now=T0 + MINUTE)
    with pytest.raises(Conflict):
        await schedules.change(dataclasses.replace(made, name="b"), template=None, now=T0 + MINUTE)


async def test_a_schedule_may_not_ask_for_more_priority_than_its_tenant_has(lives: Lives, schedules: Schedules) -> None:
    await lives.tenant(top_priority=2)
    above = Template(job=new_job(priority=3), request_id=None)
    with pytest.raises(InvalidInput, match=r"^job\.priority: may be 2 at most"):
        await add(schedules, template=above)
    assert await schedules.list("default") == []
    made = await add(schedules, template=Template(job=new_job(priority=2), request_id=None))
    with pytest.raises(InvalidInput, match=r"^job\.priority: may be 2 at most"):
        await schedules.change(made, template=above, now=T0)
    assert (await schedules.get("default", made.id)).template == made.template


async def test_a_schedule_goes_on_with_less_priority_once_its_tenant_has_less(
    lives: Lives, schedules: Schedules
) -> None:
    made = await add(schedules, template=Template(job=new_job(priority=5), request_id=None))
    await lives.tenant(top_priority=0)

    await schedules.change(dataclasses.replace(made, name="b"), template=None, now=T0)  # its job is not the news
    await schedules.tick(T0 + MINUTE)
    [by_hand] = await lives.submit(job_now(made, T0 + MINUTE))

    assert await lives.pool.fetchval("SELECT priority FROM jobs WHERE idempotency_key IS NOT NULL") == 0
    assert by_hand.priority == 0


# Where no more may wait


@pytest.mark.parametrize(("fleet", "tenants", "code"), [(1, None, "overloaded"), (0, 1, "queue_full")])
async def test_a_time_that_finds_no_place_is_put_off_says_so_and_is_made_up_for(
    lives: Lives, fleet: int, tenants: int | None, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    await lives.tenant(queue_limit=tenants)
    schedules = limited(lives, queue_limit=fleet)
    made = await add(schedules)
    await lives.submit(new_job())

    for seconds in (0, 1, 2):
        assert await schedules.tick(T0 + MINUTE + timedelta(seconds=seconds)) is None
    put_off = await schedules.get("default", made.id)
    assert (put_off.active, put_off.next_at, put_off.last_job) == (True, T0 + MINUTE, None)
    assert put_off.reason is not None
    assert code in put_off.reason
    assert [record.message for record in caplog.records] == ["schedule.put_off"]

    await end_all(lives)
    assert await schedules.tick(T0 + MINUTE + timedelta(seconds=3)) == T0 + 2 * MINUTE
    shown = await schedules.get("default", made.id)
    assert (shown.reason, shown.last_at, shown.next_at) == (None, T0 + MINUTE, T0 + 2 * MINUTE)
    assert await lives.pool.fetchval("SELECT count(*) FROM jobs WHERE schedule_id = $1", made.id) == 1


async def test_as_many_missed_times_are_made_up_for_as_there_are_places_and_the_rest_later(lives: Lives) -> None:
    await lives.tenant(queue_limit=2)
    schedules = limited(lives)
    made = await add(schedules, catch_up=CatchUp.ALL)
    now = T0 + 5 * MINUTE
    await schedules.tick(now)
    assert await minutes(lives) == ["06:47", "06:48"]
    assert (await schedules.get("default", made.id)).next_at == T0 + 3 * MINUTE
    for seconds in (1, 2, 3):
        await end_all(lives)
        await schedules.tick(now + timedelta(seconds=seconds))
    assert await minutes(lives) == ["06:47", "06:48", "06:49", "06:50", "06:51"]
    assert (await schedules.get("default", made.id)).next_at == T0 + 6 * MINUTE


@pytest.mark.parametrize(("catch_up", "expected"), [(CatchUp.ONE, ["06:55"]), (CatchUp.SKIP, [])])
async def test_what_was_put_off_for_long_is_as_late_as_what_was_missed(
    lives: Lives, catch_up: CatchUp, expected: list[str]
) -> None:
    await lives.tenant(queue_limit=0)
    schedules = limited(lives)
    await add(schedules, "*/11 * * * *", catch_up=catch_up)  # 06:55, and 07:06
    await schedules.tick(T0 + 9 * MINUTE)
    await lives.pool.execute("UPDATE tenants SET queue_limit = NULL")
    await schedules.tick(T0 + 11 * MINUTE)
    assert await minutes(lives) == expected


async def test_a_full_queue_of_one_tenant_holds_up_nobody_else(lives: Lives) -> None:
    await lives.tenant(queue_limit=0)
    schedules = limited(lives)
    for number in range(45):
        await add(schedules, name=f"s{number}")
    other = await add(schedules, "* * * * *", tenant="other", template=Template(new_job(tenant="other"), None))
    await lives.pool.execute("UPDATE schedules SET next_at = $1 WHERE tenant_id = 'default'", T0)

    assert await schedules.tick(T0 + MINUTE) == T0 + 2 * MINUTE

    assert await lives.pool.fetchval("SELECT array_agg(schedule_id) FROM jobs") == [other.id]
    assert await lives.pool.fetchval("SELECT count(*) FROM schedules WHERE reason IS NOT NULL") == 45


async def test_a_spent_budget_puts_nothing_off_since_its_jobs_say_what_becomes_of_them(lives: Lives) -> None:
    await lives.tenant(daily_tokens=0, on_budget="fail")
    schedules = limited(lives)
    await add(schedules)
    await schedules.tick(T0 + MINUTE)
    assert await minutes(lives) == ["06:47"]


async def test_a_tenant_has_so_many_schedules_and_no_more(lives: Lives, schedules: Schedules) -> None:
    first = await add(schedules)
    await lives.pool.execute(
        "INSERT INTO schedules SELECT (jsonb_populate_record(s, jsonb_build_object('id', gen_random_uuid(),"
        " 'name', n))).* FROM schedules s, generate_series(2, $1) n",
        MOST - 1,
    )
    await add(schedules, name="the last")
    with pytest.raises(Conflict, match="1000 schedules"):
        await add(schedules, name="one too many")
    await add(schedules, tenant="other")
    await schedules.delete("default", first.id)
    await add(schedules, name="in its place")

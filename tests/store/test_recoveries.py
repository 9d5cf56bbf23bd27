"""Recoveries on the store: what is told again, that it is told once, and that it goes on where a crash left it."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from lives import T0, at, at_once
from told import FINE, GONE, REFUSED, Told

from tramontane.database import Database
from tramontane.errors import Conflict, NotFound
from tramontane.ids import new_id
from tramontane.store.messages import publish
from tramontane.store.recoveries import LOW_WATER, MOST_PAGES, PAGE, SQL, RecoveryStore, refill
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.records import Recovery, RecoveryState, Wanted

LATER = at(10_000)


@pytest.fixture
async def told(database: Database) -> Told:
    told = Told(database)
    await told.senders()
    return told


@pytest.fixture
def recoveries(told: Told) -> RecoveryStore:
    return RecoveryStore(told.pool)


async def start(recoveries: RecoveryStore, endpoint: UUID, only: Wanted = "missing", **given: Any) -> Recovery:
    fields: dict[str, Any] = {"since": T0, "until": at(5000), "event": None, "now": LATER} | given
    return await recoveries.start("default", endpoint, only=only, **fields)


async def fill(told: Told, now: datetime = LATER) -> None:
    async with told.pool.acquire() as connection, connection.transaction():
        await refill(connection, now)


async def fill_and_crash(told: Told) -> None:
    async with told.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await refill(connection, LATER)
        await transaction.rollback()


async def tell_many(told: Told, count: int, *, since: float = 0.0) -> list[UUID]:
    """So many messages, one per second."""
    messages = [new_message("chat.completed", at(since + one), tenant="default", data={}) for one in range(count)]
    async with told.pool.acquire() as connection, connection.transaction():
        await publish(connection, messages)
    return [message.id for message in messages]


async def run_to_its_end(told: Told, recoveries: RecoveryStore, recovery: Recovery) -> Recovery:
    """Refill and send until it has ended."""
    for _ in range(200):
        await fill(told)
        recovery = await recoveries.get("default", recovery.id)
        if recovery.state != "running":
            return recovery
        while await told.send(LATER, FINE):
            pass
    raise AssertionError("it never ends")


async def made(told: Told, recovery: Recovery) -> list[UUID]:
    """Messages that it has made deliveries of, in the order in which they go out."""
    rows = await told.pool.fetch("SELECT message_id FROM deliveries WHERE run_id = $1 ORDER BY due_at, id", recovery.id)
    return [row["message_id"] for row in rows]


async def test_a_new_endpoint_is_told_all_that_it_missed_in_order_and_once(any_database: Database) -> None:
    told, recoveries = Told(any_database), RecoveryStore(any_database.pool)
    await told.senders()
    messages = await tell_many(told, 700)
    endpoint = await told.endpoint()
    recovery = await start(recoveries, endpoint)
    assert (recovery.state, recovery.total, recovery.done) == ("running", 700, 0)
    ended = await run_to_its_end(told, recoveries, recovery)

    assert await made(told, recovery) == messages
    assert (ended.state, ended.total, ended.done, ended.succeeded) == ("completed", 700, 700, 700)
    assert (ended.failed, ended.waiting, ended.ended_at) == (0, 0, LATER)
    assert {row["origin"] for row in await told.rows()} == {"recovery"}


async def test_there_is_never_more_of_it_than_the_endpoint_has_room_for(told: Told, recoveries: RecoveryStore) -> None:
    await tell_many(told, 3 * PAGE)
    recovery = await start(recoveries, await told.endpoint())
    for _ in range(3):
        await fill(told)
    assert len(await made(told, recovery)) == PAGE
    await told.pool.execute(
        "UPDATE deliveries SET state = 'succeeded' WHERE id IN (SELECT id FROM deliveries ORDER BY id LIMIT $1)",
        PAGE - LOW_WATER,
    )
    await fill(told)
    assert len(await made(told, recovery)) == PAGE
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded' WHERE state = 'waiting' AND id IN"
                            " (SELECT id FROM deliveries WHERE state = 'waiting' LIMIT 1)")  # fmt: skip
    await fill(told)
    assert len(await made(told, recovery)) == 2 * PAGE


async def test_what_waits_for_another_attempt_holds_nothing_up(told: Told, recoveries: RecoveryStore) -> None:
    await tell_many(told, 2 * PAGE)
    recovery = await start(recoveries, await told.endpoint())
    await fill(told)
    await told.pool.execute("UPDATE deliveries SET due_at = $1", LATER + timedelta(hours=1))
    await fill(told)
    assert len(await made(told, recovery)) == 2 * PAGE


async def test_failed_means_what_was_tried_did_not_arrive_and_is_not_tried_any_more(
    told: Told, recoveries: RecoveryStore
) -> None:
    endpoint = await told.endpoint()
    messages = await tell_many(told, 6)
    state = {
        messages[0]: ["failed"],
        messages[1]: ["cancelled"],
        messages[2]: ["succeeded"],
        messages[3]: ["failed", "succeeded"],
        messages[4]: ["failed", "waiting"],
        messages[5]: ["superseded"],
    }
    for message, states in state.items():
        [row] = await told.rows("message_id = $1", message)
        ids = [row["id"], *[await told.copy(row["id"]) for _ in states[1:]]]
        for delivery, one in zip(ids, states, strict=True):
            await told.pool.execute("UPDATE deliveries SET state = $2 WHERE id = $1", delivery, one)
    missed = await told.publish("chat.failed")
    await told.pool.execute("DELETE FROM deliveries WHERE message_id = $1", missed.id)

    found = {}
    for only in ("failed", "missing", "all"):
        recovery = await start(recoveries, endpoint, only)
        await fill(told)
        found[only] = await made(told, recovery)
        assert recovery.total == len(found[only])
        await told.pool.execute("DELETE FROM deliveries WHERE run_id = $1", recovery.id)
    assert found["failed"] == messages[:2]
    assert found["missing"] == [missed.id]
    assert set(found["all"]) == {*messages, missed.id}


async def test_only_what_the_endpoint_wants_of_the_range_and_the_event_is_told(
    told: Told, recoveries: RecoveryStore
) -> None:
    endpoint = await told.endpoint("chat.*", "endpoint.degraded", state="paused", created_at=at(1))
    other = await told.endpoint()
    before = await told.publish("chat.completed", at(9))
    completed, failed = await told.publish("chat.completed", at(10)), await told.publish("chat.failed", at(11))
    await told.publish("endpoint.disabled", at(12))
    await told.publish("webhook.test", at(12))
    await told.publish("endpoint.degraded", at(13), about=endpoint)
    about_another = await told.publish("endpoint.degraded", at(14), about=other)
    erased = await told.publish("chat.completed", at(15))
    after = await told.publish("chat.completed", at(20))
    await told.pool.execute("DELETE FROM message_bodies WHERE message_id = $1", erased.id)
    await told.pool.execute("DELETE FROM deliveries")
    await told.set_endpoint(endpoint, state="active")

    async def found(**given: Any) -> list[UUID]:
        recovery = await start(recoveries, endpoint, **({"since": at(10), "until": at(20)} | given))
        await fill(told)
        ids = await made(told, recovery)
        assert len(ids) == recovery.total
        await told.pool.execute("DELETE FROM deliveries")
        return ids

    assert await found() == [completed.id, failed.id, about_another.id]
    assert await found(event="chat.failed") == await found(event="*.failed") == [failed.id]
    assert await found(event="chat.*") == [completed.id, failed.id]
    assert (await found(since=T0))[0] == before.id
    assert (await found(until=at(21)))[-1] == after.id


async def test_messages_of_one_moment_are_each_told_once(told: Told, recoveries: RecoveryStore) -> None:
    messages = [(await told.publish(at=at(7))).id for _ in range(5)]
    await told.publish_all([new_message("chat.failed", at(7), tenant="default", data={}) for _ in range(PAGE)])
    recovery = await start(recoveries, await told.endpoint())
    ended = await run_to_its_end(told, recoveries, recovery)
    ids = await made(told, recovery)
    assert len(ids) == len(set(ids)) == ended.total == PAGE + 5
    assert set(messages) < set(ids)


async def test_the_format_is_the_endpoints_and_what_is_too_large_goes_thin(
    told: Told, recoveries: RecoveryStore
) -> None:
    small = await told.publish()
    large = await told.publish(data={"content": "x" * 300_000}, thin={})
    await start(recoveries, await told.endpoint(format="default"))
    await fill(told)
    assert [row["format"] for row in await told.rows("message_id = $1", small.id)] == ["default"]
    assert [row["format"] for row in await told.rows("message_id = $1", large.id)] == ["thin"]


async def test_a_crash_at_any_point_neither_loses_nor_doubles(told: Told, recoveries: RecoveryStore) -> None:
    messages = await tell_many(told, PAGE + 10)
    recovery = await start(recoveries, await told.endpoint(), "all")

    for _ in range(2):
        await fill_and_crash(told)
        assert await made(told, recovery) == []
    await fill(told)
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded'")
    await fill_and_crash(told)
    assert len(await made(told, recovery)) == PAGE
    await run_to_its_end(told, recoveries, recovery)
    assert await made(told, recovery) == messages
    # And even one who begins again from the start doubles nothing.
    await told.pool.execute("UPDATE recoveries SET state = 'running', cursor_at = NULL, cursor_id = NULL")
    await fill(told)
    assert len(await made(told, recovery)) == len(messages)


async def test_two_rounds_at_once_make_each_delivery_once(told: Told, recoveries: RecoveryStore) -> None:
    messages = await tell_many(told, 60)
    recovery = await start(recoveries, await told.endpoint())
    assert [outcome for outcome in await at_once([fill(told) for _ in range(6)]) if outcome] == []
    assert await made(told, recovery) == messages


async def test_a_round_passes_over_one_that_another_round_has_in_hand(told: Told, recoveries: RecoveryStore) -> None:
    messages = await tell_many(told, 5)
    recovery = await start(recoveries, await told.endpoint())
    async with told.pool.acquire() as connection, connection.transaction():
        await refill(connection, LATER)
        async with asyncio.timeout(5):
            await fill(told)
        assert await made(told, recovery) == []
    assert await made(told, recovery) == messages


async def test_a_test_is_never_told_again(told: Told, recoveries: RecoveryStore) -> None:
    await told.publish("webhook.test")
    recovery = await start(recoveries, await told.endpoint())
    await fill(told)
    assert (recovery.total, await made(told, recovery)) == (0, [])


async def test_one_that_finds_little_looks_on_in_the_next_round_without_being_asked(
    told: Told, recoveries: RecoveryStore
) -> None:
    endpoint = await told.endpoint("chat.completed")
    await tell_many(told, MOST_PAGES * PAGE + 5)
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded'")
    last = await told.publish("chat.completed", at(4000))
    await told.pool.execute("DELETE FROM deliveries WHERE message_id = $1", last.id)
    recovery = await start(recoveries, endpoint)
    notes: list[str] = []
    async with told.pool.acquire() as connection:

        def hear(*heard: object) -> None:
            notes.append(str(heard[2]))

        await connection.add_listener("tramontane_deliveries", hear)
        await fill(told)
        await connection.execute("SELECT 1")
        assert notes
        await connection.remove_listener("tramontane_deliveries", hear)
    assert await made(told, recovery) == []
    await fill(told)
    assert await made(told, recovery) == [last.id]


async def test_a_completed_one_has_nothing_on_its_way(told: Told, recoveries: RecoveryStore) -> None:
    await tell_many(told, 3)
    recovery = await start(recoveries, await told.endpoint())
    await fill(told)
    assert len(await told.admit(LATER)) == 3
    await fill(told)
    first, second, third = await told.load(LATER)
    assert (await recoveries.get("default", recovery.id)).waiting == 3
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded' WHERE id = $1", first.id)
    await told.pool.execute("UPDATE deliveries SET state = 'failed' WHERE id = $1", second.id)
    await fill(told)
    half = await recoveries.get("default", recovery.id)
    assert (half.state, half.done, half.succeeded, half.failed, half.waiting) == ("running", 3, 1, 1, 1)
    await told.pool.execute("UPDATE deliveries SET state = 'cancelled' WHERE id = $1", third.id)
    await fill(told)
    assert (await recoveries.get("default", recovery.id)).state == "completed"


async def test_one_without_anything_to_tell_completes_at_once(told: Told, recoveries: RecoveryStore) -> None:
    recovery = await start(recoveries, await told.endpoint())
    assert recovery.total == 0
    await fill(told)
    assert (await recoveries.get("default", recovery.id)).state == "completed"


async def test_a_paused_one_rests_and_goes_on_where_it_was(told: Told, recoveries: RecoveryStore) -> None:
    messages = await tell_many(told, 2 * PAGE)
    recovery = await start(recoveries, await told.endpoint())
    await fill(told)
    assert (await recoveries.steer("default", recovery.id, "paused", LATER)).state == "paused"
    assert (await recoveries.steer("default", recovery.id, "paused", LATER)).state == "paused"
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded'")
    await fill(told)
    assert len(await made(told, recovery)) == PAGE
    assert (await recoveries.steer("default", recovery.id, "running", LATER)).ended_at is None
    await run_to_its_end(told, recoveries, recovery)
    assert await made(told, recovery) == messages
    steps: tuple[RecoveryState, ...] = ("paused", "running", "cancelled")
    for step in steps:
        with pytest.raises(Conflict, match="completed"):
            await recoveries.steer("default", recovery.id, step, LATER)


async def test_a_cancelled_one_takes_back_what_waits_and_nothing_else(told: Told, recoveries: RecoveryStore) -> None:
    await tell_many(told, 5)
    endpoint = await told.endpoint()
    own = await told.publish()
    recovery = await start(recoveries, endpoint, until=at(5))
    await fill(told)
    await told.pool.execute(
        "UPDATE deliveries SET state = 'dispatched' WHERE id ="
        " (SELECT id FROM deliveries WHERE run_id = $1 ORDER BY id LIMIT 1)", recovery.id,
    )  # fmt: skip
    cancelled = await recoveries.steer("default", recovery.id, "cancelled", LATER)
    assert (cancelled.state, cancelled.ended_at, cancelled.waiting, cancelled.failed) == ("cancelled", LATER, 1, 4)
    assert [row["state"] for row in await told.rows("message_id = $1", own.id)] == ["waiting"]
    await fill(told)
    assert len(await made(told, recovery)) == 5


@pytest.mark.parametrize("state", ["paused", "disabled"])
async def test_an_endpoint_that_takes_nothing_is_made_nothing(
    told: Told, recoveries: RecoveryStore, state: str
) -> None:
    messages = await tell_many(told, 5)
    endpoint = await told.endpoint()
    recovery = await start(recoveries, endpoint)
    await told.set_endpoint(endpoint, state=state)
    await fill(told)
    assert await made(told, recovery) == []
    await told.set_endpoint(endpoint, state="active")
    await fill(told)
    assert await made(told, recovery) == messages


async def test_a_disabled_an_unknown_and_anothers_endpoint_begin_none(told: Told, recoveries: RecoveryStore) -> None:
    with pytest.raises(Conflict, match="disabled"):
        await start(recoveries, await told.endpoint(state="disabled"))
    theirs = await told.endpoint(tenant="other")
    for unknown in (new_id(), theirs, await told.endpoint(kind="listener"), await told.endpoint(kind="origin")):
        with pytest.raises(NotFound):
            await start(recoveries, unknown)


async def test_those_of_another_tenant_are_not_there(told: Told, recoveries: RecoveryStore) -> None:
    theirs = await told.endpoint(tenant="other")
    recovery = await recoveries.start("other", theirs, since=T0, until=at(1), only="all", event=None, now=LATER)
    for asked in (recoveries.get("default", recovery.id), recoveries.steer("default", recovery.id, "cancelled", T0)):
        with pytest.raises(NotFound):
            await asked
    assert await recoveries.find("default", None, before=None, limit=9) == []
    assert (await recoveries.get("other", recovery.id)).state == "running"


async def test_they_are_listed_newest_first_and_by_endpoint(told: Told, recoveries: RecoveryStore) -> None:
    one, other = await told.endpoint(), await told.endpoint()
    ids = [(await start(recoveries, endpoint)).id for endpoint in (one, other, one, one)]

    listed = await recoveries.find("default", one, before=None, limit=2)
    rest = await recoveries.find("default", one, before=listed[-1].id, limit=2)
    assert [recovery.id for recovery in (*listed, *rest)] == [ids[3], ids[2], ids[0]]
    assert len(await recoveries.find("default", None, before=None, limit=9)) == 4


async def test_what_failed_again_can_be_told_again_until_it_arrives(told: Told, recoveries: RecoveryStore) -> None:
    endpoint = await told.endpoint()
    message = await told.publish()
    for second in (0, 5, 35, 155, 755):
        assert await told.send(at(second), REFUSED)
    for exchange, left in ((GONE, 1), (FINE, 0)):
        assert (await start(recoveries, endpoint, "failed")).total == 1
        await fill(told)
        assert await told.send(LATER, exchange)
        await told.set_endpoint(endpoint, state="active", disabled_reason=None, health="{}", allowance=4)
        await fill(told)
        assert (await start(recoveries, endpoint, "failed")).total == left
        await told.pool.execute("DELETE FROM recoveries")
    assert len(await told.rows("message_id = $1", message.id)) == 3


async def test_what_is_gone_or_ill_in_between_can_be_told_again(told: Told, recoveries: RecoveryStore) -> None:
    endpoint = await told.endpoint()
    await tell_many(told, 8)
    await told.send(at(100), GONE)
    while await told.deliveries.tidy(at(101), retention=timedelta(days=30)):
        pass
    assert (await told.endpoint_row(endpoint))["state"] == "disabled"
    await told.set_endpoint(endpoint, state="active", disabled_reason=None, health="{}", allowance=4)
    recovery = await run_to_its_end(told, recoveries, await start(recoveries, endpoint, "failed"))
    assert (recovery.total, recovery.succeeded) == (8, 8)


# What it costs


async def plan_of(told: Told, statement: str, *arguments: object) -> str:
    async with told.pool.acquire() as connection:
        [[text]] = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *arguments)
    return str(text)


async def test_without_any_a_round_looks_at_one_index_and_at_nothing_else(told: Told) -> None:
    await told.endpoint()
    await tell_many(told, 500)
    await told.pool.execute("INSERT INTO recoveries (tenant_id, id, endpoint_id, since, until, wanted, state, total,"
                            " created_at) SELECT 'default', gen_random_uuid(), gen_random_uuid(), $1, $1, 'all',"
                            " 'completed', 0, $1 FROM generate_series(1, 2000)", T0)  # fmt: skip
    await told.pool.execute("ANALYZE")
    [plan] = json.loads(await plan_of(told, SQL.running, LATER, LOW_WATER))
    assert "recoveries_running" in json.dumps(plan)
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] <= 4


async def test_a_page_costs_the_same_wherever_it_is_and_whatever_the_planner_knows(
    told: Told, recoveries: RecoveryStore
) -> None:
    await told.pool.execute(
        "INSERT INTO messages (tenant_id, id, event, at, final) SELECT 'default', gen_random_uuid(), 'chat.completed',"
        " $1::timestamptz + make_interval(secs => n / 10.0), false FROM generate_series(1, 5000) n", T0,
    )  # fmt: skip
    await told.pool.execute("INSERT INTO message_bodies SELECT tenant_id, id, 'x', 'x' FROM messages")
    endpoint = await told.endpoint()
    await told.pool.execute(
        "INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, final, origin,"
        " run_id, state, due_at, created_at) SELECT tenant_id, gen_random_uuid(), id, $1, false, 'default', event,"
        " final, 'event', id, 'failed', at, at FROM messages", endpoint,
    )  # fmt: skip
    recovery = await start(recoveries, endpoint, "failed")
    assert recovery.total == 5000
    for cursor in (T0, at(200), at(400)):
        await told.pool.execute("UPDATE recoveries SET cursor_at = $1, cursor_id = $2", cursor, UUID(int=0))
        given = ("default", recovery.id, [new_id() for _ in range(PAGE)], LATER)
        [plan] = json.loads(await plan_of(told, SQL.next_page, *given))
        # Pages of the database for each message: its place, its body, its deliveries, and the new one in six indexes.
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 50 * PAGE
        await told.pool.execute("ANALYZE")

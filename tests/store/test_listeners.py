"""Listeners on the store: what they fetch, what they answer, and what happens when they fall silent."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from lives import T0, at, at_once
from told import Told

from tramontane.database import Database
from tramontane.errors import NotFound
from tramontane.ids import new_id
from tramontane.store.listeners import LEASE, ListenerStore
from tramontane.webhooks.records import Endpoint, HandedOut, Heard


@pytest.fixture
async def told(database: Database) -> Told:
    told = Told(database)
    await told.senders()
    return told


@pytest.fixture
def store(told: Told) -> ListenerStore:
    return ListenerStore(told.pool)


async def listen(store: ListenerStore, *events: str, tenant: str = "default", now: datetime = T0) -> UUID:
    listener = Endpoint(
        tenant=tenant, id=new_id(), url="listener:", events=events or ("*",), created_at=now, updated_at=now
    )
    await store.add(listener, b"secret", expires_at=now + LEASE)
    return listener.id


async def take(store: ListenerStore, listener: UUID, now: datetime = T0) -> list[HandedOut]:
    secret, taken = await store.take("default", listener, expires_at=now + LEASE, now=now)
    assert secret == b"secret"
    return taken


def heard(delivery: UUID, *, error: str | None = None, **fields: Any) -> Heard:
    given: dict[str, Any] = {"status": 200, "detail": "", "hint": "", "total_ms": 1.5} | fields
    return Heard(delivery_id=delivery, error_class=error, **given)


async def test_a_listener_takes_what_it_wants_oldest_first_and_once(told: Told, store: ListenerStore) -> None:
    listener = await listen(store, "chat.completed")
    messages = [await told.publish(at=at(second)) for second in range(3)]
    await told.publish("chat.failed")
    taken = await take(store, listener, at(5))

    assert [(one.message_id, one.event, one.attempt) for one in taken] == [
        (message.id, "chat.completed", 1) for message in messages
    ]
    assert [one.body for one in taken] == [message.body for message in messages]
    assert await take(store, listener, at(6)) == []


async def test_no_worker_sends_what_a_listener_is_to_fetch(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    assert await told.admit(at(1)) == []
    assert len(await take(store, listener)) == 1
    assert await told.deliveries.sweep(at(50), older_than=at(10) - T0) == 0
    assert await told.states() == ["dispatched"]


async def test_two_terminals_of_one_listener_never_get_the_same(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    for _ in range(60):
        await told.publish()
    taken = await at_once([take(store, listener) for _ in range(4)])
    ids = [one.id for part in taken for one in part]
    assert len(ids) == len(set(ids)) == 60


async def test_an_answer_ends_a_delivery_and_is_logged(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    await told.publish()
    first, second = await take(store, listener, at(1))
    answers = [
        heard(first.id, error="http_5xx", status=500, hint="see its log"),
        heard(second.id, error="reset", status=None),
        heard(second.id, status=204),
    ]
    await store.record("default", listener, answers, at(2))

    rows = {row["id"]: row for row in await told.rows()}
    failed, succeeded = rows[first.id], rows[second.id]
    assert (failed["state"], failed["last_status"], failed["last_error"]) == ("failed", 500, "http_5xx")
    assert (failed["attempts"], failed["tries"], failed["hint"], failed["ended_at"]) == (1, 1, "see its log", at(2))
    assert (succeeded["state"], succeeded["last_status"], succeeded["last_error"]) == ("succeeded", 204, None)
    [attempt] = await told.attempts(first.id)
    assert (attempt["number"], attempt["status"], attempt["error_class"], attempt["total_ms"]) == (
        1,
        500,
        "http_5xx",
        1.5,
    )
    assert attempt["started_at"] == at(1)
    # There is no second try, whatever came of the first.
    assert await take(store, listener, at(60)) == []


async def test_a_listener_ends_nothing_that_is_not_in_its_hands(told: Told, store: ListenerStore) -> None:
    listener, other = await listen(store), await listen(store)
    theirs = await listen(store, tenant="other")
    await told.endpoint()
    await told.publish()
    await told.publish(tenant="other")
    [own] = await take(store, listener)
    everything = [heard(row["id"]) for row in await told.rows()]
    await store.record("default", other, everything, at(1))
    await store.record("other", listener, everything, at(1))
    await store.record("default", theirs, everything, at(1))
    assert set(await told.states()) == {"waiting", "dispatched"}
    await store.record("default", listener, [*everything, heard(new_id())], at(1))
    assert [row["id"] for row in await told.rows("state = 'succeeded'")] == [own.id]
    await store.record("default", listener, [heard(own.id, error="reset")], at(2))
    assert (await told.row(own.id))["state"] == "succeeded"


async def test_what_is_not_answered_within_the_lease_is_handed_out_again(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    [first] = await take(store, listener)
    assert await take(store, listener, at(59)) == []
    [again] = await take(store, listener, at(60))
    assert (again.id, again.body, again.attempt) == (first.id, first.body, 1)
    assert (await told.row(first.id))["fence"] == 2


async def test_each_call_renews_the_lease_and_a_lapsed_one_is_not_found(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    await take(store, listener, at(59))
    await take(store, listener, at(118))
    with pytest.raises(NotFound):
        await take(store, listener, at(178))
    while await told.deliveries.tidy(at(179), retention=at(1e6) - T0):
        pass
    assert await told.states() == ["cancelled"]
    assert await told.pool.fetchval("SELECT count(*) FROM endpoints") == 0
    assert await told.pool.fetchval("SELECT count(*) FROM endpoint_secrets") == 0


async def test_a_listener_that_leaves_is_forgotten_with_what_waited(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    await take(store, listener)
    await told.publish()
    await store.remove("default", listener, at(1))
    assert await told.states() == ["cancelled", "cancelled"]
    assert await told.pool.fetchval("SELECT count(*) FROM endpoint_secrets") == 0
    for asked in (store.remove("default", listener, at(2)), take(store, listener)):
        with pytest.raises(NotFound):
            await asked


async def test_only_listeners_listen_and_only_to_their_own_tenant(told: Told, store: ListenerStore) -> None:
    theirs = await listen(store, tenant="other")
    for foreign in (theirs, await told.endpoint(), await told.endpoint(kind="origin"), new_id()):
        outcomes = await at_once([take(store, foreign), store.remove("default", foreign, T0)])
        assert {type(outcome) for outcome in outcomes} == {NotFound}


async def test_what_was_erased_meanwhile_is_not_handed_out(told: Told, store: ListenerStore) -> None:
    listener = await listen(store)
    await told.publish()
    await told.pool.execute("DELETE FROM message_bodies")
    assert await take(store, listener) == []


async def test_a_listener_hears_a_hint_when_something_waits(told: Told, store: ListenerStore) -> None:
    await listen(store)
    heard = asyncio.Event()

    def hear(*_: object) -> None:
        heard.set()

    async with told.pool.acquire() as connection:
        await connection.add_listener("tramontane_deliveries", hear)
        await told.publish()
        await heard.wait()
        await connection.remove_listener("tramontane_deliveries", hear)

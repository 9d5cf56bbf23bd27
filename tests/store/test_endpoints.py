"""Endpoints on the store: written, changed, given new secrets, removed, and what was told, as it is listed."""

import asyncio
import dataclasses
from collections.abc import Awaitable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from lives import T0, at, at_once
from told import FINE, GONE, ILL, Told, callback

from tramontane.database import Database
from tramontane.errors import Conflict, NotFound
from tramontane.ids import new_id
from tramontane.store.endpoints import MOST_SECRETS, EndpointStore
from tramontane.store.history import HistoryStore
from tramontane.webhooks.health import enable
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.models import DeliveryState, EndpointState
from tramontane.webhooks.records import AttemptFilter, DeliveryFilter, Endpoint, MessageFilter

NOBODY = UUID(int=0)


@pytest.fixture
async def told(database: Database) -> Told:
    told = Told(database)
    await told.senders()
    return told


@pytest.fixture
def store(told: Told) -> EndpointStore:
    return EndpointStore(told.pool)


@pytest.fixture
def history(told: Told) -> HistoryStore:
    return HistoryStore(told.pool)


def new_endpoint(*, tenant: str = "default", **fields: Any) -> Endpoint:
    given: dict[str, Any] = {
        "tenant": tenant,
        "id": new_id(),
        "url": "https://receiver.example/told",
        "events": ("*",),
        "created_at": T0,
        "updated_at": T0,
    }
    return Endpoint(**(given | fields))


async def set_state(store: EndpointStore, endpoint: UUID, state: EndpointState, now: datetime = T0) -> Endpoint:
    return await store.change("default", endpoint, lambda one: dataclasses.replace(one, state=state), now)


# The registry


async def test_a_new_endpoint_is_told_of_what_happens_next(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(description="ours", headers=b"sealed", timeout=5.0), b"secret")
    await told.publish()
    read = await store.get("default", endpoint.id, T0)

    assert (read.url, read.events, read.description, read.headers, read.timeout) == (
        "https://receiver.example/told",
        ("*",),
        "ours",
        b"sealed",
        5.0,
    )
    assert (read.state, read.waiting, read.dispatched) == (EndpointState.ACTIVE, 1, 0)
    assert [(one.primary, one.not_after) for one in read.secrets] == [(True, None)]
    assert await told.admit(at(1)) == [(await told.rows())[0]["id"]]
    assert (await told.load_one()).secrets == (b"secret",)


async def test_endpoints_are_listed_newest_first_page_by_page(store: EndpointStore) -> None:
    made = [(await store.add(new_endpoint(), b"secret")).id for _ in range(5)]
    first = await store.find("default", before=None, limit=3, now=T0)
    rest = await store.find("default", before=first[-1].id, limit=3, now=T0)

    assert [one.id for one in (*first, *rest)] == made[::-1]
    assert {one.waiting for one in first} == {None}
    assert all(len(one.secrets) == 1 for one in first)


async def test_what_belongs_to_another_tenant_is_not_there(
    told: Told, store: EndpointStore, history: HistoryStore
) -> None:
    theirs = await store.add(new_endpoint(tenant="other"), b"secret")
    message = await told.publish(tenant="other")
    [delivery] = [row["id"] for row in await told.rows()]
    await told.send()
    asked: list[Awaitable[Any]] = [
        store.get("default", theirs.id, T0),
        store.change("default", theirs.id, lambda one: one, T0),
        store.rotate("default", theirs.id, b"x", primary_from=T0, others_until=T0, now=T0),
        store.remove("default", theirs.id, T0),
        store.test(theirs.id, new_message("webhook.test", T0, tenant="default", data={})),
        store.replay("default", delivery, T0),
        history.message("default", message.id),
        history.delivery("default", delivery),
    ]

    assert {type(outcome) for outcome in await at_once(asked)} == {NotFound}
    assert await store.find("default", before=None, limit=9, now=T0) == []
    assert await history.messages("default", MessageFilter(), before=None, limit=9) == []
    assert await history.deliveries("default", DeliveryFilter(), before=None, limit=9) == []
    assert await history.attempts("default", AttemptFilter(), before=None, limit=9) == []
    assert (await store.get("other", theirs.id, T0)).url == theirs.url


async def test_origins_and_listeners_are_no_endpoints_of_anybody(told: Told, store: EndpointStore) -> None:
    for kind in ("origin", "listener"):
        hidden = await told.endpoint(kind=kind)
        outcomes = await at_once(
            [
                store.get("default", hidden, T0),
                set_state(store, hidden, EndpointState.PAUSED),
                store.remove("default", hidden, T0),
            ]
        )
        assert {type(outcome) for outcome in outcomes} == {NotFound}
    assert await store.find("default", before=None, limit=9, now=T0) == []


async def test_changes_at_once_do_not_undo_each_other(store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    more: list[Awaitable[Any]] = [
        store.change(
            "default",
            endpoint.id,
            lambda one: dataclasses.replace(one, description=one.description + "x"),
            T0,
        )
        for _ in range(10)
    ]
    await at_once(more)
    assert (await store.get("default", endpoint.id, T0)).description == "x" * 10


async def test_a_change_of_state_makes_admission_look(told: Told, store: EndpointStore) -> None:
    endpoint, heard = await store.add(new_endpoint(), b"secret"), asyncio.Event()

    def hear(*_: object) -> None:
        heard.set()

    async with told.pool.acquire() as connection:
        await connection.add_listener("tramontane_deliveries", hear)
        await set_state(store, endpoint.id, EndpointState.PAUSED)
        await heard.wait()
        await connection.remove_listener("tramontane_deliveries", hear)


async def test_a_disabled_endpoint_gets_nothing_new_and_keeps_what_waits(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    await told.publish()
    await set_state(store, endpoint.id, EndpointState.DISABLED)
    await told.publish()
    assert await told.states() == ["waiting"]
    assert await told.admit(at(1)) == []
    await set_state(store, endpoint.id, EndpointState.ACTIVE)
    assert len(await told.send(at(2))) == 1


async def test_an_endpoint_that_failed_for_days_goes_on_with_what_waited_once_it_is_enabled(
    told: Told, store: EndpointStore
) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    for _ in range(12):
        await told.publish()
    await told.set_endpoint(endpoint.id, health='{"failing_since":1,"failures":99}')
    while await told.send(at(0), ILL):
        pass
    ill = await store.get("default", endpoint.id, T0)
    assert (ill.state, ill.disabled_reason, ill.health.disabled) == (EndpointState.DISABLED, "failing", True)

    def well(one: Endpoint) -> Endpoint:
        state = EndpointState.ACTIVE
        return dataclasses.replace(one, state=state, disabled_reason=None, health=enable(one.health, at(60)))

    enabled = await store.change("default", endpoint.id, well, at(60))
    assert enabled.waiting == 12
    while await told.send(at(120), FINE):
        pass
    assert set(await told.states()) == {"succeeded"}


async def test_a_removed_endpoint_leaves_its_log_and_nothing_that_waits(
    told: Told, store: EndpointStore, history: HistoryStore
) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    await told.publish()
    await told.send()
    await told.publish()
    await store.remove("default", endpoint.id, at(1))

    assert await told.states() == ["succeeded", "cancelled"]
    assert await told.pool.fetchval("SELECT count(*) FROM endpoint_secrets") == 0
    wanted = DeliveryFilter(endpoint_id=endpoint.id)
    listed = await history.deliveries("default", wanted, before=None, limit=9)
    assert [(one.endpoint_id, one.url, one.last_error) for one in listed] == [
        (endpoint.id, None, "removed"),
        (endpoint.id, None, None),
    ]
    assert len(await history.attempts("default", AttemptFilter(endpoint_id=endpoint.id), before=None, limit=9)) == 1
    with pytest.raises(NotFound):
        await store.remove("default", endpoint.id, at(2))


async def test_what_was_under_way_to_a_removed_endpoint_does_not_wait_for_ever(
    told: Told, store: EndpointStore
) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    await told.publish()
    [_] = await told.admit()
    await store.remove("default", endpoint.id, T0)
    assert await told.load() == []
    await told.deliveries.sweep(at(60), older_than=at(10) - T0)
    while await told.deliveries.tidy(at(61), retention=at(1e6) - T0):
        pass
    [row] = await told.rows()
    assert (row["state"], row["last_error"], row["ended_at"]) == ("cancelled", "removed", at(61))


# Secrets


async def live(store: EndpointStore, endpoint: UUID, seconds: float) -> list[tuple[bool, datetime | None]]:
    secrets = (await store.get("default", endpoint, at(seconds))).secrets
    return [(one.primary, one.not_after) for one in secrets]


async def signing(told: Told, store: EndpointStore, seconds: float) -> tuple[bytes, ...]:
    """What a delivery is signed with at that time, the primary first."""
    await told.publish(at=at(seconds))
    await told.admit(at(seconds))
    sendable = await told.load_one(at(seconds))
    await told.record(now=at(seconds))
    await told.pool.execute("DELETE FROM tramontane_pgqueuer")
    await told.pool.execute("DELETE FROM deliveries")
    return sendable.secrets


async def test_a_new_secret_signs_first_and_the_former_one_beside_it_until_the_overlap_ends(
    told: Told, store: EndpointStore
) -> None:
    endpoint = await store.add(new_endpoint(), b"first")
    rotated = await store.rotate("default", endpoint.id, b"new", primary_from=at(10), others_until=at(70), now=at(10))

    assert [(one.primary, one.not_after) for one in rotated.secrets] == [(True, None), (False, at(70))]
    assert await signing(told, store, 11) == (b"new", b"first")
    assert await signing(told, store, 69) == (b"new", b"first")
    assert await signing(told, store, 70) == (b"new",)
    assert await live(store, endpoint.id, 70) == [(True, None)]


async def test_a_secret_that_is_promoted_at_the_end_signs_second_until_then(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"first")
    await store.rotate("default", endpoint.id, b"new", primary_from=at(70), others_until=at(70), now=at(10))

    assert await signing(told, store, 11) == (b"first", b"new")
    assert await signing(told, store, 70) == (b"new",)


async def test_a_secret_without_overlap_is_the_only_one_at_once(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"leaked")
    await store.rotate("default", endpoint.id, b"next", primary_from=at(5), others_until=at(5), now=at(1))
    await store.rotate("default", endpoint.id, b"new", primary_from=at(2), others_until=at(2), now=at(2))

    assert await signing(told, store, 3) == (b"new",)
    assert await signing(told, store, 9) == (b"new",)
    assert await told.pool.fetchval("SELECT count(*) FROM endpoint_secrets") == 1


async def test_one_that_was_to_be_promoted_never_overtakes_one_that_came_later(
    told: Told, store: EndpointStore
) -> None:
    endpoint = await store.add(new_endpoint(), b"first")
    await store.rotate("default", endpoint.id, b"second", primary_from=at(50), others_until=at(50), now=at(1))
    await store.rotate("default", endpoint.id, b"third", primary_from=at(2), others_until=at(99), now=at(2))

    assert (await signing(told, store, 3))[0] == b"third"
    assert await signing(told, store, 60) == (b"third", b"second")


async def test_a_sixth_secret_is_refused_and_changes_nothing(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"0")
    more: list[Awaitable[Any]] = [
        store.rotate("default", endpoint.id, b"%d" % number, primary_from=T0, others_until=at(99), now=T0)
        for number in range(1, 9)
    ]
    outcomes = await at_once(more)

    assert [type(outcome) for outcome in outcomes].count(Conflict) == 9 - MOST_SECRETS
    assert len(await live(store, endpoint.id, 1)) == MOST_SECRETS
    # Room again, once they have ended.
    await store.rotate("default", endpoint.id, b"9", primary_from=at(100), others_until=at(200), now=at(100))
    assert len(await live(store, endpoint.id, 101)) == 2


# Trying, and once more


async def test_a_test_goes_to_this_endpoint_alone(told: Told, store: EndpointStore) -> None:
    mine = await store.add(new_endpoint(events=("chat.failed",)), b"secret")
    await store.add(new_endpoint(), b"secret")
    message = new_message("webhook.test", T0, tenant="default", data={})
    delivery = await store.test(mine.id, message)

    [row] = await told.rows()
    assert (row["id"], row["endpoint_id"], row["origin"], row["state"]) == (delivery, mine.id, "test", "waiting")
    assert await told.admit() == [delivery]
    sendable = await told.load_one()
    assert (sendable.body, sendable.message_id, sendable.event) == (message.body, message.id, "webhook.test")


@pytest.mark.parametrize("state", [EndpointState.PAUSED, EndpointState.DISABLED])
async def test_only_an_active_endpoint_is_tested(told: Told, store: EndpointStore, state: EndpointState) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    await set_state(store, endpoint.id, state)
    with pytest.raises(Conflict, match=state):
        await store.test(endpoint.id, new_message("webhook.test", T0, tenant="default", data={}))
    assert await told.messages() == []


async def test_a_replay_sends_the_same_bytes_under_the_same_id(told: Told, store: EndpointStore) -> None:
    await store.add(new_endpoint(), b"secret")
    message = await told.publish(seq=3, job_id=new_id())
    await told.admit()
    first = await told.load_one()
    await told.send()
    await told.record(now=T0)
    [row] = await told.rows()
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded'")
    await told.pool.execute("DELETE FROM tramontane_pgqueuer")
    replay = await store.replay("default", row["id"], at(5))
    again = await store.replay("default", row["id"], at(5))
    await told.admit(at(5))

    sent = await told.load(at(5))
    assert {one.id for one in sent} == {replay, again}
    for one in sent:
        assert (one.body, one.message_id, one.seq, one.job_id) == (first.body, message.id, 3, first.job_id)
        assert one.attempts == 0
    assert [row["origin"] for row in await told.rows()] == ["event", "replay", "replay"]


async def test_a_callbacks_delivery_is_replayed_to_the_callback(told: Told, store: EndpointStore) -> None:
    attempt = await told.running(callback=callback(secret=b"own"))
    await told.jobs.cancel(attempt.job.key, at(1))
    assert await told.send(at(2), ILL)
    [row] = await told.rows()
    await store.replay("default", row["id"], at(3))
    await told.admit(at(3))

    sendable = await told.load_one(at(3))
    assert (sendable.url, sendable.secrets) == ("https://hooks.example:443/told", (b"own",))


async def test_what_was_erased_or_has_nowhere_to_go_is_not_replayed(told: Told, store: EndpointStore) -> None:
    endpoint = await store.add(new_endpoint(), b"secret")
    await told.publish()
    await told.send(exchange=GONE)
    [row] = await told.rows()
    with pytest.raises(Conflict, match="disabled"):
        await store.replay("default", row["id"], T0)
    await set_state(store, endpoint.id, EndpointState.ACTIVE)
    await store.remove("default", endpoint.id, T0)
    with pytest.raises(Conflict, match="removed"):
        await store.replay("default", row["id"], T0)
    await told.pool.execute("DELETE FROM message_bodies")
    with pytest.raises(Conflict, match="erased"):
        await store.replay("default", row["id"], T0)
    with pytest.raises(NotFound):
        await store.replay("default", NOBODY, T0)
    assert len(await told.rows()) == 1


# What was told


async def test_messages_are_found_by_every_field_and_paged_without_gap(told: Told, history: HistoryStore) -> None:
    job = new_id()
    made = [await told.publish("chat.completed", at(second // 2)) for second in range(6)]
    mine = await told.publish("chat.failed", at(1), job_id=job, seq=4)

    async def found(**fields: Any) -> list[UUID]:
        return [one.id for one in await history.messages("default", MessageFilter(**fields), before=None, limit=9)]

    assert await found(event="chat.failed") == await found(job_id=job) == [mine.id]
    assert await found(event="chat.%") == await found(event="a\0b") == []
    assert await found(since=at(2)) == [made[5].id, made[4].id]
    assert await found(until=at(1)) == [made[1].id, made[0].id]
    pages, before = list[UUID](), None
    while page := await history.messages("default", MessageFilter(), before=before, limit=2):
        pages += [one.id for one in page]
        before = page[-1].id
    by_time = sorted([*made, mine], key=lambda one: (one.at, one.id), reverse=True)
    assert pages == [one.id for one in by_time]


async def test_a_message_shows_its_body_as_it_was_sent(told: Told, history: HistoryStore) -> None:
    message = await told.publish()
    assert (await history.message("default", message.id)).body == message.body
    assert (await history.messages("default", MessageFilter(), before=None, limit=1))[0].body is None
    await told.pool.execute("DELETE FROM message_bodies")
    assert (await history.message("default", message.id)).body is None


async def test_deliveries_are_found_by_every_field(told: Told, store: EndpointStore, history: HistoryStore) -> None:
    job = new_id()
    one = await store.add(new_endpoint(events=("chat.completed",)), b"secret")
    other = await store.add(new_endpoint(events=("chat.failed",)), b"secret")
    first = await told.publish("chat.completed", at(1), job_id=job)
    assert await told.send(at(1), GONE)
    await told.publish("chat.failed", at(2))

    async def found(**fields: Any) -> list[UUID]:
        listed = await history.deliveries("default", DeliveryFilter(**fields), before=None, limit=9)
        return [delivery.endpoint_id for delivery in listed]

    assert await found() == [other.id, one.id]
    assert await found(endpoint_id=one.id) == await found(event="chat.completed") == [one.id]
    assert await found(state=DeliveryState.FAILED) == await found(error_class="gone") == [one.id]
    assert await found(job_id=job) == await found(message_id=first.id) == await found(until=at(2)) == [one.id]
    assert await found(since=at(2)) == await found(state=DeliveryState.WAITING) == [other.id]
    assert await found(endpoint_id=one.id, event="chat.failed") == await found(error_class="\0") == []


async def test_attempts_are_found_by_every_field_and_paged_without_gap(
    told: Told, store: EndpointStore, history: HistoryStore
) -> None:
    one = await store.add(new_endpoint(events=("chat.completed",)), b"secret")
    other = await store.add(new_endpoint(events=("chat.failed",)), b"secret")
    await told.publish("chat.completed")
    await told.publish("chat.failed")
    assert len(await told.send(at(0), ILL)) == 2
    assert len(await told.send(at(5), FINE)) == 2
    ids = {row["endpoint_id"]: row["id"] for row in await told.rows()}

    async def found(**fields: Any) -> list[tuple[UUID, int]]:
        listed = await history.attempts("default", AttemptFilter(**fields), before=None, limit=9)
        return [(attempt.delivery_id, attempt.number) for attempt in listed]

    everything = await found()
    assert sorted(everything) == sorted((id_, number) for id_ in ids.values() for number in (1, 2))
    assert (
        await found(endpoint_id=one.id) == await found(event="chat.completed") == [(ids[one.id], 2), (ids[one.id], 1)]
    )
    assert await found(delivery_id=ids[other.id]) == [(ids[other.id], 2), (ids[other.id], 1)]
    assert {number for _, number in await found(succeeded=True)} == {2}
    assert {number for _, number in await found(succeeded=False)} == {1}
    assert await found(error_class="http_5xx") == await found(until=at(5)) == await found(succeeded=False)
    assert await found(since=at(5)) == await found(succeeded=True)
    pages: list[tuple[UUID, int]] = []
    while page := await history.attempts("default", AttemptFilter(), before=pages[-1] if pages else None, limit=1):
        pages += [(attempt.delivery_id, attempt.number) for attempt in page]
    assert pages == everything

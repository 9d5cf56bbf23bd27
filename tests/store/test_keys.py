"""What the store promises of keys and tenants, on every Postgres that we support."""

import dataclasses
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from lives import WINDOW, Lives

from tramontane.database import Database
from tramontane.errors import InvalidInput, NotFound
from tramontane.ids import new_id
from tramontane.keys import USUAL_SCOPES, ApiKey, hash_of, new_key
from tramontane.limits import Heard
from tramontane.models import JobKey, NewJob, Scope, State
from tramontane.queue import Entry
from tramontane.store import JobStore, KeyStore, TenantStore
from tramontane.tenants import Tenant

NOW = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)


def a_key(tenant: str = "acme", **fields: Any) -> ApiKey:
    return ApiKey(tenant=tenant, id=new_id(), name="ci", scopes=USUAL_SCOPES, created_at=NOW, **fields)


def a_job(tenant: str = "acme", **fields: Any) -> NewJob:
    defaults: dict[str, Any] = {
        "key": JobKey(tenant=tenant, id=new_id()),
        "kind": "chat",
        "request": b'{"messages":[]}',
        "request_id": "req-1",
        "model": "mistral-small-latest",
        "attempts": 3,
        "backoff_kind": "exponential",
        "backoff_seconds": 1.0,
        "timeout_seconds": 600.0,
        "run_at": NOW,
    }
    return NewJob(**(defaults | fields))


async def made(store: KeyStore, key: ApiKey | None = None) -> tuple[ApiKey, bytes]:
    digest = hash_of(new_key())
    assert digest is not None
    return await store.add(key or a_key(), digest), digest


@asynccontextmanager
async def hearing(database: Database) -> AsyncIterator[list[str]]:
    """What is told to processes that know keys, in the order of its coming."""
    heard: list[str] = []
    connection = await database.connect()
    await connection.add_listener("tramontane_keys", lambda *_: heard.append("news"))
    try:
        yield heard
        await connection.execute("SELECT 1")
    finally:
        await connection.close()


# Keys


def test_a_key_is_256_random_bits_and_what_is_kept_is_their_hash() -> None:
    key = new_key()
    assert key != new_key()
    assert (key[:3], len(key)) == ("tm_", 46)
    assert hash_of(key) == hashlib.sha256(key.encode()).digest()


@pytest.mark.parametrize("text", ["", "tm_", "tm_" + "A" * 42, "tm_" + "A" * 44, "sk_" + "A" * 43, "tm_" + "ä" * 43])
def test_what_cannot_be_a_key_has_no_hash(text: str) -> None:
    assert hash_of(text) is None


async def test_a_key_is_found_by_its_hash_alone_and_is_nowhere_in_the_database(any_database: Database) -> None:
    store, secret = KeyStore(any_database.pool), new_key()
    digest = hash_of(secret)
    assert digest is not None
    key = await store.add(a_key(expires_at=NOW + timedelta(days=90)), digest)

    assert await store.use(digest, NOW) == key
    assert await store.use(b"\0" * 32, NOW) is None
    row = await any_database.pool.fetchrow("SELECT * FROM api_keys")
    assert row is not None
    assert secret not in repr(tuple(row))


async def test_a_key_is_found_by_its_id_in_whatever_state_and_not_marked_as_used(any_database: Database) -> None:
    store = KeyStore(any_database.pool)
    key, _ = await made(store)
    assert await store.find(key.id) == key
    revoked = await store.revoke(key.id, NOW)
    assert await store.find(key.id) == revoked
    assert await store.find(new_id()) is None


async def test_a_use_is_noted_once_a_minute_and_only_of_an_active_key(any_database: Database) -> None:
    store = KeyStore(any_database.pool)
    _, digest = await made(store, a_key(expires_at=NOW + timedelta(minutes=3)))
    noted = []
    for seconds in (0, 59, 60, 119, 121, 300):
        await store.use(digest, NOW + timedelta(seconds=seconds))
        [known] = await store.list()
        assert known.used_at is not None
        noted.append((known.used_at - NOW).total_seconds())

    assert noted == [0, 0, 60, 60, 121, 121]


async def test_a_key_expires_at_its_time(any_database: Database) -> None:
    key, _ = await made(KeyStore(any_database.pool), a_key(expires_at=NOW + timedelta(days=1)))
    assert [key.state(NOW + timedelta(hours=hours)) for hours in (0, 23, 24, 25)] == ["active"] * 2 + ["expired"] * 2


async def test_what_is_revoked_stays_revoked_and_stays_listed(any_database: Database) -> None:
    store = KeyStore(any_database.pool)
    key, digest = await made(store)
    other, _ = await made(store, a_key("globex"))

    revoked = await store.revoke(key.id, NOW)
    again = await store.revoke(key.id, NOW + timedelta(days=1))

    assert (revoked.state(NOW), again.revoked_at) == ("revoked", NOW)
    found = await store.use(digest, NOW)
    assert found is not None
    assert (found.state(NOW), found.used_at) == ("revoked", None)
    assert [one.id for one in await store.list()] == [key.id, other.id]
    assert [one.id for one in await store.list("globex")] == [other.id]
    with pytest.raises(NotFound):
        await store.revoke(new_id(), NOW)


async def test_there_is_a_key_for_good_once_there_was_one(any_database: Database) -> None:
    store = KeyStore(any_database.pool)
    assert not await store.any()
    key, _ = await made(store, a_key(expires_at=NOW))
    assert await store.any()
    await store.revoke(key.id, NOW)
    assert await store.any()


async def test_no_two_keys_have_one_hash(any_database: Database) -> None:
    store = KeyStore(any_database.pool)
    _, digest = await made(store)
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.add(a_key("globex"), digest)


async def test_every_process_is_told_of_each_change(any_database: Database) -> None:
    keys, tenants = KeyStore(any_database.pool), TenantStore(any_database.pool)
    async with hearing(any_database) as heard:
        key, _ = await made(keys)
        await keys.revoke(key.id, NOW)
        await tenants.change("acme", lambda tenant: dataclasses.replace(tenant, weight=2.0), NOW)
    assert len(heard) == 3


# Tenants


async def test_a_tenant_is_what_was_set_and_otherwise_like_all_others(any_database: Database) -> None:
    store = TenantStore(any_database.pool)
    assert await store.get("acme") == Tenant(id="acme")

    wanted = Tenant(
        id="acme",
        description="the shop",
        weight=2.5,
        concurrency=3,
        top_priority=0,
        queue_limit=100,
        daily_tokens=10**10,
        daily_cost=Decimal("12.50"),
        on_budget="fail",
        mistral_key=b"sealed",
    )
    assert await store.change("acme", lambda _: wanted, NOW) == wanted
    assert await store.get("acme") == wanted
    await store.change("acme", lambda tenant: dataclasses.replace(tenant, concurrency=None), NOW)
    assert await store.get("acme") == dataclasses.replace(wanted, concurrency=None)


async def test_whoever_has_a_key_a_job_or_something_set_is_a_tenant(any_database: Database) -> None:
    store = TenantStore(any_database.pool)
    assert await store.list() == []
    await made(KeyStore(any_database.pool), a_key("keyed"))
    jobs = JobStore(any_database.pool)
    for name in ("busy", "working"):
        await jobs.submit([a_job(name), a_job(name)], NOW)
    await store.change("set", lambda tenant: dataclasses.replace(tenant, weight=2.0), NOW)
    assert [tenant.id for tenant in await store.list()] == ["busy", "keyed", "set", "working"]


async def test_waiting_jobs_go_by_the_mistral_key_that_their_tenant_has(any_database: Database) -> None:
    jobs, store = JobStore(any_database.pool), TenantStore(any_database.pool)
    later = NOW + timedelta(hours=1)
    before, other = a_job(run_at=later), a_job("globex", run_at=later)
    await jobs.submit([before, other], NOW)
    accounts = {"before": (await jobs.get(before.key)).account}

    await store.change("acme", lambda tenant: dataclasses.replace(tenant, mistral_key=b"sealed"), NOW)
    accounts["set"] = (await jobs.get(before.key)).account
    after = a_job(run_at=later)
    await jobs.submit([after], NOW)
    accounts["new"] = (await jobs.get(after.key)).account
    accounts["other"] = (await jobs.get(other.key)).account

    await store.change("acme", lambda tenant: dataclasses.replace(tenant, mistral_key=None), NOW)
    accounts["removed"] = (await jobs.get(after.key)).account
    assert accounts == {"before": "*", "set": "acme", "new": "acme", "other": "*", "removed": "*"}


async def test_a_replaced_mistral_key_leaves_nothing_of_its_limits_to_the_next(any_database: Database) -> None:
    store, lives = TenantStore(any_database.pool), Lives(any_database)

    async def use(mistral_key: bytes | None) -> None:
        await store.change("acme", lambda tenant: dataclasses.replace(tenant, mistral_key=mistral_key), NOW)

    async def accounts() -> list[str]:
        return [row["account"] for row in await lives.pool.fetch("SELECT account FROM buckets ORDER BY account")]

    async def hear(mistral_key: bytes | None, account: str = "acme") -> None:
        never = Heard(at=NOW, status=429, never=True)
        await lives.buckets.learn((account, "small"), [never], [], NOW, WINDOW, mistral_key=mistral_key)

    await use(b"first")
    for account, mistral_key in (("acme", b"first"), ("*", None)):
        await hear(mistral_key, account)
    await store.change("acme", lambda tenant: dataclasses.replace(tenant, weight=2.0), NOW)
    assert await accounts() == ["*", "acme"], "nothing was said of its key"

    await use(b"second")
    assert not await lives.buckets.refuses(("acme", "small"), NOW, WINDOW)
    await hear(b"first")
    assert await accounts() == ["*"], "what a call with the first key was told late is nothing to the second"
    await hear(b"second")
    assert await accounts() == ["*", "acme"]

    await use(None)
    await use(b"third")
    assert await accounts() == ["*"]


async def test_an_attempt_brings_the_key_that_its_tenant_has_by_then(any_database: Database) -> None:
    jobs, store = JobStore(any_database.pool), TenantStore(any_database.pool)
    mine, yours = a_job(), a_job("globex")
    await jobs.submit([mine, yours], NOW)
    await any_database.pool.execute("UPDATE jobs SET admitted_at = now()")
    await store.change("acme", lambda tenant: dataclasses.replace(tenant, mistral_key=b"sealed"), NOW)

    entries = [Entry(id=number, key=job.key) for number, job in enumerate((mine, yours), 1)]
    started = await jobs.start(entries, worker_id=UUID(int=1), now=NOW)
    assert [attempt.mistral_key for attempt in started] == [b"sealed", None]  # type: ignore[union-attr]

    await store.change("acme", lambda tenant: dataclasses.replace(tenant, mistral_key=None), NOW)
    assert (await jobs.get(mine.key)).account == "*"  # should there be another attempt


async def test_a_job_may_ask_for_as_much_priority_as_its_tenant_has(any_database: Database) -> None:
    jobs, store = JobStore(any_database.pool), TenantStore(any_database.pool)
    await store.change("acme", lambda tenant: dataclasses.replace(tenant, top_priority=5), NOW)
    wanted = [a_job(priority=5), a_job(priority=6), a_job("globex", priority=100), a_job(priority=-1)]

    outcomes = await jobs.submit(wanted, NOW)

    assert [isinstance(outcome, InvalidInput) for outcome in outcomes] == [False, True, False, False]
    refused = outcomes[1]
    assert isinstance(refused, InvalidInput)
    assert (refused.field, "5 at most" in refused.message) == ("priority", True)
    with pytest.raises(NotFound):
        await jobs.get(wanted[1].key)


async def test_the_last_events_of_jobs_go_to_their_own_tenant_even_under_one_id(any_database: Database) -> None:
    jobs = JobStore(any_database.pool)
    mine = a_job()
    twin = dataclasses.replace(mine, key=JobKey(tenant="globex", id=mine.key.id))
    await jobs.submit([mine], NOW)
    await jobs.submit([twin], NOW)
    cancelled = await jobs.cancel(mine.key, NOW)
    assert cancelled.state is State.CANCELLED
    assert (await jobs.get(twin.key)).state is State.QUEUED
    counts = await any_database.pool.fetch("SELECT tenant_id, count(*) AS events FROM events GROUP BY 1")
    assert {row["tenant_id"]: row["events"] for row in counts} == {"acme": 1}


def test_scopes_are_told_apart_and_an_operator_has_them_all() -> None:
    from tramontane.models import Caller

    usual, operator = Caller(scopes=USUAL_SCOPES), Caller(scopes=frozenset({Scope.OPERATOR}))
    assert [usual.may(scope) for scope in Scope] == [True, True, False, False]
    assert [operator.may(scope) for scope in Scope] == [True] * 4

"""Deliveries: let through, loaded, and what came of them. Each verb is one transaction."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from tramontane import queue
from tramontane.ids import show_id
from tramontane.models import Admission, JobKey
from tramontane.store.messages import publish
from tramontane.store.recoveries import refill
from tramontane.store.rows import Connection, Pool, key_from
from tramontane.store.statements import Statements
from tramontane.webhooks.health import Fact, Health, Outcome, allowance, blocked_until, enable, notices, observe
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.models import Exchange, NewMessage, Sendable, Tried

SQL = Statements("deliveries")

#: What is kept of the answer to a success; of a failure all that was read.
_KEPT_OF_SUCCESS = 2048

_Endpoint = tuple[str, UUID]


class DeliveryStore:
    """Verbs about deliveries."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def admit(self, now: datetime) -> Admission:
        """Let through what is due, as far as endpoints and workers have room. Rounds take turns, fleet-wide."""
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(SQL.lock_deliveries):
                await refill(connection, now)
            *rows, times = await connection.fetch(SQL.admit_deliveries, now)
            keys = [key_from(row) for row in rows]
            if keys:
                await queue.put(connection, keys, [0] * len(keys), queue.Work.DELIVERY)
        return Admission(admitted=tuple(keys), next_at=times["next_at"])

    async def load(self, entries: Sequence[queue.Entry], now: datetime) -> list[Sendable | None]:
        """What the entries stand for. None where there is nothing to send any more: the entry is removed."""
        tenants, ids = [entry.key.tenant for entry in entries], [entry.key.id for entry in entries]
        async with self._pool.acquire() as connection:
            rows = {key_from(row): row for row in await connection.fetch(SQL.load_deliveries, tenants, ids, now)}
            if idle := [entry.id for entry in entries if entry.key not in rows]:
                await queue.remove(connection, idle)
        return [_sendable(entry, rows[entry.key], now) if entry.key in rows else None for entry in entries]

    async def record(self, tries: Sequence[Tried], *, worker_id: UUID, now: datetime) -> list[bool]:
        """Write what came of deliveries: state, log of attempts, their endpoints' health, queue entries.

        False stands where the delivery was dispatched again, or ended, meanwhile: nothing of it is written.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            endpoints = await _lock_endpoints(connection, tries)
            rows = await connection.fetch(SQL.record_tries, *_columns(tries), now, worker_id)
            recorded = {(key_from(row), row["fence"]) for row in rows}
            own = [tried for tried in tries if _dispatch(tried) in recorded]
            await _update_endpoints(connection, endpoints, own, now)
            await queue.remove(connection, [tried.sendable.entry_id for tried in tries])
        return [_dispatch(tried) in recorded for tried in tries]

    async def sweep(self, now: datetime, *, older_than: timedelta) -> int:
        """Take back what was let through and has no queue entry."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = {key_from(row): row for row in await connection.fetch(SQL.dispatched_before, now - older_than)}
            orphans = await queue.without_entry(connection, list(rows), queue.Work.DELIVERY) if rows else []
            for key in orphans:
                await connection.execute(SQL.take_back, key.tenant, key.id, rows[key]["fence"])
        return len(orphans)

    async def tidy(self, now: datetime, *, retention: timedelta) -> int:
        """A bite of what is past: expired messages, listeners that left, what waits for receivers that are gone.

        Returns how much there was; 0 when nothing is left to do.
        """
        done = 0
        for statement, moment in (
            (SQL.expire_messages, now - retention),
            (SQL.forget_listeners, now),
            (SQL.cancel_waiting_of_gone, now),
            (SQL.cancel_waiting_of_removed, now),
        ):
            done += int((await self._pool.execute(statement, moment)).rpartition(" ")[2])
        return done


async def _lock_endpoints(connection: Connection, tries: Sequence[Tried]) -> dict[_Endpoint, asyncpg.Record]:
    """The endpoints that something was sent to. Their health is read and written under the lock."""
    wanted = {(tried.sendable.tenant, tried.sendable.endpoint_id) for tried in tries if tried.exchange}
    if not wanted:
        return {}
    rows = await connection.fetch(SQL.lock_endpoints, *map(list, zip(*wanted, strict=True)))
    return {(row["tenant_id"], row["id"]): row for row in rows}


async def _update_endpoints(
    connection: Connection, endpoints: dict[_Endpoint, asyncpg.Record], tries: Sequence[Tried], now: datetime
) -> None:
    facts: defaultdict[_Endpoint, list[Fact]] = defaultdict(list)
    for tried in tries:
        facts[tried.sendable.tenant, tried.sendable.endpoint_id].append(Fact(tried.outcome, tried.sendable.admitted_at))
    columns: list[tuple[Any, ...]] = []
    for key, row in endpoints.items():
        before = msgspec.json.decode(row["health"], type=Health)
        after, reason = _learnt(row, before, facts[key], now)
        if row["kind"] == "registered" and row["state"] != "disabled":
            told = [_notice(row, event, reason, now) for event in notices(before, after)]
            await publish(connection, told)
        health = msgspec.json.encode(after).decode()
        columns.append((*key, health, allowance(after, now), blocked_until(after), reason and "disabled", reason))
    if columns:
        await connection.execute(SQL.update_endpoints, *map(list, zip(*columns, strict=True)), now)


def _learnt(
    row: asyncpg.Record, before: Health, facts: Sequence[Fact], now: datetime
) -> tuple[Health, Literal["gone", "failing"] | None]:
    """The endpoint's health after the facts, and why it is to be disabled, if it is."""
    if row["kind"] == "registered":
        after = observe(before, facts, now)
        if not after.disabled or row["state"] == "disabled":
            return after, None
        return after, "gone" if any(fact.outcome is Outcome.GONE for fact in facts) else "failing"
    # Of an origin, one path that is gone says nothing; and nobody could enable it again.
    after = observe(before, [fact for fact in facts if fact.outcome is not Outcome.GONE], now)
    return enable(after, now) if after.disabled else after, None


def _notice(row: asyncpg.Record, event: str, reason: str | None, now: datetime) -> NewMessage:
    data = {"endpointId": show_id("ep", row["id"]), "url": row["url"], "reason": reason}
    return new_message(event, now, tenant=row["tenant_id"], data=data, about=row["id"])


def _sendable(entry: queue.Entry, row: asyncpg.Record, now: datetime) -> Sendable:
    blocked = row["blocked_until"] is not None and row["blocked_until"] > now
    return Sendable(
        tenant=row["tenant_id"],
        id=row["id"],
        entry_id=entry.id,
        fence=row["fence"],
        attempts=row["attempts"],
        event=row["event"],
        event_at=row["event_at"],
        message_id=row["message_id"],
        job_id=row["job_id"],
        seq=row["seq"],
        endpoint_id=row["endpoint_id"],
        url=row["url"],
        body=row["body"],
        secrets=tuple(secret for secret in row["secrets"] if secret is not None),
        headers=row["headers"],
        timeout=row["timeout_seconds"],
        admitted_at=row["dispatched_at"],
        welcome=row["endpoint_state"] == "active" and not blocked,
        trace_context=row["trace_context"],
    )


def _dispatch(tried: Tried) -> tuple[JobKey, int]:
    """Which delivery, and which time that it was let through."""
    return JobKey(tenant=tried.sendable.tenant, id=tried.sendable.id), tried.sendable.fence


def _columns(tries: Sequence[Tried]) -> tuple[list[object], ...]:
    exchanges = [tried.exchange or Exchange() for tried in tries]
    return (
        [tried.sendable.tenant for tried in tries],
        [tried.sendable.id for tried in tries],
        [tried.sendable.fence for tried in tries],
        [tried.state for tried in tries],
        [tried.counted for tried in tries],
        [tried.due_at for tried in tries],
        [tried.hint for tried in tries],
        [tried.exchange is not None for tried in tries],
        [tried.started_at for tried in tries],
        [exchange.status for exchange in exchanges],
        [exchange.error_class for exchange in exchanges],
        [exchange.detail for exchange in exchanges],
        [exchange.timings.dns for exchange in exchanges],
        [exchange.timings.connect for exchange in exchanges],
        [exchange.timings.tls for exchange in exchanges],
        [exchange.timings.first_byte for exchange in exchanges],
        [exchange.timings.total for exchange in exchanges],
        [exchange.remote_ip for exchange in exchanges],
        [msgspec.json.encode(exchange.headers).decode() for exchange in exchanges],
        [exchange.body[:_KEPT_OF_SUCCESS] if exchange.succeeded else exchange.body for exchange in exchanges],
        [
            exchange.truncated or (exchange.succeeded and len(exchange.body) > _KEPT_OF_SUCCESS)
            for exchange in exchanges
        ],
    )

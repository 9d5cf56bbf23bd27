"""Endpoints: registered, changed, given new secrets, tried, and removed. Each verb is one transaction.

Secrets and headers come in and go out sealed; what is listed has no secret in it at all.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from tramontane.errors import Conflict, NotFound
from tramontane.ids import new_id, show_id
from tramontane.store.messages import START_ALLOWANCE, START_HEALTH
from tramontane.store.rows import Connection, Pool
from tramontane.store.statements import Statements
from tramontane.webhooks.health import Health, allowance, blocked_until
from tramontane.webhooks.models import EndpointState, NewMessage
from tramontane.webhooks.records import Endpoint, SecretRecord

SQL = Statements("endpoints")

#: Secrets of an endpoint that sign at the same time: each of them makes every request longer.
MOST_SECRETS: Final = 5
#: Where a hint goes that admission should look again.
NEWS: Final = "SELECT pg_notify('tramontane_deliveries', '')"


class EndpointStore:
    """Verbs about registered endpoints. NotFound also stands for those of other tenants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, endpoint: Endpoint, secret: bytes) -> Endpoint:
        """Write a new endpoint with its first secret; from now on it is told of events."""
        async with self._pool.acquire() as connection, connection.transaction():
            await insert_endpoint(connection, endpoint, secret)
            return await _get(connection, endpoint.tenant, endpoint.id, endpoint.created_at)

    async def get(self, tenant: str, endpoint_id: UUID, now: datetime) -> Endpoint:
        """The endpoint, with the secrets that sign now and its backlog. Raises NotFound."""
        async with self._pool.acquire() as connection:
            return await _get(connection, tenant, endpoint_id, now)

    async def find(self, tenant: str, *, before: UUID | None, limit: int, now: datetime) -> list[Endpoint]:
        """Endpoints, newest first, from before a cursor; their backlog is not counted."""
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(SQL.list_endpoints, tenant, before, limit)
            return await _endpoints(connection, tenant, rows, now)

    async def change(
        self, tenant: str, endpoint_id: UUID, change: Callable[[Endpoint], Endpoint], now: datetime
    ) -> Endpoint:
        """Make of an endpoint what `change` makes of it, while nobody else changes it. Raises NotFound."""
        async with self._pool.acquire() as connection, connection.transaction():
            changed = change(await _lock(connection, tenant, endpoint_id))
            await connection.execute(
                SQL.update_endpoint,
                tenant,
                endpoint_id,
                changed.url,
                changed.description,
                changed.events,
                changed.format,
                changed.ordering,
                changed.headers,
                changed.timeout,
                changed.state,
                changed.disabled_reason,
                msgspec.json.encode(changed.health).decode(),
                allowance(changed.health, now),
                blocked_until(changed.health),
                now,
            )
            await connection.execute(NEWS)
            return await _get(connection, tenant, endpoint_id, now)

    async def remove(self, tenant: str, endpoint_id: UUID, now: datetime) -> None:
        """Delete an endpoint and its secrets, and cancel what waits for it; its log stays. Raises NotFound."""
        if await self._pool.fetchrow(SQL.delete_endpoint, tenant, endpoint_id, now) is None:
            raise _not_found(endpoint_id)

    async def rotate(
        self,
        tenant: str,
        endpoint_id: UUID,
        secret: bytes,
        *,
        primary_from: datetime,
        others_until: datetime,
        now: datetime,
    ) -> Endpoint:
        """Add a secret. It signs from now on, and as the primary from `primary_from`; the others end at `others_until`.

        Raises NotFound, and Conflict when more than MOST_SECRETS would sign at once.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await _lock(connection, tenant, endpoint_id)
            await connection.execute(
                SQL.end_secrets, tenant, endpoint_id, others_until, primary_from <= now, primary_from
            )
            await connection.execute(SQL.forget_secrets, tenant, endpoint_id, now)
            await connection.execute(SQL.insert_secret, tenant, endpoint_id, new_id(), secret, primary_from)
            if await connection.fetchval(SQL.count_secrets, tenant, endpoint_id) > MOST_SECRETS:
                raise Conflict(f"at most {MOST_SECRETS} secrets sign at once: wait until one of them ends")
            return await _get(connection, tenant, endpoint_id, now)

    async def test(self, endpoint_id: UUID, message: NewMessage) -> UUID:
        """Tell an endpoint, and nobody else, a message; the id of the delivery.

        Raises NotFound, and Conflict unless the endpoint is active.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            endpoint = await _lock(connection, message.tenant, endpoint_id)
            if endpoint.state is not EndpointState.ACTIVE:
                raise Conflict(f"{show_id('ep', endpoint_id)} is {endpoint.state}: enable it first")
            delivery_id = new_id()
            await connection.execute(
                SQL.insert_test,
                message.tenant,
                endpoint_id,
                message.id,
                message.event,
                message.at,
                message.body,
                delivery_id,
            )
        return delivery_id

    async def replay(self, tenant: str, delivery_id: UUID, now: datetime) -> UUID:
        """Send a delivery's message once more, to the same place in the same form; the id of the new delivery.

        Raises NotFound, and Conflict when the body was erased, or the endpoint is disabled or removed.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL.replayable, tenant, delivery_id)
            if row is None:
                raise NotFound(f"no such delivery: {show_id('dlv', delivery_id)}")
            if not row["has_body"]:
                raise Conflict("what it told was erased: there is nothing left to send")
            if row["endpoint_state"] is None:
                raise Conflict("its endpoint was removed: there is nowhere to send it")
            if row["endpoint_state"] == EndpointState.DISABLED:
                raise Conflict("its endpoint is disabled: enable it first")
            replay_id = new_id()
            await connection.execute(SQL.insert_replay, tenant, delivery_id, replay_id, now)
        return replay_id


async def insert_endpoint(
    connection: Connection,
    endpoint: Endpoint,
    secret: bytes,
    *,
    kind: str = "registered",
    expires_at: datetime | None = None,
) -> None:
    """Write an endpoint's row, and that of its first secret."""
    await connection.execute(
        SQL.insert_endpoint,
        endpoint.tenant,
        endpoint.id,
        kind,
        endpoint.url,
        endpoint.description,
        endpoint.events,
        endpoint.format,
        endpoint.ordering,
        endpoint.headers,
        endpoint.timeout,
        START_ALLOWANCE,
        START_HEALTH,
        expires_at,
        endpoint.created_at,
        new_id(),
        secret,
    )


async def _get(connection: Connection, tenant: str, endpoint_id: UUID, now: datetime) -> Endpoint:
    row = await connection.fetchrow(SQL.get_endpoint, tenant, endpoint_id)
    if row is None:
        raise _not_found(endpoint_id)
    [endpoint] = await _endpoints(connection, tenant, [row], now)
    return endpoint


async def _endpoints(
    connection: Connection, tenant: str, rows: Sequence[asyncpg.Record], now: datetime
) -> list[Endpoint]:
    secrets: defaultdict[UUID, list[SecretRecord]] = defaultdict(list)
    for row in await connection.fetch(SQL.live_secrets, tenant, [row["id"] for row in rows], now):
        known = secrets[row["endpoint_id"]]
        known.append(SecretRecord(id=row["id"], primary=not known, not_after=row["not_after"]))
    return [_endpoint(row, tuple(secrets[row["id"]])) for row in rows]


async def _lock(connection: Connection, tenant: str, endpoint_id: UUID) -> Endpoint:
    """The endpoint, which nobody else changes until the transaction ends."""
    row = await connection.fetchrow(SQL.lock_endpoint, tenant, endpoint_id)
    if row is None:
        raise _not_found(endpoint_id)
    return _endpoint(row, ())


def _endpoint(row: asyncpg.Record, secrets: tuple[SecretRecord, ...]) -> Endpoint:
    return Endpoint(
        tenant=row["tenant_id"],
        id=row["id"],
        url=row["url"],
        description=row["description"],
        events=tuple(row["events"]),
        format=row["format"],
        ordering=row["ordering"],
        headers=row["headers"],
        timeout=row["timeout_seconds"],
        state=EndpointState(row["state"]),
        disabled_reason=row["disabled_reason"],
        health=msgspec.json.decode(row["health"], type=Health),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        secrets=secrets,
        waiting=row["waiting"],
        dispatched=row["dispatched"],
    )


def _not_found(endpoint_id: UUID) -> NotFound:
    return NotFound(f"no such endpoint: {show_id('ep', endpoint_id)}")

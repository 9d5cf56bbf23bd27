"""Listeners: terminals that nobody can reach from outside, and that come for their deliveries instead.

A listener lives by its lease. What it takes is under way without a queue entry, and comes back when it is not answered.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from tramontane.errors import NotFound
from tramontane.ids import show_id
from tramontane.store.endpoints import insert_endpoint
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements
from tramontane.webhooks.records import Endpoint, HandedOut, Heard

SQL = Statements("listeners")

#: A listener that does not come back within it is gone; what it took and did not answer is handed out again.
LEASE: Final = timedelta(seconds=60)
#: Deliveries that are handed out at a time.
_HANDFUL: Final = 32


class ListenerStore:
    """Verbs about listeners, each one transaction. NotFound also stands for those of other tenants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, listener: Endpoint, secret: bytes, *, expires_at: datetime) -> None:
        """Write a new listener with its secret; from now on it is told of events."""
        async with self._pool.acquire() as connection, connection.transaction():
            await insert_endpoint(connection, listener, secret, kind="listener", expires_at=expires_at)

    async def record(self, tenant: str, listener_id: UUID, results: Sequence[Heard], now: datetime) -> None:
        """End what was handed to this listener, as it says. What is not in its hands any more is left alone."""
        # The last word counts, should it have said several.
        last = {result.delivery_id: result for result in results}.values()
        await self._pool.execute(
            SQL.record_results,
            tenant,
            listener_id,
            [result.delivery_id for result in last],
            [result.status for result in last],
            [result.error_class for result in last],
            [result.detail for result in last],
            [result.hint for result in last],
            [result.total_ms for result in last],
            now,
        )

    async def take(
        self, tenant: str, listener_id: UUID, *, expires_at: datetime, now: datetime
    ) -> tuple[bytes, list[HandedOut]]:
        """Renew the lease, and take what waits: the listener's secret, and the deliveries, oldest first.

        Raises NotFound once the lease has ended.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            secret = await connection.fetchval(SQL.renew, tenant, listener_id, expires_at, now)
            if secret is None:
                raise _not_found(listener_id)
            rows = await connection.fetch(SQL.hand_out, tenant, listener_id, now - LEASE, now, _HANDFUL)
        return secret, [_handed_out(row) for row in rows]

    async def remove(self, tenant: str, listener_id: UUID, now: datetime) -> None:
        """Delete a listener; what it has not answered is cancelled. Raises NotFound."""
        if await self._pool.fetchrow(SQL.delete_listener, tenant, listener_id, now) is None:
            raise _not_found(listener_id)


def _handed_out(row: asyncpg.Record) -> HandedOut:
    return HandedOut(
        id=row["id"],
        message_id=row["message_id"],
        event=row["event"],
        event_at=row["event_at"],
        job_id=row["job_id"],
        seq=row["seq"],
        attempt=row["tries"] + 1,
        body=row["sent"],
    )


def _not_found(listener_id: UUID) -> NotFound:
    return NotFound(f"no such listener: {show_id('ep', listener_id)}")

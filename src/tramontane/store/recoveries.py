"""Recoveries: a stretch of time is told an endpoint again, a bite at a time, as fast as it takes them.

What is told again does not wait in a heap: there are ever only as many deliveries as the endpoint has room for, and a
cursor in the recovery's row says how far it is. `refill` is part of a round of admission and makes the next ones.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from tramontane.errors import Conflict, NotFound
from tramontane.ids import new_id, show_id
from tramontane.store.endpoints import NEWS
from tramontane.store.rows import Connection, Pool
from tramontane.store.statements import Statements
from tramontane.webhooks.records import Recovery, RecoveryState, Wanted

SQL = Statements("recoveries")

#: An endpoint with fewer deliveries that wait and are due gets more; the widest window takes no more at once.
LOW_WATER: Final = 64
#: Messages that are looked at in one go, and how often in a round for one that finds little it wants.
PAGE: Final = 256
MOST_PAGES: Final = 8

#: From which states each step leads on.
_STEPS: Final[dict[RecoveryState, tuple[RecoveryState, ...]]] = {
    "paused": ("running",),
    "running": ("paused",),
    "cancelled": ("running", "paused"),
}


class RecoveryStore:
    """Verbs about recoveries, each one transaction. NotFound also stands for those of other tenants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def start(
        self,
        tenant: str,
        endpoint_id: UUID,
        *,
        since: datetime,
        until: datetime,
        only: Wanted,
        event: str | None,
        now: datetime,
    ) -> Recovery:
        """Begin to tell an endpoint the messages of [since, until) again. It goes on by itself.

        only: failed, what was tried and did not arrive; missing, what was never meant for it; or all. Always of the
        events that the endpoint wants, never about itself, and only while the bodies are kept.
        Raises NotFound, and Conflict when the endpoint is disabled.
        """
        recovery_id = new_id()
        async with self._pool.acquire() as connection, connection.transaction():
            given = (tenant, endpoint_id, recovery_id, since, until, only, event, now)
            if await connection.fetchval(SQL.insert_recovery, *given) is None:
                if await connection.fetchval(SQL.endpoint_state, tenant, endpoint_id) is None:
                    raise NotFound(f"no such endpoint: {show_id('ep', endpoint_id)}")
                raise Conflict(f"{show_id('ep', endpoint_id)} is disabled: enable it first")
            await connection.execute(NEWS)
        return await self.get(tenant, recovery_id)

    async def get(self, tenant: str, recovery_id: UUID) -> Recovery:
        """The recovery and how far it is. Raises NotFound."""
        row = await self._pool.fetchrow(SQL.get_recovery, tenant, recovery_id)
        if row is None:
            raise NotFound(f"no such recovery: {show_id('rec', recovery_id)}")
        return _recovery(row)

    async def find(self, tenant: str, endpoint_id: UUID | None, *, before: UUID | None, limit: int) -> list[Recovery]:
        """Recoveries, newest first, from before a cursor."""
        return [
            _recovery(row) for row in await self._pool.fetch(SQL.list_recoveries, tenant, before, endpoint_id, limit)
        ]

    async def steer(self, tenant: str, recovery_id: UUID, to: RecoveryState, now: datetime) -> Recovery:
        """Pause, resume or cancel. Paused, it makes no more deliveries; cancelled, it takes back those that wait.

        A step that has been made changes nothing. Raises NotFound, and Conflict once the recovery has ended.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            moved = await connection.fetchval(SQL.steer_recovery, tenant, recovery_id, to, _STEPS[to], now)
            if moved is not None and to == "cancelled":
                await connection.execute(SQL.cancel_deliveries, tenant, recovery_id, now)
            await connection.execute(NEWS)
        recovery = await self.get(tenant, recovery_id)
        if moved is None and recovery.state != to:
            raise Conflict(f"{show_id('rec', recovery_id)} is {recovery.state}: start another one")
        return recovery


async def refill(connection: Connection, now: datetime) -> None:
    """Make the next deliveries of every recovery whose endpoint has room for more; complete those that are through.

    In the caller's transaction. Of two at once each recovery has one; the other passes over it.
    """
    for row in await connection.fetch(SQL.running, now, LOW_WATER):
        await _refill(connection, row["tenant_id"], row["id"], now)


async def _refill(connection: Connection, tenant: str, recovery_id: UUID, now: datetime) -> None:
    for _ in range(MOST_PAGES):
        ids = [new_id() for _ in range(PAGE)]
        page = await connection.fetchrow(SQL.next_page, tenant, recovery_id, ids, now)
        assert page is not None, "a count is a row"
        if page["seen"] < PAGE:
            await connection.execute(SQL.complete, tenant, recovery_id, now)
            return
        if page["made"] >= LOW_WATER:
            return
    await connection.execute(NEWS)  # there is more to look at, and nothing else might make anybody do it


def _recovery(row: asyncpg.Record) -> Recovery:
    return Recovery(
        id=row["id"],
        endpoint_id=row["endpoint_id"],
        since=row["since"],
        until=row["until"],
        only=row["wanted"],
        event=row["event"],
        state=row["state"],
        total=row["total"],
        done=row["done"],
        succeeded=row["succeeded"],
        failed=row["failed"],
        waiting=row["waiting"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
    )

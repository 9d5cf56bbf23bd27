"""What is not let through for now."""

from datetime import datetime
from uuid import UUID

import asyncpg

from tramontane.errors import NotFound
from tramontane.ids import new_id, show_id
from tramontane.models import Pause
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("pauses")


class PauseStore:
    """Verbs about pauses. Admission looks at them in every round; what runs goes on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def pause(self, tenant: str, kind: str, model: str, *, reason: str, now: datetime) -> Pause:
        """Let nothing of that through, `*` being everything. A repeat finds the same pause, and renews its reason."""
        row = await self._pool.fetchrow(SQL.pause, tenant, new_id(), kind, model, reason, now)
        assert row is not None
        return _pause_from(row)

    async def list(self, tenant: str) -> list[Pause]:
        """The tenant's pauses, and those of the whole fleet, oldest first."""
        return [_pause_from(row) for row in await self._pool.fetch(SQL.list_pauses, tenant)]

    async def resume(self, tenant: str, pause_id: UUID, *, fleet: bool) -> Pause:
        """End a pause, and wake admission when that is committed.

        fleet: the caller may end those of the whole fleet, too. Raises NotFound.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL.resume, tenant, pause_id, fleet)
            if row is None:
                raise NotFound(f"no such pause: {show_id('pau', pause_id)}")
            await connection.execute(SQL.wake_admission)
        return _pause_from(row)


def _pause_from(row: asyncpg.Record) -> Pause:
    return Pause(
        tenant=row["tenant_id"],
        id=row["id"],
        kind=row["kind"],
        model=row["model"],
        reason=row["reason"],
        paused_at=row["paused_at"],
    )

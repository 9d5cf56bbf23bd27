"""What is there, counted at a price that does not grow with it."""

from datetime import datetime
from typing import Final

import asyncpg

from tramontane.models import Census
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("census")

#: What is counted one by one. A million rows would take half a second of Postgres at every look.
_EXACT: Final = 10_000


class CensusStore:
    """One verb, for those who operate the fleet."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def take(self, now: datetime) -> Census:
        """What is there now. Numbers above 10,000 are Postgres' estimates, as of its last vacuum or analyze."""
        row = await self._pool.fetchrow(SQL.take, now, _EXACT)
        assert row is not None
        return Census(
            jobs={
                "waiting": _number(row, "waiting"),
                "scheduled": _number(row, "scheduled"),
                "admitted": row["admitted"],
                "running": row["running"],
            },
            deliveries={"waiting": _number(row, "untold"), "dispatched": row["dispatched"]},
            oldest_at=row["oldest_at"],
            workers=row["workers"],
            slots=row["slots"],
        )


def _number(row: asyncpg.Record, name: str) -> int:
    counted: int = row[name]
    return counted if counted < _EXACT else max(counted, int(row[f"{name}_estimate"] or 0))

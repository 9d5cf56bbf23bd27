"""What is kept how long: contents before their ledger rows, and those in the end as well. In small bites."""

from datetime import datetime

from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("retention")

#: Jobs of one bite: few enough that nobody waits for its locks.
_BITE = 200


class RetentionStore:
    """Verbs that delete what is past. Each is one transaction, and may be done by several at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def expire_contents(self, *, ended_before: datetime, now: datetime) -> int:
        """Delete what some jobs asked, said and answered; their rows stay. Returns how many they were."""
        return int(await self._pool.fetchval(SQL.expire_contents, ended_before, now, _BITE))

    async def forget_jobs(self, *, ended_before: datetime) -> int:
        """Delete the rows of some jobs whose contents are gone already. Returns how many they were."""
        return int(await self._pool.fetchval(SQL.forget_jobs, ended_before, _BITE))

    async def forget_spendings(self, before: datetime) -> None:
        """Delete what tenants spent on days before that time."""
        await self._pool.execute(SQL.forget_spendings, before)

    async def forget_recoveries(self, before: datetime) -> None:
        """Delete recoveries that ended before that time."""
        await self._pool.execute(SQL.forget_recoveries, before)

"""How much waits, and what a tenant has left of its day."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("standings")

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A tenant's limits, and how far it has come."""

    #: Jobs that may wait; None: no limit of its own.
    queue_limit: int | None = None
    #: Share of today's budget that is spent, the scarcer one of tokens and money; None without a budget.
    budget_used: float | None = None
    #: Beyond its budget jobs fail, rather than wait for the next day.
    fails: bool = False


class StandingStore:
    """Questions only."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def waiting(self, *, most: int, tenant: str | None = None) -> int:
        """Jobs that wait, of a tenant or of all; no more than about `most` are counted."""
        if tenant is None:
            return int(await self._pool.fetchval(SQL.waiting, most))
        return int(await self._pool.fetchval(SQL.waiting_of, tenant, most))

    async def starts_per_second(self, now: datetime) -> float:
        """Starts in the last minute, per second: how fast what waits goes away."""
        return int(await self._pool.fetchval(SQL.started, now - _MINUTE)) / 60

    async def of(self, tenant: str, now: datetime) -> Standing:
        """Where a tenant stands today (UTC)."""
        row = await self._pool.fetchrow(SQL.standing, tenant, now.astimezone(UTC).date())
        if row is None:
            return Standing()
        used = [
            float(spent / budget) if budget else 1.0
            for spent, budget in ((row["tokens"], row["daily_tokens"]), (row["cost"], row["daily_cost"]))
            if budget is not None
        ]
        return Standing(
            queue_limit=row["queue_limit"], budget_used=max(used, default=None), fails=row["on_budget"] == "fail"
        )

"""Whether more jobs are taken: how many wait already, and what the tenant has left of its day.

What a process knows is up to a second old, and the more counting costs the older: it never takes more than about a
twentieth of the time. So limits are kept about, not exactly; what this process has taken since is counted in.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from tramontane.errors import BudgetExhausted, Overloaded, QueueFull
from tramontane.store import Standing, StandingStore
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
#: Seconds that a count is good for, and for a caller who would be refused by it.
_FRESH: Final = 1.0
_JUST_COUNTED: Final = 0.1
_SHARE: Final = 20
#: Seconds that somebody is sent away for.
_SOONEST, _LATEST = 1.0, 60.0
#: Share of a budget from which on it is told.
_NEARLY: Final = 0.8
_TENANTS: Final = 10_000


class Standings:
    """Asked before jobs are written. queue_limit: jobs that may wait in the whole fleet; 0: no limit."""

    def __init__(self, store: StandingStore, *, queue_limit: int) -> None:
        self._store = store
        self._queue_limit = queue_limit
        self._fleet = _Count()
        self._tenants: dict[str, _Tenant] = {}

    async def take(self, tenant: str, wanted: int, now: datetime) -> int:
        """Places for new jobs: as many as wanted, or as there are.

        Raises BudgetExhausted, QueueFull or Overloaded when there is none, with the seconds until there may be.
        """
        known = await self._known(tenant, now)
        standing = known.standing
        if standing.fails and standing.budget_used is not None and standing.budget_used >= 1:
            raise BudgetExhausted(
                f"the budget of {tenant!r} for today is spent: a new day begins at midnight UTC",
                retry_after=_until_midnight(now),
            )
        places = wanted
        if standing.queue_limit is not None:
            own = await known.count.room(
                standing.queue_limit, wanted, now, lambda most: self._store.waiting(most=most, tenant=tenant)
            )
            if own == 0:
                raise QueueFull(
                    f"{standing.queue_limit} jobs of {tenant!r} wait, and no more may: come back after Retry-After",
                    retry_after=await self._patience(standing.queue_limit, now),
                )
            places = min(places, own)
        if self._queue_limit:
            room = await self._fleet.room(self._queue_limit, wanted, now, lambda most: self._store.waiting(most=most))
            if room == 0:
                raise Overloaded(
                    f"{self._queue_limit} jobs wait, and no more may: come back after Retry-After",
                    retry_after=await self._patience(self._queue_limit, now),
                )
            places = min(places, room)
        known.count.waiting += places
        self._fleet.waiting += places
        return places

    def give_back(self, tenant: str, places: int, taken_at: datetime) -> None:
        """Places that were taken then and not needed. Whoever has counted since knows of them already."""
        for count in (self._fleet, self._tenants[tenant].count if tenant in self._tenants else None):
            if count is not None and count.counted_at <= taken_at:
                count.waiting -= places

    def budget_used(self, tenant: str) -> float | None:
        """Share of today's budget that is nearly spent, as last seen; None while there is nothing to tell."""
        known = self._tenants.get(tenant)
        used = known.standing.budget_used if known else None
        return used if used is not None and used >= _NEARLY else None

    async def _known(self, tenant: str, now: datetime) -> "_Tenant":
        if len(self._tenants) > _TENANTS:
            self._tenants.clear()
        known = self._tenants.setdefault(tenant, _Tenant())
        if now >= known.good_until:
            known.good_until = now + timedelta(seconds=_FRESH)  # others who ask meanwhile make do with what there is
            try:
                known.standing = await self._store.of(tenant, now)
            except BaseException:
                known.good_until = _LONG_AGO
                raise
            self._tell(tenant, known, now)
        return known

    def _tell(self, tenant: str, known: "_Tenant", now: datetime) -> None:
        used, today = self.budget_used(tenant), now.astimezone(UTC).date()
        if used is not None and known.told_on != today:
            known.told_on = today
            log(logger, logging.WARNING, "budget.nearly_spent", tenant=tenant, used=round(used, 3))

    async def _patience(self, limit: int, now: datetime) -> float:
        """Seconds until one place in a hundred will be free, at the pace of the last minute."""
        pace = await self._store.starts_per_second(now)
        return min(max(math.ceil(limit / 100) / pace, _SOONEST), _LATEST) if pace else _LATEST / 2


@dataclass(slots=True)
class _Count:
    """How many wait: counted at some time, and what was taken since."""

    waiting: int = 0
    counted_at: datetime = _LONG_AGO
    #: Seconds that counting took.
    cost: float = 0.0

    async def room(self, limit: int, wanted: int, now: datetime, count: Callable[[int], Awaitable[int]]) -> int:
        age = (now - self.counted_at).total_seconds()
        enough = _FRESH if self.waiting + wanted <= limit else _JUST_COUNTED
        if age >= max(enough, _SHARE * self.cost):
            await self._count(limit, now, count)
        return max(0, min(wanted, limit - self.waiting))

    async def _count(self, limit: int, now: datetime, count: Callable[[int], Awaitable[int]]) -> None:
        before, self.counted_at = self.counted_at, now  # one caller counts; others make do with what there is
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self.waiting = await count(limit)
        except BaseException:
            self.counted_at = before
            raise
        self.cost = loop.time() - began


@dataclass(slots=True)
class _Tenant:
    standing: Standing = Standing()
    good_until: datetime = _LONG_AGO
    count: _Count = field(default_factory=_Count)
    told_on: object = None


def _until_midnight(now: datetime) -> float:
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return math.ceil((day + timedelta(days=1) - now).total_seconds())

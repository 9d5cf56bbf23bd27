"""What those ask who operate the fleet: whether this process is ready for work, and its figures."""

import asyncio
import logging
from typing import Final

from tramontane.database import MIGRATED, Database, steps_ahead
from tramontane.errors import DatabaseError, NotReady
from tramontane.ids import utc_now
from tramontane.listener import OUTAGES, Listener
from tramontane.metrics import Metrics
from tramontane.models import Census
from tramontane.store import CensusStore
from tramontane.tasks import beside
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

#: Seconds that a database may take to answer whoever asks whether we are ready.
_PROMPT: Final = 1.0
#: Seconds for which a census is good: several who scrape share it.
_FRESH: Final = 2.0
#: Seconds between two looks at how late the event loop is.
_LOOK: Final = 0.5


class Operations:
    """Readiness and figures of one process. Run `run` beside it."""

    def __init__(self, database: Database, census: CensusStore, metrics: Metrics, listener: Listener) -> None:
        self.metrics = metrics
        self._listener = listener
        self._migrated = asyncio.Event()
        #: It has been asked to end, and takes no new work.
        self.draining = False
        #: What it lacks for some of its work, since it met that; another start mends it.
        self._lacks: str | None = None
        self._database = database
        self._census_store = census
        self._census: Census | None = None
        self._stale_at = 0.0
        self._turn = asyncio.Lock()
        pool = database.pool
        metrics.watch("tramontane_database_connections", "open in the pool", pool.get_size)
        metrics.watch("tramontane_database_connections_idle", "open and not in use", pool.get_idle_size)
        metrics.watch("tramontane_database_connections_limit", "most that the pool opens", pool.get_max_size)

    async def run(self) -> None:
        """Watch the event loop, and for migrations, until cancelled."""
        await self._listener.add(MIGRATED, lambda _: self._migrated.set())
        now = asyncio.get_running_loop().time
        async with beside(self._renew()):
            while True:
                due = now() + _LOOK
                await asyncio.sleep(_LOOK)
                self.metrics.lag(max(0.0, now() - due))

    async def _renew(self) -> None:
        """Let go of connections when tables have changed: in a transaction, Postgres refuses what they had prepared."""
        while True:
            await self._migrated.wait()
            self._migrated.clear()
            await self._database.pool.expire_connections()

    def unfit(self, lacks: str) -> None:
        """Say from now on that this process cannot do all of its work, and why."""
        self._lacks = lacks

    async def check(self) -> None:
        """Return if this process may be given work.

        Raises NotReady once it was asked to end or is unfit, or when its version is too old for the tables; and
        DatabaseError when the database does not answer within a second.
        """
        if self.draining:
            raise NotReady("draining: this process is about to end")
        if self._lacks is not None:
            raise NotReady(self._lacks)
        try:
            async with asyncio.timeout(_PROMPT):
                ahead = await steps_ahead(self._database)
        except OUTAGES:
            raise DatabaseError("the database does not answer") from None
        if ahead > 1:
            raise NotReady(f"the database is {ahead} migrations ahead of this version: upgrade it")

    async def page(self) -> bytes:
        """The figures, for Prometheus. Those of the fleet are at most two seconds old, or older in an outage."""
        async with self._turn:
            now = asyncio.get_running_loop().time
            if now() >= self._stale_at:
                try:
                    async with asyncio.timeout(_PROMPT):
                        self._census = await self._census_store.take(utc_now())
                    self._stale_at = now() + _FRESH
                except OUTAGES as error:
                    log(logger, logging.WARNING, "census.failed", error=type(error).__name__)
        return self.metrics.page(self._census, utc_now())

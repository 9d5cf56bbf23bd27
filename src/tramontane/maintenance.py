"""The leader's duties that nobody waits for: mend what no queue entry stands for, delete what is past."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from tramontane.ids import utc_now
from tramontane.models import Job
from tramontane.store import DeliveryStore, EventStore, JobStore, LimitStore, RetentionStore
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

_INTERVAL = 30.0  # seconds
_QUEUE_LOG = timedelta(hours=1)
_WORKERS = timedelta(days=1)


class Maintenance:
    """Does its rounds until cancelled. All of it may run in several processes at once.

    ended: told of each job that a round has ended, after the commit.
    heartbeat: an admitted job without a queue entry is left alone this long, since it may be changing hands. The other
    seconds say how long is kept, from the end of a job: its events, what it asked and answered, its row; and messages.
    """

    def __init__(
        self,
        jobs: JobStore,
        events: EventStore,
        limits: LimitStore,
        deliveries: DeliveryStore,
        past: RetentionStore,
        ended: Callable[[Job], None],
        *,
        heartbeat: float,
        retention: float,
        result_retention: float,
        job_retention: float,
        webhook_retention: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._limits = limits
        self._deliveries = deliveries
        self._past = past
        self._ended = ended
        self._heartbeat = timedelta(seconds=heartbeat)
        self._retention = timedelta(seconds=retention)
        self._result_retention = timedelta(seconds=min(result_retention, job_retention))
        self._job_retention = timedelta(seconds=job_retention)
        self._webhook_retention = timedelta(seconds=webhook_retention)
        self._clock = clock

    async def run(self) -> None:
        """Work until cancelled; a duty that fails is logged and comes again with the next round."""
        while True:
            await self.tick(self._clock())
            await asyncio.sleep(_INTERVAL)

    async def tick(self, now: datetime) -> None:
        """One round of all duties."""
        await self._duty("sweep", self._sweep(now))
        await self._duty("prune_events", self._prune_events(now))
        await self._duty("sweep_deliveries", self._sweep_deliveries(now))
        await self._duty("tidy_webhooks", self._tidy_webhooks(now))
        await self._duty("expire_contents", self._expire_contents(now))
        await self._duty("forget_jobs", self._forget_jobs(now))
        await self._duty("forget_spendings", self._past.forget_spendings(now - self._job_retention))
        await self._duty("forget_recoveries", self._past.forget_recoveries(now - self._webhook_retention))
        await self._duty("prune_queue_log", self._jobs.prune_queue_log(now - _QUEUE_LOG))
        await self._duty("forget_workers", self._limits.forget_workers(now - _WORKERS))

    async def _sweep(self, now: datetime) -> None:
        if mended := await self._jobs.sweep(now, older_than=self._heartbeat):
            log(logger, logging.WARNING, "maintenance.swept", jobs=len(mended))
            for job in mended:
                if job.state.final:
                    self._ended(job)

    async def _prune_events(self, now: datetime) -> None:
        while await self._events.prune(ended_before=now - self._retention, now=now):  # noqa: ASYNC110 - bites
            await asyncio.sleep(0)

    async def _expire_contents(self, now: datetime) -> None:
        before = now - self._result_retention
        while await self._past.expire_contents(ended_before=before, now=now):  # noqa: ASYNC110 - bites
            await asyncio.sleep(0)

    async def _forget_jobs(self, now: datetime) -> None:
        while await self._past.forget_jobs(ended_before=now - self._job_retention):  # noqa: ASYNC110 - bites
            await asyncio.sleep(0)

    async def _sweep_deliveries(self, now: datetime) -> None:
        if mended := await self._deliveries.sweep(now, older_than=self._heartbeat):
            log(logger, logging.WARNING, "maintenance.swept", deliveries=mended)

    async def _tidy_webhooks(self, now: datetime) -> None:
        while await self._deliveries.tidy(now, retention=self._webhook_retention):  # noqa: ASYNC110 - bites
            await asyncio.sleep(0)

    async def _duty(self, name: str, duty: Awaitable[None]) -> None:
        try:
            await duty
        except Exception as error:  # noqa: BLE001 - the outermost loop of a service
            log(logger, logging.WARNING, "maintenance.failed", duty=name, error=error)

"""Ends jobs that wait in vain: past their deadline, or for a budget that is spent."""

import logging
from collections.abc import Callable
from datetime import datetime

from tramontane.ids import show_id
from tramontane.models import Job
from tramontane.store import OverdueStore
from tramontane.telemetry import log

logger = logging.getLogger(__name__)


class Overdue:
    """Its `tick` is called by whoever leads, at least once a second; several at once do no harm.

    wake: told of each job whose log grew, after the commit.
    """

    def __init__(self, store: OverdueStore, wake: Callable[[Job], None]) -> None:
        self._store = store
        self._wake = wake

    async def tick(self, now: datetime) -> datetime | None:
        """End what is overdue; returns the next deadline, or `now` while there is more to end."""
        ended = [*await self._store.expire(now), *await self._store.exhaust(now)]
        for job in ended:
            self._wake(job)
            code = job.failure.code if job.failure else ""
            log(logger, logging.INFO, "job.failed", job=show_id("job", job.key.id), attempt=job.attempt, code=code)
        return now if ended else await self._store.next_deadline()

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

    wake, ended: told of each job that ends, after the commit.
    """

    def __init__(self, store: OverdueStore, wake: Callable[[Job], None], ended: Callable[[Job], None]) -> None:
        self._store = store
        self._wake = wake
        self._ended = ended

    async def tick(self, now: datetime) -> datetime | None:
        """End what is overdue; returns the next deadline, or `now` while there is more to end."""
        late = self._tell(await self._store.expire(now))
        broke = self._tell(await self._store.exhaust(now))
        return now if late or broke else await self._store.next_deadline()

    def _tell(self, ended: list[Job]) -> bool:
        for job in ended:
            self._wake(job)
            self._ended(job)
            code = job.failure.code if job.failure else ""
            log(logger, logging.INFO, "job.failed", job=show_id("job", job.key.id), attempt=job.attempt, code=code)
        return bool(ended)

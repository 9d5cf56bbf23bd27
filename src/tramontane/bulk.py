"""Many jobs at once: submitted in transactions of a few hundred, or tried again by what they have in common."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from tramontane.errors import TramontaneError
from tramontane.ids import utc_now
from tramontane.listener import OUTAGES
from tramontane.models import Job, JobFilter, NewJob, Submitted
from tramontane.standings import Standings
from tramontane.store import JobStore, RetryStore

#: Jobs of one transaction.
CHUNK: Final = 500


class Bulk:
    """Takes many jobs as `Jobs` takes one."""

    def __init__(self, jobs: JobStore, retries: RetryStore, standings: Standings) -> None:
        self._jobs = jobs
        self._retries = retries
        self._standings = standings

    async def submit(self, jobs: Sequence[NewJob]) -> list[Submitted | TramontaneError]:
        """Write jobs of one tenant, CHUNK at most, in one transaction; what became of each, in order.

        An error in its place is what `Jobs.submit` would have raised for that job alone; where places run out, the
        last jobs have none.
        """
        if not jobs:
            return []
        assert len(jobs) <= CHUNK, "in chunks"
        try:
            places = await self._standings.take(jobs[0].key.tenant, len(jobs), utc_now())
        except TramontaneError as error:
            return [error] * len(jobs)
        written = await self._write(jobs[:places])
        return written + await self.submit(jobs[places:])

    async def _write(self, jobs: Sequence[NewJob]) -> list[Submitted | TramontaneError]:
        try:
            return list(await self._jobs.submit(jobs, utc_now()))
        except OUTAGES:
            raise
        except Exception:
            if len(jobs) == 1:
                raise
        return [outcome for job in jobs for outcome in await self._write([job])]

    async def retry(self, tenant: str, wanted: JobFilter, *, before: UUID | None, limit: int) -> list[Job]:
        """New jobs for ended ones that match and have not been retried, newest first, from before a cursor.

        limit: CHUNK at most. Raises BudgetExhausted, QueueFull and Overloaded when there is no place for any.
        """
        now = utc_now()
        places = await self._standings.take(tenant, min(limit, CHUNK), now)
        return await self._retries.retry(tenant, wanted, before=before, limit=places, now=now)

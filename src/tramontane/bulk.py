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
        last jobs have none, but for those that are there already under their Idempotency-Keys.
        """
        if not jobs:
            return []
        assert len(jobs) <= CHUNK, "in chunks"
        tenant, now = jobs[0].key.tenant, utc_now()
        try:
            places = await self._standings.take(tenant, len(jobs), now)
        except TramontaneError as error:
            earlier = await self._jobs.replays(jobs)
            return [earlier.get(job.key.id, error) for job in jobs]
        earlier = await self._jobs.replays(jobs) if places < len(jobs) else {}
        fresh = [job for job in jobs if job.key.id not in earlier]
        written = await self._write(fresh[:places])
        self._standings.give_back(tenant, places - sum(map(_is_new, written)), now)
        outcomes = iter(written + await self.submit(fresh[places:]))
        return [earlier.get(job.key.id) or next(outcomes) for job in jobs]

    async def _write(self, jobs: Sequence[NewJob]) -> list[Submitted | TramontaneError]:
        try:
            return list(await self._jobs.submit(jobs, utc_now()))
        except OUTAGES:
            raise
        except Exception:
            if len(jobs) == 1:
                raise
        return [outcome for job in jobs for outcome in await self._write([job])]

    async def retry(
        self, tenant: str, wanted: JobFilter, *, before: UUID | None, limit: int, trace_context: str | None = None
    ) -> list[Job]:
        """New jobs for ended ones that match and have not been retried, newest first, from before a cursor.

        limit: CHUNK at most. Raises BudgetExhausted, QueueFull and Overloaded when there is no place for any.
        """
        now = utc_now()
        places = await self._standings.take(tenant, min(limit, CHUNK), now)
        jobs = await self._retries.retry(
            tenant, wanted, before=before, limit=places, now=now, trace_context=trace_context
        )
        self._standings.give_back(tenant, places - len(jobs), now)
        return jobs


def _is_new(outcome: Submitted | TramontaneError) -> bool:
    """Whether it has a place of its own among those that wait."""
    return isinstance(outcome, Submitted) and not outcome.replayed

"""What users ask of jobs: submit, get, find, cancel, retry, erase."""

from collections.abc import Callable
from uuid import UUID

from tramontane.errors import BudgetExhausted, Busy, IdempotencyMismatch, InvalidInput, JobNotEnded, ResultExpired
from tramontane.groups import GroupCommit
from tramontane.ids import show_id, utc_now
from tramontane.listener import OUTAGES
from tramontane.models import AttemptRecord, Job, JobFilter, JobKey, NewJob, Submitted
from tramontane.standings import Standings
from tramontane.store import Contents, JobStore, asked_again


class Jobs:
    """The service behind every face. Submits that come together share one transaction: run `run` beside it.

    wake: told of each job whose log grew, after the commit; ended: of each that a cancel has ended, once.
    told: how many submits share a transaction, each time.
    standings: asked for a place before each submit; without them there is always one.
    """

    def __init__(
        self,
        store: JobStore,
        wake: Callable[[Job], None],
        ended: Callable[[Job], None],
        *,
        told: Callable[[int], object] = int,
        standings: Standings | None = None,
    ) -> None:
        self._store = store
        self._standings = standings
        self._wake = wake
        self._ended = ended
        self._submits = GroupCommit[NewJob, Submitted | IdempotencyMismatch | InvalidInput](
            lambda jobs: store.submit(jobs, utc_now()), outages=OUTAGES, told=told
        )

    async def run(self) -> None:
        """Write submits until cancelled."""
        await self._submits.run()

    async def submit(self, job: NewJob) -> Submitted:
        """Write a job. On return it is on disk.

        Raises IdempotencyMismatch, InvalidInput for its priority, and QueueFull, Overloaded or BudgetExhausted.
        """
        outcome = await self._submits.add(job) if self._standings is None else await self._placed(job, self._standings)
        if isinstance(outcome, IdempotencyMismatch | InvalidInput):
            raise outcome
        return outcome

    async def _placed(self, job: NewJob, standings: Standings) -> Submitted | IdempotencyMismatch | InvalidInput:
        """Written, if there is a place for it; what is there already under its Idempotency-Key needs none."""
        tenant, now = job.key.tenant, utc_now()
        try:
            await standings.take(tenant, 1, now)
        except (Busy, BudgetExhausted):
            earlier = (await self._store.replays([job])).get(job.key.id)
            if earlier is None:
                raise
            return earlier
        outcome = await self._submits.add(job)
        if not isinstance(outcome, Submitted) or outcome.replayed:
            standings.give_back(tenant, 1, now)
        return outcome

    async def get(self, key: JobKey) -> Job:
        """The job. Raises NotFound."""
        return await self._store.get(key)

    async def contents(self, key: JobKey) -> Contents:
        """What the job asked, and its result. Raises NotFound."""
        return await self._store.contents(key)

    async def attempts(self, key: JobKey) -> list[AttemptRecord]:
        """The job's history."""
        return await self._store.attempts(key)

    async def find(self, tenant: str, wanted: JobFilter, *, before: UUID | None, limit: int) -> list[Job]:
        """Jobs that match, newest first."""
        return await self._store.find(tenant, wanted, before=before, limit=limit)

    async def cancel(self, key: JobKey) -> Job:
        """Stop a job, whatever it is doing. An ended one stays as it is. Raises NotFound."""
        now = utc_now()
        job = await self._store.cancel(key, now)
        self._wake(job)
        if job.completed_at == now:  # it was this cancel that ended it
            self._ended(job)
        return job

    async def retry(self, key: JobKey, *, trace_context: str | None = None) -> Submitted:
        """A new job that asks the same as an ended one, and tells the same callback; it is part of the trace given.

        Raises NotFound, JobNotEnded, ResultExpired.
        """
        job = await self._store.get(key)
        if not job.state.final:
            raise JobNotEnded(f"{show_id('job', key.id)} is {job.state}: only an ended job is retried")
        if job.contents_pruned_at is not None:
            shown = show_id("job", key.id)
            raise ResultExpired(f"what {shown} asked is past TRAMONTANE_RESULT_RETENTION: submit it anew")
        contents, callback = await self._store.contents(key), await self._store.callback(key)
        again = asked_again(job, contents.request, callback=callback, now=utc_now(), trace_context=trace_context)
        return await self.submit(again)

    async def erase(self, key: JobKey) -> None:
        """Delete what an ended job said and heard. Raises NotFound, JobNotEnded."""
        await self._store.erase(key, utc_now())

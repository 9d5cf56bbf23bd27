"""What users ask of jobs: submit, get, find, cancel, retry, erase."""

import dataclasses
from collections.abc import Callable
from uuid import UUID

from tramontane.errors import IdempotencyMismatch, JobNotEnded
from tramontane.groups import GroupCommit
from tramontane.ids import new_id, show_id, utc_now
from tramontane.limits import estimate
from tramontane.listener import OUTAGES
from tramontane.models import AttemptRecord, Job, JobFilter, JobKey, NewJob, Submitted
from tramontane.store import Contents, JobStore


class Jobs:
    """The service behind every face. Submits that come together share one transaction: run `run` beside it.

    wake: told of each job whose log grew, after the commit.
    """

    def __init__(self, store: JobStore, wake: Callable[[Job], None]) -> None:
        self._store = store
        self._wake = wake
        self._submits = GroupCommit[NewJob, Submitted | IdempotencyMismatch](
            lambda jobs: store.submit(jobs, utc_now()), outages=OUTAGES
        )

    async def run(self) -> None:
        """Write submits until cancelled."""
        await self._submits.run()

    async def submit(self, job: NewJob) -> Submitted:
        """Write a job. On return it is on disk. Raises IdempotencyMismatch."""
        outcome = await self._submits.add(job)
        if isinstance(outcome, IdempotencyMismatch):
            raise outcome
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
        job = await self._store.cancel(key, utc_now())
        self._wake(job)
        return job

    async def retry(self, key: JobKey) -> Submitted:
        """A new job that asks the same as an ended one, and tells the same callback. Raises NotFound, JobNotEnded."""
        job = await self._store.get(key)
        if not job.state.final:
            raise JobNotEnded(f"{show_id('job', key.id)} is {job.state}: only an ended job is retried")
        contents = await self._store.contents(key)
        return await self.submit(
            NewJob(
                key=dataclasses.replace(key, id=new_id()),
                kind=job.kind,
                request=contents.request,
                request_id=job.request_id,
                model=job.model,
                attempts=job.attempts,
                backoff_kind=job.backoff_kind,
                backoff_seconds=job.backoff_seconds,
                timeout_seconds=job.timeout_seconds,
                run_at=utc_now(),
                priority=job.priority,
                metadata=job.metadata,
                retry_of=key.id,
                callback=await self._store.callback(key),
                resume=job.resume,
                prompt_tokens=estimate(contents.request),
                max_tokens=job.max_tokens,
            )
        )

    async def erase(self, key: JobKey) -> None:
        """Delete what an ended job said and heard. Raises NotFound, JobNotEnded."""
        await self._store.erase(key, utc_now())

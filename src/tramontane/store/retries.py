"""Many ended jobs tried again at once."""

from datetime import datetime
from uuid import UUID

import msgspec

from tramontane.ids import new_id
from tramontane.limits import estimate
from tramontane.models import Callback, Job, JobFilter, JobKey, NewJob
from tramontane.store.jobs import insert
from tramontane.store.rows import Pool, callback_from, job_from
from tramontane.store.statements import Statements

SQL = Statements("retries")


class RetryStore:
    """One verb."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def retry(
        self,
        tenant: str,
        wanted: JobFilter,
        *,
        before: UUID | None,
        limit: int,
        now: datetime,
        trace_context: str | None = None,
    ) -> list[Job]:
        """New jobs that ask the same as ended ones that match, newest first, from before a cursor; one transaction.

        wanted: its `state` is given, and final. A job that has been retried already, by whatever way, is passed over,
        so that a repeat and two at once retry each job once.
        """
        texts = (wanted.kind, wanted.model, wanted.error, *(text for pair in wanted.metadata for text in pair))
        if any("\0" in text for text in texts if text):
            return []  # no text in Postgres has one, and it refuses to compare with one
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL.take_turns, tenant)
            rows = await connection.fetch(
                SQL.retriable,
                tenant,
                before,
                wanted.state,
                wanted.kind,
                wanted.model,
                wanted.error,
                wanted.created_after,
                wanted.created_before,
                msgspec.json.encode(dict(wanted.metadata)).decode() if wanted.metadata else None,
                limit,
            )
            told = await connection.fetch(SQL.callbacks, tenant, [row["id"] for row in rows])
            callbacks = {row["job_id"]: callback_from(row) for row in told}
            jobs = [
                asked_again(
                    job_from(row),
                    row["request"].encode(),
                    callback=callbacks.get(row["id"]),
                    now=now,
                    trace_context=trace_context,
                )
                for row in rows
            ]
            written = await insert(connection, jobs, now) if jobs else {}
        return [written[job.key.id] for job in jobs]


def asked_again(
    job: Job, request: bytes, *, callback: Callback | None, now: datetime, trace_context: str | None = None
) -> NewJob:
    """A new job that asks the same as an ended one, and tells the same callback.

    Its deadline was the other one's, and so was its trace.
    """
    return NewJob(
        key=JobKey(tenant=job.key.tenant, id=new_id()),
        kind=job.kind,
        request=request,
        request_id=job.request_id,
        model=job.model,
        attempts=job.attempts,
        backoff_kind=job.backoff_kind,
        backoff_seconds=job.backoff_seconds,
        timeout_seconds=job.timeout_seconds,
        run_at=now,
        priority=job.priority,
        metadata=job.metadata,
        retry_of=job.key.id,
        callback=callback,
        resume=job.resume,
        prompt_tokens=estimate(request),
        max_tokens=job.max_tokens,
        trace_context=trace_context,
    )

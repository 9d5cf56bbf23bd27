"""Rows become values here, and nowhere else."""

from typing import TYPE_CHECKING, Any

import asyncpg

from tramontane.models import AttemptRecord, Callback, Event, Failure, Job, JobKey, State

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Pool = asyncpg.Pool[Any]
    Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


def job_from(row: asyncpg.Record) -> Job:
    """A row of `jobs`."""
    return Job(
        key=key_from(row),
        kind=row["kind"],
        state=State(row["state"]),
        request_id=row["request_id"],
        model=row["model"],
        attempt=row["attempt"],
        failures=row["failures"],
        attempts=row["attempts"],
        backoff_kind=row["backoff_kind"],
        backoff_seconds=row["backoff_seconds"],
        timeout_seconds=row["timeout_seconds"],
        priority=row["priority"],
        run_at=row["run_at"],
        admitted_at=row["admitted_at"],
        head=row["head"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        failure=_failure_from(row),
        usage=row["usage"],
        metadata=row["metadata"],
        retry_of=row["retry_of"],
        events_pruned_at=row["events_pruned_at"],
        resume=row["resume"],
        account=row["account"],
        deadline=row["deadline"],
        max_tokens=row["max_tokens"],
        refusals=row["refusals"],
        cost=None if row["cost"] is None else format(row["cost"], "f"),
        currency=row["currency"],
        schedule=row["schedule_id"],
        trace_context=row["trace_context"],
        contents_pruned_at=row["contents_pruned_at"],
    )


def callback_from(row: asyncpg.Record) -> Callback:
    """A row of `callbacks`, with its origin's address."""
    return Callback(
        url=row["url"],
        origin=row["origin"],
        events=tuple(row["events"]),
        format=row["format"],
        secret=row["secret"],
        headers=row["headers"],
    )


def key_from(row: asyncpg.Record) -> JobKey:
    """The key in a row that has `tenant_id` and `id`."""
    return JobKey(tenant=row["tenant_id"], id=row["id"])


def event_from(row: asyncpg.Record) -> Event:
    """A row of `events`."""
    return Event(seq=row["seq"], attempt=row["attempt"], type=row["type"], body=row["body"].encode())


def attempt_from(row: asyncpg.Record) -> AttemptRecord:
    """A row of `job_attempts`."""
    return AttemptRecord(
        attempt=row["attempt"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        outcome=row["outcome"],
        failure=_failure_from(row),
        correlation_id=row["correlation_id"],
        usage=row["usage"],
        unreported=row["unreported"],
    )


def _failure_from(row: asyncpg.Record) -> Failure | None:
    if row["error_code"] is None:
        return None
    return Failure(code=row["error_code"], message=row["error_message"] or "", retryable=row["error_retryable"])

"""Jobs that end as they wait: those past their deadline, and those whose tenant has spent its budget."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import asyncpg

from tramontane import continuity
from tramontane.errors import BudgetExhausted, DeadlineExceeded
from tramontane.models import Failure, Job
from tramontane.store.jobs import visible_length
from tramontane.store.messages import publish
from tramontane.store.pasts import read_pasts
from tramontane.store.rows import Connection, Pool, job_from
from tramontane.store.statements import Statements
from tramontane.webhooks import messages
from tramontane.wire import error_body

SQL = Statements("overdue")

#: Jobs that one transaction ends.
_BITE: Final = 200
_LATE: Final = Failure(
    code=DeadlineExceeded.code, message="it could not start before its deadline, and was not run", retryable=False
)
_SPENT: Final = Failure(
    code=BudgetExhausted.code,
    message="the tenant's budget of the day is spent, and the job was not run",
    retryable=False,
)


class OverdueStore:
    """Verbs that end waiting jobs. Each is one transaction: state, final event and what webhooks tell of it.

    A queue entry of such a job stays where it is, as a cancelled one's does: who takes it finds nothing to run.
    """

    def __init__(self, pool: Pool, *, public_url: str = "") -> None:
        self._pool = pool
        self._public_url = public_url

    async def expire(self, now: datetime) -> list[Job]:
        """Fail jobs that have not started by their deadline, the oldest deadlines first; a bite of them."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._fail(connection, await connection.fetch(SQL.overdue, now, _BITE), _LATE, now)

    async def exhaust(self, now: datetime) -> list[Job]:
        """Fail jobs that wait for a spent budget, of tenants that let them fail; a bite of them."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(SQL.beyond_budget, now.astimezone(UTC).date(), _BITE)
            return await self._fail(connection, rows, _SPENT, now)

    async def next_deadline(self) -> datetime | None:
        """The first deadline of all that wait."""
        moment: datetime | None = await self._pool.fetchval(SQL.next_deadline)
        return moment

    async def _fail(
        self, connection: Connection, rows: Sequence[asyncpg.Record], failure: Failure, now: datetime
    ) -> list[Job]:
        if not rows:
            return []
        waiting = [job_from(row) for row in rows]
        pasts = await read_pasts(connection, [job.key for job in waiting if job.attempt])
        usages = [continuity.add_up(pasts[job.key].usages) if job.key in pasts else None for job in waiting]
        lengths = [await visible_length(connection, job) if job.attempt else 0 for job in waiting]
        ended = await connection.fetch(
            SQL.fail_waiting,
            [job.key.tenant for job in waiting],
            [job.key.id for job in waiting],
            [bytes(usage).decode() if usage else None for usage in usages],
            [error_body(failure, length=length).decode() for length in lengths],
            failure.code,
            failure.message,
            now,
        )
        told = [job_from(row) for row in ended if row["told"]]
        await publish(connection, [messages.of_job(job, "failed", now, public_url=self._public_url) for job in told])
        return [job_from(row) for row in ended]

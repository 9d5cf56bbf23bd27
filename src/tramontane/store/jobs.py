"""The life of a job as verbs. Each is one transaction, and each write of an attempt is fenced by its number."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from tramontane import continuity, queue
from tramontane.errors import AttemptLost, IdempotencyMismatch, Interrupted, InvalidInput, JobNotEnded, NotFound
from tramontane.ids import iso, show_id
from tramontane.limits import tokens_of
from tramontane.listener import OUTAGES
from tramontane.models import (
    Attempt,
    AttemptRecord,
    Callback,
    Ending,
    Failure,
    Job,
    JobFilter,
    JobKey,
    NewEvent,
    NewJob,
    Past,
    Requeue,
    State,
    Submitted,
)
from tramontane.prices import Prices
from tramontane.store.buckets import settle
from tramontane.store.limits import admit
from tramontane.store.messages import START_ALLOWANCE, START_HEALTH, origin_id, publish
from tramontane.store.pasts import read_pasts
from tramontane.store.rows import Connection, Pool, attempt_from, callback_from, job_from, key_from
from tramontane.store.spendings import Spent, spend, spent_by, spent_unreported
from tramontane.store.statements import Statements
from tramontane.webhooks import messages
from tramontane.wire import error_body, utf16_length

SQL = Statements("jobs")

_CANCELLED = "the job was cancelled"
_NO_RESULTS: Final[Mapping[UUID, bytes | None]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a job asked and what came of it, as JSON; the result is None until it completes."""

    request: bytes
    result: bytes | None


#: Jobs that were there before, by their own key and by their Idempotency-Key, with the hash of what that was used for.
_Earlier = dict[JobKey | tuple[str, str], tuple[Job, bytes | None]]


class JobStore:
    """Verbs about jobs. What webhooks tell of them is written in the same transactions.

    public_url: of this server, for the links in webhooks. prices: of what attempts may have used that end unreported.
    """

    def __init__(self, pool: Pool, *, public_url: str = "", prices: Prices | None = None) -> None:
        self._pool = pool
        self._public_url = public_url
        self._prices = prices or Prices()

    async def submit(
        self, jobs: Sequence[NewJob], now: datetime
    ) -> list[Submitted | IdempotencyMismatch | InvalidInput]:
        """Write new jobs, and admit what may run at once; all of it is durable on return.

        Under an Idempotency-Key that is taken the earlier job comes back, marked as replayed, or, if that was asked for
        with another body, an IdempotencyMismatch in its place; in that of a job that asks for more priority than its
        tenant has, an InvalidInput (a retry, and a job of a schedule, are given what the tenant has). A repeat after an
        unknown outcome finds its own job.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            refused = await refusals(connection, jobs)
            fine = [job for job in jobs if job.key not in refused] if refused else jobs
            inserted = await insert(connection, fine, now)
            earlier = await self._earlier([job for job in jobs if job.key.id not in inserted], connection)
            return [_submitted(job, inserted, earlier) or refused[job.key] for job in jobs]

    async def replays(self, jobs: Sequence[NewJob]) -> dict[UUID, Submitted | IdempotencyMismatch]:
        """What `submit` would answer for jobs whose Idempotency-Keys are taken, by their ids. Nothing is written."""
        keyed = [job for job in jobs if job.idempotency_key is not None]
        async with self._pool.acquire() as connection:
            earlier = await self._earlier(keyed, connection)
        outcomes = {job.key.id: _submitted(job, {}, earlier) for job in keyed}
        return {job_id: outcome for job_id, outcome in outcomes.items() if outcome is not None}

    async def _earlier(self, jobs: Sequence[NewJob], connection: Connection) -> _Earlier:
        if not jobs:
            return {}
        tenants, ids = [job.key.tenant for job in jobs], [job.key.id for job in jobs]
        rows = await connection.fetch(SQL.earlier_jobs, tenants, ids, [job.idempotency_key for job in jobs])
        earlier: _Earlier = {}
        for row in rows:
            found = job_from(row), row["idempotency_hash"]
            earlier[key_from(row)] = earlier[row["tenant_id"], row["idempotency_key"]] = found
        return earlier

    async def get(self, key: JobKey) -> Job:
        """The job's row. Raises NotFound, also for another tenant's job and for an erased one."""
        row = await self._pool.fetchrow(SQL.get_job, key.tenant, key.id)
        if row is None:
            raise _not_found(key)
        return job_from(row)

    async def contents(self, key: JobKey) -> Contents:
        """What the job asked and its result. Raises NotFound."""
        row = await self._pool.fetchrow(SQL.get_contents, key.tenant, key.id)
        if row is None:
            raise _not_found(key)
        return Contents(request=row["request"].encode(), result=row["result"] and row["result"].encode())

    async def callback(self, key: JobKey) -> Callback | None:
        """Where the job's own events go."""
        row = await self._pool.fetchrow(SQL.get_callback, key.tenant, key.id)
        return row and callback_from(row)

    async def find(self, tenant: str, wanted: JobFilter, *, before: UUID | None, limit: int) -> list[Job]:
        """Jobs that match, newest first, from before a cursor."""
        named = (wanted.kind, wanted.model, wanted.request_id, wanted.error)
        texts = (*named, *itertools.chain.from_iterable(wanted.metadata))
        if any("\0" in text for text in texts if text):
            return []  # no text in Postgres has one, and it refuses to compare with one
        metadata = msgspec.json.encode(dict(wanted.metadata)).decode() if wanted.metadata else None
        rows = await self._pool.fetch(
            SQL.list_jobs,
            tenant,
            before,
            wanted.state,
            wanted.kind,
            wanted.model,
            wanted.request_id,
            wanted.created_after,
            wanted.created_before,
            metadata,
            limit,
            wanted.error,
        )
        return [job_from(row) for row in rows]

    async def attempts(self, key: JobKey) -> list[AttemptRecord]:
        """The job's history, oldest attempt first."""
        return [attempt_from(row) for row in await self._pool.fetch(SQL.list_attempts, key.tenant, key.id)]

    async def start(
        self, entries: Sequence[queue.Entry], *, worker_id: UUID, now: datetime
    ) -> list[Attempt | Job | Exception | None]:
        """Begin an attempt for each entry: the fence rises. The log says `start`; a later attempt speaks for itself.

        None stands where there is nothing to run: the job has ended, is gone, or was running. In the last case its
        worker is lost; the crash counts as a failure, and the job waits for admission again or, its attempts spent,
        fails: then it stands there itself. The entry is removed in each of these cases. An exception stands where an
        outage has kept that from being written: the entry stays, while others have started beside it.
        """
        tenants, ids = [entry.key.tenant for entry in entries], [entry.key.id for entry in entries]
        arguments = (tenants, ids, [entry.id for entry in entries], worker_id, now, iso(now))
        async with self._pool.acquire() as connection, connection.transaction():
            rows = {row["entry_id"]: row for row in await connection.fetch(SQL.start_jobs, *arguments)}
            first = [row for row in rows.values() if row["attempt"] == 1]
            await self._tell(connection, "started", first, now)
            pasts = await read_pasts(connection, [key_from(row) for row in rows.values() if row["attempt"] > 1])
        return [
            _attempt(rows[entry.id], pasts.get(entry.key)) if entry.id in rows else await self._clear(entry, now)
            for entry in entries
        ]

    async def _clear(self, entry: queue.Entry, now: datetime) -> Job | Exception | None:
        """An entry that starts nothing goes; if it was running, its attempt is given up. The job, if that ended it."""
        job: Job | None = None
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                row = await connection.fetchrow(SQL.lock_job, entry.key.tenant, entry.key.id)
                lost: list[tuple[JobKey, int]] = []
                if row is not None and row["state"] == State.RUNNING and row["entry_id"] == entry.id:
                    job = await self._give_up(connection, job_from(row), entry.id, now)
                    lost = [(entry.key, row["attempt"])]
                await queue.remove(connection, [entry.id])
                await self._spend_unreported(connection, lost)
        except OUTAGES as error:
            return error
        return job if job and job.state.final else None

    async def end(self, endings: Sequence[Ending]) -> list[Job | AttemptLost]:
        """End jobs for good: of each, state, result, last events and queue entry are written together or not at all.

        An AttemptLost stands where the attempt is no longer the one that runs. A repeat after an unknown outcome is not
        lost: it finds its own ending and returns it.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await self._end(connection, endings)
            jobs = {(job.key, job.attempt): job for job in map(job_from, rows)}
            for ending in endings:
                if (ending.key, ending.attempt) not in jobs:
                    row = await connection.fetchrow(SQL.get_job, ending.key.tenant, ending.key.id)
                    if row is not None and (row["attempt"], row["state"]) == (ending.attempt, ending.state):
                        jobs[ending.key, ending.attempt] = job_from(row)
            ended = [ending.entry_id for ending in endings if (ending.key, ending.attempt) in jobs]
            if ended:
                await queue.remove(connection, ended)
            await spend(connection, await self._spent(connection, rows, endings))
            used = {ending.key.id: tokens_of(ending.own_usage) for ending in endings}
            await settle(connection, [(row, used[row["id"]]) for row in rows])
        return [jobs.get((ending.key, ending.attempt)) or _overtaken(ending.key, ending.attempt) for ending in endings]

    async def _end(self, connection: Connection, endings: Sequence[Ending]) -> list[asyncpg.Record]:
        rows = await connection.fetch(SQL.end_jobs, *_ending_columns(endings))
        results = {ending.key.id: ending.result for ending in endings}
        for state in (State.COMPLETED, State.FAILED):
            await self._tell(connection, state, [row for row in rows if row["state"] == state], None, results)
        return rows

    async def _tell(
        self,
        connection: Connection,
        verb: str,
        rows: Sequence[asyncpg.Record],
        now: datetime | None,
        results: Mapping[UUID, bytes | None] = _NO_RESULTS,
    ) -> None:
        """What webhooks say of jobs that have just changed; when they ended, that was the time."""
        told = [job_from(row) for row in rows if row["told"]]
        await publish(
            connection,
            [
                messages.of_job(
                    job,
                    verb,
                    now or job.completed_at or job.created_at,
                    result=results.get(job.key.id),
                    public_url=self._public_url,
                )
                for job in told
            ],
        )

    async def requeue(self, requeue: Requeue, now: datetime) -> Job:
        """Give a job back: it waits until `run_at`, and its queue entry goes in the same transaction.

        Raises AttemptLost when `attempt` is no longer the one that runs.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            outcome = "failed" if requeue.failure and not requeue.refused else "handover"
            job = await _requeue(connection, requeue, outcome, now)
            await spend(connection, [spent_by(job, requeue.usage, requeue.cost, now)])
            if requeue.unreported:
                await self._spend_unreported(connection, [(requeue.key, requeue.attempt)])
            return job

    async def _spent(
        self, connection: Connection, rows: Sequence[asyncpg.Record], endings: Sequence[Ending]
    ) -> list[Spent | None]:
        """What the attempts have used that have just ended; a repeat of an ending has used nothing more."""
        own = {(ending.key, ending.attempt): ending for ending in endings}
        ended = [(job, own[job.key, job.attempt]) for job in map(job_from, rows)]
        unreported = [(job.key, job.attempt) for job, ending in ended if ending.unreported]
        reported = [spent_by(job, ending.own_usage, ending.cost, ending.at) for job, ending in ended]
        return reported + list(await spent_unreported(connection, unreported, self._prices))

    async def _spend_unreported(self, connection: Connection, attempts: Sequence[tuple[JobKey, int]]) -> None:
        await spend(connection, await spent_unreported(connection, attempts, self._prices))

    async def cancel(self, key: JobKey, now: datetime) -> Job:
        """End a job at once, whatever it is doing; a job that has ended stays as it is. Raises NotFound.

        The final event is written here. A running attempt finds its next write refused, and its worker is interrupted
        when this commits.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL.lock_job, key.tenant, key.id)
            if row is None or row["erased_at"] is not None:
                raise _not_found(key)
            job = job_from(row)
            if job.state.final:
                return job
            length = await visible_length(connection, job)
            failure = Failure(code="cancelled", message=_CANCELLED, retryable=False)
            body = error_body(failure, length=length)
            row = await connection.fetchrow(SQL.cancel_job, key.tenant, key.id, now, _CANCELLED, body.decode())
            assert row is not None
            await self._tell(connection, "cancelled", [row], now)
            if row["entry_id"] is not None:
                await queue.cancel(connection, row["entry_id"])
            if job.state == State.RUNNING:
                await self._spend_unreported(connection, [(key, job.attempt)])
        return job_from(row)

    async def erase(self, key: JobKey, now: datetime) -> None:
        """Delete what an ended job said and heard; its row stays, for the books. Raises NotFound, JobNotEnded."""
        if await self._pool.fetchrow(SQL.erase_job, key.tenant, key.id, now) is None:
            job = await self.get(key)
            raise JobNotEnded(f"{_show(key)} is {job.state}: cancel it first")

    async def sweep(self, now: datetime, *, older_than: timedelta) -> list[Job]:
        """Mend what no queue entry stands for: waiting jobs are admitted anew, running ones count as crashed.

        Returns those jobs as they are then.
        """
        mended: list[Job] = []
        async with self._pool.acquire() as connection, connection.transaction():
            rows = {key_from(row): row for row in await connection.fetch(SQL.in_flight_since, now - older_than)}
            orphans = await queue.without_entry(connection, list(rows)) if rows else []
            lost: list[tuple[JobKey, int]] = []
            for key in orphans:
                row = await connection.fetchrow(SQL.lock_job, key.tenant, key.id)
                if row is None or (row["state"], row["attempt"]) != (rows[key]["state"], rows[key]["attempt"]):
                    continue
                if row["state"] == State.RUNNING:
                    mended.append(await self._give_up(connection, job_from(row), row["entry_id"], now))
                    lost.append((key, row["attempt"]))
                elif waiting := await connection.fetchrow(SQL.readmit_job, key.tenant, key.id):
                    mended.append(job_from(waiting))
            await self._spend_unreported(connection, lost)
        return mended

    async def _give_up(self, connection: Connection, job: Job, entry_id: int, now: datetime) -> Job:
        """The running attempt's worker is lost: once more, or, its attempts spent, never again.

        What it may have used is the caller's to spend, last of all.
        """
        failure = Failure(code=Interrupted.code, message="the worker was lost", retryable=True)
        if job.failures + 1 < job.attempts:
            requeue = Requeue(
                key=job.key,
                attempt=job.attempt,
                entry_id=entry_id,
                run_at=now,
                reason="worker_lost",
                failure=failure,
                unreported=True,
            )
            waiting = await _requeue(connection, requeue, "lost", now)
            await connection.execute("SELECT pg_notify('tramontane_admission', '')")
            return waiting
        message = f"the worker was lost; {job.failures + 1} of {job.attempts} attempts failed"
        failure = Failure(code=Interrupted.code, message=message, retryable=True)
        body = error_body(failure, length=await visible_length(connection, job))
        pasts = await read_pasts(connection, [job.key])
        usage = continuity.add_up(pasts[job.key].usages) if pasts else None
        ending = Ending(
            key=job.key,
            attempt=job.attempt,
            entry_id=entry_id,
            state=State.FAILED,
            at=now,
            events=(NewEvent("error", body),),
            usage=bytes(usage).decode() if usage else None,
            unreported=True,
            failure=failure,
        )
        [row] = await self._end(connection, [ending])
        return job_from(row)

    async def prune_queue_log(self, before: datetime) -> None:
        """Delete what the queue wrote down before that time."""
        async with self._pool.acquire() as connection:
            await queue.prune(connection, before)


async def insert(connection: Connection, jobs: Sequence[NewJob], now: datetime) -> dict[UUID, Job]:
    """Write new jobs in the caller's transaction, and admit what may run at once; those that were written, by id.

    Left out: a job that is there already, and one whose Idempotency-Key is taken. One that asks for more priority than
    its tenant has by now gets what the tenant has: whoever is to be told of it, asks for `refusals` first.
    """
    rows = await connection.fetch(SQL.insert_jobs, *_columns(jobs), now)
    inserted = {row["id"]: job_from(row) for row in rows}
    if inserted:
        if with_callback := [job for job in jobs if job.callback and job.key.id in inserted]:
            await connection.execute(SQL.insert_callbacks, *_callback_columns(with_callback), now)
        admission = await admit(connection, now, wait=False)
        if len(admission.admitted) < len(inserted):
            await connection.execute("SELECT pg_notify('tramontane_admission', '')")
    return inserted


async def _requeue(connection: Connection, requeue: Requeue, outcome: str, now: datetime) -> Job:
    failure = requeue.failure
    row = await connection.fetchrow(
        SQL.requeue_job,
        requeue.key.tenant,
        requeue.key.id,
        requeue.attempt,
        requeue.run_at,
        now,
        outcome,
        requeue.reason,
        failure and failure.code,
        failure and failure.message,
        failure and failure.retryable,
        requeue.correlation_id,
        requeue.usage,
        requeue.unreported,
        requeue.cost and requeue.cost.amount,
        requeue.cost and requeue.cost.currency,
        tokens_of(requeue.usage),
        requeue.refused,
    )
    if row is None:
        raise _overtaken(requeue.key, requeue.attempt)
    await queue.remove(connection, [requeue.entry_id])
    await settle(connection, [(row, 0 if requeue.refused else tokens_of(requeue.usage))])
    return job_from(row)


async def refusals(connection: Connection, jobs: Sequence[NewJob]) -> dict[JobKey, InvalidInput]:
    """Jobs that ask for more priority than their tenants have.

    Not those that repeat what was asked for when the tenant had more: nobody could ask for less with them.
    """
    asking = [job for job in jobs if job.priority > 0 and job.retry_of is None and job.schedule is None]
    if not asking:
        return {}
    rows = await connection.fetch(SQL.top_priorities, [job.key.tenant for job in asking])
    most = {row["id"]: row["top_priority"] for row in rows}
    return {
        job.key: InvalidInput("priority", f"may be {most[job.key.tenant]} at most, as is set for this tenant")
        for job in asking
        if job.priority > most.get(job.key.tenant, job.priority)
    }


async def visible_length(connection: Connection, job: Job) -> int:
    """Length of the text that readers see, in UTF-16 units."""
    row = await connection.fetchrow(SQL.visible_text, job.key.tenant, job.key.id)
    if row is None:
        return 0
    body = msgspec.json.decode(row["body"])
    if row["type"] == "attempt":
        return int(body["keep"])
    return int(body["off"]) + utf16_length(body["content"])


def _submitted(job: NewJob, inserted: dict[UUID, Job], earlier: _Earlier) -> Submitted | IdempotencyMismatch | None:
    """What became of a job; None for one that is not there, and has no earlier one."""
    if job.key.id in inserted:
        return Submitted(job=inserted[job.key.id], replayed=False)
    if job.key in earlier:
        return Submitted(job=earlier[job.key][0], replayed=False)
    if job.idempotency_key is None or (job.key.tenant, job.idempotency_key) not in earlier:
        return None
    first, first_hash = earlier[job.key.tenant, job.idempotency_key]
    if first_hash != job.idempotency_hash:
        return IdempotencyMismatch("this Idempotency-Key was used with another body: send the same body, or a new key")
    return Submitted(job=first, replayed=True)


def _columns(jobs: Sequence[NewJob]) -> tuple[list[object], ...]:
    return (
        [job.key.tenant for job in jobs],
        [job.key.id for job in jobs],
        [job.kind for job in jobs],
        [job.request_id for job in jobs],
        [job.model for job in jobs],
        [job.attempts for job in jobs],
        [job.backoff_kind for job in jobs],
        [job.backoff_seconds for job in jobs],
        [job.timeout_seconds for job in jobs],
        [job.priority for job in jobs],
        [job.run_at for job in jobs],
        [job.metadata for job in jobs],
        [job.retry_of for job in jobs],
        [job.idempotency_key for job in jobs],
        [job.idempotency_hash for job in jobs],
        [job.request.decode() for job in jobs],
        [job.resume for job in jobs],
        [job.deadline for job in jobs],
        [job.prompt_tokens for job in jobs],
        [job.max_tokens for job in jobs],
        [job.schedule for job in jobs],
        [job.trace_context for job in jobs],
    )


def _callback_columns(jobs: Sequence[NewJob]) -> tuple[object, ...]:
    pairs = [(job.key, job.callback) for job in jobs if job.callback]
    return (
        [key.tenant for key, _ in pairs],
        [key.id for key, _ in pairs],
        [origin_id(key.tenant, callback.origin) for key, callback in pairs],
        [callback.origin for _, callback in pairs],
        [callback.url for _, callback in pairs],
        [",".join(callback.events) for _, callback in pairs],
        [callback.format for _, callback in pairs],
        [callback.secret for _, callback in pairs],
        [callback.headers for _, callback in pairs],
        START_ALLOWANCE,
        START_HEALTH,
    )


def _ending_columns(endings: Sequence[Ending]) -> tuple[list[object], ...]:
    events = [(ending, position, event) for ending in endings for position, event in enumerate(ending.events, 1)]
    failures = [ending.failure for ending in endings]
    return (
        [ending.key.tenant for ending in endings],
        [ending.key.id for ending in endings],
        [ending.attempt for ending in endings],
        [ending.state for ending in endings],
        [ending.at for ending in endings],
        [len(ending.events) for ending in endings],
        [ending.usage for ending in endings],
        [failure and failure.code for failure in failures],
        [failure and failure.message for failure in failures],
        [failure and failure.retryable for failure in failures],
        [ending.correlation_id for ending in endings],
        [ending.result and ending.result.decode() for ending in endings],
        [ending.own_usage for ending in endings],
        [ending.unreported for ending in endings],
        [ending.key.id for ending, _, _ in events],
        [ending.attempt for ending, _, _ in events],
        [position for _, position, _ in events],
        [event.type for _, _, event in events],
        [event.body.decode() for _, _, event in events],
        [ending.cost and ending.cost.amount for ending in endings],
        [ending.cost and ending.cost.currency for ending in endings],
        [ending.key.tenant for ending, _, _ in events],
        [tokens_of(ending.own_usage) for ending in endings],
    )


def _attempt(row: asyncpg.Record, past: Past | None) -> Attempt:
    return Attempt(
        job=job_from(row),
        entry_id=row["entry_id"],
        request=row["request"].encode(),
        past=past,
        mistral_key=row["mistral_key"],
        money_counts=row["money_counts"],
    )


def _overtaken(key: JobKey, attempt: int) -> AttemptLost:
    return AttemptLost(f"attempt {attempt} of {_show(key)} was overtaken")


def _show(key: JobKey) -> str:
    return show_id("job", key.id)


def _not_found(key: JobKey) -> NotFound:
    return NotFound(f"no such job: {_show(key)}")

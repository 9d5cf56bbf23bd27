"""A job's life in few words: stores over one database, a clock that stands still, and no waiting."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from tramontane import queue
from tramontane.database import Database
from tramontane.ids import new_id
from tramontane.limits import Bucket, Heard
from tramontane.models import (
    Attempt,
    Batch,
    Ending,
    Event,
    Failure,
    Job,
    JobKey,
    NewEvent,
    NewJob,
    Requeue,
    State,
    Submitted,
    WorkerInfo,
)
from tramontane.store import BucketStore, EventStore, JobStore, LimitStore

WINDOW = timedelta(seconds=60)
T0 = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
REQUEST = b'{"model":"mistral-small-latest","messages":[{"role":"user","content":"Hello!"}]}'
UNAVAILABLE = Failure(code="upstream_unavailable", message="Mistral answered 503", retryable=True)


def at(seconds: float) -> datetime:
    """T0 and so many seconds."""
    return T0 + timedelta(seconds=seconds)


def new_job(*, tenant: str = "default", **fields: Any) -> NewJob:
    """A job that asks for three attempts and may run at T0."""
    given: dict[str, Any] = {
        "key": JobKey(tenant=tenant, id=new_id()),
        "kind": "chat",
        "request": REQUEST,
        "request_id": "req-1",
        "model": "mistral-small-latest",
        "attempts": 3,
        "backoff_kind": "exponential",
        "backoff_seconds": 1.0,
        "timeout_seconds": 600.0,
        "run_at": T0,
    }
    return NewJob(**(given | fields))


def chunk(text: str, off: int = 0) -> NewEvent:
    return NewEvent("chunk", msgspec.json.encode({"off": off, "content": text, "tokenCount": 1}))


def batch(attempt: Attempt, number: int, *events: NewEvent) -> Batch:
    return Batch(key=attempt.job.key, attempt=attempt.job.attempt, number=number, events=events)


def ending(attempt: Attempt, state: State = State.COMPLETED, **fields: Any) -> Ending:
    """The end of an attempt, with one final event."""
    done = state == State.COMPLETED
    given: dict[str, Any] = {
        "key": attempt.job.key,
        "attempt": attempt.job.attempt,
        "entry_id": attempt.entry_id,
        "state": state,
        "at": at(9),
        "events": (NewEvent("complete" if done else "error", b'{"totalTokens":0}'),),
        "result": b'{"content":"Hi"}' if done else None,
        "failure": None if done else UNAVAILABLE,
    }
    return Ending(**(given | fields))


def requeue(attempt: Attempt, run_at: datetime, failure: Failure | None = UNAVAILABLE) -> Requeue:
    return Requeue(
        key=attempt.job.key,
        attempt=attempt.job.attempt,
        entry_id=attempt.entry_id,
        run_at=run_at,
        reason="upstream" if failure else "handover",
        failure=failure,
    )


class Lives:
    """The store's verbs, and what tests ask again and again."""

    def __init__(self, database: Database) -> None:
        self.pool = database.pool
        self.jobs = JobStore(database.pool)
        self.events = EventStore(database.pool)
        self.limits = LimitStore(database.pool)
        self.buckets = BucketStore(database.pool)
        self.worker_id = new_id()

    async def worker(self, *, slots: int = 100, rate: float = 0.0, heartbeat: float = 10.0, now: datetime = T0) -> UUID:
        """A live worker; without a rate nothing but its slots limits the starts."""
        info = WorkerInfo(id=new_id(), concurrency=slots, heartbeat_seconds=heartbeat, host="here", pid=1)
        await self.limits.register(info, rate=rate, now=now)
        await self.answered(now=now)
        self.worker_id = info.id
        return info.id

    async def answered(
        self, model: str = "mistral-small-latest", *, account: str = "*", now: datetime = T0, **head: Any
    ) -> Bucket:
        """Mistral has answered for a model: with these headers, or without any, and so without a limit."""
        return await self.buckets.learn((account, model), [Heard(at=now, **head)], [], now, WINDOW)

    async def tenant(self, **columns: Any) -> None:
        """What was set for a tenant, the default one unless `id` names another."""
        row = {"id": "default", "created_at": T0, "updated_at": T0} | columns
        places = ", ".join(f"${place}" for place, _ in enumerate(row, 1))
        await self.pool.execute(f"INSERT INTO tenants ({', '.join(row)}) VALUES ({places})", *row.values())

    async def submit(self, *jobs: NewJob, now: datetime = T0) -> list[Job]:
        outcomes = await self.jobs.submit(jobs or [new_job()], now)
        submitted = [outcome for outcome in outcomes if isinstance(outcome, Submitted)]
        assert len(submitted) == len(outcomes)
        return [one.job for one in submitted]

    async def entries(self) -> list[tuple[int, str, JobKey]]:
        async with self.pool.acquire() as connection:
            return await queue.entries(connection)

    async def entry_of(self, key: JobKey) -> queue.Entry:
        [entry_id] = [entry_id for entry_id, _, owner in await self.entries() if owner == key]
        return queue.Entry(entry_id, key)

    async def start(self, key: JobKey, *, now: datetime = T0) -> Attempt:
        [attempt] = await self.jobs.start([await self.entry_of(key)], worker_id=self.worker_id, now=now)
        assert isinstance(attempt, Attempt)
        return attempt

    async def round(self, now: datetime) -> list[JobKey]:
        """A round of admission, and the start of all that it lets through."""
        admitted = (await self.limits.admit(now)).admitted
        for key in admitted:
            await self.start(key, now=now)
        return list(admitted)

    async def running(self, *, now: datetime = T0, **fields: Any) -> Attempt:
        """A job that was submitted, admitted and started."""
        [job] = await self.submit(new_job(**fields), now=now)
        return await self.start(job.key, now=now)

    async def take_over(self, attempt: Attempt, *, now: datetime = T0) -> None:
        """The queue hands the entry of a running job to another worker: the first one is lost."""
        entry = queue.Entry(attempt.entry_id, attempt.job.key)
        [outcome] = await self.jobs.start([entry], worker_id=new_id(), now=now)
        assert outcome is None or outcome == await self.jobs.get(attempt.job.key)

    async def log(self, key: JobKey, after: int = 0) -> list[Event]:
        return (await self.events.read({key: after})).get(key, [])

    async def types(self, key: JobKey) -> list[str]:
        return [event.type for event in await self.log(key)]

    async def last_body(self, key: JobKey) -> dict[str, Any]:
        body: dict[str, Any] = msgspec.json.decode((await self.log(key))[-1].body)
        return body


async def at_once(verbs: list[Awaitable[Any]]) -> list[Any]:
    """Await all of them together; the results in order, exceptions among them."""

    async def outcome(verb: Awaitable[Any]) -> Any:
        try:
            return await verb
        except Exception as error:  # noqa: BLE001 - for the test to look at
            return error

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(outcome(verb)) for verb in verbs]
    return [task.result() for task in running]


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 8.0) -> None:
    """Look again and again, until it holds."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - only the database can tell
            await asyncio.sleep(0.005)


@asynccontextmanager
async def in_the_background(*services: Any) -> AsyncIterator[None]:
    """Run services beside the block, and end them with it."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(service) for service in services]
        yield
        for task in running:
            task.cancel()

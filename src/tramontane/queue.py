"""The one module that knows pgqueuer: it hands admitted work to a worker, keeps its heartbeat, recovers and cancels it.

Its row is a *queue entry* and never the truth: that is the job's own row, fenced by its attempt number. The rules that
follow from pgqueuer 1.6's behaviour:

- An entry is put, and removed, in the transaction that changes its job. pgqueuer's own completion, which follows, finds
  no row and does nothing.
- A handler that lost its attempt must leave the entry alone. Returning, raising and being cancelled would all change
  the row, whoever owns it by now; `LeaveEntry`, which is no `Exception`, does not.
- pgqueuer ends its loop on a database error and goes deaf when its LISTEN connection breaks. Here polls survive
  outages and the listener is ours, which comes back by itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment, QueryQueueBuilder, QuerySchedulerBuilder
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.executors import AbstractEntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.models import CancellationEvent, Context, utc_now
from pgqueuer.domain.models import Job as PgqueuerJob
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import Channel, JobId, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.driver import Driver, NotifyCallback
from pgqueuer.ports.repository import EntrypointExecutionParameter

from tramontane.listener import OUTAGES, Listener
from tramontane.models import JobKey
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

_PREFIX: Final = "tramontane_"
# Every name is given: DBSettings would otherwise read a dozen variables of the environment, CHANNEL among them.
_SETTINGS: Final = DBSettings(
    prefix=_PREFIX,
    db_schema="tramontane",
    channel=Channel(f"{_PREFIX}ch_pgqueuer"),
    function=f"{_PREFIX}fn_pgqueuer_changed",
    statistics_table=f"{_PREFIX}pgqueuer_statistics",
    queue_status_type=f"{_PREFIX}pgqueuer_status",
    queue_table=f"{_PREFIX}pgqueuer",
    queue_table_log=f"{_PREFIX}pgqueuer_log",
    trigger=f"{_PREFIX}tg_pgqueuer_changed",
    schedules_table=f"{_PREFIX}pgqueuer_schedules",
    durability=Durability.balanced,  # pgqueuer's log is no source of truth of ours
    widen_id=True,
)
_QUERIES: Final = QueryQueueBuilder(settings=_SETTINGS)
_ENQUEUE: Final = _QUERIES.build_enqueue_query("skip")
_LOG_JOBS: Final = _QUERIES.build_log_job_query()
_TABLE: Final = _SETTINGS.qualified.queue_table
_LOG_TABLE: Final = _SETTINGS.qualified.queue_table_log

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]
else:
    Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


class LeaveEntry(BaseException):
    """Raised by a handler whose attempt is lost: the entry stays as it is, for whoever owns it now."""


class Work(StrEnum):
    """What an entry stands for. Each kind has consumers of its own, so that neither keeps the other waiting."""

    JOB = "job"
    DELIVERY = "delivery"


@dataclass(frozen=True, slots=True)
class Entry:
    """A queue entry in the hands of a worker. The key is the job's, or the delivery's."""

    id: int
    key: JobKey


async def install(connection: "asyncpg.Connection[Any]") -> None:
    """Create or upgrade pgqueuer's tables. Needs one connection, no transaction, and a lock around it."""
    await _queries(Queries, AsyncpgDriver(connection)).apply_upgrade()


async def put(connection: Connection, keys: Sequence[JobKey], priorities: Sequence[int], work: Work = Work.JOB) -> None:
    """Put an entry for each key, in the caller's transaction. What has an entry keeps it."""
    count = len(keys)
    await connection.execute(
        _ENQUEUE,
        list(priorities),
        [work.value] * count,
        [key.id.bytes + key.tenant.encode() for key in keys],
        [timedelta()] * count,
        [_dedupe_key(key, work) for key in keys],
        ["{}"] * count,
    )


async def remove(connection: Connection, entry_ids: Sequence[int]) -> None:
    """Remove entries in the caller's transaction. Unknown ones are no error."""
    count = len(entry_ids)
    await connection.execute(_LOG_JOBS, list(entry_ids), ["successful"] * count, [None] * count)


async def cancel(connection: Connection, entry_id: int) -> None:
    """Interrupt the handler of an entry, on whatever machine it runs, once the caller's transaction commits."""
    event = CancellationEvent(
        channel=_SETTINGS.channel, ids=[JobId(entry_id)], sent_at=utc_now(), type="cancellation_event"
    )
    await connection.execute("SELECT pg_notify($1, $2)", _SETTINGS.channel, event.model_dump_json())


async def without_entry(connection: Connection, keys: Sequence[JobKey], work: Work = Work.JOB) -> list[JobKey]:
    """Those of `keys` that no live entry stands for (one held as failed counts as none)."""
    rows = await connection.fetch(
        f"SELECT dedupe_key FROM {_TABLE} WHERE dedupe_key = ANY($1) AND status IN ('queued', 'picked')",  # noqa: S608
        [_dedupe_key(key, work) for key in keys],
    )
    present = {row["dedupe_key"] for row in rows}
    return [key for key in keys if _dedupe_key(key, work) not in present]


async def prune(connection: Connection, before: datetime) -> None:
    """Delete what pgqueuer wrote down before that time; it never does so itself."""
    await connection.execute(f"DELETE FROM {_LOG_TABLE} WHERE created < $1", before)  # noqa: S608


async def entries(connection: Connection) -> list[tuple[int, str, JobKey]]:
    """Every entry as (id, pgqueuer's status, key), oldest first: for diagnosis and tests."""
    rows = await connection.fetch(f"SELECT id, status::text, payload FROM {_TABLE} ORDER BY id")  # noqa: S608
    return [(row["id"], row["status"], _key(row["payload"])) for row in rows]


class _NoLostAttempts(logging.Filter):
    """An attempt that was lost is an ordinary case, told by us; pgqueuer would add an error and a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], LeaveEntry))


logging.getLogger("pgqueuer").addFilter(_NoLostAttempts())


class Consumer:
    """Takes entries, at most `concurrency` at a time, and runs `handle` for each until `stop` is called.

    heartbeat: seconds after which a silent worker's entries are taken over; one value for the whole fleet, since
    pgqueuer goes by the taker's. poll: seconds that a lost notification may cost.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[Any]",
        listener: Listener,
        handle: Callable[[Entry], Awaitable[None]],
        *,
        concurrency: int,
        heartbeat: float,
        poll: float,
        work: Work = Work.JOB,
    ) -> None:
        self._work = work
        self._driver = _PoolDriver(pool, listener)
        self._handle = handle
        self._concurrency = concurrency
        self._heartbeat = timedelta(seconds=heartbeat)
        self._poll = timedelta(seconds=poll)
        self._manager: QueueManager | None = None
        self._stopped = False

    async def run(self) -> None:
        """Consume until `stop`, then wait for the handlers that still run."""
        batch = max(1, self._concurrency // 2)
        while not self._stopped:
            manager = self._manager = _Manager(queries=_queries(_Entries, self._driver), channel=_SETTINGS.channel)
            manager.limit = self._concurrency
            manager.register_executor(self._work.value, _Executor(_PARAMETERS, self._dispatch))
            try:
                await manager.run(
                    dequeue_timeout=self._poll,
                    batch_size=batch,
                    max_concurrent_tasks=2 * max(batch, self._concurrency),
                    heartbeat_timeout=self._heartbeat,
                    log_aggregation_interval=timedelta(),
                )
            except OUTAGES as error:
                log(logger, logging.WARNING, "queue.restarted", error=type(error).__name__)
                await asyncio.sleep(self._poll.total_seconds())

    def stop(self) -> None:
        """Take no more entries."""
        self._stopped = True
        if self._manager is not None:
            self._manager.shutdown.set()

    async def _dispatch(self, job: PgqueuerJob, context: Context) -> None:
        assert job.payload is not None
        try:
            with context.cancellation:
                await self._handle(Entry(job.id, _key(job.payload)))
            if context.cancellation.cancel_called:
                # pgqueuer removes it too, but later, and tells nobody: the place would stay empty until the next poll.
                with suppress(*OUTAGES):
                    await self._driver.execute(_LOG_JOBS, [job.id], ["canceled"], [None])
        except asyncio.CancelledError:
            # Nobody's cancel: a closing loop, a second Ctrl-C. pgqueuer would delete the entry as cancelled.
            raise LeaveEntry from None
        finally:
            self._driver.wake()


class _Executor(AbstractEntrypointExecutor):
    def __init__(
        self,
        parameters: EntrypointExecutorParameters,
        dispatch: Callable[[PgqueuerJob, Context], Awaitable[None]],
    ) -> None:
        super().__init__(parameters)
        self._dispatch = dispatch

    async def execute(self, job: PgqueuerJob, context: Context) -> None:
        await self._dispatch(job, context)


async def _unused(job: PgqueuerJob) -> None:
    raise AssertionError(job)


_PARAMETERS: Final = EntrypointExecutorParameters(concurrency_limit=0, func=_unused, on_failure="hold")


class _Manager(QueueManager):
    """A manager that claims up to its limit exactly; pgqueuer itself wants room for twice a batch, even for one."""

    limit = 1

    def fetch_jobs(self, batch_size: int, global_concurrency_limit: int | None, heartbeat_timeout: timedelta) -> Any:
        del global_concurrency_limit
        # Room is counted by what runs here. pgqueuer's own count goes by rows, entries that were left included: a lone
        # worker that has left as many as it may run would never take anything again.
        assert isinstance(self.queries, _Entries)
        self.queries.room = lambda: self.limit - len(self.job_context)
        return super().fetch_jobs(batch_size, None, heartbeat_timeout)


class _Entries(Queries):
    """Queries that survive an outage, and that ask once per round.

    The manager asks three more questions per round, all about deferred entries. There are none: what has to wait
    waits in our own tables.
    """

    driver: "_PoolDriver"
    room: Callable[[], int]

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[PgqueuerJob]:
        self.driver.polled()
        if (room := self.room()) <= 0:
            return []
        try:
            return await super().dequeue(
                min(batch_size, room), entrypoints, queue_manager_id, global_concurrency_limit, heartbeat_timeout
            )
        except OUTAGES as error:
            log(logger, logging.WARNING, "queue.poll_failed", error=type(error).__name__)
            return []

    async def eligible_queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:  # noqa: ARG002
        return 0

    async def queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:  # noqa: ARG002
        return 0

    async def next_deferred_eta(self, entrypoints: list[QueueEntrypoint]) -> timedelta | None:  # noqa: ARG002
        return None


class _PoolDriver(Driver):
    """pgqueuer's driver over our pool and our listener.

    Of the notifications that arrive between two polls one is enough, and those of deletions tell nothing.
    """

    def __init__(self, pool: "asyncpg.Pool[Any]", listener: Listener) -> None:
        self._pool = pool
        self._listener = listener
        self._callbacks: list[NotifyCallback] = []
        self._due = False
        self._shutdown = asyncio.Event()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return [dict(row) for row in await self._pool.fetch(query, *args)]

    async def execute(self, query: str, *args: object) -> str:
        return await self._pool.execute(query, *args)

    async def notify(self, channel: str, payload: str) -> None:
        await self._pool.execute("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        assert channel == _SETTINGS.channel
        self._callbacks.append(callback)
        if len(self._callbacks) == 1:
            await self._listener.add(channel, self._heard)

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> "_PoolDriver":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._callbacks:
            await self._listener.remove(_SETTINGS.channel, self._heard)
            self._callbacks.clear()

    def polled(self) -> None:
        """A poll begins: from now on a notification is news again."""
        self._due = False

    def wake(self) -> None:
        """Ask for a poll, as a notification would."""
        now = utc_now().isoformat()
        self._pass_on(
            f'{{"channel":"{_SETTINGS.channel}","operation":"insert","sent_at":"{now}",'
            f'"table":"{_SETTINGS.queue_table}","type":"table_changed_event"}}'
        )

    def _heard(self, payload: str) -> None:
        if not payload:
            self.wake()
        elif '"table_changed_event"' not in payload:
            for callback in self._callbacks:
                callback(payload)
        elif '"delete"' not in payload:
            self._pass_on(payload)

    def _pass_on(self, payload: str) -> None:
        if not self._due:
            self._due = True
            for callback in self._callbacks:
                callback(payload)


AnyQueries = TypeVar("AnyQueries", bound=Queries)


def _queries(kind: type[AnyQueries], driver: Driver) -> AnyQueries:
    return kind(
        driver,
        qbe=QueryBuilderEnvironment(settings=_SETTINGS),
        qbq=QueryQueueBuilder(settings=_SETTINGS),
        qbs=QuerySchedulerBuilder(settings=_SETTINGS),
    )


def _dedupe_key(key: JobKey, work: Work) -> str:
    # UUIDs of two tables never meet, but a reader of the queue should see what an entry stands for.
    return f"{key.tenant}/{key.id}" if work is Work.JOB else f"{work}/{key.tenant}/{key.id}"


def _key(payload: bytes) -> JobKey:
    return JobKey(tenant=payload[16:].decode(), id=UUID(bytes=payload[:16]))

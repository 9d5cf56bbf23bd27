"""What may run now: the fleet's workers, its rate, and the verb that lets jobs through to the queue."""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from tramontane import queue
from tramontane.errors import ConfigurationError
from tramontane.limits import room, window_of
from tramontane.models import Admission, WorkerInfo
from tramontane.store.rows import Connection, Pool, key_from
from tramontane.store.statements import Statements
from tramontane.telemetry import log

logger = logging.getLogger(__name__)
SQL = Statements("limits")

#: Most jobs that one round lets through; the next round follows at once.
_ROUND = 500


class LimitStore:
    """Verbs about the fleet as a whole. Each is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, worker: WorkerInfo, *, rate: float, now: datetime) -> None:
        """Make a worker known; from now on its slots count. The rate it brings becomes the fleet's.

        Raises ConfigurationError when workers of another heartbeat are alive: the shorter would take over the jobs of
        the longer while they run.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL.lock_limit)  # one registration at a time, or two could miss each other
            other = await connection.fetchval(SQL.other_heartbeat, now, worker.heartbeat_seconds)
            if other is not None:
                raise ConfigurationError(
                    f"TRAMONTANE_HEARTBEAT is {worker.heartbeat_seconds:g} s here, and {other:g} s in workers that are "
                    "running: one heartbeat for the whole fleet"
                )
            await connection.execute(
                SQL.register_worker,
                worker.id,
                worker.concurrency,
                worker.heartbeat_seconds,
                worker.host,
                worker.pid,
                now,
                worker.deliveries,
            )
            if await connection.execute(SQL.set_rate, rate) == "UPDATE 1":
                log(logger, logging.INFO, "fleet.rate_set", per_second=rate)

    async def beat(self, worker_id: UUID, now: datetime) -> None:
        """Say that a worker lives."""
        await self._pool.execute(SQL.beat, worker_id, now)

    async def stop(self, worker_id: UUID, now: datetime) -> None:
        """Say that a worker takes nothing more: its slots count no longer."""
        await self._pool.execute(SQL.stop_worker, worker_id, now)

    async def forget_workers(self, before: datetime) -> None:
        """Delete workers not seen since."""
        await self._pool.execute(SQL.forget_workers, before)

    async def admit(self, now: datetime) -> Admission:
        """Let through as many waiting jobs as there are free slots and room in the rate, best priority first."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await admit(connection, now, wait=True)


async def admit(connection: Connection, now: datetime, *, wait: bool) -> Admission:
    """One round of admission in the caller's transaction: jobs admitted, and their queue entries put.

    Rounds take turns, fleet-wide, on the limit's row. With wait=False a round that would have to wait does nothing and
    says so.
    """
    row = await connection.fetchrow(SQL.lock_limit if wait else SQL.try_limit)
    if row is None:
        return Admission(busy=True)
    rate: float = row["rate"]
    limit, span = window_of(rate) if rate else (0, timedelta())
    fleet = await connection.fetchrow(SQL.fleet, now, span)
    assert fleet is not None
    free = room(rate, recent=fleet["recent"], starting=fleet["starting"]) if rate else _ROUND
    wanted = min(fleet["free"], free, _ROUND)
    admitted = await connection.fetch(SQL.admit, now, wanted) if wanted > 0 else []
    if admitted:
        await queue.put(connection, [key_from(row) for row in admitted], [row["priority"] for row in admitted])
    next_at = fleet["next_run_at"] if len(admitted) < _ROUND else now
    if rate and fleet["recent"] >= limit:
        free_at = fleet["oldest"] + span
        next_at = min(free_at, next_at) if next_at else free_at
    return Admission(admitted=tuple(key_from(row) for row in admitted), next_at=next_at)

"""What may run now: the fleet's workers, its rate, and the verb that lets jobs through to the queue."""

import logging
from datetime import datetime
from uuid import UUID

from tramontane import queue
from tramontane.errors import ConfigurationError
from tramontane.fairness import Choice
from tramontane.limits import WINDOW
from tramontane.models import Admission, JobKey, WorkerInfo
from tramontane.store.rounds import ROUND, Waiting, read_fleet, read_waiting
from tramontane.store.rows import Connection, Pool, key_from
from tramontane.store.statements import Statements
from tramontane.telemetry import log

logger = logging.getLogger(__name__)
SQL = Statements("limits")


class LimitStore:
    """Verbs about the fleet as a whole. Each is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, worker: WorkerInfo, *, rate: float, now: datetime, window: float = WINDOW) -> None:
        """Make a worker known; from now on its slots count. The rate it brings becomes the fleet's.

        window: seconds that Mistral's limits are counted over, the fleet's as well.

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
            if await connection.execute(SQL.set_limit, "starts", rate) == "UPDATE 1":
                log(logger, logging.INFO, "fleet.rate_set", per_second=rate)
            await connection.execute(SQL.set_limit, "window", window)

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
        """Let through as many waiting jobs as the fleet has slots, its rate and Mistral's limits have room for."""
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
    fleet = await read_fleet(connection, row, now, come=True)
    times = [fleet.next_run_at, fleet.rate_free_at]
    admitted: list[JobKey] = []
    waiting = await read_waiting(connection, fleet, now) if fleet.room > 0 else None
    if waiting is not None:
        choice = waiting.choose(now, fleet.window, fleet.room)
        if choice.chosen:
            admitted = await _let_through(connection, choice, waiting, now)
        times += [now] if len(choice.chosen) == ROUND else waiting.look_again(choice.held, now, fleet.window)
    return Admission(admitted=tuple(admitted), next_at=min((time for time in times if time), default=None))


async def _let_through(connection: Connection, choice: Choice, waiting: Waiting, now: datetime) -> list[JobKey]:
    rows = await connection.fetch(
        SQL.admit,
        now,
        [waiting.places[one.key] for one in choice.chosen],
        [one.tokens for one in choice.chosen],
        [account for (account, _), _ in choice.shares],
        [model for (_, model), _ in choice.shares],
        [tenant for _, tenant in choice.shares],
        list(choice.shares.values()),
    )
    await queue.put(connection, [key_from(row) for row in rows], [row["priority"] for row in rows])
    order = {one.key: number for number, one in enumerate(choice.chosen)}
    return sorted((key_from(row) for row in rows), key=order.__getitem__)

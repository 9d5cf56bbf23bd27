"""Jobs that come again: what was asked for, and the one verb by which it happens."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from tramontane.errors import Conflict, InvalidInput, NotFound
from tramontane.ids import show_id
from tramontane.models import CatchUp, NewJob, Schedule
from tramontane.store.jobs import insert, refusals
from tramontane.store.rows import Connection, Pool
from tramontane.store.statements import Statements

SQL = Statements("schedules")

#: Schedules of a tenant: they are listed whole, and each may bring a hundred jobs at a time.
MOST: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a schedule's turn comes to: jobs to submit, and when it is its turn again; or why it stops."""

    jobs: Sequence[NewJob] = ()
    #: The time that each of the jobs is for.
    times: Sequence[datetime] = ()
    #: In the past, where not all of its jobs could be made.
    next_at: datetime | None = None
    #: Nothing can be made of it any more.
    fault: str | None = None
    #: There is no place for any of its jobs: everything stays as it is, and its turn comes again.
    put_off: bool = False


class ScheduleStore:
    """Verbs about schedules. Each is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, schedule: Schedule, job: NewJob) -> Schedule:
        """Write a new schedule of a job.

        Raises Conflict when the tenant has one of that name, or MOST of them, and InvalidInput for a job of more
        priority than it has.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await _check(connection, job)
            await connection.execute(SQL.take_turns, schedule.tenant)
            if await connection.fetchval(SQL.count_schedules, schedule.tenant) >= MOST:
                raise Conflict(f"there are {MOST} schedules already, and no more may be: delete one that is not needed")
            row = await connection.fetchrow(
                SQL.insert_schedule,
                schedule.tenant,
                schedule.id,
                schedule.name,
                schedule.cron,
                schedule.timezone,
                schedule.job,
                schedule.template,
                schedule.catch_up,
                _state(schedule),
                schedule.next_at,
                schedule.created_at,
            )
        if row is None:
            raise _taken(schedule.name)
        return _schedule_from(row)

    async def get(self, tenant: str, schedule_id: UUID) -> Schedule:
        """The schedule. Raises NotFound."""
        row = await self._pool.fetchrow(SQL.get_schedule, tenant, schedule_id)
        if row is None:
            raise _not_found(schedule_id)
        return _schedule_from(row)

    async def update(self, schedule: Schedule, job: NewJob | None, *, read_at: datetime) -> Schedule:
        """Write a schedule that was changed. A reason why it was stopped goes.

        job: another one; None: the one that it has. read_at: its `updated_at` when it was read. Raises Conflict when
        the name is another's, or when somebody has changed it since then, InvalidInput for a job of more priority than
        the tenant has, and NotFound.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            if job is not None:
                await _check(connection, job)
            if await connection.fetchval(SQL.name_taken, schedule.tenant, schedule.id, schedule.name):
                raise _taken(schedule.name)
            row = await connection.fetchrow(
                SQL.update_schedule,
                schedule.tenant,
                schedule.id,
                read_at,
                schedule.name,
                schedule.cron,
                schedule.timezone,
                schedule.job,
                schedule.template,
                schedule.catch_up,
                _state(schedule),
                schedule.next_at,
                schedule.updated_at,
            )
            if row is None:
                if await connection.fetchrow(SQL.get_schedule, schedule.tenant, schedule.id) is None:
                    raise _not_found(schedule.id)
                raise Conflict("somebody else has changed this schedule at the same time: read it again")
        return _schedule_from(row)

    async def delete(self, tenant: str, schedule_id: UUID) -> None:
        """Forget a schedule. Its jobs stay. Raises NotFound."""
        if await self._pool.fetchval(SQL.delete_schedule, tenant, schedule_id) is None:
            raise _not_found(schedule_id)

    async def fire(
        self,
        now: datetime,
        turn: Callable[[Schedule, datetime], Awaitable[Turn]],
        *,
        limit: int,
        besides: Collection[str] = (),
    ) -> "list[tuple[Schedule, Turn]]":
        """Give their turn to schedules whose time has come: the jobs and the next time are written together.

        So a crash neither loses a turn nor doubles it, and two processes share the schedules between them.
        besides: tenants whose schedules are left alone.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(SQL.due_schedules, now, limit, list(besides))
            turns = [(schedule, await turn(schedule, now)) for schedule in map(_schedule_from, rows)]
            jobs = [job for _, taken in turns for job in taken.jobs]
            if jobs:
                await insert(connection, jobs, now)
            for schedule, taken in turns:
                await _move(connection, schedule, taken, now)
        return turns

    async def put_off(self, tenant: str, reason: str, now: datetime) -> "list[UUID]":
        """Let the schedules that are due say why nothing comes of it; those that did not yet.

        tenant: whose; EVERY for all.
        """
        return [row["id"] for row in await self._pool.fetch(SQL.put_off, tenant, reason, now)]

    async def next_at(self, now: datetime) -> datetime | None:
        """When the first of all schedules comes that is not due yet."""
        moment: datetime | None = await self._pool.fetchval(SQL.next_schedule, now)
        return moment

    async def list(self, tenant: str) -> list[Schedule]:
        """All of a tenant's, by name."""
        return [_schedule_from(row) for row in await self._pool.fetch(SQL.list_schedules, tenant)]


async def _check(connection: Connection, job: NewJob) -> None:
    for refusal in (await refusals(connection, [job])).values():
        raise InvalidInput("job.priority", refusal.reason)


async def _move(connection: Connection, schedule: Schedule, turn: Turn, now: datetime) -> None:
    if turn.put_off:
        return
    if turn.fault is not None:
        await connection.execute(SQL.stop_schedule, schedule.tenant, schedule.id, turn.fault, now)
        return
    last_job = turn.jobs[-1].key.id if turn.jobs else None
    last_at = turn.times[-1] if turn.times else None
    await connection.execute(SQL.move_schedule, schedule.tenant, schedule.id, turn.next_at, last_at, last_job)


def _state(schedule: Schedule) -> str:
    return "active" if schedule.active else "paused"


def _taken(name: str) -> Conflict:
    return Conflict(f"there is a schedule {name!r} already: change that one, or choose another name")


def _not_found(schedule_id: UUID) -> NotFound:
    return NotFound(f"no such schedule: {show_id('sch', schedule_id)}")


def _schedule_from(row: asyncpg.Record) -> Schedule:
    return Schedule(
        tenant=row["tenant_id"],
        id=row["id"],
        name=row["name"],
        cron=row["cron"],
        timezone=row["timezone"],
        job=row["job"],
        template=row["template"],
        catch_up=CatchUp(row["catch_up"]),
        active=row["state"] == "active",
        reason=row["reason"],
        next_at=row["next_at"],
        last_at=row["last_at"],
        last_job=row["last_job"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )

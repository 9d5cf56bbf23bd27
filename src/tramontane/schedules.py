"""Jobs that come again: what a schedule makes of its job each time, and of the times that it has missed."""

import dataclasses
import logging
from collections import deque
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

import msgspec

from tramontane.cron import Cron, read_cron
from tramontane.errors import BudgetExhausted, InvalidInput, Overloaded, QueueFull
from tramontane.ids import iso, new_id, show_id
from tramontane.models import EVERY, CatchUp, JobKey, NewJob, Schedule
from tramontane.standings import Standings
from tramontane.store import ScheduleStore, Turn
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

#: Most jobs that a schedule makes up for at once; older times are left out.
MOST_MISSED: Final = 100
#: A time is missed once it is older than this.
_LATE: Final = timedelta(seconds=60)
#: Schedules of one transaction.
_BITE: Final = 20
#: Times that are gone through one by one; a schedule that has missed more of them is looked at from a day ago on.
_STEPS: Final = 10_000
_DAY: Final = timedelta(days=1)


class Template(msgspec.Struct):
    """A job to be made again and again: validated, its callback sealed."""

    job: NewJob
    #: The caller's own name for all of them; None: each gets a new one.
    request_id: str | None


class Schedules:
    """The service behind the routes; `tick` is called by whoever leads, at least once a second.

    standings: asked for places for the jobs; without them there are always some.
    """

    def __init__(self, store: ScheduleStore, standings: Standings | None = None) -> None:
        self._store = store
        self._standings = standings

    async def add(
        self,
        tenant: str,
        *,
        name: str,
        cron: str,
        timezone: str,
        job: bytes,
        template: Template,
        catch_up: CatchUp,
        active: bool,
        now: datetime,
    ) -> Schedule:
        """A new schedule; its first time is the first after now. Raises InvalidInput and Conflict."""
        schedule = Schedule(
            tenant=tenant,
            id=new_id(),
            name=name,
            cron=cron,
            timezone=timezone,
            job=job.decode(),
            template=msgspec.json.encode(template).decode(),
            catch_up=catch_up,
            active=active,
            reason=None,
            next_at=read_cron(cron, timezone).after(now) if active else None,
            last_at=None,
            last_job=None,
            created_at=now,
            updated_at=now,
        )
        return await self._store.insert(schedule, template.job)

    async def get(self, tenant: str, schedule_id: UUID) -> Schedule:
        """The schedule. Raises NotFound."""
        return await self._store.get(tenant, schedule_id)

    async def change(self, schedule: Schedule, *, template: Template | None, now: datetime) -> Schedule:
        """Write a schedule that was read and changed. Its next time is the first after now: what it has missed while
        it was paused, or under its former times, is not made up for.

        template: another job; None: the one that it has. Raises InvalidInput, Conflict and NotFound.
        """
        cron = read_cron(schedule.cron, schedule.timezone)
        changed = dataclasses.replace(
            schedule,
            template=schedule.template if template is None else msgspec.json.encode(template).decode(),
            reason=None,
            next_at=cron.after(now) if schedule.active else None,
            updated_at=now,
        )
        job = None if template is None else template.job
        return await self._store.update(changed, job, read_at=schedule.updated_at)

    async def delete(self, tenant: str, schedule_id: UUID) -> None:
        """Forget a schedule. Its jobs stay. Raises NotFound."""
        await self._store.delete(tenant, schedule_id)

    async def tick(self, now: datetime) -> datetime | None:
        """Submit what is due, as far as there are places; what is put off stays due, and says why.

        Returns when the next one is, None while there is none. Several at once do no harm.
        """
        full: dict[str, str] = {}
        while True:
            turns = await self._store.fire(now, partial(self._turn, full), limit=_BITE, besides=full.keys())
            for schedule, taken in turns:
                _tell(schedule, taken)
            if len(turns) < _BITE or EVERY in full:
                break
        for tenant, reason in full.items():
            for schedule_id in await self._store.put_off(tenant, reason, now):
                shown = show_id("sch", schedule_id)
                log(logger, logging.WARNING, "schedule.put_off", schedule=shown, reason=reason)
        return await self._store.next_at(now)

    async def _turn(self, full: dict[str, str], schedule: Schedule, now: datetime) -> Turn:
        """What it does now, with as many of its jobs as there are places for. full: who has none, and why."""
        taken = turn(schedule, now)
        if not taken.jobs:
            return taken
        places = 0 if full.keys() & {schedule.tenant, EVERY} else await self._places(schedule.tenant, taken, now, full)
        if places >= len(taken.jobs):
            return taken
        if not places:
            return Turn(put_off=True)
        return Turn(jobs=taken.jobs[:places], times=taken.times[:places], next_at=taken.times[places])

    async def _places(self, tenant: str, taken: Turn, now: datetime, full: dict[str, str]) -> int:
        wanted = len(taken.jobs)
        if self._standings is None:
            return wanted
        try:
            return await self._standings.take(tenant, wanted, now)
        except BudgetExhausted:
            return wanted  # they wait or fail as the tenant's other jobs do, for all to see
        except QueueFull as error:
            full[tenant] = f"put off: as many jobs of this tenant wait as may ({error.code})"
        except Overloaded as error:
            full[EVERY] = f"put off: as many jobs wait in the whole fleet as may ({error.code})"
        return 0

    async def list(self, tenant: str) -> list[Schedule]:
        """All of a tenant's, by name."""
        return await self._store.list(tenant)


def turn(schedule: Schedule, now: datetime) -> Turn:
    """What a schedule whose time has come does now. Pure, but for the ids of its jobs."""
    try:
        cron = read_cron(schedule.cron, schedule.timezone)
        template = msgspec.json.decode(schedule.template, type=Template)
    except InvalidInput as error:
        return Turn(fault=error.message)
    except msgspec.DecodeError:
        return Turn(fault="its job cannot be read any more: give it again")
    times = _wanted(schedule, cron, now)
    jobs = [_job(schedule, template, now, key=f"schedule:{schedule.id}:{iso(at)}") for at in times]
    return Turn(jobs=jobs, times=times, next_at=cron.after(now))


def job_now(schedule: Schedule, now: datetime) -> NewJob:
    """The schedule's job, out of turn. Raises InvalidInput when it cannot be read any more."""
    try:
        template = msgspec.json.decode(schedule.template, type=Template)
    except msgspec.DecodeError:
        raise InvalidInput("job", "cannot be read any more: give it again") from None
    return _job(schedule, template, now, key=None)


def _wanted(schedule: Schedule, cron: Cron, now: datetime) -> list[datetime]:
    """The times that jobs are made for, oldest first."""
    assert schedule.next_at is not None, "only an active schedule has a turn"
    times = _passed(cron, schedule.next_at, now)
    match schedule.catch_up:
        case CatchUp.ALL:
            return list(times)
        case CatchUp.ONE:
            return [times[-1]]
        case CatchUp.SKIP:
            return [at for at in list(times)[-1:] if now - at <= _LATE]


def _passed(cron: Cron, first: datetime, now: datetime) -> "deque[datetime]":
    """The last times up to now, at most MOST_MISSED of them."""
    times: deque[datetime] = deque(maxlen=MOST_MISSED)
    for steps, at in enumerate(cron.between(first, now)):
        if steps == _STEPS and (start := cron.after(now - _DAY)) is not None:
            times.extend(cron.between(start, now))
            break
        times.append(at)
    return times


def _job(schedule: Schedule, template: Template, now: datetime, *, key: str | None) -> NewJob:
    job = template.job
    return dataclasses.replace(
        job,
        key=JobKey(tenant=schedule.tenant, id=new_id()),
        request_id=template.request_id or show_id("req", new_id()),
        run_at=now,
        deadline=job.deadline and now + (job.deadline - job.run_at),
        idempotency_key=key,
        schedule=schedule.id,
    )


def _tell(schedule: Schedule, taken: Turn) -> None:
    shown = show_id("sch", schedule.id)
    if taken.fault is not None:
        log(logger, logging.WARNING, "schedule.stopped", schedule=shown, reason=taken.fault)
    elif taken.put_off:
        pass  # told once for all, beside its reason
    elif not taken.jobs:
        log(logger, logging.WARNING, "schedule.skipped", schedule=shown, missed=schedule.next_at)
    else:
        log(logger, logging.INFO, "schedule.fired", schedule=shown, jobs=len(taken.jobs))

"""A look at the limits, for those who wait: what is known, free and reserved, who waits, and when a job may start."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from tramontane.fairness import BucketKey
from tramontane.forecast import Forecast, Pace, before, forecast, next_day, paces
from tramontane.limits import Bucket, Room, Use, reservation, room_of
from tramontane.models import Job, State
from tramontane.store.buckets import Level, read_levels
from tramontane.store.rounds import Fleet, look_at_fleet
from tramontane.store.rows import Connection, Pool
from tramontane.store.statements import Statements

SQL = Statements("surveys")

#: Nobody is counted further than this.
MOST: Final = 10_001
#: Buckets that one look shows.
_LINES: Final = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One bucket as it stands."""

    bucket: Bucket
    use: Use
    room: Room
    #: Jobs that wait for it, by tenant; each at most MOST.
    waiting: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Everything that decides what may run now."""

    now: datetime
    fleet: Fleet
    lines: tuple[Line, ...]
    #: There are more than these.
    more: bool


class SurveyStore:
    """Reads what admission decides by. Changes nothing."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def survey(self, tenant: str | None, now: datetime) -> Survey:
        """The fleet and its buckets: the server's and the tenant's own with its own jobs, or, for None, all of all."""
        async with self._snapshot() as connection:
            fleet = await look_at_fleet(connection, now)
            waiting = await connection.fetch(SQL.waiting, MOST, tenant, _LINES + 1)
            known = {(row["account"], row["model"]) for row in await connection.fetch(SQL.known, tenant, _LINES + 1)}
            keys = sorted(known | {(row["account"], row["model"]) for row in waiting})
            levels = await read_levels(connection, keys[:_LINES], now, fleet.window)
        lines = sorted(_lines(levels, waiting, fleet, now), key=lambda line: _key(line.bucket))
        return Survey(now=now, fleet=fleet, lines=tuple(lines), more=len(keys) > _LINES or len(waiting) > _LINES)

    async def forecast(self, job: Job, now: datetime) -> Forecast | None:
        """When a job is going to start, about; None for one that waits no longer."""
        if job.state is not State.QUEUED:
            return None
        async with self._snapshot() as connection:
            fleet = await look_at_fleet(connection, now)
            terms = await connection.fetchrow(SQL.terms, job.key.tenant, job.key.id, now - fleet.window, now)
            [level] = await read_levels(connection, [(job.account, job.model)], now, fleet.window)
            rows = await connection.fetch(
                SQL.ahead, job.key.tenant, job.key.id, job.model, job.priority, job.deadline, MOST, job.account
            )
        assert terms is not None
        ahead = _before(job, rows)
        if job.admitted_at is not None:
            return Forecast(ahead=0, expected_at=now, waits_for=None)
        if job.run_at > now:
            return Forecast(ahead=ahead, expected_at=job.run_at, waits_for="time")
        if barred := _barred(terms):
            return Forecast(ahead=ahead, expected_at=next_day(now) if barred == "budget" else None, waits_for=barred)
        room = room_of(level.bucket, level.use, now, fleet.window)
        tokens = reservation(level.bucket, prompt=terms["prompt_tokens"], most=job.max_tokens)
        largest = max([tokens, *_firsts(level.bucket, rows)])
        ways = (*_fleet_paces(fleet, terms["pace"]), *paces(level.bucket, room, tokens, largest, fleet.window))
        return forecast(ahead, ways, level.bucket, now)

    def _snapshot(self) -> "_Snapshot":
        return _Snapshot(self._pool)


class _Snapshot:
    """A connection whose statements all see one moment."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.acquire()
        self._transaction = self._connection.transaction(isolation="repeatable_read")
        await self._transaction.start()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._transaction.rollback()
        finally:
            await self._pool.release(self._connection)


def _key(bucket: Bucket) -> BucketKey:
    return bucket.account, bucket.model


def _lines(levels: Sequence[Level], waiting: Sequence[asyncpg.Record], fleet: Fleet, now: datetime) -> Iterator[Line]:
    tenants: defaultdict[BucketKey, dict[str, int]] = defaultdict(dict)
    for row in waiting:
        tenants[row["account"], row["model"]][row["tenant_id"]] = row["count"]
    for level in levels:
        room = room_of(level.bucket, level.use, now, fleet.window)
        yield Line(bucket=level.bucket, use=level.use, room=room, waiting=tenants[_key(level.bucket)])


def _firsts(bucket: Bucket, rows: Sequence[asyncpg.Record]) -> Iterator[int]:
    """Tokens of those who may have to go before a job, tenant by tenant the first."""
    for row in rows:
        if row["better"] or row["equal"]:
            yield reservation(bucket, prompt=row["prompt_tokens"], most=row["max_tokens"])


def _barred(terms: asyncpg.Record) -> str | None:
    """What keeps a job from being chosen, whatever room there is."""
    if terms["paused"]:
        return "paused"
    if terms["spent"]:
        return "budget"
    return "concurrency" if terms["busy"] else None


def _before(job: Job, rows: Sequence[asyncpg.Record]) -> int:
    rivals, own, weight = [], 0, 1.0
    for row in rows:
        if row["tenant_id"] == job.key.tenant:
            own, weight = row["better"] + row["equal"], row["weight"]
        else:
            rivals.append((row["better"], row["equal"], row["weight"]))
    return before(own, rivals, weight=weight)


def _fleet_paces(fleet: Fleet, started: int) -> tuple[Pace, ...]:
    """started: attempts within the last window, which is what the slots achieve."""
    achieved = started / fleet.window.total_seconds()
    slot = Pace(name="slot", room=max(0, fleet.free), per_second=achieved)
    if not fleet.rate:
        return (slot,)
    return slot, Pace(name="rate", room=fleet.rate_room, per_second=fleet.rate)

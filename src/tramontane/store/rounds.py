"""What a round of admission looks at: the fleet, the first that wait, and the buckets that they would take from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from tramontane.fairness import FLEET, PRESENT, BucketKey, Candidate, Choice, Held, Lane, Tenant, choose
from tramontane.limits import free_at, reservation, room, room_of, window_of
from tramontane.models import JobKey
from tramontane.store.buckets import Level, read_levels
from tramontane.store.rows import Connection, key_from
from tramontane.store.statements import Statements

SQL = Statements("rounds")

#: Most jobs that one round lets through; the next round follows at once.
ROUND = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The fleet at one moment: its slots, its rate, and what is under way."""

    #: Starts per second; 0: no limit.
    rate: float
    #: What Mistral's limits are counted over.
    window: timedelta
    workers: int
    slots: int
    flying: int
    #: Let through and not started; started within the stretch of time of the rate, and the first of those.
    starting: int
    recent: int
    oldest: datetime | None
    #: The next scheduled job.
    next_run_at: datetime | None

    @property
    def free(self) -> int:
        """Slots; below zero when workers have gone."""
        return self.slots - self.flying

    @property
    def rate_room(self) -> int:
        """Starts that the rate still allows."""
        return room(self.rate, recent=self.recent, starting=self.starting) if self.rate else ROUND

    @property
    def room(self) -> int:
        """Jobs that this round may let through."""
        return min(self.free, self.rate_room, ROUND)

    @property
    def rate_free_at(self) -> datetime | None:
        """When the rate has room again, if that is only a matter of time."""
        if not self.rate or self.oldest is None:
            return None
        limit, span = window_of(self.rate)
        return self.oldest + span if self.recent >= limit else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The first that wait, and what they wait for."""

    candidates: tuple[Candidate, ...]
    #: Where each candidate's row is.
    places: Mapping[JobKey, Any]
    tenants: Mapping[str, Tenant]
    levels: Mapping[BucketKey, Level]
    #: Of each group at most so many were looked at.
    most: int

    def choose(self, now: datetime, window: timedelta, slots: int) -> Choice:
        """Who goes."""
        lanes = {
            key: Lane(bucket=one.bucket, room=room_of(one.bucket, one.use, now, window), shares=one.shares)
            for key, one in self.levels.items()
            if key != FLEET
        }
        fleet = self.levels[FLEET].shares
        return choose(self.candidates, lanes, self.tenants, slots=slots, fleet=fleet, most=self.most)

    def look_again(self, held: Mapping[BucketKey, Held], now: datetime, window: timedelta) -> Iterator[datetime]:
        """When time alone may let more through."""
        for key, reason in held.items():
            bucket, use = self.levels[key].bucket, self.levels[key].use
            if reason is Held.MORE:
                yield now
            elif bucket.blocked_until is not None and bucket.blocked_until > now:
                yield bucket.blocked_until
            else:
                starts = reason is Held.REQUESTS
                time = free_at(use.oldest_start if starts else use.oldest_end, window, starts=starts)
                if time is not None:
                    yield time


async def look_at_fleet(connection: Connection, now: datetime) -> Fleet:
    """The fleet, for those who decide nothing."""
    limit = await connection.fetchrow(SQL.read_limit)
    assert limit is not None
    return await read_fleet(connection, limit, now, come=False)


async def read_fleet(connection: Connection, limit: asyncpg.Record, now: datetime, *, come: bool) -> Fleet:
    """The fleet. limit: the row that rounds take turns on. come: jobs whose time has come become due."""
    span = window_of(limit["rate"])[1] if limit["rate"] else timedelta()
    row = await connection.fetchrow(SQL.fleet, now, span, come)
    assert row is not None
    return Fleet(rate=limit["rate"], window=timedelta(seconds=limit["seconds"]), **row)


async def read_waiting(connection: Connection, fleet: Fleet, now: datetime) -> Waiting | None:
    """What may go, as far as there is room for; None when nothing waits."""
    rows = await connection.fetch(SQL.candidates, now, fleet.room)
    if not rows:
        return None
    tenants = {
        row["tenant_id"]: Tenant(weight=row["weight"] or 1.0, free=row["free"])
        for row in rows
        if row["weight"] is not None
    }
    keys = sorted({(row["account"], row["model"]) for row in rows})
    names = {row["tenant_id"] for row in rows}
    levels = await read_levels(connection, [*keys, FLEET], now, fleet.window, tenants=[PRESENT, *sorted(names)])
    known = {(one.bucket.account, one.bucket.model): one for one in levels}
    return Waiting(
        candidates=tuple(_candidates(rows, known)),
        places={key_from(row): row["place"] for row in rows},
        tenants=tenants,
        levels=known,
        most=rows[0]["most"],
    )


def _candidates(rows: Sequence[asyncpg.Record], known: Mapping[BucketKey, Level]) -> Iterable[Candidate]:
    for row in rows:
        bucket = row["account"], row["model"]
        yield Candidate(
            key=key_from(row),
            kind=row["kind"],
            bucket=bucket,
            priority=row["priority"],
            deadline=row["deadline"],
            tokens=reservation(known[bucket].bucket, prompt=row["prompt_tokens"], most=row["max_tokens"]),
        )

"""Whose job goes next: priority, then deadline, then whoever has had least. Pure.

Each bucket has a virtual time, and each tenant its own within it: how much of the bucket it has had, in windows' worth
and divided by its weight. The tenant that is least far goes next, and is moved on by what its job costs. The bucket's
own time is that of the tenant least far of those who wait, and never goes back: a newcomer starts there, with neither
credit for the time it asked for nothing nor debt.

Where slots are scarcer than the buckets' limits, tenants share those in the same manner: the fleet has a virtual time
of its own, in starts.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from tramontane.limits import Bucket, Room, cost
from tramontane.models import JobKey
from tramontane.tenants import fair

BucketKey = tuple[str, str]

#: The fleet's own entry among the shares, and the tenant that stands for a bucket's own time.
FLEET: Final[BucketKey] = ("", "")
PRESENT: Final = "*"

#: A tenant that is this far ahead of the others (windows' worth) has no deadlines any more: they would starve for it.
_MOST_AHEAD: Final = 1.0
#: No virtual time gets this far in decades, where additions would begin to be lost; and no tenant so far ahead of the
#: present. A share beyond either is none.
_LATEST, _FURTHEST_AHEAD = 1e12, 1e6
_FAR: Final = datetime.max.replace(tzinfo=UTC)


class Held(StrEnum):
    """Why a bucket lets nothing more through for now."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    #: There is more than was looked at: look again.
    MORE = "more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A waiting job, as far as it matters here."""

    key: JobKey
    kind: str
    bucket: BucketKey
    priority: int = 0
    deadline: datetime | None = None
    #: Tokens to be set aside for it.
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """What a tenant may have."""

    weight: float = 1.0
    #: Jobs that it may still start; None: as many as there is room for.
    free: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """A bucket with its room, and how far its tenants are."""

    bucket: Bucket
    room: Room
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What goes, in this order; which buckets hold the rest back; and the virtual times that have changed."""

    chosen: tuple[Candidate, ...]
    held: Mapping[BucketKey, Held]
    shares: Mapping[tuple[BucketKey, str], float]


def choose(
    candidates: Iterable[Candidate],
    lanes: Mapping[BucketKey, Lane],
    tenants: Mapping[str, Tenant],
    *,
    slots: int,
    fleet: Mapping[str, float],
    most: int,
) -> Choice:
    """Choose up to `slots` jobs.

    candidates: of each tenant, kind and model up to `most` that wait, in the order that they are wanted. lanes: of all
    their buckets. tenants: those with terms of their own. fleet: the shares of the fleet's own time.
    """
    round_ = _Round(candidates, lanes, tenants, fleet, most)
    chosen: list[Candidate] = []
    while len(chosen) < slots and (candidate := round_.next()) is not None:
        chosen.append(candidate)
    full = len(chosen) == slots
    held = {key: reason for key, reason in round_.held.items() if not (full and reason is Held.MORE)}
    return Choice(chosen=tuple(chosen), held=held, shares=round_.changed())


class _Clock:
    """Virtual time, among tenants who wait."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        known = {tenant: time for tenant, time in shares.items() if abs(time) <= _LATEST}
        # Without a present that can be true all who wait begin anew, where nobody is behind.
        self.now = known.get(PRESENT, max(known.values(), default=0.0) if PRESENT in shares else 0.0)
        self._before = {tenant: time for tenant, time in known.items() if time <= self.now + _FURTHEST_AHEAD}
        self._charged: set[str] = set()
        self.times: dict[str, float] = {}

    def join(self, tenant: str) -> None:
        self.times[tenant] = max(self._before.get(tenant, self.now), self.now)

    def start(self) -> None:
        """All have joined."""
        if self.times:
            self.now = max(self.now, min(self.times.values()))
        self._began = self.now

    def ahead(self, tenant: str) -> float:
        return max(0.0, self.times[tenant] - self.now)

    def charge(self, tenant: str, amount: float) -> None:
        self.times[tenant] += amount
        self._charged.add(tenant)
        self.now = max(self.now, min(self.times.values()))

    def changed(self) -> dict[str, float]:
        if len(self.times) > 1:
            return {tenant: self.times[tenant] for tenant in self._charged} | {PRESENT: self.now}
        # A tenant that is alone is not measured. Whoever joins it later starts where it stands.
        return {PRESENT: self._began} if self._began > self._before.get(PRESENT, 0.0) else {}


class _Lane:
    """A bucket during a round."""

    def __init__(self, lane: Lane) -> None:
        self.bucket = lane.bucket
        self.clock = _Clock(lane.shares)
        self.groups: dict[tuple[str, str], deque[Candidate]] = {}
        self.full: set[tuple[str, str]] = set()
        self._requests, self._tokens, self._empty = lane.room.requests, lane.room.tokens, lane.room.empty
        self.head: Candidate | None = None

    def refuses(self, candidate: Candidate) -> Held | None:
        if self._requests < 1:
            return Held.REQUESTS
        if candidate.tokens > self._tokens and not self._empty:
            return Held.TOKENS
        return None

    def take(self, candidate: Candidate) -> None:
        self._requests -= 1
        self._tokens -= candidate.tokens
        self._empty = False
        self.groups[_group(candidate)].popleft()

    def choose_head(self) -> None:
        """Which of its groups' first jobs is wanted most."""
        heads = [group[0] for group in self.groups.values() if group]
        self.head = min(heads, key=self.rank) if heads else None

    def rank(self, candidate: Candidate) -> tuple[int, datetime, float, UUID]:
        ahead = self.clock.ahead(candidate.key.tenant)
        deadline = candidate.deadline if candidate.deadline and ahead <= _MOST_AHEAD else _FAR
        return -candidate.priority, deadline, ahead, candidate.key.id


class _Round:
    def __init__(
        self,
        candidates: Iterable[Candidate],
        lanes: Mapping[BucketKey, Lane],
        tenants: Mapping[str, Tenant],
        fleet: Mapping[str, float],
        most: int,
    ) -> None:
        self._tenants = tenants
        self._left = {name: tenant.free for name, tenant in tenants.items() if tenant.free is not None}
        self._fleet = _Clock(fleet)
        self._all = {key: _Lane(lane) for key, lane in lanes.items()}
        self._open = dict(self._all)
        self.held: dict[BucketKey, Held] = {}
        for candidate in candidates:
            if self._left.get(candidate.key.tenant, 1) > 0:
                self._all[candidate.bucket].groups.setdefault(_group(candidate), deque()).append(candidate)
        for lane in self._all.values():
            lane.full = {name for name, group in lane.groups.items() if len(group) >= most}
            for tenant, _ in lane.groups:
                lane.clock.join(tenant)
                self._fleet.join(tenant)
            lane.clock.start()
            lane.choose_head()
        self._fleet.start()

    def next(self) -> Candidate | None:
        """The next job that goes, taken; None when none does."""
        while heads := [(key, lane, lane.head) for key, lane in self._open.items() if lane.head is not None]:
            key, lane, candidate = min(heads, key=lambda one: self._rank(one[1], one[2]))
            held = lane.refuses(candidate)
            if held is None:
                self._take(lane, candidate)
                return candidate
            # Nothing of its bucket passes by a job that has to wait for room, or the small would starve the large.
            self.held[key] = held
            del self._open[key]
        return None

    def changed(self) -> dict[tuple[BucketKey, str], float]:
        clocks: Sequence[tuple[BucketKey, _Clock]] = [(key, lane.clock) for key, lane in self._all.items()]
        return {
            (key, tenant): time
            for key, clock in (*clocks, (FLEET, self._fleet))
            for tenant, time in clock.changed().items()
        }

    def _rank(self, lane: _Lane, candidate: Candidate) -> tuple[int, datetime, float, UUID]:
        priority, deadline, _, id_ = lane.rank(candidate)
        return priority, deadline, self._fleet.ahead(candidate.key.tenant), id_

    def _take(self, lane: _Lane, candidate: Candidate) -> None:
        tenant = candidate.key.tenant
        weight = fair(self._tenants.get(tenant, Tenant()).weight)
        lane.take(candidate)
        lane.clock.charge(tenant, cost(lane.bucket, candidate.tokens) / weight)
        self._fleet.charge(tenant, 1 / weight)
        if tenant in self._left:
            self._left[tenant] -= 1
            if self._left[tenant] <= 0:
                self._dismiss(tenant)
        group = _group(candidate)
        if not lane.groups.get(group) and group in lane.full:
            self.held[candidate.bucket] = Held.MORE
            self._open.pop(candidate.bucket, None)
        lane.choose_head()

    def _dismiss(self, tenant: str) -> None:
        """It runs as many as it may."""
        for lane in self._all.values():
            for name in [name for name in lane.groups if name[0] == tenant]:
                del lane.groups[name]
            lane.choose_head()


def _group(candidate: Candidate) -> tuple[str, str]:
    return candidate.key.tenant, candidate.kind

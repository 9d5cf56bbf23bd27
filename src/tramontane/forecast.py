"""When a waiting job is going to start, about, and what it waits for. Pure."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tramontane.limits import Bucket, Room
from tramontane.tenants import fair

#: Nobody plans further ahead than this.
_LONGEST: Final = timedelta(days=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast jobs start: per second, and how many may start at once. Infinite where nothing limits them."""

    #: What would let more start: `slot`, `rate`, `requests` or `tokens`.
    name: str
    room: float
    per_second: float
    #: Seconds in which nothing starts: one that does not fit holds back all who come after it.
    held: float = 0.0

    def wait(self, ahead: int) -> float:
        """Seconds until one that has so many before it may start."""
        over = ahead + 1 - self.room
        if over <= 0:
            return self.held
        return max(self.held, over / self.per_second) if self.per_second > 0 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What one waiting job can be told."""

    #: Jobs that are going to start before it, about.
    ahead: int
    #: None when nobody can tell.
    expected_at: datetime | None
    #: time, paused, budget, concurrency, blocked, slot, rate, requests or tokens; None: nothing, it is about to start.
    waits_for: str | None


def before(own: int, rivals: list[tuple[int, int, float]], *, weight: float) -> int:
    """How many start before a job, about.

    own: of its own tenant, all of which go first. rivals: of each other tenant how many have a higher priority, how
    many the same, and its weight: they share with us while our own are waiting.
    """
    shared = sum(min(equal, math.ceil((own + 1) * fair(theirs) / fair(weight))) for _, equal, theirs in rivals)
    return own + sum(better for better, _, _ in rivals) + shared


def paces(bucket: Bucket, room: Room, tokens: int, largest: int, window: timedelta) -> tuple[Pace, ...]:
    """What a bucket allows to jobs of so many tokens. largest: of the job itself, and of those who come first."""
    seconds = window.total_seconds()
    requests = bucket.limit_requests or math.inf
    whole = bucket.limit_tokens or math.inf
    each = min(max(1, tokens), whole)  # one that is larger than the limit takes no more than all of it
    return (
        Pace(name="requests", room=room.requests, per_second=requests / seconds),
        Pace(
            name="tokens",
            room=room.tokens / each,
            per_second=whole / seconds / each,
            held=_held(room, largest, whole / seconds, seconds),
        ),
    )


def _held(room: Room, tokens: int, per_second: float, window: float) -> float:
    """Seconds until a job of so many tokens fits; one that is larger than the limit goes when the window is empty."""
    if tokens <= room.tokens or room.empty:
        return 0.0
    return min(window, (tokens - room.tokens) / per_second)


def forecast(ahead: int, paces: tuple[Pace, ...], bucket: Bucket, now: datetime) -> Forecast:
    """The slowest of what it waits for decides. A pause of the bucket comes first."""
    slowest = max(paces, key=lambda pace: pace.wait(ahead))
    seconds = slowest.wait(ahead)
    start, waits_for = now, slowest.name if seconds > 0 else None
    if bucket.blocked_until is not None and bucket.blocked_until > now:
        start, waits_for = bucket.blocked_until, "blocked"
        seconds = max((pace.wait(ahead) for pace in paces if pace.room > 0), default=0.0)
    expected = start + timedelta(seconds=seconds) if seconds < _LONGEST.total_seconds() else None
    return Forecast(ahead=ahead, expected_at=expected, waits_for=waits_for)


def next_day(now: datetime) -> datetime:
    """Midnight UTC, when budgets begin anew."""
    return datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)

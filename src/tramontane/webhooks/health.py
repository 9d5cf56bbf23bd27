"""How well an endpoint is: how many deliveries it may be sent at once, whether to leave it alone, when to give it up.

Three decisions in one small value, kept as JSON in the endpoint's row and changed only by what its attempts tell:

    window    4 at first, 64 at most; grows by one a round (a success for each place), halves once a round at most
    breaker   opens on ten attempts in a minute of which seven in ten failed, or on five in a row without any answer.
              Nothing is sent for 15 s, 30 s, 1 m ... 10 m; after that one delivery is, the probe, and its fate decides.
              A success closes it, and the window starts again: 1, 2, 4 ... up to where it was
    spell     the time without a success: people are told after a day and after two, and the endpoint is disabled after
              three

An attempt tells about the endpoint as it was when the attempt was let through. What was let through before the breaker
opened is late: it neither counts as a probe nor against a breaker that has closed again. What was let through before
the window was halved does not halve it again, so a burst of failures is one piece of news. Hence each Fact carries the
time of its admission.

Pure: callers pass `now`, and hold the endpoint's row from reading the value to writing it. A clock that is set back
makes an endpoint deaf, or shut, until it has caught up, and no longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import dropwhile
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

#: Deliveries in flight: at first, and at most.
FIRST_WINDOW: Final = 4.0
WIDEST_WINDOW: Final = 64.0

#: The breaker opens when, of at least so many attempts in the last minute, this share failed ...
LEAST_ATTEMPTS: Final = 10
SICK_SHARE: Final = 0.7
#: ... or when so many in a row had no answer.
SILENT_IN_A_ROW: Final = 5
#: Seconds that it stays open at first, doubled each time that the endpoint falls ill again, and at most.
FIRST_BLOCK: Final = 15.0
LONGEST_BLOCK: Final = 600.0

#: The minute is six slices of the clock: what is counted is the last 50 to 60 s, never more.
SLICE_SECONDS: Final = 10
SLICES: Final = 6

#: Seconds without a success: told, told again, disabled.
SPELL_MARKS: Final = (24 * 3600.0, 48 * 3600.0, 72 * 3600.0)
#: Failures without which nobody is disabled, however long the spell.
LEAST_FAILURES: Final = 10
_DISABLED = len(SPELL_MARKS)


class Outcome(StrEnum):
    """What one attempt says of its endpoint."""

    SUCCESS = "success"
    #: It answered, and not with success.
    FAILURE = "failure"
    #: 429, 502, 503, 504: it is busy. A failure that halves the window.
    PRESSURE = "pressure"
    #: No name, no connection, no TLS, or no answer within the time. Pressure, and five in a row open the breaker.
    SILENCE = "silence"
    #: Our own policy refused the address; nothing was sent. Opens the breaker for LONGEST_BLOCK, since each delivery
    #: that waits for the endpoint would be refused like this one.
    BLOCKED = "blocked"
    #: The receiver asks to be disabled.
    GONE = "gone"
    #: Says nothing of the endpoint.
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Fact:
    """The outcome of an attempt, and when the attempt was admitted: by the `now` that was passed to `allowance`."""

    outcome: Outcome
    admitted_at: datetime


class Slice(Struct, frozen=True, array_like=True):
    """Attempts of ten seconds; `number` is the Unix time by ten."""

    number: int
    attempts: int
    failed: int


class Health(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An endpoint's health. Times are Unix seconds. As JSON it is `{}` for a new endpoint and 400 bytes at most.

    Always: 1 <= window <= WIDEST_WINDOW; no more than SLICES slices, in order; while open there are none; once
    disabled it changes by `enable` alone.
    """

    window: float = FIRST_WINDOW
    #: Below it the window grows by one with each success (slow start), from it on by one a round.
    threshold: float = FIRST_WINDOW
    #: When the window was last halved.
    narrowed_at: float = 0.0
    slices: tuple[Slice, ...] = ()
    #: Attempts without an answer since the last one with an answer.
    silent: int = 0
    #: Whether the breaker is open; half-open is open with `since` in the past.
    open: bool = False
    #: While open: nothing is sent before it. Else when the breaker closed. Attempts admitted earlier are late.
    since: float = 0.0
    #: How often in a row the breaker has opened again.
    trips: int = 0
    #: The first failure since the last success, and how many there were.
    failing_since: float | None = None
    failures: int = 0
    #: Marks of the spell that people were told of: 1 and 2 degraded, 3 disabled.
    told: int = 0

    @property
    def disabled(self) -> bool:
        """True when the endpoint takes nothing until somebody enables it. What waits for it is kept."""
        return self.told == _DISABLED


def observe(health: Health, facts: Sequence[Fact], now: datetime) -> Health:
    """`health` after `facts`, in the order in which they were learnt. A disabled endpoint learns nothing."""
    for fact in facts:
        if not health.disabled and fact.outcome is not Outcome.NEUTRAL:
            health = _learn(health, fact.outcome, fact.admitted_at.timestamp(), now.timestamp())
    return health


def allowance(health: Health, now: datetime) -> int:
    """How many deliveries may be in flight at once, from 0 to WIDEST_WINDOW.

    While the breaker is open, 0 until `blocked_until`, and 1 from then on: a probe that was lost with its worker is
    simply followed by another.
    """
    if health.disabled:
        return 0
    if health.open:
        return int(now.timestamp() >= health.since)
    return int(health.window)


def blocked_until(health: Health) -> datetime | None:
    """When the open breaker lets a probe through; None when it is closed."""
    return datetime.fromtimestamp(health.since, UTC) if health.open else None


def breaker(health: Health, now: datetime) -> Literal["closed", "open", "half_open"]:
    """The state of the breaker, in the customary words."""
    if not health.open:
        return "closed"
    return "half_open" if now.timestamp() >= health.since else "open"


def notices(before: Health, after: Health) -> tuple[str, ...]:
    """The events to be told of a change of health: at most one.

    In one spell `endpoint.degraded` comes once at each of its two marks, `endpoint.disabled` once; the success that
    ends a spell of which something was told brings `endpoint.recovered`. A step over several marks tells the last one.
    """
    if after.told > before.told:
        return ("endpoint.disabled",) if after.disabled else ("endpoint.degraded",)
    return ("endpoint.recovered",) if before.told and not after.told else ()


def enable(health: Health, now: datetime) -> Health:
    """`health` of an endpoint that somebody enables, or whose URL was changed: a new spell, a closed breaker.

    It begins as after a recovery, with one delivery at a time. What was told of the old spell stays told: the next
    success brings `endpoint.recovered`.
    """
    told = min(health.told, _DISABLED - 1)
    closed = _close(health, now.timestamp())
    return replace(closed, trips=0, slices=(), silent=0, failing_since=None, failures=0, told=told)


def _learn(health: Health, outcome: Outcome, admitted_at: float, now: float) -> Health:
    if outcome is Outcome.GONE:
        return replace(health, told=_DISABLED)
    health = _spell(health, outcome, now)
    if admitted_at < health.since:
        return health
    if outcome is Outcome.BLOCKED:
        return _open(health, now, LONGEST_BLOCK, health.trips)
    if health.open:
        # The probe, since nothing else was admitted from `since` on.
        return _close(health, now) if outcome is Outcome.SUCCESS else _trip(health, now, again=True)
    health = _count(_resize(health, outcome, admitted_at, now), outcome, now)
    # An endpoint that stayed well for as long as it was left alone has recovered: its next illness is a new one.
    return _trip(health, now, again=now - health.since < _block(health.trips)) if _is_sick(health) else health


def _spell(health: Health, outcome: Outcome, now: float) -> Health:
    """`health` with the time without a success. It begins with a failure: an endpoint that nobody calls is not ill."""
    if outcome is Outcome.BLOCKED:
        return health
    if outcome is Outcome.SUCCESS:
        return replace(health, failing_since=None, failures=0, told=0) if health.failures or health.told else health
    since = now if health.failing_since is None else health.failing_since
    failures = health.failures + 1
    passed = sum(now - since >= mark for mark in SPELL_MARKS)
    if failures < LEAST_FAILURES:
        passed = min(passed, _DISABLED - 1)
    return replace(health, failing_since=since, failures=failures, told=max(health.told, passed))


def _resize(health: Health, outcome: Outcome, admitted_at: float, now: float) -> Health:
    """`health` with the window that follows, unless the attempt was admitted under a wider one."""
    if admitted_at < health.narrowed_at:
        return health
    if outcome is Outcome.SUCCESS:
        if health.window < health.threshold:
            return replace(health, window=min(health.window + 1.0, health.threshold))
        return replace(health, window=min(health.window + 1.0 / health.window, WIDEST_WINDOW))
    if outcome in (Outcome.PRESSURE, Outcome.SILENCE):
        half = max(1.0, health.window / 2.0)
        return replace(health, window=half, threshold=half, narrowed_at=now)
    return health


def _count(health: Health, outcome: Outcome, now: float) -> Health:
    number, failed = int(now // SLICE_SECONDS), int(outcome is not Outcome.SUCCESS)
    slices = tuple(dropwhile(lambda one: one.number <= number - SLICES, health.slices))
    if slices and slices[-1].number >= number:
        last = slices[-1]
        slices = (*slices[:-1], Slice(last.number, last.attempts + 1, last.failed + failed))
    else:
        slices = (*slices, Slice(number, 1, failed))
    return replace(health, slices=slices, silent=health.silent + 1 if outcome is Outcome.SILENCE else 0)


def _is_sick(health: Health) -> bool:
    attempts, failed = sum(one.attempts for one in health.slices), sum(one.failed for one in health.slices)
    return health.silent >= SILENT_IN_A_ROW or (attempts >= LEAST_ATTEMPTS and failed >= SICK_SHARE * attempts)


def _block(trips: int) -> float:
    """Seconds that a breaker stays open that has opened again so many times."""
    # The exponent is bounded as well, since 2.0 ** 1024 is an error and not a long time.
    return min(FIRST_BLOCK * 2.0 ** min(trips, 16), LONGEST_BLOCK)


def _trip(health: Health, now: float, *, again: bool) -> Health:
    trips = health.trips + 1 if again else 0
    return _open(health, now, _block(trips), trips)


def _open(health: Health, now: float, seconds: float, trips: int) -> Health:
    # The width that it had is where slow start will end. A breaker that opens during slow start keeps the old goal.
    threshold = max(health.window, health.threshold)
    return replace(health, open=True, since=now + seconds, trips=trips, threshold=threshold, slices=(), silent=0)


def _close(health: Health, now: float) -> Health:
    return replace(health, open=False, since=now, window=1.0, threshold=max(health.window, health.threshold))

"""Times that come again: the five fields of cron in a time zone. Pure.

    minute hour day-of-month month day-of-week

Fields take `*`, numbers, ranges, steps and lists (`0-30/10,45`), months and weekdays also English names of three
letters; Sunday is 0 or 7. When both days are restricted, either will do, as it has always been. `@hourly @daily @weekly
@monthly @yearly` are short for what they say.

Where clocks change: a time that a zone leaves out (2:30 in spring) comes at the moment when the clocks jump, and one
that it has twice (2:30 in autumn) comes the first time only. A schedule whose hours are all 24, however they are
written, keeps real time instead: both times in the hour that is there twice, and nothing is made up for where whole
hours are left out. Every two hours (`*/2`) goes by the clock, and neither loses an hour nor comes in one twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tramontane.errors import InvalidInput

_SHORT: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: Name, lowest, highest, names for the numbers from the lowest on.
_FIELDS: Final = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_HOURS: Final = 24
_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
#: The longest that a day of the calendar keeps away: 29 February on a given weekday, across a year like 2100.
_HORIZON: Final = timedelta(days=41 * 366)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cron:
    """When something comes again. Made by `read_cron`."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: Both days restricted: either will do.
    either_day: bool
    zone: ZoneInfo

    @property
    def hourly(self) -> bool:
        """Every hour: real time counts, not what the clock on the wall says."""
        return len(self.hours) == _HOURS

    def after(self, moment: datetime) -> datetime | None:
        """The first time after a moment, in UTC; None when there is none within the next 40 years."""
        at = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        end = at + _HORIZON
        while at < end:
            wall = at.astimezone(self.zone)
            if self._comes(wall) or self._made_up_for(at, wall):
                return at
            at = self._next(at, wall)
        return None

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """All times from `first`, itself one of them, up to and with `last`."""
        at: datetime | None = first
        while at is not None and at <= last:
            yield at
            at = self.after(at)

    def _comes(self, wall: datetime) -> bool:
        if wall.fold and not self.hourly:
            return False  # the clock shows this a second time
        return wall.minute in self.minutes and wall.hour in self.hours and self._on(wall)

    def _made_up_for(self, at: datetime, wall: datetime) -> bool:
        """Whether the clocks have just jumped over one of our times."""
        gone = (at - _MINUTE).astimezone(self.zone).replace(tzinfo=None, fold=0) + _MINUTE
        there = wall.replace(tzinfo=None, fold=0)
        if self.hourly and not (there - gone) % _HOUR:
            return False  # an hour of real time later it comes anyway
        while gone < there:
            if self._comes(gone):
                return True
            gone += _MINUTE
        return False

    def _on(self, wall: datetime) -> bool:
        if wall.month not in self.months:
            return False
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return day or weekday if self.either_day else day and weekday

    def _next(self, at: datetime, wall: datetime) -> datetime:
        """The next moment that is worth a look. A change of the clocks within an hour is never jumped over."""
        if not self._on(wall):
            midnight = (wall + timedelta(days=1)).replace(hour=0, minute=0, fold=0)
            return max(midnight.astimezone(UTC), at + _MINUTE)
        if wall.hour not in self.hours:
            return at + timedelta(minutes=60 - wall.minute)
        return at + _MINUTE


def read_cron(text: str, zone: str) -> Cron:
    """A schedule from its fields and the IANA name of its zone. Raises InvalidInput naming `cron` or `timezone`."""
    words = _SHORT.get(text.strip().lower(), text).lower().split()
    if len(words) != len(_FIELDS):
        raise InvalidInput(
            "cron", "has five fields: minute, hour, day of month, month, day of week (`0 6 * * mon-fri`)"
        )
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS, strict=True))
    cron = Cron(
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        either_day=not words[2].startswith("*") and not words[4].startswith("*"),
        zone=_zone(zone),
    )
    if cron.after(datetime(2026, 1, 1, tzinfo=UTC)) is None:
        raise InvalidInput("cron", "never comes: no month has that day")
    return cron


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            "timezone", f"{name[:64]!r} is no time zone: write its IANA name, such as Europe/Paris"
        ) from None


def _field(word: str, name: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for part in word.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            start, stop = low, high
        else:
            start = _number(first, name, low, high, names)
            # `5/15` is from 5 on, every 15.
            stop = _number(last, name, low, high, names) if dash else high if slash else start
        if start > stop:
            raise InvalidInput("cron", f"{name}: {span!r} runs backwards")
        found.update(range(start, stop + 1, _number(step, f"{name}, step", 1, high, ()) if slash else 1))
    return frozenset(found)


def _number(text: str, name: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + low
    if text.isascii() and text.isdigit() and len(text) <= 4 and low <= int(text) <= high:
        return int(text)
    raise InvalidInput("cron", f"{name}: {text[:32]!r} is not between {low} and {high}")

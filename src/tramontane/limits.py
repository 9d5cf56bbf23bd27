"""Rate limits as sums: for how many starts there is room. Pure: the store keeps the value, callers pass `now`."""

from dataclasses import dataclass
from datetime import datetime, timedelta

#: A use further in the future than this is a clock that was wrong, and is forgotten: all starts would wait until then.
_WRONG_CLOCK = timedelta(minutes=2)


def window_of(rate: float) -> tuple[int, timedelta]:
    """A rate per second as (starts, stretch of time): 10 is 10 in a second, 0.5 is 1 in two seconds."""
    return (int(rate), timedelta(seconds=1)) if rate >= 1 else (1, timedelta(seconds=1 / rate))


@dataclass(frozen=True, slots=True)
class Window:
    """Recent starts as (when, how many), oldest first.

    Exact: in no stretch of one second, wherever it begins, are there more starts than the rate. (A token bucket with
    a burst of 10 would let 20 through in the second after a pause.) Its time never goes back: a caller whose clock is
    behind, or who had to wait, counts as coming at the time of the last use. Rather too slow than too fast.
    """

    uses: tuple[tuple[datetime, int], ...] = ()

    def room(self, now: datetime, rate: float) -> int:
        """Starts that are free at `now`."""
        limit, span = window_of(rate)
        return max(0, limit - sum(count for _, count in self._recent(self._time(now), span)))

    def take(self, now: datetime, count: int, rate: float) -> "Window":
        """The window after `count` starts at `now`, without what is past."""
        if not count:
            return self
        time = self._time(now)
        return Window((*self._recent(time, window_of(rate)[1]), (time, count)))

    def next_at(self, now: datetime, rate: float) -> datetime:
        """When there will be room again; `now` when there is."""
        if self.room(now, rate) > 0:
            return now
        span = window_of(rate)[1]
        return self._recent(self._time(now), span)[0][0] + span

    def _time(self, now: datetime) -> datetime:
        last = self.uses[-1][0] if self.uses else now
        return now if last > now + _WRONG_CLOCK else max(now, last)

    def _recent(self, time: datetime, span: timedelta) -> tuple[tuple[datetime, int], ...]:
        return tuple(use for use in self.uses if time - span < use[0] <= time)

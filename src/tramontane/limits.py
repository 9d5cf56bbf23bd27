"""Rate limits as sums. Pure: what has started is a fact of the log of attempts, and callers pass what they counted."""

from datetime import timedelta


def window_of(rate: float) -> tuple[int, timedelta]:
    """A rate per second as (starts, stretch of time): 10 is 10 in a second, 0.5 is 1 in two seconds."""
    return (int(rate), timedelta(seconds=1)) if rate >= 1 else (1, timedelta(seconds=1 / rate))


def estimate(request: bytes) -> int:
    """Tokens that a request's prompt will cost, about: four bytes of UTF-8 to a token."""
    return len(request) // 4 + 1


def room(rate: float, *, recent: int, starting: int) -> int:
    """How many more may be let through.

    recent: starts within the stretch of time that ends now. starting: let through, and not started yet; each will be a
    start at some moment, and keeps its place until then. So no stretch, wherever it begins, has more than the rate.
    (A token bucket with a burst of 10 would let 20 through in the second after a pause.)
    """
    limit, _ = window_of(rate)
    return max(0, limit - recent - starting)

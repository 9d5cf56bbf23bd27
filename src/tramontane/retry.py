"""Whether to try again, and how long to wait first. Decisions only: no clock, no sleep, no dice of its own."""

from dataclasses import dataclass
from typing import Literal

from tramontane.errors import TramontaneError

#: No delay of our own grows past this many seconds: whoever waits longer has been forgotten, not delayed.
LONGEST_DELAY = 600.0
#: A `Retry-After` is obeyed up to this many seconds. A longer one is a mistake, or a matter for a person.
LONGEST_RETRY_AFTER = 3600.0
#: Jitter only lengthens: a delay shortened by chance would break the promise made to `Retry-After`.
MOST_JITTER = 0.3


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How the delay grows: `exponential` doubles it with each failure, `fixed` keeps it. `delay` is in seconds."""

    kind: Literal["exponential", "fixed"] = "exponential"
    delay: float = 1.0


def delay(backoff: Backoff, failures: int, *, retry_after: float | None, random: float) -> float:
    """Seconds to wait after the `failures`-th failure (1 or more), never less than Mistral asked for.

    random: from [0, 1), the caller's dice. It spreads those that failed together over up to 30 % more time,
    those that were all told the same `Retry-After` included.
    """
    assert failures >= 1, "there is nothing to wait for before the first failure"
    # The exponent is bounded as well, since 2.0 ** 1024 is an error and not a long time.
    doublings = min(failures - 1, 64) if backoff.kind == "exponential" else 0
    own = min(backoff.delay * 2.0**doublings, LONGEST_DELAY)
    asked = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
    return max(own, asked) * (1.0 + MOST_JITTER * random)


def may_retry(error: TramontaneError, failures: int, attempts: int) -> bool:
    """Whether another try is worth its price: the error may pass by itself, and fewer than `attempts` have failed."""
    return error.retryable and failures < attempts

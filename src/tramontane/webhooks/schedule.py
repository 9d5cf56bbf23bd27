"""When a delivery is tried again, and when it is given up. Decisions only: no clock, no sleep, no dice of its own.

    what came back                           then
    2xx                                      succeeded
    410, `webhook-delivery: disable`         ended, and the endpoint is disabled
    `webhook-delivery: abort-message`        failed, for this delivery alone
    3xx, 4xx but for the next line           5 attempts, since receivers misroute while they are deployed
    408, 425, 429, 5xx, no answer            13 attempts over three days
    refused by our own address policy        no attempt: nothing was sent

After 429, 502, 503, 504 and after a timeout we stay away for a minute at least. `Retry-After` is obeyed after any
failure, and jitter comes on top of it, so that all who were told the same do not return as one.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from tramontane.webhooks.health import Outcome
from tramontane.webhooks.hints import hint_for
from tramontane.webhooks.models import DeliveryState, ErrorClass, Exchange

_MINUTE, _HOUR = 60.0, 3600.0

#: Seconds before each attempt, the first one at once: 71 h 42 m 35 s in all, 93 h 13 m 21 s with the most jitter.
DELAYS: Final = (
    *(0.0, 5.0, 30.0, 2 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, _HOUR),
    *(2 * _HOUR, 4 * _HOUR, 8 * _HOUR, 12 * _HOUR, 20 * _HOUR, 24 * _HOUR),
)
#: Attempts of a delivery whose receiver is ill, or away.
ATTEMPTS: Final = len(DELAYS)
#: Attempts of a delivery that the receiver refuses: 12 m 35 s, the length of a slow deploy.
SHORT_ATTEMPTS: Final = 5
#: Jitter only lengthens: a delay shortened by chance would break the promise made to `Retry-After`.
MOST_JITTER: Final = 0.3
#: The least that we stay away, in seconds, from a receiver that is slow or says that it is busy.
BUSY_PAUSE: Final = 60.0
#: Seconds until a URL that our policy refused is judged again. A policy or a DNS record changes by hand, so ten minutes
#: are soon enough; and a message of 30 days looks a name up some 4,000 times at most before it expires.
BLOCKED_PAUSE: Final = 600.0

_TIMEOUTS = frozenset({ErrorClass.CONNECT_TIMEOUT, ErrorClass.TIMEOUT_HEADERS, ErrorClass.TIMEOUT_BODY})
_SILENT = _TIMEOUTS | {
    ErrorClass.DNS,
    ErrorClass.CONNECT_REFUSED,
    ErrorClass.TLS_CERT_EXPIRED,
    ErrorClass.TLS_HOSTNAME,
    ErrorClass.TLS_OTHER,
    ErrorClass.RESET,
}
_REFUSALS = frozenset({ErrorClass.REDIRECT, ErrorClass.HTTP_4XX, ErrorClass.TOO_LARGE})
#: 4xx that speak of the moment and not of the request.
_PASSING = frozenset({408, 425, 429})
_BUSY = frozenset({429, 502, 503, 504})
# RFC 9110 wants whole seconds; fractions and exponents are met in the wild and mean what they say.
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?(e\+?[0-9]+)?", re.ASCII | re.IGNORECASE)
_LONGEST_HEADER = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a delivery after an exchange, and what the exchange says of its endpoint."""

    #: SUCCEEDED, FAILED or WAITING.
    state: DeliveryState
    #: What health.observe is told.
    outcome: Outcome
    #: Not before this time; set when WAITING and only then.
    due_at: datetime | None = None
    #: False when the exchange consumed no attempt, since nothing was sent.
    counted: bool = True
    #: The receiver wants no more: disable the endpoint, keep what waits for it.
    disable: bool = False
    #: The receiver wants no more of this message; the delivery has failed.
    cancel: bool = False
    #: One line for people: what to change. Empty for a plain success.
    hint: str = ""


def judge(exchange: Exchange, *, attempt: int, now: datetime, random: float) -> Verdict:
    """What follows from `exchange`.

    attempt: the number of this attempt among those that count, from 1. random: from [0, 1), the caller's dice.
    `due_at` is never before `now` + the delay of the next attempt, nor before an honoured `Retry-After`: one of up to
    an hour or twice that delay, whichever is longer; of a longer one, that much is honoured.

    A refusal by the address policy comes back for as long as it is asked: the caller ends it when the message expires.
    """
    assert attempt >= 1, "attempts are counted from 1"
    control, hint = _control(exchange), hint_for(exchange)
    if exchange.error_class is ErrorClass.BLOCKED_SSRF:
        due_at = _after(BLOCKED_PAUSE, now, random)
        return Verdict(state=DeliveryState.WAITING, outcome=Outcome.BLOCKED, due_at=due_at, counted=False, hint=hint)
    if control == "disable" or exchange.error_class is ErrorClass.GONE or exchange.status == 410:
        state = DeliveryState.SUCCEEDED if exchange.succeeded else DeliveryState.FAILED
        hint = hint if not control else "the receiver answered webhook-delivery: disable, and gets no more"
        return Verdict(state=state, outcome=Outcome.GONE, disable=True, hint=hint)
    if exchange.succeeded:
        return Verdict(state=DeliveryState.SUCCEEDED, outcome=Outcome.SUCCESS)
    if control == "abort-message":
        hint = "the receiver answered webhook-delivery: abort-message, and does not want this one"
        return Verdict(state=DeliveryState.FAILED, outcome=Outcome.NEUTRAL, cancel=True, hint=hint)
    outcome = _outcome(exchange)
    if attempt >= _attempts(exchange):
        return Verdict(state=DeliveryState.FAILED, outcome=outcome, hint=hint)
    due_at = _after(_pause(exchange, DELAYS[attempt], now), now, random)
    return Verdict(state=DeliveryState.WAITING, outcome=outcome, due_at=due_at, hint=hint)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` asks for: a number, or the time until a date (0.0 when it is past).

    None for what is missing, negative, infinite or cannot be read: then there is nothing to obey. The number is not
    capped here.
    """
    text = (text or "")[:_LONGEST_HEADER].strip()
    if _SECONDS.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else None
    until = _date(text)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _control(exchange: Exchange) -> str:
    """What the receiver orders, if it answered at all: `disable`, `abort-message`, or nothing that we know."""
    order = (exchange.header("webhook-delivery") or "").strip().lower()
    return order if order in ("disable", "abort-message") else ""


def _outcome(exchange: Exchange) -> Outcome:
    if exchange.error_class in _SILENT:
        return Outcome.SILENCE
    return Outcome.PRESSURE if exchange.status in _BUSY else Outcome.FAILURE


def _attempts(exchange: Exchange) -> int:
    refused = exchange.error_class in _REFUSALS and exchange.status not in _PASSING
    return SHORT_ATTEMPTS if refused else ATTEMPTS


def _pause(exchange: Exchange, step: float, now: datetime) -> float:
    """Seconds to stay away, jitter not counted."""
    busy = exchange.error_class in _TIMEOUTS or exchange.status in _BUSY
    # A date is measured by the receiver's own clock where it tells it: of two of its readings the difference is right.
    asked = parse_retry_after(exchange.header("retry-after"), _date(exchange.header("date")) or now) or 0.0
    return max(step, BUSY_PAUSE if busy else 0.0, min(asked, max(2 * step, _HOUR)))


def _after(pause: float, now: datetime, random: float) -> datetime:
    return now + timedelta(seconds=pause * (1.0 + MOST_JITTER * random))


def _date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime((text or "")[:_LONGEST_HEADER])
    except (ValueError, OverflowError, TypeError, IndexError):
        # What it raises for nonsense differs between versions of Python.
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

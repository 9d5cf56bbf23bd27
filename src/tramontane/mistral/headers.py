"""What the headers of an answer say: the rates of this key and model, and how long to wait."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tramontane.limits import Heard

CORRELATION_ID = "mistral-correlation-id"
_LIMIT = "x-ratelimit-limit-"
_LARGEST = 2**31 - 1
_WHOLE = re.compile(r"\d{1,15}")


@dataclass(frozen=True, kw_only=True)
class RateHeaders:
    """Mistral's own count for this key and model; None where the answer did not say.

    A refusal names only the limit that was hit, and `GET /v1/models` names none.
    """

    #: Requests per minute: how many are allowed, and how many are left.
    limit_requests: int | None = None
    remaining_requests: int | None = None
    #: Tokens per minute, completion tokens included.
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    #: Tokens that this call was charged with.
    query_cost: int | None = None


def rate_headers(headers: Mapping[str, str]) -> RateHeaders:
    """The rates in `headers` (a mapping that ignores case). What is no whole number is treated as absent."""
    return RateHeaders(
        limit_requests=_whole(headers.get("x-ratelimit-limit-req-minute")),
        remaining_requests=_whole(headers.get("x-ratelimit-remaining-req-minute")),
        limit_tokens=_whole(headers.get("x-ratelimit-limit-tokens-minute")),
        remaining_tokens=_whole(headers.get("x-ratelimit-remaining-tokens-minute")),
        query_cost=_whole(headers.get("x-ratelimit-tokens-query-cost")),
    )


def heard_in(status: int, headers: Mapping[str, str], now: datetime) -> Heard:
    """What the head of an answer says of the limits of its key and model. A limit of zero counts on a 429 alone."""
    rates = rate_headers(headers)
    return Heard(
        at=now,
        status=status,
        limit_requests=_bounded(rates.limit_requests),
        remaining_requests=_bounded(rates.remaining_requests),
        limit_tokens=_bounded(rates.limit_tokens),
        remaining_tokens=_bounded(rates.remaining_tokens),
        retry_after=retry_after(headers, now) if status == 429 else None,
        never=status == 429 and allows_nothing(headers),
    )


def _bounded(number: int | None) -> int | None:
    """What is larger than our columns is no limit to anybody."""
    return None if number is None else min(number, _LARGEST)


def allows_nothing(headers: Mapping[str, str]) -> bool:
    """Whether a limit (not what remains of it) is zero: this key may never use this model."""
    return any(value.strip() == "0" for value in _limits(headers))


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that Mistral asks us to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date.

    None when it does not say, or says it in a way that nobody can read. A date is measured from the answer's own
    `Date`, since the difference of two of its clock readings is right even when its clock is not; `now` stands in.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    plain = _number(text)
    if plain is not None or text is None:
        return plain
    until = _date(text)
    if until is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or now)).total_seconds())


def _limits(headers: Mapping[str, str]) -> Iterator[str]:
    return (value for name, value in headers.items() if name.lower().startswith(_LIMIT))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and _WHOLE.fullmatch(text := text.strip()) else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""Rate limits as sums. Pure: what has started and ended are facts of the log of attempts; callers pass their counts.

A *bucket* is what Mistral counts by: one key (`account`) and one model. Its limits are learned from the headers of
answers; what we have used of them is counted, never kept, so that no crash leaves a counter wrong.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

#: Seconds that Mistral counts over.
WINDOW: Final = 60.0
#: Calls that may be under way while nothing is known of a bucket, or nothing since it was blocked.
_FIRST: Final = 2
#: Of an answer whose like has not been seen: tokens.
_ANSWER: Final = 500
#: No text runs on like this; and what an image may have at most, about: tokens.
_INLINE: Final = re.compile(rb"[A-Za-z0-9+/\\]{2000,}")
_LARGEST_INLINE: Final = 4000
#: What a call is measured by where no limit is known: requests and tokens of a window.
NOMINAL: Final = (60, 50_000)
#: A start is written down before its call arrives, some sooner than others: it counts this much longer (share of it).
_MARGIN: Final = 0.025
#: A 429 is explained if our own count, and what we knew of others, had come this close to the limit.
_EXPLAINED: Final = 0.9
#: After an unexplained 429 this share of the limits is used, growing to all within a window; and the least there is.
_CAUTION, _LEAST_CAUTION = 0.5, 0.1
#: A bucket is blocked for no longer than this (seconds), whatever Mistral asks for; and at least for this share of a
#: window.
_LONGEST_BLOCK, _SHORTEST_BLOCK = 3600.0, 1 / 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """What is known of Mistral's limits for one key and model; None is unknown. A limit of 0 means: never."""

    account: str
    model: str
    #: When Mistral last answered; None: it never has.
    observed_at: datetime | None = None
    #: Per window.
    limit_requests: int | None = None
    limit_tokens: int | None = None
    #: What others had used of it when that was last seen.
    foreign_requests: int = 0
    foreign_tokens: int = 0
    #: A 429: nothing before this time, and then carefully, from `caution` of the limits upwards.
    blocked_until: datetime | None = None
    caution: float = 1.0
    #: Of an answer, on average.
    answer_tokens: float | None = None

    @property
    def refuses(self) -> bool:
        """Mistral has said that this key may never use this model."""
        return self.limit_requests == 0

    @property
    def unheard(self) -> bool:
        """It was blocked, and no answer has come since."""
        if self.blocked_until is None or self.observed_at is None:
            return False
        return self.observed_at <= self.blocked_until


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What our own fleet has used of a bucket, at one moment."""

    #: Starts within the window; jobs let through that have not started; all that are under way.
    requests: int = 0
    starting: int = 0
    flying: int = 0
    #: Starts since the bucket was last blocked.
    probes: int = 0
    #: Tokens of attempts that ended within the window; and those set aside for what is under way.
    tokens: int = 0
    reserved: int = 0
    #: Of the former, those that leave the window before a job that starts now ends, which is when its own count.
    leaving: int = 0
    #: The first of those starts, and of those ends.
    oldest_start: datetime | None = None
    oldest_end: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What may still be let through; infinite where no limit is known."""

    requests: float
    tokens: float
    #: Nothing of ours is in the window: a job larger than the whole limit may go.
    empty: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What the head of an answer said of a bucket; None where it said nothing."""

    at: datetime
    status: int = 200
    limit_requests: int | None = None
    remaining_requests: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    #: Seconds.
    retry_after: float | None = None
    #: A limit of zero.
    never: bool = False

    @property
    def refused(self) -> bool:
        """A 429 that will pass."""
        return self.status == 429 and not self.never

    @property
    def tells(self) -> bool:
        """Whether anything follows from it: a success does even without headers."""
        return self.status in (200, 429) or self.limit_requests is not None or self.limit_tokens is not None


def window_of(rate: float) -> tuple[int, timedelta]:
    """A rate per second as (starts, stretch of time): 10 is 10 in a second, 0.5 is 1 in two seconds."""
    return (int(rate), timedelta(seconds=1)) if rate >= 1 else (1, timedelta(seconds=1 / rate))


def estimate(request: bytes) -> int:
    """Tokens that a request's prompt will cost, about: four bytes of UTF-8 to a token.

    What is written in base64 is an image, a sound or a document. Mistral counts what it shows, not its bytes.
    """
    length = len(request)
    if b";base64," in request or b"input_audio" in request:
        for inline in _INLINE.finditer(request):
            length -= max(0, inline.end() - inline.start() - 4 * _LARGEST_INLINE)
    return length // 4 + 1


def tokens_of(usage: str | None) -> int | None:
    """`total_tokens` of Mistral's usage; None where it does not say."""
    return _usage(usage).total_tokens


def answer_of(usage: str | None) -> int | None:
    """`completion_tokens` of Mistral's usage; None where it does not say."""
    return _usage(usage).completion_tokens


def room(rate: float, *, recent: int, starting: int) -> int:
    """How many more may be let through.

    recent: starts within the stretch of time that ends now. starting: let through, and not started yet; each will be a
    start at some moment, and keeps its place until then. So no stretch, wherever it begins, has more than the rate.
    (A token bucket with a burst of 10 would let 20 through in the second after a pause.)
    """
    limit, _ = window_of(rate)
    return max(0, limit - recent - starting)


def counted_from(now: datetime, window: timedelta) -> datetime:
    """Starts after this time count as requests of the window that ends now."""
    return now - window * (1 + _MARGIN)


def free_at(oldest: datetime | None, window: timedelta, *, starts: bool) -> datetime | None:
    """When what came first in the window leaves it."""
    return oldest and oldest + window * (1 + _MARGIN if starts else 1)


def reservation(bucket: Bucket, *, prompt: int, most: int | None) -> int:
    """Tokens to set aside for a job. most: what its caller wants back at most."""
    answer = math.ceil(bucket.answer_tokens) if bucket.answer_tokens is not None else _ANSWER
    return prompt + (answer if most is None else min(answer, most))


def cost(bucket: Bucket, tokens: int) -> float:
    """What a job takes of a bucket, in windows' worth: of requests or of tokens, whichever is more."""
    requests, whole = bucket.limit_requests or NOMINAL[0], bucket.limit_tokens or NOMINAL[1]
    return max(1 / requests, tokens / whole)


def caution(bucket: Bucket, now: datetime, window: timedelta) -> float:
    """The share of its limits that a bucket is used to."""
    if bucket.blocked_until is None:
        return 1.0
    passed = max(0.0, min(1.0, (now - bucket.blocked_until) / window))
    return bucket.caution + (1.0 - bucket.caution) * passed


def foreign(bucket: Bucket, now: datetime, window: timedelta) -> tuple[int, int]:
    """Requests and tokens of others that are still in the window: what was seen, fading out over it."""
    if bucket.observed_at is None:
        return 0, 0
    left = max(0.0, min(1.0, 1.0 - (now - bucket.observed_at) / window))
    return math.ceil(bucket.foreign_requests * left), math.ceil(bucket.foreign_tokens * left)


def room_of(bucket: Bucket, use: Use, now: datetime, window: timedelta) -> Room:
    """What a bucket has room for.

    Where Mistral says "never" there is no limit to keep: the next worker fails the job without asking.
    """
    if bucket.refuses:
        return Room(requests=math.inf, tokens=math.inf)
    if bucket.blocked_until is not None and bucket.blocked_until > now:
        return Room(requests=0, tokens=0)
    share = caution(bucket, now, window)
    others_requests, others_tokens = foreign(bucket, now, window)
    requests = tokens = math.inf
    if bucket.observed_at is None:
        requests = _FIRST - use.flying
    elif bucket.limit_requests is not None:
        requests = _part(bucket.limit_requests, share) - use.requests - use.starting - others_requests
    if bucket.limit_tokens is not None:
        counted = _part(bucket.limit_tokens, share) - use.tokens - others_tokens
        # Mistral refuses by what it has counted at that moment, so there must be room for a call even then.
        tokens = counted - use.reserved + use.leaving if counted > bucket.limit_tokens * _MARGIN else 0
    if bucket.unheard:
        requests = min(requests, _FIRST - use.starting - use.probes)
    empty = use.tokens == 0 and use.flying == 0
    return Room(requests=max(0, requests), tokens=max(0, tokens), empty=empty)


def learn(bucket: Bucket, heard: Heard, use: Use, window: timedelta) -> Bucket:
    """The bucket after an answer. use: our own at the moment of the answer, the call that was answered included.

    What Mistral has counted beyond that is others' use. Limits that an answer does not name stay as they were.
    """
    if not heard.tells:
        return bucket
    if heard.never:
        return dataclasses.replace(bucket, observed_at=heard.at, limit_requests=0)
    if bucket.refuses:  # no longer
        bucket = dataclasses.replace(bucket, limit_requests=None)
    requests, tokens = foreign(bucket, heard.at, window)
    limits = _either(heard.limit_requests, bucket.limit_requests), _either(heard.limit_tokens, bucket.limit_tokens)
    learned = dataclasses.replace(
        bucket,
        observed_at=heard.at,
        limit_requests=limits[0],
        limit_tokens=limits[1],
        foreign_requests=requests,
        foreign_tokens=tokens,
    )
    if heard.refused:
        # That nothing remains goes without saying. The first answer after the pause tells how much others really use.
        return _refused(learned, bucket, heard, use, window)
    return dataclasses.replace(
        learned,
        foreign_requests=_others(limits[0], heard.remaining_requests, use.requests, requests),
        foreign_tokens=_others(limits[1], heard.remaining_tokens, use.tokens + use.reserved, tokens),
    )


def _refused(learned: Bucket, before: Bucket, heard: Heard, use: Use, window: timedelta) -> Bucket:
    """A 429: nothing for a while, and less than all after it when our own count had seen it coming from nowhere."""
    others = foreign(before, heard.at, window)
    full_requests = _near(learned.limit_requests, use.requests + others[0])
    full_tokens = _near(learned.limit_tokens, use.tokens + use.reserved + others[1])
    until = heard.at + window * _SHORTEST_BLOCK
    if heard.retry_after is not None:
        until = max(until, heard.at + timedelta(seconds=min(heard.retry_after, _LONGEST_BLOCK)))
    elif full_requests or full_tokens:
        oldest = use.oldest_start if full_requests else use.oldest_end
        until = max(until, (oldest or heard.at) + window)
    if before.blocked_until is not None and before.blocked_until >= heard.at:
        # One more of the calls that were under way: the same news.
        return dataclasses.replace(learned, blocked_until=max(until, before.blocked_until), caution=before.caution)
    share = caution(before, heard.at, window)
    if not (full_requests or full_tokens):
        share = max(_LEAST_CAUTION, share * _CAUTION)
    return dataclasses.replace(learned, blocked_until=until, caution=share)


def _near(limit: int | None, used: int) -> bool:
    return limit is not None and used >= limit * _EXPLAINED


def _others(limit: int | None, remaining: int | None, own: int, before: int) -> int:
    if limit is None or remaining is None:
        return before
    return max(0, limit - remaining - own)


def _part(limit: int, share: float) -> int:
    return max(1, math.floor(limit * share))


def _either(told: int | None, known: int | None) -> int | None:
    return known if told is None else told


class _Usage(msgspec.Struct):
    total_tokens: int | None = None
    completion_tokens: int | None = None


def _usage(usage: str | None) -> _Usage:
    """What can be read of it: the rest of Mistral's object may have any shape."""
    try:
        read = msgspec.json.decode(usage or "{}", type=_Usage)
    except ValueError:
        return _Usage()
    numbers = (read.total_tokens, read.completion_tokens)
    return read if all(number is None or 0 <= number < 2**31 for number in numbers) else _Usage()

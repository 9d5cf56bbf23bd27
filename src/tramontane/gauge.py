"""Gauge: hears what Mistral says of its limits with every answer, and writes it down for the whole fleet."""

import asyncio
import functools
import logging
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from tramontane.errors import ZeroAllowance
from tramontane.fairness import BucketKey
from tramontane.ids import utc_now
from tramontane.limits import Heard, answer_of
from tramontane.listener import OUTAGES
from tramontane.models import Job
from tramontane.store import BucketStore
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

#: A bucket, and the tenant's own Mistral key (sealed) that it was met with: another that replaces it is met anew.
Source = tuple[BucketKey, bytes | None]

#: What is no news is written once in so many parts of a window.
_PARTS: Final = 60
#: Seconds before a failed write is tried again.
_PAUSE: Final = 1.0


class Gauge:
    """One per worker. `hear` and `after` only take note; `run` writes.

    window: seconds that the limits are counted over. learned: called when more may be let through than before.
    """

    def __init__(
        self,
        store: BucketStore,
        learned: Callable[[], None],
        *,
        window: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._learned = learned
        self._window = timedelta(seconds=window)
        self._clock = clock
        self._heard: defaultdict[Source, list[Heard]] = defaultdict(list)
        self._answers: defaultdict[Source, list[int]] = defaultdict(list)
        #: What an answer has been heard of; and of those that it was "never", until when that is believed unasked.
        self._answered: set[Source] = set()
        self._refusing: dict[Source, datetime] = {}
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()

    def hear(self, bucket: BucketKey, heard: Heard, mistral_key: bytes | None = None) -> None:
        """The head of an answer. Refusals, and the first answer of a bucket, are written at once."""
        if not heard.tells:
            return
        key = bucket, mistral_key
        if heard.never:
            self._refusing[key] = heard.at + self._window
        elif key in self._refusing:
            del self._refusing[key]
        if heard.status == 429 or key not in self._answered:
            self._urgent.set()
            self._heard[key].append(heard)
        else:
            # Of those that say the same the last is enough, but refusals are kept.
            self._heard[key] = [one for one in self._heard[key] if one.status == 429] + [heard]
        self._answered.add(key)
        self._news.set()

    async def before(self, job: Job, mistral_key: bytes | None = None) -> Callable[[Heard], None]:
        """Before a call, with the tenant's own key if it has one; returns what is to be told of its answer.

        Raises ZeroAllowance where Mistral is known to answer that; one call per window asks again.
        """
        bucket = job.account, job.model
        await self._check((bucket, mistral_key))
        return functools.partial(self.hear, bucket, mistral_key=mistral_key)

    def after(self, job: Job, usage: str | None, mistral_key: bytes | None = None) -> None:
        """What an attempt has used, as Mistral reported it: the measure of those to come."""
        if (answer := answer_of(usage)) is not None:
            self._answers[(job.account, job.model), mistral_key].append(answer)
            self._news.set()

    async def _check(self, key: Source) -> None:
        if key in self._answered and key not in self._refusing:
            return
        now = self._clock()
        if (until := self._refusing.get(key)) is None or until <= now:
            try:
                if not await self._store.refuses(key[0], now, self._window):
                    return
            except OUTAGES:
                return  # Mistral will say so itself
            self._refusing[key] = now + self._window
        raise ZeroAllowance(
            "Mistral has said that this key has no allowance for this model; once a minute it is asked again"
        )

    async def run(self) -> None:
        """Write until cancelled."""
        interval = self._window.total_seconds() / _PARTS
        while True:
            await self._news.wait()
            self._news.clear()
            self._urgent.clear()
            try:
                await self.write()
            except Exception as error:  # noqa: BLE001 - the outermost loop of a service
                log(logger, logging.WARNING, "gauge.failed", error=error)
                self._news.set()
                await asyncio.sleep(_PAUSE)
                continue
            try:
                async with asyncio.timeout(interval):
                    await self._urgent.wait()
            except TimeoutError:
                pass

    async def write(self) -> None:
        """Write what has been heard so far; what cannot be written is kept."""
        for key in {*self._heard, *self._answers}:
            heard, answers = self._heard.pop(key, []), self._answers.pop(key, [])
            (_, model), mistral_key = key
            try:
                bucket = await self._store.learn(
                    key[0], heard, answers, self._clock(), self._window, mistral_key=mistral_key
                )
            except BaseException:
                self._heard[key] = heard + self._heard[key]
                self._answers[key] = answers + self._answers[key]
                raise
            if any(one.status == 429 for one in heard):
                limits = {"requests": bucket.limit_requests, "tokens": bucket.limit_tokens}
                until = bucket.blocked_until
                log(
                    logger,
                    logging.WARNING,
                    "limits.refused",
                    model=model,
                    until=until,
                    caution=bucket.caution,
                    **limits,
                )
        self._learned()

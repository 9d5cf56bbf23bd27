"""The one writer of a process: text of all running attempts, merged and committed together every few milliseconds.

Upstream never waits for readers; it waits for the log. What an attempt produces collects in its `Draft`; the
`Appender` takes all drafts that have something, appends them in one transaction, and tells each what became of it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from tramontane.ids import utc_now
from tramontane.listener import OUTAGES
from tramontane.models import Batch, JobKey, NewEvent
from tramontane.store import EventStore
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

#: Characters that an attempt may have ahead of the log before its upstream read pauses.
_MOST_AHEAD = 256 * 1024
_PAUSE_AFTER_FAILURE = 0.5  # seconds


class Draft:
    """What one attempt has produced and not yet committed. `take` makes events of it.

    on_lost: called once when the log refuses the attempt, because another one runs or the job has ended.
    """

    def __init__(self, key: JobKey, attempt: int, appender: "Appender", on_lost: Callable[[], None]) -> None:
        self.key = key
        self.attempt = attempt
        self.lost = False
        self._appender = appender
        self._on_lost = on_lost
        self._make: Callable[[], Sequence[NewEvent]] | None = None
        self._ahead = 0
        self._number = 0
        self._batch: Batch | None = None
        self._settled = asyncio.Event()
        self._settled.set()

    def grow(self, characters: int, make: Callable[[], Sequence[NewEvent]]) -> None:
        """Note that `characters` more are ready. `make` turns all that is ready into events, once, when asked."""
        self._ahead += characters
        self._make = make
        self._appender.note(self)

    async def room(self) -> None:
        """Wait while the attempt is too far ahead of the log."""
        while self._ahead > _MOST_AHEAD and not self.lost:
            self._settled.clear()
            await self._settled.wait()

    async def settle(self) -> tuple[NewEvent, ...]:
        """Hand over what was never taken, once the batch before it is in the log: it goes with the ending."""
        rest = self._events()
        while self._batch is not None and not self.lost:
            self._settled.clear()
            await self._settled.wait()
        return rest

    async def written(self) -> None:
        """Wait until all that is ready is in the log, or refused."""
        while (self._make is not None or self._batch is not None) and not self.lost:
            self._settled.clear()
            await self._settled.wait()

    def take(self) -> Batch | None:
        """The batch to append now: the one whose outcome is unknown, or a new one, or nothing."""
        if self._batch is None and (events := self._events()):
            self._number += 1
            self._batch = Batch(key=self.key, attempt=self.attempt, number=self._number, events=events)
        return self._batch

    def committed(self) -> None:
        """The batch is in the log."""
        self._batch = None
        self._settled.set()

    def refused(self) -> None:
        """The log took nothing: this attempt is over."""
        self.lost = True
        self._batch = None
        self._settled.set()
        self._on_lost()

    def _events(self) -> tuple[NewEvent, ...]:
        if self._make is None:
            return ()
        make, self._make, self._ahead = self._make, None, 0
        return tuple(make())


class Appender:
    """Commits drafts in groups, at most one group per `interval` seconds; the first one after a pause at once.

    appended: told of each batch that is in the log, with the job's new head, after the commit.
    """

    def __init__(self, events: EventStore, appended: Callable[[Batch, int], None], *, interval: float) -> None:
        self._events = events
        self._appended = appended
        self._interval = interval
        self._drafts: dict[Draft, None] = {}
        self._news = asyncio.Event()

    def note(self, draft: Draft) -> None:
        """A draft has something to append."""
        self._drafts[draft] = None
        self._news.set()

    async def run(self) -> None:
        """Append until cancelled. A failing database is tried again; no draft is dropped meanwhile."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            began = loop.time()
            drafts = {draft: batch for draft in self._drafts if (batch := draft.take())}
            self._drafts.clear()
            if drafts and not await self._append(drafts):
                self._drafts.update(dict.fromkeys(drafts))
                self._news.set()
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            await asyncio.sleep(max(0.0, self._interval - (loop.time() - began)))

    async def _append(self, drafts: dict[Draft, Batch]) -> bool:
        try:
            heads = await self._events.append(list(drafts.values()), utc_now())
        except OUTAGES as error:
            log(logger, logging.WARNING, "append.failed", jobs=len(drafts), error=error)
            return False
        except Exception as error:  # noqa: BLE001 - a draft that cannot be written ends its attempt, and no other
            if len(drafts) > 1:
                alone = [await self._append({draft: batch}) for draft, batch in drafts.items()]
                return all(alone)
            log(logger, logging.ERROR, "append.refused", error=error)
            heads = [None]
        for (draft, batch), head in zip(drafts.items(), heads, strict=True):
            if head is not None:
                draft.committed()
                self._appended(batch, head)
            else:
                draft.refused()
        return True

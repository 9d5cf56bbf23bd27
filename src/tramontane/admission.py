"""Admission decides what may run now. What it does not let through waits in our own tables.

Every start of a job goes through here, retries too. A submit admits in its own transaction what may run at once; this
service lets through the rest, when a slot, the rate or the time allows it. Deliveries of webhooks wait in the same way.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from tramontane.ids import utc_now
from tramontane.listener import Listener
from tramontane.models import Admission
from tramontane.telemetry import log

logger = logging.getLogger(__name__)


class Gate(Protocol):
    """Where something waits: LimitStore for jobs, DeliveryStore for deliveries."""

    async def admit(self, now: datetime) -> Admission:
        """Let through what may run now."""


class AdmissionService:
    """Admits until cancelled: on a hint, when a time has come, and at least every `poll` seconds."""

    def __init__(
        self,
        gate: Gate,
        listener: Listener,
        *,
        poll: float,
        channel: str = "tramontane_admission",
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._gate = gate
        self._listener = listener
        self._channel = channel
        self._poll = poll
        self._clock = clock
        self._news = asyncio.Event()

    def wake(self) -> None:
        """A slot has become free, or a job waits."""
        self._news.set()

    async def run(self) -> None:
        """Work until cancelled; a failing database is tried again."""
        await self._listener.add(self._channel, lambda _: self.wake())
        while True:
            self._news.clear()
            try:
                next_at = await self.tick(self._clock())
            except Exception as error:  # noqa: BLE001 - the outermost loop of a service
                log(logger, logging.WARNING, "admission.failed", channel=self._channel, error=error)
                next_at = None
            await self._wait(next_at)

    async def tick(self, now: datetime) -> datetime | None:
        """One round; returns when time alone may allow more."""
        admission = await self._gate.admit(now)
        return admission.next_at

    async def _wait(self, until: datetime | None) -> None:
        seconds = self._poll
        if until is not None:
            seconds = min(seconds, max(0.0, (until - self._clock()).total_seconds()))
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

"""Flight: one exchange on its way, with the phase it is in and the time each phase took.

The dialer and the connection below it know their flight by a context variable, since aiohttp has no place to carry
it; its own tracing has one, but knows nothing of TLS and costs a tenth of the throughput.
"""

import asyncio
import math
from collections.abc import Mapping
from contextvars import ContextVar
from enum import StrEnum
from time import perf_counter
from types import MappingProxyType
from typing import Final

from tramontane.webhooks.models import Timings
from tramontane.webhooks.policy import Verdict
from tramontane.webhooks.target import Target


class Phase(StrEnum):
    """What an exchange is waiting for. The three in the middle take place for a new connection alone."""

    QUEUE = "a free connection"
    DNS = "the name's address"
    CONNECT = "the connection"
    TLS = "the TLS handshake"
    HEADERS = "the answer"
    BODY = "the answer's body"


#: Seconds that a phase may take within the time of the whole.
PHASE_LIMITS: Final = MappingProxyType({Phase.DNS: 2.0, Phase.CONNECT: 5.0, Phase.TLS: 5.0})

FLIGHT: ContextVar["Flight"] = ContextVar("flight")


class Flight:
    """Mutable, and of one task. `limit` is its one timer: phases move it, never past the deadline of the whole."""

    __slots__ = (
        "_limits",
        "_loop",
        "_moved",
        "_since",
        "_spent",
        "answered_at",
        "deadline",
        "flooded",
        "fresh",
        "limit",
        "phase",
        "refused",
        "remote_ip",
        "reused",
        "sent_at",
        "started_at",
        "target",
    )

    def __init__(
        self, target: Target, seconds: float, loop: asyncio.AbstractEventLoop, limits: Mapping[Phase, float]
    ) -> None:
        self.target = target
        # The event loop's clock may stand still for a millisecond: it is for timers, not for measuring.
        self.started_at = self._since = perf_counter()
        self.deadline = loop.time() + seconds
        self.limit = asyncio.timeout_at(self.deadline)
        self.phase = Phase.QUEUE
        #: The verdict that ended it.
        self.refused: Verdict | None = None
        #: Whether it was ended because more came than any answer has.
        self.flooded = False
        self.remote_ip: str | None = None
        #: When its connection was there, and when the first byte of the answer was.
        self.sent_at: float | None = None
        self.answered_at: float | None = None
        #: Whether its connection had been used before; whether it insists on a new one.
        self.reused = False
        self.fresh = False
        self._loop = loop
        self._limits = limits
        self._moved = False
        self._spent: dict[Phase, float] = {}

    def enter(self, phase: Phase) -> None:
        """Now `phase` begins, and the one before it has ended. To enter the same one again changes nothing."""
        if phase is self.phase:
            return
        now = perf_counter()
        self._end_phase(now)
        self.phase = phase
        if phase is Phase.HEADERS:
            self.sent_at = now
        if self._moved or phase in self._limits:
            self._move_limit(self._limits.get(phase))

    def hear(self) -> None:
        """The answer has begun."""
        self.answered_at = perf_counter()

    def timings(self) -> Timings:
        """What has been measured so far."""
        now = perf_counter()
        self._end_phase(now)
        waited = None if self.answered_at is None or self.sent_at is None else self.answered_at - self.sent_at
        first_byte, total = _milliseconds(waited), _milliseconds(now - self.started_at) or 0.0
        if not self._spent:  # a pooled connection, as nearly always
            return Timings(first_byte=first_byte, total=total)
        dns, connect, tls = (_milliseconds(self._spent.get(phase)) for phase in (Phase.DNS, Phase.CONNECT, Phase.TLS))
        return Timings(dns=dns, connect=connect, tls=tls, first_byte=first_byte, total=total)

    def _end_phase(self, now: float) -> None:
        if self._moved:  # it was one for a new connection; dialled again after a failure, it takes place twice
            self._spent[self.phase] = self._spent.get(self.phase, 0.0) + now - self._since
        self._since = now

    def _move_limit(self, seconds: float | None) -> None:
        self._moved = seconds is not None
        if not self.limit.expired():
            phase_end = math.inf if seconds is None else self._loop.time() + seconds
            self.limit.reschedule(min(self.deadline, phase_end))


def _milliseconds(seconds: float | None) -> float | None:
    # To the microsecond. `round` would take ten times as long.
    return None if seconds is None else int(seconds * 1e6) / 1000

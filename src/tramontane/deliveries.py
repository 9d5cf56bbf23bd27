"""Deliveries are sent: signed, posted, judged, and what came of them is written down."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import anyio
import msgspec

from tramontane.admission import AdmissionService
from tramontane.errors import ConfigurationError, SecretsLocked
from tramontane.groups import GroupCommit
from tramontane.ids import iso, show_id, utc_now
from tramontane.listener import OUTAGES
from tramontane.metrics import Metrics
from tramontane.queue import Consumer, Entry, LeaveEntry
from tramontane.settings import Settings
from tramontane.store import DeliveryStore
from tramontane.tasks import beside
from tramontane.telemetry import log
from tramontane.tracing import Tracing, current, mark
from tramontane.vault import Vault
from tramontane.webhooks.models import DeliveryState, Exchange, Outgoing, Sendable, Tried
from tramontane.webhooks.schedule import BLOCKED_PAUSE, judge
from tramontane.webhooks.signatures import signed_headers

logger = logging.getLogger(__name__)

#: A result is worth this long an outage (seconds); after it the delivery is made once more, under the same id.
_PATIENCE: Final = 60.0

Send = Callable[[Outgoing], Awaitable[Exchange]]


class Sender:
    """Sends what was let through, up to `settings.webhook_concurrency` at a time, until `stop` or cancellation.

    consumer_of: makes the queue's consumer around our handler. dice: random numbers from [0, 1), for jitter.
    """

    def __init__(
        self,
        store: DeliveryStore,
        consumer_of: Callable[[Callable[[Entry], Awaitable[None]]], Consumer],
        send: Send,
        vault: Vault,
        admission: AdmissionService,
        settings: Settings,
        *,
        worker_id: UUID,
        dice: Callable[[], float],
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._send = send
        self._metrics = metrics = metrics or Metrics()
        self._tracing = tracing or Tracing()
        self._vault = vault
        self._admission = admission
        self._settings = settings
        self._dice = dice
        self._clock = clock
        self._sending: set[anyio.CancelScope] = set()
        self._stopping = asyncio.Event()
        self._grace_over = False
        self._consumer = consumer_of(self._handle)
        self._loads = GroupCommit[Entry, Sendable | None](
            lambda entries: store.load(entries, clock()), outages=OUTAGES, told=metrics.group("load_delivery")
        )

        async def record(tries: Sequence[Tried]) -> list[bool]:
            return await store.record(tries, worker_id=worker_id, now=clock())

        self._records = GroupCommit[Tried, bool](
            record, outages=OUTAGES, largest=256, told=metrics.group("record_delivery")
        )

    async def run(self) -> None:
        """Send until `stop`; then what is under way gets its grace, and the rest is handed back."""
        async with beside(self._loads.run(), self._records.run(), self._drain()):
            await self._consumer.run()

    def stop(self) -> None:
        """Take no more deliveries."""
        self._stopping.set()
        self._consumer.stop()

    async def _drain(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._settings.grace)
        self._grace_over = True  # for what is still being loaded
        for scope in list(self._sending):
            scope.cancel()

    async def _handle(self, entry: Entry) -> None:
        """One queue entry: a try, and what follows from it. Leaves the entry alone when in doubt."""
        try:
            sendable = await self._loads.add(entry)
            if sendable is not None:
                with self._tracing.delivery(sendable.event, sendable.trace_context, attempt=sendable.attempts + 1):
                    tried = await self._try(sendable)
                await self._record(tried)
                self._tell(tried)
        except Exception as error:  # noqa: BLE001
            # Most likely the database. The entry goes stale and is taken over; that counts as no attempt.
            log(logger, logging.ERROR, "delivery.left", delivery=show_id("dlv", entry.key.id), error=error)
            raise LeaveEntry from None
        finally:
            self._admission.wake()

    async def _try(self, sendable: Sendable) -> Tried:
        if sendable.body is None:
            return Tried(sendable=sendable, state=DeliveryState.CANCELLED)
        back = Tried(sendable=sendable, state=DeliveryState.WAITING)
        if self._grace_over or not sendable.welcome:
            return back
        now = self._clock()
        try:
            outgoing = self._outgoing(sendable, sendable.body, now)
        except ConfigurationError as error:
            # A matter of this server, which somebody will mend: no attempt is lost over it.
            log(logger, logging.ERROR, "delivery.unsigned", delivery=show_id("dlv", sendable.id), error=error)
            due_at = now + timedelta(seconds=BLOCKED_PAUSE)
            return Tried(sendable=sendable, state=DeliveryState.WAITING, due_at=due_at)
        with anyio.CancelScope() as scope:
            self._sending.add(scope)
            try:
                exchange = await self._send(outgoing)
            finally:
                self._sending.discard(scope)
            return self._judged(sendable, exchange, now)
        return back  # only a shutdown cancels this scope: somebody else sends it, under the same id

    def _tell(self, tried: Tried) -> None:
        outcome = "retried" if tried.counted and tried.state is DeliveryState.WAITING else tried.state.value
        self._metrics.delivered(outcome, tried.exchange.timings.total / 1000 if tried.exchange else None)

    def _outgoing(self, sendable: Sendable, body: bytes, now: datetime) -> Outgoing:
        secrets = [self._vault.open(secret) for secret in sendable.secrets] or [self._settings.webhook_secret]
        if not secrets[0]:
            raise SecretsLocked("no secret to sign a callback with: TRAMONTANE_WEBHOOK_SECRET is not set here")
        own: dict[str, str] = {}
        if sendable.headers is not None:
            own = msgspec.json.decode(self._vault.open(sendable.headers), type=dict[str, str])
        headers = signed_headers(
            body=body,
            message_id=show_id("msg", sendable.message_id),
            timestamp=iso(sendable.event_at),
            attempted_at=now,
            secrets=secrets,
            event=sendable.event,
            delivery_id=show_id("dlv", sendable.id),
            attempt=sendable.attempts + 1,
            job_id=show_id("job", sendable.job_id) if sendable.job_id else None,
            job_seq=sendable.seq,
        )
        if traced := current():
            headers = (*headers, ("traceparent", traced))
        timeout = sendable.timeout or self._settings.webhook_timeout
        return Outgoing(url=sendable.url, headers=(*headers, *own.items()), body=body, timeout=timeout)

    def _judged(self, sendable: Sendable, exchange: Exchange, started_at: datetime) -> Tried:
        verdict = judge(exchange, attempt=sendable.attempts + 1, now=self._clock(), random=self._dice())
        shown = show_id("dlv", sendable.id)
        if exchange.error_class:
            mark(exchange.error_class)
        if verdict.state is DeliveryState.FAILED:
            log(logger, logging.WARNING, "delivery.failed", delivery=shown, error=exchange.error_class)
        return Tried(
            sendable=sendable,
            state=verdict.state,
            due_at=verdict.due_at,
            counted=verdict.counted,
            hint=verdict.hint,
            started_at=started_at,
            exchange=exchange,
            outcome=verdict.outcome,
        )

    async def _record(self, tried: Tried) -> None:
        """Write what came of it, waiting out an outage: a result that is lost would be a request made twice."""
        shown = show_id("dlv", tried.sendable.id)

        def failed(error: Exception) -> None:
            log(logger, logging.WARNING, "delivery.unrecorded", delivery=shown, error=type(error).__name__)

        if not await self._records.insist(tried, patience=_PATIENCE, failed=failed):
            log(logger, logging.INFO, "delivery.overtaken", delivery=shown)

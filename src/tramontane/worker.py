"""The worker: takes admitted jobs, makes attempts of them, and decides what follows from how they end."""

import asyncio
import dataclasses
import logging
import os
import random
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, Literal

import anyio

from tramontane.admission import AdmissionService
from tramontane.errors import (
    AttemptLost,
    ConfigurationError,
    InternalError,
    JobTimeout,
    RateLimited,
    SecretsLocked,
    TramontaneError,
    Truncated,
    UpstreamTimeout,
)
from tramontane.groups import GroupCommit
from tramontane.ids import new_id, show_id, utc_now
from tramontane.listener import OUTAGES
from tramontane.metrics import Metrics
from tramontane.models import Attempt, Ending, Failure, Job, Money, NewEvent, Requeue, State, WorkerInfo
from tramontane.prices import Prices
from tramontane.queue import Consumer, Entry, LeaveEntry
from tramontane.retry import Backoff, delay, may_retry
from tramontane.runner import Failed, Runner
from tramontane.settings import Settings
from tramontane.store import JobStore, LimitStore
from tramontane.tasks import beside
from tramontane.telemetry import log
from tramontane.tracing import Tracing, mark
from tramontane.wire import error_body

logger = logging.getLogger(__name__)

Hook = Callable[[Job], Awaitable[None] | None]
HookName = Literal["completed", "failed"]

#: A loop that was blocked this share of the heartbeat is about to lose its jobs.
_LAG_ALARM: Final = 0.3
#: What a write of an ending is worth: the answer is paid for, so an outage is waited out this long (seconds).
_ENDING_PATIENCE: Final = 60.0
#: Times in a row that a 429 gives a job back; from then on it counts as a failure.
_MOST_REFUSALS: Final = 20
#: A job that cannot be asked for here waits a second for another worker, then two, and in the end half a minute.
_ELSEWHERE, _MOST_DOUBLINGS = Backoff(delay=1.0), 5


class Worker:
    """Runs up to `settings.concurrency` jobs at a time, until `stop` or cancellation.

    consumer_of: makes the queue's consumer around our handler. wake: told of each job whose log grew, after the commit.
    unfit: told why this worker cannot do all of its work.
    """

    def __init__(
        self,
        jobs: JobStore,
        limits: LimitStore,
        consumer_of: Callable[[Callable[[Entry], Awaitable[None]]], Consumer],
        runner: Runner,
        admission: AdmissionService,
        settings: Settings,
        wake: Callable[[Job], None],
        prices: Prices | None = None,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
        unfit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.id = new_id()
        self._metrics = metrics = metrics or Metrics()
        self._tracing = tracing or Tracing()
        #: Set once nothing of it runs any more.
        self.ended = asyncio.Event()
        self._prices = prices or Prices()
        #: Models whose missing price was told.
        self._unpriced: set[str] = set()
        self._jobs = jobs
        self._limits = limits
        self._runner = runner
        self._admission = admission
        self._settings = settings
        self._wake = wake
        self._unfit = unfit
        self._hooks: defaultdict[str, list[Hook]] = defaultdict(list)
        self._running: set[anyio.CancelScope] = set()
        self._stopping = asyncio.Event()
        self._grace_over = False
        self._starts = GroupCommit[Entry, Attempt | Job | Exception | None](
            lambda entries: jobs.start(entries, worker_id=self.id, now=utc_now()),
            outages=OUTAGES,
            told=metrics.group("start"),
        )
        self._endings = GroupCommit[Ending, Job | AttemptLost](jobs.end, outages=OUTAGES, told=metrics.group("end"))
        self._consumer = consumer_of(self._handle)

    def on(self, name: HookName, hook: Hook) -> None:
        """Call `hook` with each job that this worker ends, once its ending is committed.

        A hook that fails is logged; it changes nothing. Raises ConfigurationError for an unknown name.
        """
        if name not in ("completed", "failed"):
            raise ConfigurationError(f"a worker has no event {name!r}: use 'completed' or 'failed'")
        self._hooks[name].append(hook)

    async def run(self) -> None:
        """Work until `stop`, then give what still runs its grace, and hand the rest back."""
        await self._register()
        log(logger, logging.INFO, "worker.started", worker=self.id, concurrency=self._settings.concurrency)
        self._admission.wake()
        try:
            async with beside(self._beat(), self._drain(), self._starts.run(), self._endings.run()):
                await self._consumer.run()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await self._limits.stop(self.id, utc_now())
            self.ended.set()

    async def _register(self) -> None:
        """Make this worker known, waiting out an outage."""
        while True:
            try:
                rate, window = self._settings.rate_limit, self._settings.limit_window
                await self._limits.register(self._info(), rate=rate, now=utc_now(), window=window)
            except OUTAGES as error:
                log(logger, logging.WARNING, "worker.register_failed", error=error)
                await asyncio.sleep(self._settings.poll)
            else:
                return

    def stop(self) -> None:
        """Take no more jobs."""
        self._stopping.set()
        self._consumer.stop()

    async def _drain(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._settings.grace)
        self._grace_over = True
        for scope in list(self._running):
            scope.cancel()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._settings.heartbeat / 4
        while True:
            asked = loop.time()
            await asyncio.sleep(interval)
            if (lag := loop.time() - asked - interval) > _LAG_ALARM * self._settings.heartbeat:
                log(logger, logging.WARNING, "worker.loop_blocked", seconds=round(lag, 3))
            try:
                await self._limits.beat(self.id, utc_now())
            except Exception as error:  # noqa: BLE001 - a beat that fails is followed by another
                log(logger, logging.WARNING, "worker.beat_failed", error=error)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            concurrency=self._settings.concurrency,
            heartbeat_seconds=self._settings.heartbeat,
            host=socket.gethostname(),
            pid=os.getpid(),
            deliveries=self._settings.webhook_concurrency,
        )

    async def _handle(self, entry: Entry) -> None:
        """One queue entry: an attempt, and what follows. Leaves the entry alone when in doubt."""
        try:
            attempt = await self._starts.add(entry)
            if isinstance(attempt, Exception):
                raise attempt
            if isinstance(attempt, Job):
                self._metrics.ended(attempt)
            elif attempt is not None:
                self._wake(attempt.job)
                self._metrics.started(attempt.job, now := utc_now())
                if self._settings.rate_limit:
                    self._admission.wake()  # only now does its place in the rate have a time
                with self._tracing.attempt(attempt.job, now):
                    await self._attempt(attempt)
        except AttemptLost as error:
            log(logger, logging.INFO, "attempt.lost", job=show_id("job", entry.key.id), error=error)
            raise LeaveEntry from None
        except Exception as error:  # noqa: BLE001
            # Most likely the database. The entry goes stale and is taken over, which counts as a crash.
            log(logger, logging.ERROR, "attempt.crashed", job=show_id("job", entry.key.id), error=error)
            raise LeaveEntry from None
        finally:
            self._admission.wake()

    async def _attempt(self, attempt: Attempt) -> None:
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            if self._grace_over:  # it was just being started when the others were told
                scope.cancel()
            try:
                outcome = await self._run(attempt)
            finally:
                self._running.discard(scope)
            await self._conclude(attempt, outcome)
            return
        # Only a shutdown cancels this scope: somebody else goes on, and it counts as no failure.
        await self._jobs.requeue(_requeue(attempt, "handover", None, seconds=0.0), utc_now())
        log(logger, logging.INFO, "job.handed_over", job=show_id("job", attempt.job.key.id))

    async def _run(self, attempt: Attempt) -> Ending | Failed:
        try:
            return await self._runner.run(attempt)
        except AttemptLost:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours ends the attempt, not the worker
            log(logger, logging.ERROR, "attempt.broken", job=show_id("job", attempt.job.key.id), error=error)
            return Failed(InternalError("a fault in Tramontane; its log tells more"), 0, unreported=True)

    async def _conclude(self, attempt: Attempt, outcome: Ending | Failed) -> None:
        if isinstance(outcome, Failed):
            mark(outcome.error.code)
            if isinstance(outcome.error, SecretsLocked):
                await self._leave_to_others(attempt, outcome.error)
                return
        job = attempt.job
        if isinstance(outcome, Failed) and (
            _sent_away(outcome.error, job) or may_retry(outcome.error, job.failures + 1, job.attempts)
        ):
            await self._retry(attempt, outcome)
            return
        ending = outcome if isinstance(outcome, Ending) else _failure(attempt, outcome)
        cost = self._cost(attempt, ending.own_usage, ending.at)
        job = await self._end(dataclasses.replace(ending, cost=cost))
        self._wake(job)
        self._metrics.ended(job)
        failed = {} if job.failure is None else {"code": job.failure.code}
        log(logger, logging.INFO, f"job.{job.state}", job=show_id("job", job.key.id), attempt=job.attempt, **failed)
        await self._call_hooks(job)

    async def _leave_to_others(self, attempt: Attempt, error: SecretsLocked) -> None:
        """Hand back what cannot be asked for without a key that others have: it is this worker that lacks something."""
        job = attempt.job
        times = min(job.attempt, 1 + _MOST_DOUBLINGS)
        seconds = delay(_ELSEWHERE, times, retry_after=None, random=random.random())  # noqa: S311
        requeue = _requeue(attempt, "handover", None, seconds=seconds)
        await self._jobs.requeue(dataclasses.replace(requeue, unreported=False), utc_now())
        self._unfit(error.message)
        shown = show_id("job", job.key.id)
        log(logger, logging.WARNING, "worker.secrets_locked", job=shown, seconds=round(seconds, 3), error=error)

    async def _retry(self, attempt: Attempt, failed: Failed) -> None:
        job, error = attempt.job, failed.error
        backoff = Backoff(kind="fixed" if job.backoff_kind == "fixed" else "exponential", delay=job.backoff_seconds)
        retry_after = getattr(error, "retry_after", None)
        if sent_away := _sent_away(error, job):
            # No failure, and nothing to double: from then on it is admission that knows when there is room.
            backoff = Backoff(kind="fixed", delay=self._settings.limit_window / 60)
        seconds = delay(backoff, job.failures + 1, retry_after=retry_after, random=random.random())  # noqa: S311
        now = utc_now()
        requeue = dataclasses.replace(_requeue(attempt, _reason(error), failed, seconds=seconds), refused=sent_away)
        cost = self._cost(attempt, requeue.usage, now)
        await self._jobs.requeue(dataclasses.replace(requeue, cost=cost), now)
        shown = show_id("job", job.key.id)
        log(logger, logging.INFO, "job.retries", job=shown, code=error.code, seconds=round(seconds, 3))

    def _cost(self, attempt: Attempt, usage: str | None, at: datetime) -> Money | None:
        """What an attempt has cost. A budget that does not count it for want of a price is told once per model."""
        model = attempt.job.model
        reported = attempt.money_counts and usage is not None
        if reported and model not in self._unpriced and not self._prices.knows(model, at):
            self._unpriced.add(model)
            log(logger, logging.WARNING, "budget.no_price", tenant=attempt.job.key.tenant, model=model)
        return self._prices.cost(model, usage, at)

    async def _end(self, ending: Ending) -> Job:
        """Write the ending, waiting out an outage: `end` may be repeated, and finds its own ending."""

        def failed(error: Exception) -> None:
            log(logger, logging.WARNING, "ending.failed", job=show_id("job", ending.key.id), error=error)

        outcome = await self._endings.insist(ending, patience=_ENDING_PATIENCE, failed=failed)
        if isinstance(outcome, AttemptLost):
            raise outcome
        return outcome

    async def _call_hooks(self, job: Job) -> None:
        for hook in self._hooks[job.state]:
            try:
                outcome = hook(job)
                if outcome is not None:
                    await outcome
            except Exception as error:  # noqa: BLE001 - a stranger's code
                log(logger, logging.ERROR, "hook.failed", hook=getattr(hook, "__qualname__", repr(hook)), error=error)


def _failure(attempt: Attempt, failed: Failed) -> Ending:
    error = failed.error
    failure = _failure_of(error)
    return Ending(
        key=attempt.job.key,
        attempt=attempt.job.attempt,
        entry_id=attempt.entry_id,
        state=State.FAILED,
        at=utc_now(),
        events=(NewEvent("error", error_body(failure, length=failed.length)),),
        usage=failed.usage,
        own_usage=failed.own_usage,
        unreported=failed.unreported,
        failure=failure,
        correlation_id=getattr(error, "correlation_id", None),
    )


def _requeue(attempt: Attempt, reason: str, failed: Failed | None, *, seconds: float) -> Requeue:
    return Requeue(
        key=attempt.job.key,
        attempt=attempt.job.attempt,
        entry_id=attempt.entry_id,
        run_at=utc_now() + timedelta(seconds=seconds),
        reason=reason,
        failure=_failure_of(failed.error) if failed else None,
        correlation_id=getattr(failed and failed.error, "correlation_id", None),
        usage=failed.own_usage if failed else None,
        unreported=failed is None or failed.unreported,
    )


def _sent_away(error: TramontaneError, job: Job) -> bool:
    """Mistral had no room for it, which says nothing against the job: until that has become a habit."""
    return isinstance(error, RateLimited) and job.refusals < _MOST_REFUSALS


def _failure_of(error: TramontaneError) -> Failure:
    return Failure(code=error.code, message=error.message, retryable=error.retryable)


def _reason(error: TramontaneError) -> str:
    """What readers are told of why another attempt begins."""
    match error:
        case UpstreamTimeout():
            return "stall"
        case Truncated():
            return "truncated"
        case JobTimeout():
            return "timeout"
        case _:
            return "upstream"

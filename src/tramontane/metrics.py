"""What a process counts, for Prometheus. One registry per process' app: nothing is global.

Labels are few and bounded: no tenant, no id, no word of what was said; of models the first
hundred that Mistral has answered, by name.
"""

from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Final, Self

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from tramontane.errors import TramontaneError
from tramontane.models import Census, Job

_CALLS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_FIRST_TOKENS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 4, 8, 16, 32, 64, 128)
_WAITS: Final = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21600, 86400)
_SENDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_GROUPS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_MODELS: Final = 100


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


_decode_usage = msgspec.json.Decoder(_Usage).decode


class Metrics:
    """The instruments of one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        self._models: set[str] = set()

        def counter(name: str, help: str, *labels: str) -> Counter:  # noqa: A002
            return Counter(name, help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:  # noqa: A002
            return Gauge(name, help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:  # noqa: A002
            return Histogram(name, help, labels, buckets=buckets, registry=registry)

        self._requests = counter("mistral_requests", "calls, by the status that Mistral answered", "model", "status")
        self._errors = counter("mistral_errors", "calls that failed", "model", "code", "status")
        self._durations = histogram("mistral_request_duration_seconds", "from call to end", _CALLS, "model")
        self._first = histogram("mistral_time_to_first_token_seconds", "from call to token", _FIRST_TOKENS, "model")
        self._tokens = counter("mistral_tokens", "as Mistral reports them", "model", "direction")
        self._cost = counter("mistral_cost", "of ended jobs, by the price table", "model", "currency")
        self._ended = counter("tramontane_jobs_ended", "jobs that this process has ended", "state", "code")
        self._waits = histogram("tramontane_admission_wait_seconds", "from when a job may run to when it does", _WAITS)
        self._deliveries = counter("tramontane_deliveries", "webhooks tried, by what came of it", "outcome")
        self._sends = histogram("tramontane_delivery_duration_seconds", "of one POST of a webhook", _SENDS)
        self._groups = histogram("tramontane_commit_group_size", "what shares one transaction", _GROUPS, "writer")
        self._jobs = gauge("tramontane_jobs", "jobs that have not ended; above 10,000 an estimate", "state")
        self._oldest = gauge("tramontane_oldest_waiting_seconds", "how long the job that waits longest may run already")
        self._backlog = gauge("tramontane_deliveries_open", "webhooks to be sent; above 10,000 an estimate", "state")
        self._workers = gauge("tramontane_workers", "workers of the fleet that are alive")
        self._slots = gauge("tramontane_worker_slots", "jobs that they can run at a time")
        self._lag = gauge("tramontane_loop_lag_seconds", "longest that the event loop was held up since the last look")
        self._watched: dict[str, Gauge] = {}
        self._worst_lag = 0.0

    def call(self, model: str, clock: Callable[[], float]) -> "Call":
        """Measure one call to Mistral: `with metrics.call(model, loop.time) as call:`."""
        return Call(self, model, clock)

    def started(self, job: Job, now: datetime) -> None:
        """An attempt has begun."""
        self._waits.observe(max(0.0, (now - max(job.created_at, job.run_at)).total_seconds()))

    def ended(self, job: Job) -> None:
        """This process has ended a job, and that is committed."""
        self._ended.labels(job.state.value, job.failure.code if job.failure else "").inc()
        if job.cost is not None:
            self.know(job.model)  # it is a price of what Mistral reported
            self._cost.labels(self._label(job.model), job.currency or "").inc(float(job.cost))

    def delivered(self, outcome: str, seconds: float | None) -> None:
        """A webhook was tried; `seconds` is None when nothing was sent."""
        self._deliveries.labels(outcome).inc()
        if seconds is not None:
            self._sends.observe(seconds)

    def group(self, writer: str) -> Callable[[int], None]:
        """What tells the sizes of a writer's groups."""
        return self._groups.labels(writer).observe

    def lag(self, seconds: float) -> None:
        """The event loop was held up so long."""
        self._worst_lag = max(self._worst_lag, seconds)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:  # noqa: A002
        """A gauge whose value is asked for when somebody looks."""
        self._watched[name] = gauge = Gauge(name, help, registry=self._registry)
        gauge.set_function(value)

    def page(self, census: Census | None, now: datetime) -> bytes:
        """Everything in the text format. Without a census the fleet's figures are left as they were."""
        if census is not None:
            for state, number in census.jobs.items():
                self._jobs.labels(state).set(number)
            for state, number in census.deliveries.items():
                self._backlog.labels(state).set(number)
            waiting = census.oldest_at and (now - census.oldest_at).total_seconds()
            self._oldest.set(max(0.0, waiting or 0.0))
            self._workers.set(census.workers)
            self._slots.set(census.slots)
        self._lag.set(self._worst_lag)
        self._worst_lag = 0.0
        return generate_latest(self._registry)

    def called(self, call: "Call", status: str, code: str | None) -> None:
        """For the call: it is over."""
        model = self._label(call.model)
        self._requests.labels(model, status).inc()
        self._durations.labels(model).observe(call.seconds)
        if code is not None:
            self._errors.labels(model, code, status).inc()

    def began(self, call: "Call") -> None:
        """For the call: its first token is here."""
        self._first.labels(self._label(call.model)).observe(call.seconds)

    def charged(self, call: "Call", usage: bytes) -> None:
        """For the call: what Mistral reports."""
        try:
            tokens = _decode_usage(usage)
        except msgspec.MsgspecError:
            return
        model = self._label(call.model)
        self._tokens.labels(model, "input").inc(max(0, tokens.prompt_tokens))
        self._tokens.labels(model, "output").inc(max(0, tokens.completion_tokens))

    def know(self, model: str) -> None:
        """Mistral has answered for that model, so its name is one of those that there are."""
        if len(self._models) < _MODELS:
            self._models.add(model)

    def _label(self, model: str) -> str:
        """The model as a label: callers may name any, and each would be a time series for ever."""
        return model if model in self._models else "other"


class Call:
    """One call to Mistral, measured from here to the end of the block; it counts as what is raised there."""

    def __init__(self, metrics: Metrics, model: str, clock: Callable[[], float]) -> None:
        self.model = model
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self._silent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.answered()
            self._metrics.called(self, "200", None)
            return
        status = getattr(error, "status", None)
        self._metrics.called(self, str(status or "none"), code_of(error))

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def answered(self) -> None:
        """Mistral answers, whatever becomes of it: 200."""
        self._metrics.know(self.model)

    def token(self) -> None:
        """A token is here; only the first one counts."""
        if self._silent:
            self._silent = False
            self._metrics.began(self)

    def usage(self, raw: bytes) -> None:
        """What Mistral reports of it."""
        self._metrics.charged(self, raw)


def code_of(error: BaseException) -> str:
    """One word for what was raised, from a closed list."""
    if isinstance(error, TramontaneError):
        return error.code
    if isinstance(error, TimeoutError):
        return "timeout"
    return "interrupted" if not isinstance(error, Exception) else "internal"

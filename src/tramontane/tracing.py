"""Traces: one from the submit through wait, attempt and call to the webhook's receiver. OpenTelemetry's API alone.

Without its SDK in the process every span is a no-op of some microseconds, and a `traceparent` that came with a submit
still goes out with the webhooks. Attributes are those of OpenTelemetry's conventions for generative AI, and ours as
`tramontane.…`: ids and numbers, never a word of what was asked or answered.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import Final

import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, get_current_span, get_tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tramontane.errors import TramontaneError
from tramontane.ids import show_id
from tramontane.models import Job

_HEADER: Final = "traceparent"
_propagator: Final = TraceContextTextMapPropagator()


class Tracing:
    """Makes our spans. provider: the process' own when None."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("tramontane", version("tramontane"), tracer_provider=provider)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """The span of a request to us, in the trace that its headers name."""
        with self._span(name, _context(headers.get(_HEADER)), SpanKind.SERVER) as span:
            yield span

    @contextmanager
    def attempt(self, job: Job, now: datetime) -> Iterator[Span]:
        """The span of an attempt, in the trace of its submit, after one of the time that it waited."""
        context = _context(job.trace_context)
        since = min(max(job.created_at, job.run_at), now)
        self._tracer.start_span("wait", context, start_time=_nanoseconds(since)).end(_nanoseconds(now))
        with self._span(f"attempt {job.kind}", context, SpanKind.CONSUMER) as span:
            if span.is_recording():
                span.set_attribute("tramontane.job.id", show_id("job", job.key.id))
                span.set_attribute("tramontane.job.attempt", job.attempt)
                span.set_attribute("tramontane.request.id", job.request_id)
            yield span

    @contextmanager
    def chat(self, model: str) -> Iterator["Chat"]:
        """The span of a call to Mistral."""
        with self._span(f"chat {model}", None, SpanKind.CLIENT) as span:
            if span.is_recording():
                span.set_attribute("gen_ai.operation.name", "chat")
                span.set_attribute("gen_ai.provider.name", "mistral_ai")
                span.set_attribute("gen_ai.request.model", model)
                span.set_attribute("gen_ai.request.stream", True)
            yield Chat(span)

    @contextmanager
    def delivery(self, event: str, trace_context: str | None, *, attempt: int) -> Iterator[Span]:
        """The span of one POST of a webhook, in the trace of the job that it tells of."""
        with self._span(f"webhook {event}", _context(trace_context), SpanKind.CLIENT) as span:
            span.set_attribute("http.request.method", "POST")
            span.set_attribute("http.request.resend_count", attempt - 1)
            yield span

    @contextmanager
    def _span(self, name: str, context: Context | None, kind: SpanKind) -> Iterator[Span]:
        # An exception's own words may quote what they choked on: its code is all that a trace is told.
        with self._tracer.start_as_current_span(
            name, context, kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                mark(error.code if isinstance(error, TramontaneError) else type(error).__name__, span)
                raise


class Chat:
    """The span of a call, and what its answer says."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, completion: Callable[[], bytes], usage: bytes | None, correlation_id: str | None) -> None:
        """What came of it: Mistral's object, of which only model and reasons are told, and its usage."""
        if not self._span.is_recording():
            return
        answer = msgspec.json.decode(completion(), type=_Answer)
        tokens = msgspec.json.decode(usage, type=_Usage) if usage else _Usage()
        reasons = [choice.finish_reason for choice in answer.choices if choice.finish_reason]
        facts = {
            "gen_ai.response.model": answer.model,
            "gen_ai.response.id": answer.id,
            "gen_ai.response.finish_reasons": reasons or None,
            "gen_ai.usage.input_tokens": tokens.prompt_tokens,
            "gen_ai.usage.output_tokens": tokens.completion_tokens,
            "tramontane.mistral.correlation_id": correlation_id,
        }
        self._span.set_attributes({name: value for name, value in facts.items() if value is not None})


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] = []


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def mark(code: str, span: Span | None = None) -> None:
    """Mark a span, the present one if none is given, as failed, in one word."""
    span = span or get_current_span()
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def current() -> str | None:
    """The `traceparent` of where we are, to be kept or sent; None outside of any trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get(_HEADER)


def _context(traceparent: str | None) -> Context:
    """Where a trace goes on; a header that is none begins a new one."""
    return _propagator.extract({_HEADER: traceparent} if traceparent else {}, Context())


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000

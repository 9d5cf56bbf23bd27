"""Traces: one from a submit over HTTP to the header that a webhook's receiver sees."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.fernet import Fernet
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

from tramontane.api import serving
from tramontane.app import open_app
from tramontane.ids import read_id
from tramontane.models import JobKey
from tramontane.ports import listen_on, url_of
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator
from tramontane.tracing import Tracing, current

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
QUESTION = "a question that no span may quote"


class Traced:
    """A server, a receiver of its webhooks, and the spans that were made."""

    def __init__(
        self, url: str, hook: str, headers: asyncio.Queue[dict[str, str]], spans: InMemorySpanExporter
    ) -> None:
        self.url = url
        self.hook = hook
        self.headers = headers
        self.exporter = spans

    async def run(self, *, traceparent: str | None = PARENT) -> dict[str, str]:
        """One job, to its webhook's headers."""
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "callback": {"url": self.hook, "secret": "12345678"},
        }
        headers = {"traceparent": traceparent} if traceparent else {}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/api/jobs", json=body, headers=headers) as response,
        ):
            assert response.status == 202, await response.text()
        async with asyncio.timeout(10):
            return await self.headers.get()

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@asynccontextmanager
async def traced(simulator: Simulator, database_url: str, tracing: Tracing, spans: Any = None) -> AsyncIterator[Traced]:
    seen: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        seen.put_nowait(dict(request.headers))
        return web.Response(status=204)

    application = web.Application()
    application.router.add_post("/", take)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    settings = Settings(
        database_url=database_url,
        mistral_server_url=simulator.url,
        mistral_api_key="a-key",
        rate_limit=0.0,
        grace=5.0,
        backoff=0.01,
        encryption_keys=(Fernet.generate_key().decode(),),
        webhook_allow_cidrs=(ip_network("127.0.0.0/8"),),
    )
    try:
        with listen_on("127.0.0.1", 0) as bound:
            async with open_app(settings, worker=True, tracing=tracing) as app, serving(app, bound):
                hook = f"http://127.0.0.1:{runner.addresses[0][1]}/"
                yield Traced(url_of(bound), hook, seen, spans)
    finally:
        await runner.cleanup()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_one_trace_leads_from_the_submit_to_the_receiver_of_the_webhook(
    simulator: Simulator, database_url: str, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with traced(simulator, database_url, tracing, exporter) as server:
        headers = await server.run()
    spans = server.spans()
    submit, wait, attempt = spans["submit"], spans["wait"], spans["attempt chat"]
    chat, webhook = spans["chat mistral-small-latest"], spans["webhook chat.completed"]
    assert {format_trace_id(span.context.trace_id) for span in spans.values() if span.context} == {TRACE}
    assert (submit.kind, parent(submit)) == (SpanKind.SERVER, int("00f067aa0ba902b7", 16))
    assert submit.context is not None
    assert [parent(span) for span in (wait, attempt, webhook)] == [submit.context.span_id] * 3
    assert attempt.context is not None
    assert (chat.kind, parent(chat)) == (SpanKind.CLIENT, attempt.context.span_id)
    assert webhook.context is not None
    assert headers["traceparent"] == f"00-{TRACE}-{webhook.context.span_id:016x}-01"
    assert wait.start_time is not None
    assert wait.end_time is not None
    assert attempt.start_time is not None
    assert wait.start_time <= wait.end_time <= attempt.start_time


async def test_a_call_is_described_by_the_conventions_and_nothing_of_it_is_quoted(
    simulator: Simulator, database_url: str, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with traced(simulator, database_url, tracing, exporter) as server:
        await server.run()
    chat = server.spans()["chat mistral-small-latest"].attributes or {}
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.provider.name"] == "mistral_ai"
    assert chat["gen_ai.request.model"] == "mistral-small-latest"
    assert chat["gen_ai.response.model"]
    assert chat["gen_ai.response.finish_reasons"] == ("stop",)
    assert isinstance(tokens := chat["gen_ai.usage.input_tokens"], int)
    assert tokens > 0
    assert isinstance(tokens := chat["gen_ai.usage.output_tokens"], int)
    assert tokens > 0
    shown = " ".join(span.to_json() for span in exporter.get_finished_spans())
    assert QUESTION not in shown
    assert "12345678" not in shown
    for call in simulator.ledger:
        assert "traceparent" not in str(call).lower(), "Mistral is told nothing of our traces"


async def test_a_failure_is_one_word_on_its_span_and_the_next_attempt_is_in_the_same_trace(
    simulator: Simulator, database_url: str, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    simulator.script(Behaviour(status=503))
    async with traced(simulator, database_url, tracing, exporter) as server:
        await server.run()
    attempts = [span for span in exporter.get_finished_spans() if span.name == "attempt chat"]
    calls = [span for span in exporter.get_finished_spans() if span.name.startswith("chat ")]
    for first, second in (attempts, calls):
        assert first.status.status_code is StatusCode.ERROR
        assert (first.attributes or {})["error.type"] == "upstream_unavailable"
        assert not first.status.description
        assert not first.events
        assert second.status.status_code is not StatusCode.ERROR
    assert [(span.attributes or {})["tramontane.job.attempt"] for span in attempts] == [1, 2]


async def test_a_submit_without_a_trace_begins_one(
    simulator: Simulator, database_url: str, tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    async with traced(simulator, database_url, tracing, exporter) as server:
        headers = await server.run(traceparent=None)
    submit = server.spans()["submit"]
    assert submit.parent is None
    assert submit.context is not None
    assert format_trace_id(submit.context.trace_id) in headers["traceparent"]


@pytest.mark.parametrize("given", [PARENT, None, "00-zz-not-a-trace", "é" * 300])
async def test_without_the_sdk_a_trace_that_came_with_the_submit_is_passed_on(
    simulator: Simulator, database_url: str, given: str | None
) -> None:
    async with traced(simulator, database_url, Tracing()) as server:
        headers = await server.run(traceparent=given)
    assert headers.get("traceparent") == (PARENT if given == PARENT else None)


@pytest.mark.parametrize("way", ["retry", "retry by filter", "run of a schedule", "bulk"])
async def test_every_request_that_makes_jobs_is_a_span_and_they_go_on_in_its_trace(
    simulator: Simulator, database_url: str, tracing: Tracing, exporter: InMemorySpanExporter, way: str
) -> None:
    job = {"messages": [{"role": "user", "content": QUESTION}]}
    settings = Settings(database_url=database_url, mistral_server_url=simulator.url, mistral_api_key="a-key")
    async with (
        open_app(settings, worker=False, tracing=tracing) as app,
        aiohttp.ClientSession() as session,
    ):
        bound = listen_on("127.0.0.1", 0)
        async with serving(app, bound):

            async def post(path: str, json: Any = None, **headers: str) -> Any:
                async with session.post(f"{url_of(bound)}/api{path}", json=json, headers=headers) as response:
                    assert response.status < 300, await response.text()
                    return await response.json()

            ended = (await post("/jobs", job))["jobId"]
            await post(f"/jobs/{ended}/cancel")
            schedule = (await post("/schedules", {"name": "a", "cron": "0 0 1 1 *", "job": job}))["scheduleId"]
            exporter.clear()
            match way:
                case "retry":
                    made = await post(f"/jobs/{ended}/retry", traceparent=PARENT)
                case "retry by filter":
                    [made] = (await post("/jobs/retry", {"status": "cancelled"}, traceparent=PARENT))["jobs"]
                case "run of a schedule":
                    made = await post(f"/schedules/{schedule}/run", traceparent=PARENT)
                case _:
                    [made] = (await post("/jobs/bulk", [job], traceparent=PARENT))["jobs"]
            kept = await app.jobs.get(JobKey(tenant="default", id=read_id("job", made["jobId"])))

    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind, parent(span)) == ("submit", SpanKind.SERVER, int("00f067aa0ba902b7", 16))
    assert span.context is not None
    assert kept.trace_context == f"00-{TRACE}-{span.context.span_id:016x}-01"


def test_outside_of_any_trace_there_is_none_to_carry() -> None:
    assert current() is None


def test_a_log_line_names_the_trace_that_it_is_part_of(tracing: Tracing, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from tramontane.telemetry import log

    logger = logging.getLogger("tramontane.test")
    with tracing.request("submit", {"traceparent": PARENT}):
        log(logger, logging.WARNING, "something.happened", job="job_1")
    log(logger, logging.WARNING, "something.else")
    fields: Sequence[Any] = [record.__dict__["fields"] for record in caplog.records]
    assert fields == [{"job": "job_1", "trace": TRACE}, {}]

"""A Job against a server that follows a script: turns of a stream that a good server takes rarely, or never."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from tramontane import Job, StreamAttempt, StreamChunk, Tramontane, TramontaneSync, errors
from tramontane.client import ProtocolGap, Unreachable
from tramontane.client.problems import failure
from tramontane.errors import (
    ConfigurationError,
    Interrupted,
    InvalidInput,
    JobError,
    MistralError,
    NotFound,
    StreamExpired,
    UpstreamTimeout,
)

RESULT = {
    "jobId": "job_1",
    "requestId": "req_1",
    "content": "Le vent tourne",
    "usage": None,
    "completedAt": "2026-11-22T06:46:00.123Z",
    "finishReason": "stop",
    "completion": {"id": "1"},
}


def frames(*events: dict[str, Any]) -> bytes:
    """A stream of these events, numbered from 1; `type` is their name."""
    blocks = [b"retry: 1\n: tramontane 1 hb=15000\n\n"]
    for seq, event in enumerate(events, 1):
        fields = {"jobId": "job_1", "seq": seq, "attempt": 1} | event
        blocks.append(b"event: %s\ndata: %s\nid: %d\n\n" % (event["type"].encode(), msgspec.json.encode(fields), seq))
    return b"".join(blocks)


def chunk(off: int, content: str) -> dict[str, Any]:
    return {"type": "chunk", "off": off, "content": content}


def complete(text: str) -> dict[str, Any]:
    return {"type": "complete", "len": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


@asynccontextmanager
async def telling(*events: dict[str, Any], job: Iterator[Any] | None = None) -> AsyncIterator[Job]:
    """A job whose stream is these events, and whose answers to GET are `job`."""

    async def stream(_: web.Request) -> web.Response:
        return web.Response(body=frames(*events), content_type="text/event-stream")

    async def get(_: web.Request) -> web.Response:
        return web.json_response(next(job or iter([])))

    async with served([web.get("/api/jobs/job_1/events", stream), web.get("/api/jobs/job_1", get)]) as t:
        yield t.job("job_1")


@asynccontextmanager
async def served(routes: list[web.RouteDef]) -> AsyncIterator[Tramontane]:
    """A client of a server with these routes."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with Tramontane(f"http://127.0.0.1:{runner.addresses[0][1]}") as t:
            yield t
    finally:
        await runner.cleanup()


async def test_an_attempt_that_goes_on_takes_nothing_back() -> None:
    events = [chunk(0, "Le vent "), {"type": "attempt", "attempt": 2, "keep": 8, "mode": "continue"}]
    async with telling({"type": "start"}, *events, chunk(8, "tourne"), complete("Le vent tourne")) as job:
        assert [piece async for piece in job.pieces()] == ["Le vent ", "tourne"]


async def test_pieces_that_were_taken_back_are_not_given_twice_when_they_are_said_again() -> None:
    again = [{"type": "attempt", "attempt": 2, "keep": 0}, chunk(0, "Le "), chunk(3, "vent tour"), chunk(12, "ne")]
    async with telling({"type": "start"}, chunk(0, "Le vent "), *again, complete("Le vent tourne")) as job:
        assert [piece async for piece in job.pieces()] == ["Le vent ", "tour", "ne"]


@pytest.mark.parametrize("said", ["Le mistral", "Le"])
async def test_pieces_that_were_taken_back_and_are_not_said_again_are_an_error(said: str) -> None:
    again = [{"type": "attempt", "attempt": 2, "keep": 0}, chunk(0, said), complete(said)]
    async with telling({"type": "start"}, chunk(0, "Le vent"), *again) as job:
        with pytest.raises(Interrupted, match="not what it said before"):
            async for _ in job.pieces():
                pass


async def test_events_say_what_was_taken_back_and_the_text_follows() -> None:
    again = {"type": "attempt", "attempt": 2, "keep": 3, "mode": "restart", "reason": "worker_lost", "of_tomorrow": 1}
    rest = [again, chunk(3, "mistral"), complete("Le mistral")]
    async with telling({"type": "start"}, chunk(0, "Le vent"), *rest) as job:
        texts = []
        async with aclosing(job.events()) as events:
            async for event in events:
                texts.append(job.text)
                if isinstance(event, StreamAttempt):
                    assert (event.attempt, event.keep, event.mode, event.reason) == (2, 3, "restart", "worker_lost")
    assert texts == ["", "Le vent", "Le ", "Le mistral", "Le mistral"]


async def test_events_of_a_later_version_are_passed_over() -> None:
    later = {"type": "image", "url": "…"}
    async with telling({"type": "start"}, later, chunk(0, "vent"), complete("vent")) as job:
        assert [event.seq async for event in job.events()] == [1, 3, 4]


async def test_an_event_without_its_fields_is_a_gap() -> None:
    async with telling({"type": "start", "attempt": "first"}) as job:
        with pytest.raises(ProtocolGap, match="none of ours"):
            async for _ in job.events():
                pass


async def test_a_result_is_waited_for_as_long_as_it_takes() -> None:
    running = {"completedAt": None, "error": None, "result": None}
    ended = {"completedAt": RESULT["completedAt"], "error": None, "result": RESULT}
    async with telling(job=iter([running, running, ended])) as job:
        result = await job
        assert await job is result
    assert (str(result), result.completion, result.completed_at.microsecond) == ("Le vent tourne", {"id": "1"}, 123000)


async def test_a_log_that_is_past_its_retention_names_the_job_that_has_the_result() -> None:
    async def expired(_: web.Request) -> web.Response:
        problem = {"code": "stream_expired", "detail": "past its retention", "statusUrl": "/api/jobs/job_1"}
        return web.json_response(problem, status=410)

    async with served([web.get("/api/jobs/job_1/events", expired)]) as t:
        with pytest.raises(StreamExpired, match="past its retention") as raised:
            await anext(t.job("job_1").events())
    assert raised.value.job_id == "job_1"


async def test_the_result_of_an_erased_job_is_not_there() -> None:
    erased = {"completedAt": RESULT["completedAt"], "error": None, "result": None}
    async with telling(job=iter([erased])) as job:
        with pytest.raises(NotFound, match="erased"):
            await job


async def test_a_chunk_knows_where_it_begins() -> None:
    async with telling({"type": "start"}, chunk(0, "vent"), complete("vent")) as job:
        [told] = [event async for event in job.events() if isinstance(event, StreamChunk)]
    assert (told.from_seq, told.seq, told.off, told.content, told.thinking) == (2, 2, 0, "vent", None)


def kinds(kind: type[errors.TramontaneError]) -> Iterator[type[errors.TramontaneError]]:
    for special in kind.__subclasses__():
        yield special
        yield from kinds(special)


@pytest.mark.parametrize("kind", [*kinds(JobError), *kinds(MistralError)])
def test_every_error_of_a_job_comes_back_as_itself(kind: type[errors.TramontaneError]) -> None:
    error = UpstreamTimeout("first_token", 2.5) if kind is UpstreamTimeout else kind("it says why")
    back = failure({"code": error.code, "message": error.message, "retryable": error.retryable}, "job_1")

    assert type(back) is kind
    assert (vars(back) | {"__notes__": None}) == (vars(error) | {"__notes__": None})
    assert back.__notes__ == ["job_1"]


def test_an_error_of_a_later_version_keeps_its_code() -> None:
    error = failure({"code": "of_tomorrow", "message": "it says why", "retryable": True}, "job_1")
    assert (type(error), error.code, error.retryable, str(error)) == (JobError, "of_tomorrow", True, "it says why")
    assert JobError.code != "of_tomorrow"


@pytest.mark.parametrize("url", ["localhost:8787", "ftp://localhost", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="http:// or https://"):
        Tramontane(url)


def test_settings_are_for_an_engine_here_and_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    with pytest.raises(TypeError, match="concurrency"):
        Tramontane("http://localhost:8787", concurrency=3)
    with pytest.raises(TypeError, match="no setting 'concurency'"):
        Tramontane(concurency=3)
    with pytest.raises(ConfigurationError, match="'soon' is not a duration"):
        Tramontane(poll="soon")
    with pytest.raises(ConfigurationError, match="MISTRAL_API_KEY is not set"):
        Tramontane()
    assert Tramontane(worker=False)


async def test_no_verb_works_outside_the_block() -> None:
    closed = Tramontane("http://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="inside `async with`"):
        await closed.submit("Hello!")
    with pytest.raises(RuntimeError, match="inside `async with`"):
        closed.map(["Hello!"])
    with pytest.raises(RuntimeError, match="inside `with`"):
        TramontaneSync("http://127.0.0.1:1").cancel("job_1")


async def test_a_port_where_nobody_listens_is_said_at_once() -> None:
    async with Tramontane("http://127.0.0.1:1", patience=60) as t:
        with pytest.raises(Unreachable, match=r"no Tramontane server answers at http://127.0.0.1:1: "):
            await t.submit("Hello!")
        with pytest.raises(Unreachable):
            await t.map(["Hello!"])

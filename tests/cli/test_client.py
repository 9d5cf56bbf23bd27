"""ApiClient against servers that cut, drain and refuse, on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from tramontane.client import ApiClient, EventStream, ProtocolGap, Unreachable
from tramontane.errors import (
    ConfigurationError,
    IdempotencyMismatch,
    InternalError,
    InvalidCursor,
    InvalidInput,
    JobNotEnded,
    KeyRefused,
    NotAllowed,
    NotFound,
    ScopeMissing,
    SecretsLocked,
    StreamExpired,
    TramontaneError,
)

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}
EVENTS = 12


def frame(seq: int, **more: object) -> bytes:
    kind = "start" if seq == 1 else "complete" if seq == EVENTS else "chunk"
    data = msgspec.json.encode({"type": f"chat:{kind}", "jobId": "job_1", "seq": seq, **more})
    return b"event: %s\ndata: %s\nid: %d\n\n" % (kind.encode(), data, seq)


OPENING = b"retry: 1\n: tramontane 1 hb=15000\n\n"
LOG = [frame(seq) for seq in range(1, EVENTS + 1)]


class Cutting:
    """Serves one job's log; each response is cut after the next of `sizes` bytes, and whole when they are spent."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.posts: list[str] = []
        self.cursors: list[int] = []

    async def post(self, request: web.Request) -> web.StreamResponse:
        self.posts.append(request.headers["idempotency-key"])
        return await self._send(request, 0)

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.cursors.append(int(request.headers["last-event-id"]))
        if self.cursors[-1] == EVENTS:
            return web.Response(status=204)
        return await self._send(request, self.cursors[-1])

    async def _send(self, request: web.Request, after: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-job-id": "job_1"})
        body = OPENING + b"".join(LOG[after:])
        size = self.sizes.pop(0) if self.sizes else len(body)
        assert request.transport
        if size == 0:
            request.transport.abort()
            return response
        await response.prepare(request)
        await response.write(body[:size])
        if size < len(body):
            await asyncio.sleep(0)
            request.transport.abort()
        return response


@asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[str]:
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_log(sizes: list[int]) -> AsyncIterator[tuple[str, Cutting]]:
    log = Cutting(sizes)
    routes = (web.post("/api/chat/stream", log.post), web.get("/api/jobs/job_1/events", log.get))
    async with serving(*routes, web.get("/healthz", _ok)) as url:
        yield url, log


@asynccontextmanager
async def following(route: web.RouteDef) -> AsyncIterator[EventStream]:
    async with serving(route) as url, ApiClient(url) as client, client.follow("job_1") as events:
        yield events


async def _ok(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@pytest.mark.parametrize("first", range(5))
async def test_a_stream_that_is_cut_anywhere_loses_and_repeats_nothing(first: int) -> None:
    async with serving_log([]) as (url, log), ApiClient(url) as client:
        assert await client.answers()
        for size in range(first, len(OPENING + b"".join(LOG)), 5):
            log.posts.clear()
            log.sizes = [size, 300, 300]
            async with client.chat_stream(HELLO) as events:
                assert [event.seq async for event in events] == list(range(1, EVENTS + 1)), size
            assert len(set(log.posts)) == 1, "one job"


async def test_a_post_that_gets_no_answer_is_repeated_under_its_own_key() -> None:
    async with serving_log([]) as (url, log), ApiClient(url) as client:
        assert await client.answers()
        log.sizes = [0, 0]
        async with client.chat_stream(HELLO) as events:
            read = [event.seq async for event in events]

    assert read == list(range(1, EVENTS + 1))
    assert len(log.posts) >= 3
    assert len(set(log.posts)) == 1


async def test_once_the_server_has_taken_the_job_it_is_only_read() -> None:
    cut = len(OPENING) + len(LOG[0]) + 5
    async with serving_log([cut]) as (url, log), ApiClient(url) as client, client.chat_stream(HELLO) as events:
        read = [event.seq async for event in events]

    assert read == list(range(1, EVENTS + 1))
    assert len(log.posts) == 1
    assert log.cursors == [1]


async def test_a_cursor_on_the_last_event_is_the_end() -> None:
    async with serving_log([]) as (url, _), ApiClient(url) as client, client.follow("job_1", EVENTS) as events:
        assert [event async for event in events] == []


async def test_a_server_that_drains_is_come_back_to() -> None:
    whole = OPENING + b"".join(LOG)
    drained = whole[: len(OPENING) + sum(map(len, LOG[:4]))] + b"retry: 2\n\n"
    answers = [drained, OPENING + b"".join(LOG[4:])]

    async def events_of(request: web.Request) -> web.Response:
        return web.Response(body=answers.pop(0), content_type="text/event-stream")

    async with following(web.get("/api/jobs/job_1/events", events_of)) as events:
        assert [event.seq async for event in events] == list(range(1, EVENTS + 1))


async def test_a_hole_in_the_log_is_asked_for_once_and_then_an_error() -> None:
    asked = 0

    async def holed(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=OPENING + LOG[0] + LOG[2] + LOG[3], content_type="text/event-stream")

    async with following(web.get("/api/jobs/job_1/events", holed)) as events:
        assert (await anext(events)).seq == 1
        with pytest.raises(ProtocolGap, match="skips from event 1 to 3"):
            await anext(events)

    assert asked == 2


async def test_what_a_server_tells_twice_is_heard_once() -> None:
    answers = [OPENING + b"".join(LOG[:5]), OPENING + b"".join(LOG)]

    async def forgetful(_: web.Request) -> web.Response:
        return web.Response(body=answers.pop(0), content_type="text/event-stream")

    async with following(web.get("/api/jobs/job_1/events", forgetful)) as events:
        assert [event.seq async for event in events] == list(range(1, EVENTS + 1))


async def test_a_frame_may_cover_a_range() -> None:
    body = OPENING + LOG[0] + frame(4, **{"from": 2})

    async def merged(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="text/event-stream")

    async with following(web.get("/api/jobs/job_1/events", merged)) as events:
        assert [(await anext(events)).seq for _ in range(2)] == [1, 4]


async def test_a_server_that_never_answered_is_not_waited_for() -> None:
    async with serving() as url:
        pass
    async with ApiClient(url) as client:
        assert not await client.answers()
        with pytest.raises(Unreachable, match=f"no Tramontane server answers at {url}"):
            await client.submit(HELLO)


async def test_one_that_has_answered_before_is_waited_for_as_long_as_agreed() -> None:
    asked = 0

    async def gone(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=503)

    routes = (web.get("/healthz", _ok), web.post("/api/jobs", gone))
    async with serving(*routes) as url, ApiClient(url, patience=0.05) as client:
        assert await client.answers()
        with pytest.raises(Unreachable, match="no Tramontane server answers"):
            await client.submit(HELLO)

    assert asked >= 2


async def test_a_server_that_takes_connections_is_there_even_when_it_breaks_the_first() -> None:
    async with serving_log([0]) as (url, log), ApiClient(url) as client, client.chat_stream(HELLO) as events:
        assert [event.seq async for event in events] == list(range(1, EVENTS + 1))

    assert len(log.posts) >= 2


async def test_what_may_be_asked_again_is_until_it_is_answered() -> None:
    answers = [web.Response(status=502), web.Response(status=429, headers={"retry-after": "0"})]

    async def job(_: web.Request) -> web.Response:
        return answers.pop() if answers else web.json_response({"jobId": "job_1"})

    async with serving(web.get("/api/jobs/job_1", job)) as url, ApiClient(url) as client:
        assert await client.get("job_1") == {"jobId": "job_1"}


async def test_what_may_not_be_asked_again_is_asked_once() -> None:
    asked = 0

    async def busy(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=503)

    async with serving(web.post("/api/jobs/job_1/retry", busy)) as url, ApiClient(url) as client:
        with pytest.raises(Unreachable):
            await client.retry("job_1")

    assert asked == 1


async def test_no_pause_is_shorter_than_the_server_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("tramontane.client.calls.asyncio.sleep", sleep)
    answers = [web.Response(status=429, headers={"retry-after": "40"}), web.json_response({"jobId": "job_1"})]

    async def job(_: web.Request) -> web.Response:
        return answers.pop(0)

    async with serving(web.get("/api/jobs/job_1", job)) as url, ApiClient(url) as client:
        await client.get("job_1")

    assert [seconds for seconds in slept if seconds] == [40.0]


async def test_a_connection_without_a_sign_of_life_for_three_heartbeats_is_given_up() -> None:
    asked: list[str] = []

    async def half_open(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["last-event-id"])
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(OPENING + (frame(1, heartbeatMs=20) if len(asked) == 1 else b"".join(LOG[1:])))
        if len(asked) == 1:
            await asyncio.Event().wait()
        return response

    async with following(web.get("/api/jobs/job_1/events", half_open)) as events:
        assert [event.seq async for event in events] == list(range(1, EVENTS + 1))

    assert asked == ["0", "1"]


async def test_a_text_that_is_not_the_one_that_was_sent_is_an_error() -> None:
    told = [frame(1), frame(2, off=0, content="vent"), frame(EVENTS, **{"from": 3, "len": 4, "sha256": "0" * 64})]

    async def altered(_: web.Request) -> web.Response:
        return web.Response(body=OPENING + b"".join(told), content_type="text/event-stream")

    async with following(web.get("/api/jobs/job_1/events", altered)) as events:
        assert [(await anext(events)).seq for _ in range(2)] == [1, 2]
        with pytest.raises(ProtocolGap, match="SHA-256"):
            await anext(events)


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("https://elsewhere.example/")

    async with serving(web.post("/api/jobs", elsewhere)) as url, ApiClient(url) as client:
        with pytest.raises(ConfigurationError, match="elsewhere"):
            await client.submit(HELLO)


async def test_headers_are_asked_for_anew_with_each_request() -> None:
    seen: list[str] = []
    tokens = iter(["first", "second"])

    async def job(request: web.Request) -> web.Response:
        seen.append(request.headers["authorization"])
        return web.json_response({})

    async def headers() -> dict[str, str]:
        return {"authorization": next(tokens)}

    async with serving(web.get("/api/jobs/job_1", job)) as url, ApiClient(url, headers=headers) as client:
        await client.get("job_1")
        await client.get("job_1")

    assert seen == ["first", "second"]


async def test_a_client_that_is_closed_says_so() -> None:
    async with serving(web.get("/healthz", _ok)) as url, ApiClient(url) as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("job_1")


async def test_a_page_that_is_no_stream_is_said_to_be_none() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    routes = (web.post("/api/chat/stream", page), web.get("/api/jobs", page))
    async with serving(*routes) as url, ApiClient(url) as client:
        with pytest.raises(ConfigurationError, match="is no Tramontane server"):
            async with client.chat_stream(HELLO) as events:
                await anext(events)
        with pytest.raises(ConfigurationError, match="is no Tramontane server"):
            await client.list()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", NotFound),
        (409, "job_not_ended", JobNotEnded),
        (422, "idempotency_mismatch", IdempotencyMismatch),
        (410, "stream_expired", StreamExpired),
        (409, "invalid_cursor", InvalidCursor),
        (422, "invalid_request", InvalidInput),
        (500, "internal", InternalError),
        (503, "secrets_locked", SecretsLocked),
        (403, "not_allowed", NotAllowed),
        (401, "unauthorized", KeyRefused),
        (403, "forbidden", ScopeMissing),
        (401, "", NotAllowed),
        (418, "", InternalError),
    ],
)
async def test_a_problem_document_is_raised_as_our_own_error(
    status: int, code: str, kind: type[TramontaneError]
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        problem = {"code": code, "detail": "messages: is missing", "field": "messages"}
        return web.json_response(problem, status=status, content_type="application/problem+json")

    async with serving(web.post("/api/jobs", refuse)) as url, ApiClient(url) as client:
        with pytest.raises(kind) as raised:
            await client.submit(HELLO)

    assert type(raised.value) is kind
    assert "is missing" in raised.value.message
    if type(raised.value) is InvalidInput:
        assert (raised.value.field, raised.value.reason) == ("messages", "is missing")

"""The client against a server that writes exactly the bytes it is told to."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ssl import Purpose, SSLContext, create_default_context
from typing import Any

import aiohttp
import msgspec
import pytest
import trustme
import uvloop

from tramontane.errors import (
    ConfigurationError,
    ConnectFailed,
    GenerationFailed,
    InvalidInput,
    MalformedAnswer,
    MistralError,
    RateLimited,
    RequestRefused,
    Truncated,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from tramontane.mistral import MistralClient, Timeouts, client, stream
from tramontane.mistral.tap import EVENTS, Connector

Script = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Which wind?"}]}
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    b"mistral-correlation-id: corr-1\r\nx-ratelimit-remaining-req-minute: 59\r\nset-cookie: a=b\r\n\r\n"
)
OPENING = b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
NORTH = 'data: {"id":"1","choices":[{"index":0,"delta":{"content":"né🌬"},"finish_reason":null}]}\n\n'.encode()
WIND = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":" wind"},"finish_reason":null}],"p":"ab"}\n\n'
STOP = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"n": 1}}\n\n'
DONE = b"data: [DONE]\n\n"


def piece(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = piece(b"")
WHOLE = HEAD + b"".join(piece(frame) for frame in (OPENING, NORTH, WIND, STOP, DONE)) + END


def plain(
    body: bytes, status: bytes = b"200 OK", content_type: bytes = b"application/json", more: bytes = b""
) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n"
    return head % (status, content_type, len(body), more) + body


async def abort(writer: asyncio.StreamWriter) -> None:
    """Reset the connection, as a process that dies does."""
    # Without lingering, closing sends RST instead of FIN.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()


def then_abort(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await abort(writer)

    return script


def then_close(data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return script


@dataclass
class Server:
    """Answers the n-th request with the n-th script, the last one again and again."""

    scripts: tuple[Script, ...]
    url: str = ""
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    #: Released for each request, and for each connection that the client has closed.
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(length or 0)))
                self.asked.release()
                script = self.scripts[min(len(self.heads), len(self.scripts)) - 1]
                if isinstance(script, bytes):
                    writer.write(script)
                    await writer.drain()
                else:
                    await script(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.release()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(*scripts: Script, ssl: SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(scripts)
    running: set[asyncio.Task[Any] | None] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):
            await server.serve(reader, writer)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=ssl)
    scheme = "http" if ssl is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        tasks = [task for task in running if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def calling(url: str, **options: Any) -> MistralClient:
    times = {name: options.pop(name) for name in ("connect", "first_token", "silence", "total") if name in options}
    limits = Timeouts(**({"connect": 5.0, "first_token": 5.0, "silence": 5.0} | times))
    return MistralClient(api_key="sk-secret", server_url=url, timeouts=limits, **options)


async def read(mistral: MistralClient, request: dict[str, Any] | None = None) -> str:
    async with mistral.stream(request or REQUEST) as answer:
        return "".join([delta.content async for delta in answer])


async def failure(script: Script, **options: Any) -> MistralError:
    async with serving(script) as server, calling(server.url, **options) as mistral:
        with pytest.raises(MistralError) as caught:
            await read(mistral)
    return caught.value


async def test_a_stream_gives_deltas_and_then_the_whole() -> None:
    async with serving(WHOLE) as server, calling(server.url) as mistral, mistral.stream(REQUEST) as answer:
        pieces = [delta.content async for delta in answer]
    assert pieces == ["né🌬", " wind"]
    assert (answer.content, answer.thinking, answer.tool_calls) == ("né🌬 wind", "", [])
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert bytes(answer.usage) == b'{"n": 1}'
    assert json.loads(answer.completion())["choices"][0]["message"]["content"] == "né🌬 wind"
    assert (answer.correlation_id, answer.rate.remaining_requests) == ("corr-1", 59)


async def test_a_request_passes_byte_for_byte() -> None:
    messages = b'[ {"role":"user", "content":"\\u00e9 1.50"} ]'
    request = {"model": msgspec.Raw(b'"m"'), "messages": msgspec.Raw(messages), "stream": msgspec.Raw(b"false")}
    async with serving(WHOLE) as server, calling(server.url) as mistral:
        await read(mistral, request)
    assert server.bodies == [b'{"model":"m","messages":' + messages + b',"stream":true}']


async def test_a_request_says_who_asks_and_wants_no_compression_and_no_cookies() -> None:
    async with serving(WHOLE) as server, calling(f"{server.url}/gateway/") as mistral:
        await read(mistral)
        await read(mistral)
    for head in server.heads:
        assert head.startswith("post /gateway/v1/chat/completions ")
        assert "authorization: bearer sk-secret\r\n" in head
        assert "accept: text/event-stream\r\n" in head
        assert "accept-encoding: identity\r\n" in head
        assert "content-type: application/json\r\n" in head
        assert "user-agent: tramontane/" in head
        assert "cookie" not in head


async def test_without_a_key_no_authorization_is_sent() -> None:
    async with serving(WHOLE) as server, MistralClient(api_key=" ", server_url=server.url) as mistral:
        await read(mistral)
    assert "authorization" not in server.heads[0]


async def test_frames_split_anywhere_and_ended_by_crlf_give_the_same_text() -> None:
    body = b": hello\n\nid: 1\nevent: message\nretry: 5\n" + OPENING + NORTH + WIND + STOP + DONE

    async def dripping(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for byte in body.replace(b"\n", b"\r\n").replace(b"data: ", b"data:"):
            writer.write(piece(bytes([byte])))
            await writer.drain()
        writer.write(END)

    async with serving(dripping) as server, calling(server.url) as mistral:
        assert await read(mistral) == "né🌬 wind"


async def test_ten_streams_take_one_connection() -> None:
    async with serving(WHOLE) as server, calling(server.url) as mistral:
        for _ in range(10):
            await read(mistral)
    assert (len(server.heads), server.connections) == (10, 1)


async def test_the_connection_is_kept_when_the_body_ends_after_done() -> None:
    done, go_on = asyncio.Event(), asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE.removesuffix(END))
        done.set()
        await go_on.wait()
        writer.write(END)

    async with serving(late, WHOLE) as server, calling(server.url) as mistral:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(read(mistral))
            await done.wait()
            go_on.set()
        assert first.result() == "né🌬 wind"
        await read(mistral)
    assert server.connections == 1


async def test_leaving_early_closes_the_connection() -> None:
    async with serving(HEAD + piece(OPENING + NORTH)) as server, calling(server.url) as mistral:
        async with mistral.stream(REQUEST) as answer:
            await anext(answer)
        await server.left.acquire()


async def test_a_cancel_closes_the_connection() -> None:
    for script in (HEAD + piece(OPENING), b""):
        async with serving(script) as server, calling(server.url) as mistral:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(read(mistral))
                await server.asked.acquire()
                reading.cancel()
            await server.left.acquire()
        assert reading.cancelled()


@pytest.mark.parametrize(
    "script",
    [
        HEAD + piece(OPENING + NORTH) + END,
        HEAD + piece(OPENING + NORTH + DONE) + END,
        HEAD + piece(OPENING + NORTH + STOP.rstrip()) + END,
        then_close(HEAD + piece(OPENING + NORTH)),
        then_abort(HEAD + piece(OPENING + NORTH)),
    ],
    ids=["clean end", "only done", "half a last line", "closed", "reset"],
)
async def test_a_stream_without_finish_reason_is_truncated(script: Script) -> None:
    made = await failure(script)
    assert isinstance(made, Truncated)
    assert (made.status, made.correlation_id) == (200, "corr-1")


async def test_a_body_that_breaks_the_rules_of_http_ends_at_once_and_with_it_the_connection() -> None:
    go_on = asyncio.Event()

    async def breaking(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(NORTH))
        await go_on.wait()
        writer.write(b"zz\r\n")

    async with (
        serving(breaking) as server,
        calling(server.url, silence=3600) as mistral,
        mistral.stream(REQUEST) as answer,
    ):
        await anext(answer)
        go_on.set()
        with pytest.raises(Truncated, match="rules of HTTP"):
            await anext(answer)
        await server.left.acquire()


async def test_word_that_an_answer_will_come_is_none() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"

    async def hesitating(writer: asyncio.StreamWriter) -> None:
        for byte in early + early:
            writer.write(bytes([byte]))
            await writer.drain()
        writer.write(WHOLE)

    for script in (early + early + WHOLE, hesitating):
        async with serving(script) as server, calling(server.url) as mistral:
            assert [await read(mistral), await read(mistral)] == ["né🌬 wind"] * 2
        assert server.connections == 1


async def test_a_body_of_a_known_length_or_none_is_read_to_its_end() -> None:
    frames = OPENING + NORTH + WIND + STOP + DONE
    known = plain(frames, content_type=b"text/event-stream")
    open_end = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + frames
    for script in (known, then_close(open_end)):
        async with serving(script) as server, calling(server.url) as mistral:
            assert await read(mistral) == "né🌬 wind"
    async with serving(plain(b"", content_type=b"text/event-stream")) as server, calling(server.url) as mistral:
        with pytest.raises(Truncated):
            await read(mistral)


async def test_an_answer_nobody_asked_for_is_given_to_nobody() -> None:
    # What follows the end belongs to no request: such a connection must not serve the next one.
    async with serving(WHOLE + WHOLE.replace(b" wind", b" lies"), WHOLE) as server, calling(server.url) as mistral:
        assert [await read(mistral), await read(mistral)] == ["né🌬 wind"] * 2
    assert server.connections == 2


async def test_after_a_refusal_the_connection_serves_again() -> None:
    refusal = plain(b'{"type":"server_error","code":"3000"}', b"503 Unavailable")
    async with serving(refusal, WHOLE) as server, calling(server.url) as mistral:
        with pytest.raises(UpstreamUnavailable, match="server_error, code 3000"):
            await read(mistral)
        assert await read(mistral) == "né🌬 wind"
    assert server.connections == 1


def contexts() -> tuple[SSLContext, SSLContext]:
    """A server's, and of a client that trusts it."""
    authority = trustme.CA()
    theirs, ours = create_default_context(Purpose.CLIENT_AUTH), create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


@pytest.fixture(params=["plain", "TLS"])
def encryption(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SSLContext | None:
    """The server's side of it, which the client trusts."""
    if request.param == "plain":
        return None
    theirs, ours = contexts()
    monkeypatch.setattr(client, "Connector", partial(Connector, ssl=ours))
    return theirs


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@LOOPS
def test_what_came_in_one_block_with_the_end_of_the_connection_is_read(
    run: Callable[[Any], None], encryption: SSLContext | None
) -> None:
    half = HEAD + piece(OPENING + NORTH)

    async def scenario() -> None:
        async with serving(then_close(WHOLE), ssl=encryption) as server, calling(server.url) as mistral:
            assert await read(mistral) == "né🌬 wind"
        async with (
            serving(then_close(half), ssl=encryption) as server,
            calling(server.url, silence=3600) as mistral,
            mistral.stream(REQUEST) as answer,
        ):
            assert (await anext(answer)).content == "né🌬"
            with pytest.raises(Truncated):
                await anext(answer)

    run(scenario())


class Heard:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.body = b""
        self.error: MistralError | None = None

    def feed(self, block: bytes) -> None:
        self.body += block

    def end(self) -> None:
        raise AssertionError("it has no end")

    def fail(self, error: MistralError) -> None:
        self.error = error


async def test_a_connection_that_ended_before_its_tap_was_opened_gives_all_it_has() -> None:
    theirs, ours = contexts()  # TLS gives the last bytes and the end at once
    connector = Connector(ssl=ours)
    async with (
        serving(then_close(HEAD + piece(NORTH)), ssl=theirs) as server,
        aiohttp.ClientSession(connector=connector, headers={"accept": EVENTS}) as session,
        session.post(server.url) as response,
    ):
        tap, connection, heard = connector.tap(response), response.connection, Heard()
        assert tap is not None
        assert connection is not None
        async with asyncio.timeout(5):
            while connection.transport is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        tap.into(heard, chunked=True)
        assert heard.body == NORTH
        assert isinstance(heard.error, Truncated)


@LOOPS
def test_a_slow_reader_slows_mistral_down_and_loses_nothing(
    run: Callable[[Any], None], encryption: SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_AHEAD", 64 * 1024)
    # More than all the buffers of two sockets hold.
    text, count = b"x" * 10_000, 2000
    big = WIND.replace(b" wind", text)

    async def scenario() -> None:
        sent = 0

        async def pouring(writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(HEAD)
            while sent < count:
                writer.write(piece(big))
                await writer.drain()
                sent += 1
            writer.write(piece(STOP + DONE) + END)

        async with (
            serving(pouring, WHOLE, ssl=encryption) as server,
            calling(server.url, silence=0.5) as mistral,
        ):
            async with mistral.stream(REQUEST) as answer:
                await anext(answer)
                seen = -1
                while seen != sent:  # until the server can send no more
                    seen = sent
                    await asyncio.sleep(0.05)
                assert seen < count
                assert len([delta async for delta in answer]) == count - 1
            assert await read(mistral) == "né🌬 wind"
        assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize(
    "script",
    [
        HEAD + piece(NORTH + STOP) + END,
        then_close(HEAD + piece(NORTH + STOP)),
        then_abort(HEAD + piece(NORTH + STOP)),
        HEAD + piece(NORTH + STOP + b"data: garbage\n\n") + END,
        HEAD + piece(NORTH + STOP + DONE + b"data: garbage\n\n") + END,
    ],
    ids=["no done", "closed", "reset", "garbage", "garbage after done"],
)
async def test_after_the_finish_reason_nothing_fails_any_more(script: Script) -> None:
    async with serving(script) as server, calling(server.url) as mistral:
        assert await read(mistral) == "né🌬"


async def test_an_answer_is_not_held_up_by_a_body_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LINGER", 0.02)
    async with serving(HEAD + piece(NORTH + STOP + DONE)) as server, calling(server.url, silence=3600) as mistral:
        assert await read(mistral) == "né🌬"
        await server.left.acquire()


async def test_what_came_before_a_failure_is_given_out_first() -> None:
    script = HEAD + piece(NORTH + WIND + b"data: {\n\n" + WIND)
    async with serving(script) as server, calling(server.url) as mistral, mistral.stream(REQUEST) as answer:
        assert [(await anext(answer)).content, (await anext(answer)).content] == ["né🌬", " wind"]
        for _ in range(2):
            with pytest.raises(MalformedAnswer):
                await anext(answer)
        assert answer.content == "né🌬 wind"


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (
            HEAD + piece(b'data: {"object":"error","message":"x","type":"server_error","code":"1"}\n\n'),
            GenerationFailed,
        ),
        (HEAD + piece(STOP.replace(b'"stop"', b'"error"')), GenerationFailed),
        (HEAD + piece(b"data: <html>\n\n"), MalformedAnswer),
        (HEAD + piece(b"data: " + b"a" * 2**23), MalformedAnswer),
        (plain(b"{}"), MalformedAnswer),
        (plain(b"<html>", content_type=b"text/html"), MalformedAnswer),
        (plain(b"{}", b"202 Accepted"), MalformedAnswer),
        (plain(b"", b"302 Found", more=b"location: /elsewhere\r\n"), MalformedAnswer),
        (b"SSH-2.0-OpenSSH\r\n\r\n", MalformedAnswer),
        (plain(b"{}", b"422 Unprocessable"), RequestRefused),
        (plain(b"{}", b"429 Too Many", more=b"retry-after: 7\r\n"), RateLimited),
        (plain(b"<html>" * 99999, b"503 Unavailable", content_type=b"text/html"), UpstreamUnavailable),
        (then_close(plain(b"{}" * 99, b"503 Unavailable")[:-50]), UpstreamUnavailable),
        (then_close(b""), ConnectFailed),
        (then_abort(b""), ConnectFailed),
        (then_close(b"HTTP/1.1 200 O"), ConnectFailed),
    ],
)
async def test_each_way_to_fail_has_its_error(script: Script, kind: type[MistralError]) -> None:
    made = await failure(script)
    assert type(made) is kind
    # aiohttp's own exceptions can hold the request, and with it the key.
    assert "sk-secret" not in f"{made} {made.__cause__!r} {made.__context__!r}"


async def test_retry_after_reaches_the_caller() -> None:
    made = await failure(plain(b"{}", b"429 Too Many", more=b"retry-after: 7\r\nmistral-correlation-id: c\r\n"))
    assert (made.retry_after, made.status, made.correlation_id) == (7.0, 429, "c")


async def test_a_redirect_is_not_followed() -> None:
    script = plain(b"", b"307 Temporary", more=b"location: /elsewhere\r\n")
    async with serving(script, WHOLE) as server, calling(server.url) as mistral:
        with pytest.raises(MalformedAnswer):
            await read(mistral)
    assert len(server.heads) == 1


async def test_a_refused_connection_is_a_connection_that_failed() -> None:
    async with serving(WHOLE) as server:
        pass
    async with calling(server.url) as mistral:
        with pytest.raises(ConnectFailed, match=r"no answer from 127\.0\.0\.1"):
            await read(mistral)


async def test_waiting_for_a_place_among_our_connections_counts_as_connecting() -> None:
    async with (
        serving(HEAD + piece(NORTH)) as server,
        calling(server.url, connect=0.05, connections=1) as mistral,
        mistral.stream(REQUEST) as answer,
    ):
        await anext(answer)
        with pytest.raises(UpstreamTimeout) as caught:
            await read(mistral)
    assert caught.value.phase == "connect"
    assert "took over 0.05 s" in str(caught.value)


COMMENTS = b": I live\n\n"


def repeating(head: bytes, data: bytes) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece(data))
            await writer.drain()
            await asyncio.sleep(0.01)

    return script


async def test_a_body_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_BODY", 1000)
    monkeypatch.setattr(client, "ERROR_BODY", 1000)
    whole = HEAD.replace(b"text/event-stream", b"application/json")
    refusal = HEAD.replace(b"200 OK", b"503 Unavailable")
    scripts = repeating(whole, b" " * 100), repeating(refusal, b" " * 100)
    async with serving(*scripts) as server, calling(server.url) as mistral:
        for kind in (MalformedAnswer, UpstreamUnavailable):
            with pytest.raises(kind):
                await mistral.complete(REQUEST)
            await server.left.acquire()


@pytest.mark.parametrize(
    ("script", "limits", "phase"),
    [
        (b"", {"first_token": 0.05}, "first_token"),
        (HEAD, {"first_token": 0.05}, "first_token"),
        (HEAD + piece(OPENING), {"first_token": 0.05}, "first_token"),
        (repeating(HEAD, COMMENTS), {"first_token": 0.05}, "first_token"),
        (repeating(HEAD, OPENING), {"first_token": 0.05}, "first_token"),
        (HEAD + piece(NORTH), {"silence": 0.05}, "silence"),
        (repeating(HEAD + piece(NORTH), COMMENTS), {"silence": 0.05}, "silence"),
        (repeating(HEAD, NORTH), {"silence": 1.0, "total": 0.1}, "total"),
        (b"", {"total": 0.05}, "total"),
        (plain(b"{}", b"503 Unavailable")[:-1], {"silence": 0.05}, None),
    ],
)
async def test_each_wait_has_its_limit(script: Script, limits: dict[str, float], phase: str | None) -> None:
    made = await failure(script, **limits)
    if phase is None:
        assert isinstance(made, UpstreamUnavailable)
    else:
        assert isinstance(made, UpstreamTimeout)
        assert made.phase == phase
        assert f"took over {limits[phase]:g} s" in str(made)


async def test_the_time_of_a_slow_reader_is_not_held_against_mistral() -> None:
    go_on = asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(NORTH))
        await go_on.wait()
        writer.write(piece(WIND + STOP + DONE) + END)

    async with (
        serving(slow) as server,
        calling(server.url, silence=0.05) as mistral,
        mistral.stream(REQUEST) as answer,
    ):
        await anext(answer)
        await asyncio.sleep(0.15)  # the reader's own time, three times the limit
        go_on.set()
        assert [delta.content async for delta in answer] == [" wind"]


ANSWER = (
    b'{"id":"1","object":"chat.completion","model":"m","new":{ "x":1.50},"usage":{"n": 1},"choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","tool_calls":null,"content":"wind"}}]}'
)


async def test_a_whole_answer_is_kept_byte_for_byte() -> None:
    head = b"mistral-correlation-id: c\r\nx-ratelimit-limit-req-minute: 60\r\n"
    async with serving(plain(ANSWER, more=head)) as server, calling(server.url) as mistral:
        whole = await mistral.complete(REQUEST)
    assert json.loads(server.bodies[0]) == REQUEST | {"stream": False}
    assert "accept: application/json\r\n" in server.heads[0]
    assert whole.raw == ANSWER
    assert (whole.content, whole.finish_reason, whole.correlation_id) == ("wind", "stop", "c")
    assert whole.usage is not None
    assert bytes(whole.usage) == b'{"n": 1}'
    assert whole.rate.limit_requests == 60


async def test_a_whole_answer_in_parts_gives_its_text() -> None:
    parts = b'[{"type":"thinking","thinking":"hm"},{"type":"text","text":"a"},{"type":"text","text":"b"}]'
    body = ANSWER.replace(b'"content":"wind"', b'"content":' + parts).replace(b'{"n": 1}', b"null")
    async with serving(plain(body)) as server, calling(server.url) as mistral:
        whole = await mistral.complete(REQUEST)
    assert (whole.content, whole.usage) == ("ab", None)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (plain(b"{"), MalformedAnswer),
        (plain(b'{"choices":[]}'), MalformedAnswer),
        (plain(ANSWER, content_type=b"text/plain"), MalformedAnswer),
        (plain(ANSWER + b" " * 2000), MalformedAnswer),
        (plain(b'{"object":"error","message":"x","type":"t","code":"1"}'), GenerationFailed),
        (plain(ANSWER.replace(b'"stop"', b'"error"')), GenerationFailed),
        (then_close(plain(ANSWER)[:-9]), Truncated),
        (plain(ANSWER)[:-9], UpstreamTimeout),
        (plain(b"{}", b"500 Oops"), UpstreamUnavailable),
    ],
)
async def test_a_whole_answer_that_is_none_fails(
    script: Script, kind: type[MistralError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LONGEST_BODY", 2000)
    async with serving(script) as server, calling(server.url, silence=0.05) as mistral:
        with pytest.raises(kind) as caught:
            await mistral.complete(REQUEST)
    assert caught.value.status in (200, 500)


async def test_the_list_of_models_is_mistrals_own() -> None:
    async with serving(plain(b'{"object":"list", "data":[]}')) as server, calling(server.url) as mistral:
        assert await mistral.models() == b'{"object":"list", "data":[]}'
    assert server.heads[0].startswith("get /v1/models ")


@pytest.mark.parametrize("url", ["", "api.mistral.ai", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MISTRAL_SERVER_URL"):
        MistralClient(api_key="k", server_url=url)


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown() -> None:
    for key in ("sk-secret\r\nx: y", "sk-secret-é"):
        with pytest.raises(ConfigurationError, match="MISTRAL_API_KEY") as caught:
            MistralClient(api_key=key, server_url="http://x")
        assert "sk-secret" not in str(caught.value)


async def test_a_request_that_is_no_json_is_refused_before_it_is_sent() -> None:
    async with calling("http://127.0.0.1:9") as mistral:
        with pytest.raises(InvalidInput):
            await read(mistral, {"messages": object()})


async def test_a_closed_client_calls_nobody() -> None:
    async with serving(WHOLE) as server, calling(server.url) as mistral:
        await mistral.aclose()
        with pytest.raises(RuntimeError):
            await read(mistral)
    assert server.heads == []


async def test_an_error_of_the_reader_passes_unchanged() -> None:
    own = RateLimited("of another call")
    async with serving(WHOLE) as server, calling(server.url) as mistral:
        with pytest.raises(RateLimited) as caught:
            async with mistral.stream(REQUEST):
                raise own
    assert caught.value is own
    assert own.status is None

"""Streams on the wire itself: framing as HTTP has it, clients that leave or pause, and servers that have no wire."""

import asyncio
import gc
import json
import os
import shutil
import socket
import sys
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
import pytest_asyncio
from clients import QUESTION, Frames, Reader, browse, follow
from faces import Face, facing
from logs import write_log
from mistralai.client.utils.eventstreaming import EventStreamAsync

from tramontane.api import create_api
from tramontane.api.connection import Wire
from tramontane.appender import Appender, Draft
from tramontane.ids import read_id
from tramontane.models import DEFAULT_TENANT, JobKey, NewEvent
from tramontane.simulator import Behaviour, Simulator
from tramontane.store import EventStore
from tramontane.tasks import beside
from tramontane.wire import encode


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, flush=0.001) as face:
        yield face


@pytest_asyncio.fixture
async def idle(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    """An API without a worker, that gives signs of life now and then."""
    async with facing(simulator, database_url, worker=False, stream_heartbeat=0.2) as face:
        yield face


async def ask(face: Face, *requests: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of our own, with these requests under way."""
    reader, writer = await asyncio.open_connection(*face.url.removeprefix("http://").split(":"), limit=2**22)
    writer.write("".join(f"{request}\r\nHost: localhost\r\n\r\n" for request in requests).encode())
    return reader, writer


async def left(face: Face) -> None:
    """Return once all places are free again."""
    async with asyncio.timeout(5):
        while face.app.places.taken:  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.01)


# HTTP


async def test_a_connection_serves_one_stream_after_the_other(idle: Face, database_url: str) -> None:
    accepted = await idle.submit()
    await write_log(database_url, accepted["jobId"], ["Le ", "vent"])
    request = f"GET {accepted['eventsUrl']} HTTP/1.1"
    reader, writer = await ask(idle, request, request)
    bodies = []
    for _ in range(2):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\ntransfer-encoding: chunked\r\n" in head
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        bodies.append(body)
    writer.close()

    assert bodies[0] == bodies[1]
    assert [frame.event for frame in Frames().feed(bodies[0])] == ["start", "chunk", "complete"]


async def test_http_1_0_knows_no_chunks_and_ends_with_the_connection(idle: Face, database_url: str) -> None:
    accepted = await idle.submit()
    await write_log(database_url, accepted["jobId"], ["Le ", "vent"])
    reader, writer = await ask(idle, f"GET {accepted['eventsUrl']} HTTP/1.0")
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    frames = Frames()

    assert b"transfer-encoding" not in head
    assert b"\r\nconnection: close" in head
    assert [frame.event for frame in frames.feed(body)] == ["start", "chunk", "complete"]
    assert frames.unfinished == b""


async def test_who_wants_the_connection_closed_is_obeyed(idle: Face, database_url: str) -> None:
    accepted = await idle.submit()
    await write_log(database_url, accepted["jobId"], ["Le vent"])
    reader, writer = await ask(idle, f"GET {accepted['eventsUrl']} HTTP/1.1\r\nConnection: close")
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()

    assert answer.endswith(b"\r\n0\r\n\r\n")


async def test_the_reader_in_mistrals_own_sdk_reads_our_streams(api: Face) -> None:
    api.simulator.script(Behaviour(tokens_per_second=1000))
    question = {"messages": [{"role": "user", "content": "Say: le mistral 🌬️ souffle"}]}
    async with httpx2.AsyncClient(base_url=api.url) as client:
        async with client.stream("POST", "/api/chat/stream", json=question) as response:
            events = [event async for event in EventStreamAsync(response, json.loads)]
        async with client.stream("GET", response.headers["content-location"], headers={"Last-Event-ID": "1"}) as again:
            resumed = [event async for event in EventStreamAsync(again, json.loads)]

    for told in (events[1:], resumed):
        assert "".join(event["data"].get("content", "") for event in told) == "le mistral 🌬️ souffle"
        assert (told[-1]["event"], told[-1]["id"]) == ("complete", str(told[-1]["data"]["seq"]))
    assert events[0]["event"] == "start"


# In CI a missing curl is a failure: there the call itself says so.
@pytest.mark.skipif(
    shutil.which("curl") is None and "CI" not in os.environ,  # noqa: TID251
    reason="there is no curl",
)
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
async def test_curl_streams_a_question_as_it_is_answered(api: Face, version: str) -> None:
    api.simulator.script(Behaviour(tokens=400, tokens_per_second=100))
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", version, "-H", "Content-Type: application/json", f"{api.url}/api/chat/stream"),
        *("-d", encode({"messages": QUESTION}).decode()),
        stdout=asyncio.subprocess.PIPE,
    )
    assert curl.stdout is not None
    body = await curl.stdout.readuntil(b"event: chunk")
    [call] = api.simulator.ledger
    assert call.outcome == "running"  # it is not the whole answer that curl was given
    [job] = (await api.ask("GET", "/api/jobs")).json["jobs"]
    await api.cancel(job["jobId"])
    body += await curl.stdout.read()

    assert await curl.wait() == 0
    assert [kind for kind, _, _ in browse(body)][:: len(browse(body)) - 1] == ["start", "error"]
    reader = Reader()
    for frame in Frames().feed(body):
        reader.take(frame)


# Clients


async def test_a_client_that_leaves_a_silent_stream_is_missed_at_once(
    simulator: Simulator, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with facing(simulator, database_url, worker=False) as face:  # a sign of life every 15 s
        accepted = await face.submit()
        reader, writer = await ask(face, f"GET {accepted['eventsUrl']} HTTP/1.1")
        await reader.readuntil(b"hb=15000\n\n")
        assert face.app.places.taken == 1
        writer.close()
        await left(face)
    assert caplog.get_records("call") == []


async def test_a_client_that_asks_for_more_and_leaves_is_missed_too(
    idle: Face, caplog: pytest.LogCaptureFixture
) -> None:
    accepted = await idle.submit()
    request = f"GET {accepted['eventsUrl']} HTTP/1.1"
    reader, writer = await ask(idle, request, request)
    await reader.readuntil(b"hb=200\n\n")
    assert idle.app.places.taken == 1  # one after the other
    writer.close()
    await left(idle)
    assert caplog.get_records("call") == []


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_stream_that_is_over_leaves_nothing_for_the_garbage_collector(idle: Face, leaves: bool) -> None:
    accepted = await idle.submit()
    reader, writer = await ask(idle, f"GET {accepted['eventsUrl']} HTTP/1.1")
    await reader.readuntil(b"hb=200\n\n")
    await reader.readuntil(b": hb\n\n")  # a beat has looked at it
    [stream] = [weakref.ref(each) for each in idle.app.streams._open]
    gc.disable()  # thousands that end together would stop the server for as long as a collection takes
    try:
        if leaves:
            writer.close()
        else:
            await idle.cancel(accepted["jobId"])
            await reader.readuntil(b"0\r\n\r\n")
            writer.close()
        await left(idle)
        async with asyncio.timeout(5):
            while stream() is not None:  # noqa: ASYNC110 - nobody sets an event for us
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


def test_nothing_is_written_to_a_connection_that_is_closed() -> None:
    written: list[bytes] = []
    transport = SimpleNamespace(write=written.append, is_closing=lambda: len(written) == 1)
    flow = SimpleNamespace(write_paused=False, resume_reading=lambda: None)
    cycle = SimpleNamespace(transport=transport, flow=flow, scope={"http_version": "1.1"}, disconnected=False)
    wire = Wire(cast("Any", SimpleNamespace()), cast("Any", cycle))
    wire.write(b"Le ")
    wire.write(b"vent")  # of a transport that is closed, uvloop would raise

    assert written == [b"3\r\nLe \r\n"]
    left: list[bool] = []
    with wire.watched(lambda: left.append(True)):
        assert left == [cycle.disconnected] == [True]


class Writer:
    """Appends chunks to a running job as a worker would."""

    def __init__(self, face: Face, job_id: str) -> None:
        self.text = ""
        self.appender = Appender(EventStore(face.app.database.pool), face.app.streams.appended, interval=0.0)
        self._draft = Draft(JobKey(tenant=DEFAULT_TENANT, id=read_id("job", job_id)), 1, self.appender, _lost)

    async def write(self, content: str) -> None:
        """One more chunk, which is committed and told when this returns."""
        event = NewEvent("chunk", encode({"off": len(self.text), "content": content, "tokenCount": 1}))
        self.text += content
        self._draft.grow(len(content), lambda: [event])
        await self._draft.written()


def _lost() -> None:
    raise AssertionError("the log refused an attempt")


async def paused(face: Face, job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A reader that has everything, and room for hardly anything."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    host, port = face.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    writer.write(f"GET /api/jobs/{job_id}/events?after=now HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    await reader.readuntil(b"hb=200\n\n")
    return reader, writer


@pytest.mark.timeout(60)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
async def test_readers_that_pause_while_an_answer_is_written_cost_no_memory_and_go_on_exactly(
    idle: Face, database_url: str
) -> None:
    job_id = (await idle.submit())["jobId"]
    await write_log(database_url, job_id, ["*"], finish=False)
    writer = Writer(idle, job_id)
    writer.text = "*"
    async with beside(writer.appender.run()):
        readers = [await paused(idle, job_id) for _ in range(20)]
        await writer.write("x" * 10_000)
        before = resident()
        for number in range(600):
            await writer.write(f"{number:5000}")
        grown = resident() - before
        stuck = sum(stream.writing_since < float("inf") for stream in idle.app.streams._open)
        await idle.cancel(job_id)
        body = bytearray()
        async with asyncio.timeout(30):
            while block := await readers[0][0].read(2**16):
                body += block
    for _, connection in readers:
        connection.transport.abort()
    reader = Reader(after=2)
    for frame in Frames().feed(bytes(body)):
        reader.take(frame)
    told = "".join(frame.data.get("content", "") for frame in reader.frames)

    assert stuck == len(readers)
    assert "*" + told == writer.text
    assert reader.final is not None
    assert any(frame.start < frame.id for frame in reader.frames), "what it had missed came merged"
    # They are owed 60 MB. Each may have what the server and one write hold; the text is our own, here and there; and
    # so much may lie about of whatever else a process does.
    assert grown < 20 * 100 * 2**10 + 2 * len(writer.text) + 8 * 2**20, f"{grown / 2**20:.1f} MB"
    await left(idle)


def resident() -> int:
    """Bytes of memory that this process occupies now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Servers without a wire


class Plain:
    """A server that knows nothing but ASGI."""

    def __init__(self, face: Face) -> None:
        self.body = b""
        self.heard = asyncio.Event()
        self.leave = asyncio.Event()
        self._api = create_api(face.app)

    async def get(self, path: str) -> None:
        """One GET, until it is answered."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
        }
        await self._api(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.body += message.get("body", b"")
        self.heard.set()


async def test_a_server_without_a_wire_streams_as_well(api: Face) -> None:
    api.simulator.script(Behaviour(tokens_per_second=1000))
    accepted = await api.submit("Say: " + "vent, mer, pierre " * 20)
    server = Plain(api)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.get(accepted["eventsUrl"]))
        wired = await follow(lambda: api, accepted["jobId"], Reader())
    plain = Reader()
    for frame in Frames().feed(server.body):
        plain.take(frame)

    assert plain.text == wired.text != ""
    await left(api)


async def test_a_client_of_a_server_without_a_wire_is_missed(idle: Face) -> None:
    accepted = await idle.submit()
    server = Plain(idle)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.get(accepted["eventsUrl"]))
        await server.heard.wait()
        assert idle.app.places.taken == 1
        server.leave.set()
    assert idle.app.places.taken == 0

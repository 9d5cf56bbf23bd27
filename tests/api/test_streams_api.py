"""Streams over HTTP: exact frames, exact resumption, and readers that harm nobody."""

import asyncio
import os
import random
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from clients import QUESTION, Frames, Reader, browse, follow
from faces import Face, facing
from logs import write_log

from tramontane.ids import utc_now
from tramontane.simulator import Behaviour, Simulator
from tramontane.store import EventStore

POEM = "Say: Le mistral 🌬️ souffle, la tramontane répond; " + "vent 𝄞 mer ☀️ pierre. " * 60


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, flush=0.001) as face:
        yield face


@pytest_asyncio.fixture
async def idle(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    """An API without a worker."""
    async with facing(simulator, database_url, worker=False) as face:
        yield face


async def finished(api: Face, content: str = POEM) -> str:
    """A completed job whose text came in many events."""
    api.simulator.script(Behaviour(tokens_per_second=1000))
    accepted = await api.submit(content)
    job = await api.job(accepted["jobId"], wait=20)
    assert job["status"] == "completed"
    return str(accepted["jobId"])


# Frames


async def test_frames_are_what_the_specification_says(api: Face) -> None:
    answer = await api.ask("POST", "/api/chat/stream", json={"messages": QUESTION, "requestId": "req-123"})
    parser = Frames()
    frames = parser.feed(answer.body)
    job_id = answer.headers["X-Job-Id"]
    result = (await api.job(job_id))["result"]
    start, *chunks, complete = frames

    assert parser.order == ["retry", "comment", *(frame.event for frame in frames)]
    assert answer.body.startswith(b"retry: 500\n: tramontane 1 hb=15000\n\n")
    assert parser.unfinished == b""
    assert start.data == {
        "type": "chat:start",
        "jobId": job_id,
        "seq": 1,
        "attempt": 1,
        "eventsUrl": f"/api/jobs/{job_id}/events",
        "heartbeatMs": 15000,
        "status": "started",
        "requestId": "req-123",
        "model": "mistral-small-latest",
        "timestamp": start.data["timestamp"],
    }
    for chunk in chunks:
        assert list(chunk.data) == ["type", "jobId", "seq", "attempt", "off", "content", "tokenCount"]
        assert chunk.data["jobId"] == job_id
    assert complete.data == {
        "type": "chat:complete",
        "jobId": job_id,
        "seq": len(frames),
        "attempt": 1,
        "finishReason": "stop",
        "len": complete.data["len"],
        "sha256": complete.data["sha256"],
        "totalTokens": chunks[-1].data["tokenCount"],
        "attempts": 1,
        "usage": result["usage"],
    }
    # And the text is the result: offsets, length and hash are the reader's business.
    reader = Reader()
    for frame in frames:
        reader.take(frame)
    assert reader.text == result["content"]


async def test_a_stream_says_how_it_wants_to_be_treated(api: Face) -> None:
    created = await api.ask("POST", "/api/chat/stream", json={"messages": QUESTION})
    job_id = created.headers["X-Job-Id"]
    followed = await api.ask("GET", f"/api/jobs/{job_id}/events")

    assert (created.status, followed.status) == (200, 200)
    assert created.headers["Content-Location"] == f"/api/jobs/{job_id}/events"
    for headers in (created.headers, followed.headers):
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Stream-Retention-Seconds"] == "86400"
        assert "Content-Length" not in headers
    assert created.body == followed.body


async def test_a_stream_opens_before_its_job_has_started(idle: Face) -> None:
    async with idle.session.post(f"{idle.url}/api/chat/stream", json={"messages": QUESTION}) as response:
        opening = await response.content.readuntil(b"\n\n")
        job = await idle.job(response.headers["X-Job-Id"])

    assert opening == b"retry: 500\n: tramontane 1 hb=15000\n\n"
    assert job["status"] == "queued"


async def test_a_failed_attempt_is_followed_by_an_attempt_event_that_takes_its_text_back(api: Face) -> None:
    api.simulator.script(Behaviour(cut_after=30, tokens_per_second=500), Behaviour())
    accepted = await api.submit(POEM)
    reader = await follow(lambda: api, accepted["jobId"], Reader())
    job = await api.job(accepted["jobId"])

    (attempt,) = (frame for frame in reader.frames if frame.event == "attempt")
    assert reader.events.count("start") == 1
    assert reader.final is not None
    assert (attempt.data["attempt"], attempt.data["mode"], attempt.data["keep"]) == (2, "restart", 0)
    assert attempt.data["reason"] in ("truncated", "upstream")
    assert reader.text == job["result"]["content"] == POEM.removeprefix("Say: ")
    assert (reader.final.data["attempts"], reader.final.data["attempt"]) == (2, 2)


async def test_a_stream_without_finish_reason_is_truncated(api: Face) -> None:
    api.simulator.script(Behaviour(end_after=5))
    accepted = await api.submit(attempts=1)
    reader = await follow(lambda: api, accepted["jobId"], Reader())

    assert reader.final is not None
    final = reader.final.data
    assert (reader.final.event, final["code"], final["retryable"], final["final"]) == ("error", "truncated", True, True)
    assert final["partial"] is (len(reader.text) > 0)
    assert isinstance(final["error"], str)


async def test_a_cancel_ends_the_stream_with_an_error_of_that_code(api: Face) -> None:
    api.simulator.script(Behaviour(tokens=2000, tokens_per_second=100))
    accepted = await api.submit()
    reader = Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: api, accepted["jobId"], reader))
        await api.simulator.wait_for_chunks(1, 10)
        await api.cancel(accepted["jobId"])

    assert reader.final is not None
    assert (reader.final.event, reader.final.data["code"]) == ("error", "cancelled")
    assert reader.final.data["partial"]
    assert reader.final.data["len"] > 0


async def test_a_cancelled_job_that_never_started_has_a_stream_of_one_event(idle: Face) -> None:
    accepted = await idle.submit()
    await idle.cancel(accepted["jobId"])
    frames = await idle.read(accepted["jobId"])

    assert [(frame.event, frame.id, frame.data["attempt"]) for frame in frames] == [("error", 1, 0)]


# Resuming


async def test_every_cursor_gives_exactly_the_rest(api: Face) -> None:
    job_id = await finished(api)
    whole = await api.read(job_id)
    assert len(whole) > 20

    for cursor in range(len(whole)):
        rest = whole[cursor:]
        assert await api.read(job_id, after=cursor) == rest
        by_query = await api.ask("GET", f"/api/jobs/{job_id}/events?after={cursor}")
        assert Frames().feed(by_query.body) == rest


async def test_the_header_is_stronger_than_the_query(api: Face) -> None:
    job_id = await finished(api)
    whole = await api.read(job_id)
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events?after=0", headers={"Last-Event-ID": "3"})

    assert Frames().feed(answer.body) == whole[3:]


async def test_who_has_everything_is_told_to_come_no_more(api: Face) -> None:
    job_id = await finished(api)
    head = (await api.job(job_id))["head"]
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events", headers={"Last-Event-ID": str(head)})

    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("cursor", ["-1", "1.0", "x", "0x1", "1 ", "٣", "99999999999", "now"])
async def test_a_cursor_that_is_no_number_is_refused(idle: Face, cursor: str) -> None:
    accepted = await idle.submit()
    answer = await idle.ask("GET", accepted["eventsUrl"], params={"after": cursor})

    assert (answer.status, answer.json["code"]) == (400, "invalid_cursor")


async def test_a_cursor_past_the_head_is_refused_and_never_a_replay(api: Face) -> None:
    job_id = await finished(api)
    head = (await api.job(job_id))["head"]
    past = await api.ask("GET", f"/api/jobs/{job_id}/events?after={head + 1}")

    assert (past.status, past.json["code"]) == (409, "invalid_cursor")


async def test_events_past_their_retention_are_gone_and_the_result_is_not(api: Face) -> None:
    job_id = await finished(api)
    now = utc_now()
    await EventStore(api.app.database.pool).prune(ended_before=now + timedelta(days=1), now=now)
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events")
    resumed = await api.ask("GET", f"/api/jobs/{job_id}/events", headers={"Last-Event-ID": "2"})

    assert (answer.status, answer.json["code"]) == (410, "stream_expired")
    assert resumed.status == 410
    assert (await api.job(job_id))["result"]["content"] == POEM.removeprefix("Say: ")


async def test_the_stream_of_an_unknown_job_is_not_found(idle: Face) -> None:
    for job_id in ("job_00000000000000000000000000", "job_x", "req_00000000000000000000000000"):
        answer = await idle.ask("GET", f"/api/jobs/{job_id}/events")
        assert (answer.status, answer.json["code"]) == (404, "not_found")


async def test_two_hundred_cuts_at_random_bytes_lose_and_repeat_nothing(api: Face) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    text = POEM.removeprefix("Say: ") * 3
    cuts, readers = 0, 0
    while cuts < 200:
        # Each round begins while the answer is still being written.
        api.simulator.script(Behaviour(tokens_per_second=1000))
        accepted = await api.submit(f"Say: {text}")
        reader = Reader()
        while reader.final is None:
            cuts += await cut_short(api, accepted["jobId"], reader, chance.randrange(1, 3000))
        assert reader.text == text, f"seed {seed}"
        readers += 1
    assert readers > 1


async def cut_short(api: Face, job_id: str, reader: Reader, size: int) -> bool:
    """Read `size` bytes, wherever that is within a frame, and drop the connection; True unless it ended before."""
    parser = Frames()
    async with api.events(job_id, after=reader.seq or None) as response:
        try:
            body = await response.content.readexactly(size)
        except asyncio.IncompleteReadError as ended:
            body = ended.partial
        for frame in parser.feed(body):
            reader.take(frame)
        response.close()
    return len(body) == size


# In CI a missing curl is a failure: there the call itself says so.
@pytest.mark.skipif(
    shutil.which("curl") is None and "CI" not in os.environ,  # noqa: TID251
    reason="there is no curl",
)
async def test_curl_and_a_browser_read_the_same_events(api: Face) -> None:
    job_id = await finished(api)
    whole = await api.read(job_id)
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", "-H", "Last-Event-ID: 2", f"{api.url}/api/jobs/{job_id}/events"),
        stdout=asyncio.subprocess.PIPE,
    )
    body, _ = await curl.communicate()

    assert curl.returncode == 0
    assert [(kind, identity) for kind, _, identity in browse(body)] == [(f.event, str(f.id)) for f in whole[2:]]
    assert Frames().feed(body) == whole[2:]


# Readers harm nobody


async def test_silence_is_broken_by_heartbeats_without_an_id(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, stream_heartbeat=0.05) as face:
        accepted = await face.submit()
        async with face.events(accepted["jobId"]) as response:
            body = b"".join([await response.content.readuntil(b"\n\n") for _ in range(4)])

    assert body == b"retry: 500\n: tramontane 1 hb=50\n\n" + b": hb\n\n" * 3


async def test_a_reader_that_leaves_cancels_nothing(api: Face) -> None:
    api.simulator.script(Behaviour(tokens=40, tokens_per_second=200))
    async with api.session.post(f"{api.url}/api/chat/stream", json={"messages": QUESTION}) as response:
        await response.content.readuntil(b"id: 1\n\n")
        job_id = response.headers["X-Job-Id"]
        response.close()
    job = await api.job(job_id, wait=10)

    assert job["status"] == "completed"
    assert [call.outcome for call in api.simulator.ledger] == ["complete"]


async def test_readers_see_an_answer_while_it_is_written(api: Face) -> None:
    api.simulator.script(Behaviour(tokens=400, tokens_per_second=100))
    accepted = await api.submit()
    async with api.events(accepted["jobId"]) as response:
        await response.content.readuntil(b"event: chunk")
        (call,) = api.simulator.ledger
        job = await api.cancel(accepted["jobId"])

    assert call.outcome == "running"
    assert job["status"] == "cancelled"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
async def test_readers_that_stop_reading_cost_no_memory_and_stop_nobody(idle: Face, database_url: str) -> None:
    job_id = (await idle.submit())["jobId"]
    text = await write_log(database_url, job_id, ["x" * 10_000] * 1000)  # 10 MB
    await idle.read(job_id)  # what one good reader costs has been paid
    before = resident()
    stuck = [await stuck_reader(idle, job_id) for _ in range(30)]
    try:
        reader = await follow(lambda: idle, job_id, Reader())
        grown = resident() - before
    finally:
        for connection in stuck:
            connection.close()

    assert reader.text == text
    # 30 of them want 300 MB; 10 MB of this is the good reader's text.
    assert grown < 60 * 2**20, f"{grown / 2**20:.0f} MB"


async def test_a_reader_that_takes_nothing_is_let_go_and_resumes(
    idle: Face, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.api.responses._STUCK", 0.3)
    job_id = (await idle.submit())["jobId"]
    text = await write_log(database_url, job_id, ["y" * 10_000] * 200)
    connection = await stuck_reader(idle, job_id)
    while idle.app.streams._tails:  # noqa: ASYNC110 - until the server has let it go
        await asyncio.sleep(0.05)
    loop, body = asyncio.get_running_loop(), b""
    while block := await loop.sock_recv(connection, 2**20):
        body += block
    connection.close()
    reader = Reader()
    for frame in Frames().feed(dechunked(body.partition(b"\r\n\r\n")[2])):
        reader.take(frame)
    kept = reader.seq
    await follow(lambda: idle, job_id, reader)

    assert 1 < kept < 202
    assert reader.text == text


async def test_a_server_that_stops_ends_its_streams_and_their_readers_lose_nothing(
    simulator: Simulator, database_url: str
) -> None:
    simulator.script(Behaviour(tokens=150, tokens_per_second=100))
    reader = Reader()
    async with facing(simulator, database_url, grace=10.0) as second:
        async with facing(simulator, database_url, worker=False) as first:
            accepted = await first.submit()
            async with first.events(accepted["jobId"]) as response:
                parser = Frames()
                for frame in parser.feed(await response.content.readuntil(b"id: 3\n\n")):
                    reader.take(frame)
                first.app.streams.drain()
                for frame in parser.feed(await response.read()):  # a proper end, no broken connection
                    reader.take(frame)
        await follow(lambda: second, accepted["jobId"], reader)
        job = await second.job(accepted["jobId"])

    assert len(parser.retries) == 2
    assert 0 <= parser.retries[1] < 2000
    assert reader.text == job["result"]["content"]


def resident() -> int:
    """Bytes of memory that this process occupies now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stuck_reader(api: Face, job_id: str) -> socket.socket:
    """A connection that asks for a stream, with hardly room for anything, and never reads on."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    host, port = api.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, int(port)))
    await loop.sock_sendall(connection, f"GET /api/jobs/{job_id}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await loop.sock_recv(connection, 1)
    return connection


def dechunked(body: bytes) -> bytes:
    """The content of a chunked body that may end anywhere."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        if not size:
            break
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return content

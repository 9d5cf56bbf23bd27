"""Streams over HTTP: exact frames, exact resumption, and readers that harm nobody."""

import asyncio
import os
import random
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest
import pytest_asyncio
from clients import QUESTION, Frame, Frames, Reader, browse, follow
from faces import Face, facing
from logs import write_log

from tramontane.api.server import trusted_hosts
from tramontane.ids import utc_now
from tramontane.settings import read_settings
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
        merged = ["from"] if chunk.start < chunk.id else []
        assert list(chunk.data) == ["type", "jobId", "seq", *merged, "attempt", "off", "content", "tokenCount"]
        assert chunk.data["jobId"] == job_id
    assert complete.data == {
        "type": "chat:complete",
        "jobId": job_id,
        "seq": complete.id,
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
    readers = [Reader(), Reader()]
    for reader, answer in zip(readers, (created, followed), strict=True):
        for frame in Frames().feed(answer.body):
            reader.take(frame)
    assert readers[0].text == readers[1].text != ""


async def test_a_page_of_an_allowed_origin_may_read_a_stream(simulator: Simulator, database_url: str) -> None:
    page = {"Origin": "https://pages.example"}
    async with facing(simulator, database_url, cors_origins=("https://pages.example",)) as face:
        answer = await face.ask("POST", "/api/chat/stream", json={"messages": QUESTION}, headers=page)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://pages.example"
    assert b"event: complete" in answer.body


async def test_a_stream_opens_before_its_job_has_started(idle: Face) -> None:
    async with idle.session.post(f"{idle.url}/api/chat/stream", json={"messages": QUESTION}) as response:
        opening = await response.content.readuntil(b"\n\n")
        job = await idle.job(response.headers["X-Job-Id"])

    assert opening == b"retry: 500\n: tramontane 1 hb=15000\n\n"
    assert job["status"] == "queued"


async def test_a_failed_attempt_is_followed_by_an_attempt_event_that_says_what_stays(api: Face) -> None:
    api.simulator.script(Behaviour(cut_after=30, tokens_per_second=500), Behaviour())
    accepted = await api.submit(POEM, resume="never")
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


async def each(api: Face, job_id: str, **how: str) -> list[Frame]:
    """The log, each event in a frame of its own."""
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events?compact=0", **how)
    return Frames().feed(answer.body)


async def test_every_cursor_gives_exactly_the_rest(api: Face) -> None:
    job_id = await finished(api)
    whole = await each(api, job_id)
    assert len(whole) > 20

    for cursor in range(len(whole)):
        answer = await api.ask("GET", f"/api/jobs/{job_id}/events?compact=0&after={cursor}")
        assert Frames().feed(answer.body) == whole[cursor:]
        merged = await api.read(job_id, after=cursor)
        assert merged[0].start == cursor + 1
        assert merged[-1] == whole[-1]
        contents = [frame.data.get("content", "") for frame in merged]
        assert "".join(contents) == "".join(frame.data.get("content", "") for frame in whole[cursor:])


@pytest.mark.parametrize(
    ("query", "header", "first"),
    [
        ("after=0", "3", 4),
        ("after=2&lastEventId=4", None, 5),
        ("after=2&lastEventId=4", "3", 4),
        ("lastEventId=2", None, 3),
    ],
)
async def test_what_a_reader_has_seen_last_is_stronger_than_its_first_address(
    api: Face, query: str, header: str | None, first: int
) -> None:
    job_id = await finished(api)
    headers = {"Last-Event-ID": header} if header else {}
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events?{query}", headers=headers)

    assert Frames().feed(answer.body)[0].start == first


async def test_a_whole_answer_is_read_again_in_few_frames(api: Face) -> None:
    job_id = await finished(api)
    whole, short = await each(api, job_id), await api.read(job_id)
    first, *chunks, last = short

    assert len(chunks) <= 3 < len(whole) / 10
    assert (first, last) == (whole[0], whole[-1])
    assert chunks[0].data == {
        **whole[chunks[0].id - 1].data,
        "from": 2,
        "off": 0,
        "content": "".join(frame.data["content"] for frame in whole[1 : chunks[0].id]),
    }


async def test_a_reader_may_join_at_the_head(idle: Face, database_url: str) -> None:
    job_id = (await idle.submit())["jobId"]
    await write_log(database_url, job_id, ["a", "b"], finish=False)
    async with idle.session.get(f"{idle.url}/api/jobs/{job_id}/events?after=now") as response:
        await idle.cancel(job_id)
        frames = Frames().feed(await response.read())
    assert [(frame.event, frame.start, frame.id) for frame in frames] == [("error", 4, 4)]
    ended = await idle.ask("GET", f"/api/jobs/{job_id}/events?after=now")
    assert ended.status == 204


async def test_head_gives_the_headers_alone(idle: Face) -> None:
    accepted = await idle.submit()
    head = await idle.ask("HEAD", accepted["eventsUrl"])
    async with idle.events(accepted["jobId"]) as response:
        names = set(response.headers) - {"Transfer-Encoding"}
    unknown = await idle.ask("HEAD", "/api/jobs/job_x/events")

    assert (head.status, head.body, set(head.headers)) == (200, b"", names)
    assert head.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert unknown.status == 404
    reader, writer = await asyncio.open_connection(*idle.url.removeprefix("http://").split(":"))
    for _ in range(2):  # over one connection: the first has not become a stream
        writer.write(f"HEAD {accepted['eventsUrl']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    await until(lambda: idle.app.places.taken == 0)


async def test_who_has_everything_is_told_to_come_no_more(api: Face) -> None:
    job_id = await finished(api)
    head = (await api.job(job_id))["head"]
    answer = await api.ask("GET", f"/api/jobs/{job_id}/events", headers={"Last-Event-ID": str(head)})

    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("cursor", ["-1", "1.0", "x", "0x1", "1 ", "٣", "99999999999", "NOW"])
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
    assert (await api.ask("GET", answer.json["statusUrl"])).json["result"]["finishReason"] == "stop"
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
    whole = await each(api, job_id)
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", "-H", "Last-Event-ID: 2", f"{api.url}/api/jobs/{job_id}/events?compact=0"),
        stdout=asyncio.subprocess.PIPE,
    )
    body, _ = await curl.communicate()

    assert curl.returncode == 0
    assert [(kind, identity) for kind, _, identity in browse(body)] == [(f.event, str(f.id)) for f in whole[2:]]
    assert Frames().feed(body) == whole[2:]


# The text so far, without a stream


async def test_a_job_shows_the_text_so_far(idle: Face, database_url: str) -> None:
    accepted = await idle.submit()
    assert (await idle.job(accepted["jobId"]))["text"] == ""
    await write_log(database_url, accepted["jobId"], ["Le ", "mistral 🌬️"], finish=False)
    job = await idle.job(accepted["jobId"])
    assert (job["text"], job["result"], job["head"]) == ("Le mistral 🌬️", None, 3)
    cancelled = await idle.cancel(accepted["jobId"])
    assert cancelled["text"] == "Le mistral 🌬️"


async def test_a_completed_job_has_its_text_in_its_result(api: Face) -> None:
    job = await api.job(await finished(api))
    assert "text" not in job
    assert job["result"]["content"] == POEM.removeprefix("Say: ")


async def test_who_asks_again_is_told_that_nothing_is_new(idle: Face, database_url: str) -> None:
    accepted = await idle.submit()
    first = await idle.ask("GET", accepted["statusUrl"])
    known = {"If-None-Match": first.headers["ETag"]}
    weak = {"If-None-Match": f'"other", W/{first.headers["ETag"]}'}
    for headers in (known, weak):
        again = await idle.ask("GET", accepted["statusUrl"], headers=headers)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    await write_log(database_url, accepted["jobId"], ["a"], finish=False)
    changed = await idle.ask("GET", accepted["statusUrl"], headers=known)
    assert (changed.status, changed.json["text"]) == (200, "a")
    assert changed.headers["ETag"] != first.headers["ETag"]
    assert changed.headers["Cache-Control"] == "private, no-cache"


async def test_a_long_poll_says_when_nothing_has_come(idle: Face) -> None:
    accepted = await idle.submit()
    tag = (await idle.ask("GET", accepted["statusUrl"])).headers["ETag"]
    answer = await idle.ask("GET", accepted["statusUrl"], headers={"Prefer": "wait=1", "If-None-Match": tag})
    assert (answer.status, answer.headers["Preference-Applied"]) == (304, "wait=1")


# Readers harm nobody


async def test_silence_is_broken_by_heartbeats_without_an_id(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, stream_heartbeat=0.05) as face:
        accepted = await face.submit()
        async with face.events(accepted["jobId"]) as response:
            body = b"".join([await response.content.readuntil(b"\n\n") for _ in range(4)])

    assert body == b"retry: 500\n: tramontane 1 hb=50\n\n" + b": hb\n\n" * 3


async def test_heartbeats_can_be_events_that_a_page_sees(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, stream_heartbeat=0.05) as face:
        accepted = await face.submit()
        async with face.session.get(f"{face.url}{accepted['eventsUrl']}?ping=event") as response:
            await response.content.readuntil(b"\n\n")
            ping = await response.content.readuntil(b"\n\n")

    assert browse(ping) == [("ping", "{}", "")]


async def test_streams_beyond_the_limit_of_an_address_are_asked_to_wait(
    simulator: Simulator, database_url: str
) -> None:
    async with facing(simulator, database_url, worker=False, streams_per_address=2, streams=3) as face:
        accepted = await face.submit()
        other = {"X-Forwarded-For": "192.0.2.7"}
        async with face.events(accepted["jobId"]), face.events(accepted["jobId"]):
            refused = await face.ask("GET", accepted["eventsUrl"])
            posted = await face.ask("POST", "/api/chat/stream", json={"messages": QUESTION})
            async with face.session.get(f"{face.url}{accepted['eventsUrl']}", headers=other) as third:
                full = await face.ask("GET", accepted["eventsUrl"], headers={"X-Forwarded-For": "192.0.2.8"})
        jobs = (await face.ask("GET", "/api/jobs")).json["jobs"]
        await until(lambda: face.app.places.taken == 0)
        assert (await face.ask("HEAD", accepted["eventsUrl"])).status == 200

    assert third.status == 200
    for answer in (refused, posted, full):
        assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (429, "too_many_streams", "5")
    assert [job["jobId"] for job in jobs] == [accepted["jobId"]]  # the stream was refused before a job was made


@pytest.mark.parametrize(
    ("proxies", "forwarded", "status"),
    [
        (None, "192.0.2.8", 200),  # this machine's are believed
        (None, "192.0.2.7", 429),
        (None, "192.0.2.9, 192.0.2.7", 429),  # what the client itself had said before
        (None, "192.0.2.7, 127.0.0.1", 429),  # two of them, one behind the other
        ("127.0.0.0/8", "192.0.2.8", 200),
        ("127.0.0.0/8,192.0.2.8", "192.0.2.7, 192.0.2.8", 429),
        ("10.0.0.0/8,::1", "192.0.2.8", 429),  # nobody who is asked about an address comes from there
    ],
)
async def test_an_address_is_what_a_trusted_proxy_says(
    simulator: Simulator, database_url: str, proxies: str | None, forwarded: str, status: int
) -> None:
    environment = {} if proxies is None else {"TRAMONTANE_TRUSTED_PROXIES": proxies}
    trusted = read_settings(environment).trusted_proxies
    async with facing(simulator, database_url, worker=False, streams_per_address=1, trusted_proxies=trusted) as face:
        url = f"{face.url}{(await face.submit())['eventsUrl']}"
        async with (
            face.session.get(url, headers={"X-Forwarded-For": "192.0.2.7"}) as first,
            face.session.get(url, headers={"X-Forwarded-For": forwarded}) as second,
        ):
            assert (first.status, second.status) == (200, status)


async def test_the_addresses_of_proxies_are_known_also_where_one_socket_hears_both_families() -> None:
    proxies = trusted_hosts((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    assert proxies == ["10.0.0.0/8", "::ffff:10.0.0.0/104", "fd00::/8"]
    assert ip_address("::ffff:10.1.2.3") in ip_network(proxies[1])


async def test_a_refused_stream_takes_no_place(idle: Face) -> None:
    for path in ("/api/jobs/job_x/events", f"/api/jobs/job_{'0' * 26}/events", "/api/jobs/x/events?after=y"):
        await idle.ask("GET", path)
    await idle.ask("POST", "/api/chat/stream", json={"nonsense": 1})
    assert idle.app.places.taken == 0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


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
    stuck = [await stuck_reader(idle, job_id) for _ in range(100)]
    try:
        reader = await follow(lambda: idle, job_id, Reader())
        grown = resident() - before
    finally:
        for connection in stuck:
            connection.close()

    assert reader.text == text
    # 100 of them want 1 GB, and may have 16 KB and the server's 64 KB each; the good reader's text is 10 MB.
    assert grown < (100 * 80 * 2**10) + 2 * len(text) + 2**20, f"{grown / 2**20:.1f} MB"


async def test_a_reader_that_takes_nothing_is_let_go_and_resumes(
    idle: Face, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.streams._STUCK", 0.3)
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


async def test_a_server_that_stops_ends_every_stream_within_a_second(idle: Face, database_url: str) -> None:
    quiet, long = (await idle.submit())["jobId"], (await idle.submit())["jobId"]
    await write_log(database_url, long, ["z" * 10_000] * 300)
    stuck = await stuck_reader(idle, long)
    loop = asyncio.get_running_loop()
    async with idle.events(quiet) as one, idle.events(quiet) as two:
        for response in (one, two):
            await response.content.readuntil(b"\n\n")
        await until(lambda: any(stream.writing_since < loop.time() for stream in idle.app.streams._open))
        began = loop.time()
        idle.app.streams.drain()
        bodies = [await response.read() for response in (one, two)]
        late = await idle.ask("GET", f"/api/jobs/{quiet}/events")
        await until(lambda: idle.app.places.taken == 0)
        lasted = loop.time() - began
    stuck.close()

    assert all(body.startswith(b"retry: ") for body in bodies)
    assert (late.status, late.body.count(b"retry: ")) == (200, 2)  # no 5xx: it ends as the others did
    assert lasted < 1.0


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

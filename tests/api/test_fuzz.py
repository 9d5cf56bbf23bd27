"""Anything at all is sent: to headers, cursors, tickets and bodies, and to the socket itself.

Never a 5xx, never a hang, and never a word of somebody's message in an error. The same inputs come every time;
TRAMONTANE_FUZZ=1 tries twenty times as many, and other ones each time.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import msgspec
import pytest
import pytest_asyncio
from faces import Face, facing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tramontane.ids import new_id, show_id
from tramontane.simulator import Simulator

MANY = bool(os.environ.get("TRAMONTANE_FUZZ"))  # noqa: TID251 - a setting of the tests
SECRET = "hunter2-is-my-password"
NOBODY = show_id("job", new_id())

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1800 if MANY else 60)]


def tries(count: int) -> settings:
    """So many examples, the same ones every time."""
    return settings(
        max_examples=count * (20 if MANY else 1),
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def face(module_database_url: str) -> AsyncIterator[Face]:
    async with (
        Simulator(seed=1) as simulator,
        facing(
            simulator, module_database_url, worker=False, body_limit=200_000, encryption_keys=("A" * 43 + "=",)
        ) as it,
    ):
        it.app.streams.drain()  # what is asked for is answered by what there is
        it.app.listeners.drain()
        yield it


async def send(face: Face, request: bytes, *, whole: bool = True) -> bytes:
    """Bytes to the server, and whatever comes back until it closes. `whole`: a request that is complete.

    An answer that does not come is a TimeoutError, and one by 5xx an AssertionError.
    """
    host, port = str(urlsplit(face.url).netloc).split(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = b""
        with suppress(ConnectionError):
            writer.write(request)
            if not whole:
                writer.write_eof()
            await writer.drain()
            answer = await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert not re.search(rb"^HTTP/1.[01] 5", answer, re.MULTILINE), answer
    return answer


async def ask(
    face: Face, method: str, target: bytes, *headers: tuple[bytes, bytes], body: bytes | None = None
) -> tuple[int, bytes]:
    """One request, byte for byte: the status and the body. 0: it was not even answered."""
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close"]
    lines += [name + b": " + value for name, value in headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    head, _, rest = (await send(face, b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))).partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head else 0
    if status >= 400 and head.lower().find(b"application/problem+json") > 0:
        assert msgspec.json.decode(rest)["status"] == status
    return status, rest


# What to send

LINE = st.binary(max_size=300).map(lambda raw: re.sub(rb"[\r\n]", b"", raw))
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from(["-0", "1e9", "٣", "0x10", "NaN", "9" * 5000, "1_0"])
).map(lambda number: str(number).encode())
TEXT = st.text(st.characters(exclude_categories=()), max_size=100).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
ANYTHING = st.one_of(LINE, NUMBERS, TEXT)
#: As a header's value: whatever has no end of line in it.
VALUE = ANYTHING.map(lambda raw: re.sub(rb"[\r\n]", b"", raw))
#: Beyond a double, at its end, and what only JavaScript calls a number.
HUGE = st.sampled_from(["1e400", "-1E+999", "1e308", "1e-400", "9" * 400, "9" * 5000, "NaN", "-Infinity"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | HUGE.map(lambda number: msgspec.Raw(number.encode()))
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    *("Last-Event-ID", "Idempotency-Key", "Prefer", "If-None-Match", "Authorization", "X-API-Key", "Content-Type"),
    *("Accept", "Origin", "X-Tramontane-Tenant", "traceparent", "Transfer-Encoding", "Content-Length", "Expect"),
]
PARAMETERS = [
    *("after", "lastEventId", "ticket", "compact", "ping", "cursor", "limit", "status", "kind", "model", "requestId"),
    *("createdAfter", "createdBefore", "since", "until", "jobId", "messageId", "endpoint", "metadata.a", "errorClass"),
]
LISTINGS = ["/api/jobs", "/api/webhooks/endpoints", "/api/webhooks/messages", "/api/webhooks/deliveries",
            "/api/webhooks/attempts", "/api/webhooks/recoveries"]  # fmt: skip


async def a_job(face: Face) -> bytes:
    """The path of a job that exists."""
    return str((await face.submit("Say: hello", key="the-job"))["statusUrl"]).encode()


@tries(150)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), VALUE), max_size=3), st.sampled_from(["get", "events", "post", "stream"])
)
async def test_any_header_is_answered(face: Face, headers: list[tuple[str, bytes]], route: str) -> None:
    lines = [(name.encode(), value) for name, value in headers]
    job = await a_job(face)
    if route in ("get", "events"):
        await ask(face, "GET", job + (b"/events" if route == "events" else b""), *lines)
    else:
        body = msgspec.json.encode({"messages": [{"role": "user", "content": SECRET}]})
        status, answer = await ask(
            face, "POST", b"/api/jobs" if route == "post" else b"/api/chat/stream", *lines, body=body
        )
        if status >= 400:
            assert SECRET.encode() not in answer


@tries(150)
@given(st.sampled_from(PARAMETERS), ANYTHING, st.sampled_from([*LISTINGS, "events", "job"]), st.booleans())
async def test_any_parameter_is_answered(face: Face, name: str, value: bytes, route: str, twice: bool) -> None:
    job = await a_job(face)
    path = {"events": job + b"/events", "job": job}.get(route, route.encode())
    query = f"{name}={quote_from_bytes(value)}".encode()
    await ask(face, "GET", path + b"?" + query + (b"&" + query if twice else b""))


@tries(60)
@given(ANYTHING, st.sampled_from(["", "/events", "/cancel", "/retry", "/ticket"]))
async def test_any_id_is_answered(face: Face, name: bytes, tail: str) -> None:
    target = b"/api/jobs/" + quote_from_bytes(name, safe="").encode() + tail.encode()
    for method in ("GET", "POST", "DELETE", "PATCH", "PUT", "BREW"):
        await ask(face, method, target, body=b"" if method == "POST" else None)


PATHS = ["/api/jobs", "/api/chat/stream", "/api/webhooks/endpoints", "/api/webhooks/explain", "/api/webhooks/listeners",
         "/api/jobs/bulk", "/api/jobs/retry", "/api/schedules", f"/api/jobs/{NOBODY}/ticket"]  # fmt: skip


@tries(100)
@given(st.binary(max_size=500) | JSON.map(msgspec.json.encode), st.sampled_from(PATHS))
async def test_any_body_is_answered(face: Face, body: bytes, path: str) -> None:
    await ask(face, "POST", path.encode(), (b"Content-Type", b"application/json"), body=body)


@tries(150)
@given(st.data())
async def test_a_broken_submit_never_repeats_what_the_message_said(face: Face, data: st.DataObject) -> None:
    message: dict[str, Any] = {"role": "user", "content": SECRET, "name": SECRET}
    request: dict[str, Any] = {"messages": [message], "metadata": {"a": SECRET}, "stop": [SECRET]}
    body: dict[str, Any] = {"kind": "chat", "request": request} if data.draw(st.booleans()) else request
    place = data.draw(st.sampled_from([message, request, body]))
    names = ["role", "content", "messages", "tools", "model", "priority", "n", "stop", "x"]
    theirs = st.sampled_from([SECRET, [SECRET], {"x": SECRET}, [{"role": SECRET}]])
    place[data.draw(st.sampled_from(names))] = data.draw(theirs | JSON)
    raw = bytearray(msgspec.json.encode(body))
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    spoilt = bytes(raw).replace(
        b"hunter2", data.draw(st.sampled_from([b"hunter2", b"hunter2\\ud800", b"hunter2\0", b"hunter2\xff"])), 1
    )
    status, answer = await ask(face, "POST", b"/api/jobs", body=spoilt)
    assert status in (202, 400, 422)
    if status != 202:
        assert b"is-my-password" not in answer


@tries(100)
@given(st.sampled_from(["tools", "metadata", "n", "temperature", "x"]), JSON, st.sampled_from(["long", "short"]))
async def test_whatever_a_field_of_mistrals_holds_every_way_in_takes_or_refuses_it(
    face: Face, name: str, value: Any, form: str
) -> None:
    request = {"messages": [{"role": "user", "content": SECRET}], name: value}
    job = {"kind": "chat", "request": request} if form == "long" else request
    schedule = {"name": show_id("sch", new_id()), "cron": "0 0 1 1 *", "job": job}
    taken = set()
    for path, body in (("jobs", job), ("chat/stream", job), ("schedules", schedule), ("jobs/bulk", [job])):
        status, answer = await ask(face, "POST", f"/api/{path}".encode(), body=msgspec.json.encode(body))
        refused = status >= 400 or (path == "jobs/bulk" and msgspec.json.decode(answer)["refused"])
        taken.add(not refused)
        assert not refused or SECRET.encode() not in answer
    assert len(taken) == 1


@pytest.mark.parametrize("depth", [100, 1_000, 20_000])
@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")])
async def test_a_deep_body_is_answered(face: Face, depth: int, pair: tuple[str, str]) -> None:
    deep = pair[0] * depth + "1" + pair[1] * depth
    for body in (deep, f'{{"messages":[{{"role":"user","content":{deep}}}]}}', f'{{"kind":"chat","request":{deep}}}'):
        status, _ = await ask(face, "POST", b"/api/jobs", body=body.encode())
        assert status in (400, 413, 422)


@tries(100)
@given(st.data())
async def test_no_ticket_but_the_one_that_was_issued_opens_anything(face: Face, data: st.DataObject) -> None:
    job = await a_job(face)
    _, answer = await ask(face, "POST", job + b"/ticket", body=b"")
    ticket = msgspec.json.decode(answer)["ticket"].encode()
    spoilt = bytearray(ticket)
    match data.draw(st.sampled_from(["change", "cut", "add", "other", "twice"])):
        case "change":
            spoilt[data.draw(st.integers(0, len(ticket) - 1))] = data.draw(st.sampled_from(b"AZaz09-_.=\0\xff"))
        case "cut":
            del spoilt[data.draw(st.integers(0, len(ticket) - 1)) :]
        case "add":
            spoilt += data.draw(st.binary(min_size=1, max_size=20))
        case "other":
            spoilt = bytearray(data.draw(ANYTHING))
        case "twice":
            spoilt = spoilt * 2
    if bytes(spoilt) == ticket:
        return
    status, _ = await ask(face, "GET", job + b"/events?ticket=" + quote_from_bytes(bytes(spoilt)).encode())
    assert status == 401, bytes(spoilt)


REQUESTS = [
    b"GET /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
]


@tries(150)
@given(st.data())
async def test_broken_http_is_refused_or_closed(face: Face, data: st.DataObject) -> None:
    request = bytearray(data.draw(st.sampled_from(REQUESTS)) * data.draw(st.integers(1, 2)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(request)))
        match data.draw(st.sampled_from(["insert", "remove", "cut"])):
            case "insert":
                request[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case "remove":
                del request[at : at + data.draw(st.integers(1, 10))]
            case "cut":
                del request[at:]
    await send(face, bytes(request), whole=False)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 100,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: [127.0.0.1\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://[\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}",
    ],
    ids=lambda raw: ascii(raw[:40]),
)
async def test_what_is_no_http_is_refused_or_closed(face: Face, request_: bytes) -> None:
    await send(face, request_, whole=False)
    assert (await ask(face, "GET", b"/healthz"))[0] == 200

"""Whatever a receiver does: an exchange ends in time, in little memory, and is called by its name."""

import asyncio
import gzip
import itertools
import re
import socket
import ssl
import sys
import warnings
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import pytest
import trustme
from receivers import LAPTOP, OK, Behaviour, Visit, answering, answering_once, names, outgoing, receiving, status

from tramontane.ids import utc_now
from tramontane.webhooks.flight import PHASE_LIMITS, Phase
from tramontane.webhooks.models import ErrorClass, Exchange
from tramontane.webhooks.transport import LONGEST_BODY, LONGEST_HEADERS, Transport

HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(50 * 2**20), compresslevel=1)


async def silent(visit: Visit) -> None:
    await visit.request()
    await visit.reader.read()


async def reads_nothing(visit: Visit) -> None:
    visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.get_running_loop().create_future()


async def reset_before_headers(visit: Visit) -> None:
    await visit.request()
    visit.reset()


async def reset_after_headers(visit: Visit) -> None:
    await visit.request()
    await visit.write(HEAD + b"content-length: 100\r\n\r\nhalf")
    await asyncio.sleep(0)
    visit.reset()


async def half_closed(visit: Visit) -> None:
    await visit.request()
    await visit.write(HEAD + b"content-length: 100\r\n\r\nhalf")
    visit.writer.write_eof()
    await visit.reader.read()


def dripping(first: bytes, drop: bytes, seconds: float = 0.01) -> Behaviour:
    async def behave(visit: Visit) -> None:
        await visit.request()
        await visit.write(first)
        while True:
            await asyncio.sleep(seconds)
            await visit.write(drop)

    return behave


def flooding(first: bytes, wave: bytes) -> Behaviour:
    async def behave(visit: Visit) -> None:
        await visit.request()
        await visit.write(first)
        while True:
            await visit.write(wave)

    return behave


CHUNK = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    behave: Behaviour
    error_class: ErrorClass | None = None
    status: int | None = 200
    truncated: bool = False
    body: bytes = b'{"a":1}'


def _answers(code: int, error_class: ErrorClass | None, *headers: str) -> Case:
    return Case(answering(status(code, *headers)), error_class, code)


E = ErrorClass
ELSEWHERE = "location: https://www.example.com/hook"
CASES = {
    **{f"{code}": _answers(code, None) for code in (200, 201, 202, 204, 206, 299)},
    **{f"{code}": _answers(code, E.REDIRECT, ELSEWHERE) for code in (301, 302, 303, 307, 308)},
    "300 without Location": _answers(300, E.REDIRECT),
    "304": _answers(304, E.REDIRECT),
    **{f"{code}": _answers(code, E.HTTP_4XX) for code in (400, 401, 403, 404, 405, 408, 409, 415, 422, 425, 429, 499)},
    "410": _answers(410, E.GONE),
    "413": _answers(413, E.TOO_LARGE),
    **{f"{code}": _answers(code, E.HTTP_5XX) for code in (500, 501, 502, 503, 504, 599)},
    "101 switching protocols": _answers(101, E.PROTOCOL, "connection: upgrade", "upgrade: websocket"),
    "status 700": _answers(700, E.PROTOCOL),
    "100-continue, then 200": Case(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)),
    "103, then 204": Case(answering(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + status(204)), None, 204),
    "103 flood": Case(flooding(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100), E.PROTOCOL, None),
    "HTTP/1.0, body until the end": Case(answering_once(b"HTTP/1.0 200 OK\r\n\r\nall")),
    "never answers": Case(silent, E.TIMEOUT_HEADERS, None),
    "never reads": Case(reads_nothing, E.TIMEOUT_HEADERS, None, body=b"x" * 2**24),
    "header drip": Case(dripping(HEAD, b"x: y\r\n"), E.TIMEOUT_HEADERS, None),
    "status line drip": Case(dripping(b"HTTP/1.1 200 ", b"O"), E.TIMEOUT_HEADERS, None),
    "body drip": Case(dripping(HEAD + b"content-length: 100000\r\n\r\n", b"x"), E.TIMEOUT_BODY),
    "chunk drip": Case(dripping(CHUNKED, b"1\r\nx\r\n"), E.TIMEOUT_BODY),
    "500 with a body that drips": Case(
        dripping(b"HTTP/1.1 500 Oh\r\ncontent-length: 100000\r\n\r\n", b"x"), E.HTTP_5XX, 500
    ),
    "endless chunked body": Case(flooding(CHUNKED, CHUNK), truncated=True),
    "endless body until the end": Case(flooding(HEAD + b"\r\n", bytes(2**16)), truncated=True),
    "endless content-length": Case(
        flooding(HEAD + b"content-length: 99999999999\r\n\r\n", bytes(2**16)), truncated=True
    ),
    "endless chunk extension": Case(flooding(CHUNKED + b"1;", b"x" * 2**16), E.PROTOCOL),
    "endless trailers": Case(flooding(CHUNKED + b"0\r\n", b"x-trailer: y\r\n" * 1000), E.PROTOCOL, None),
    "gzip bomb": Case(
        answering_once(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB), BOMB), truncated=True
    ),
    "reset before headers": Case(reset_before_headers, E.RESET, None),
    "closed before headers": Case(answering_once(), E.RESET, None),
    "closed within headers": Case(answering_once(HEAD + b"content-len"), E.RESET, None),
    "reset after headers": Case(reset_after_headers, E.RESET),
    "half-close within the body": Case(half_closed, E.RESET),
    "100,000 headers": Case(
        answering_once(
            HEAD, *(b"".join(b"x-%d: y\r\n" % n for n in range(k, k + 1000)) for k in range(0, 10**5, 1000))
        ),
        E.PROTOCOL,
        None,
    ),
    "one header of 1 MiB": Case(answering_once(HEAD + b"x: ", b"y" * 2**20, b"\r\n\r\n"), E.PROTOCOL, None),
    "one header name of 1 MiB": Case(answering_once(HEAD, b"y" * 2**20, b": x\r\n\r\n"), E.PROTOCOL, None),
    "one reason of 1 MiB": Case(answering_once(b"HTTP/1.1 200 ", b"y" * 2**20, b"\r\n\r\n"), E.PROTOCOL, None),
    "another protocol": Case(answering_once(b"SSH-2.0-OpenSSH_9.6\r\n"), E.PROTOCOL, None),
    "HTTP/0.9": Case(answering_once(b"<html>hello</html>\n"), E.PROTOCOL, None),
    "HTTP/2": Case(answering_once(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"), E.PROTOCOL, None),
    "NUL in a header": Case(answering_once(HEAD + b"x: a\x00b\r\n\r\n"), E.PROTOCOL, None),
    "content-length too long": Case(answering_once(HEAD + b"content-length: 10\r\n\r\nok"), E.RESET),
    "content-length too short": Case(answering_once(HEAD + b"content-length: 1\r\n\r\nokay"), E.PROTOCOL, None),
    "content-length no number": Case(answering_once(HEAD + b"content-length: two\r\n\r\nok"), E.PROTOCOL, None),
    "content-length negative": Case(answering_once(HEAD + b"content-length: -1\r\n\r\nok"), E.PROTOCOL, None),
    "content-length twice": Case(
        answering_once(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!"), E.PROTOCOL, None
    ),
    "content-length and chunked": Case(
        answering_once(HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), E.PROTOCOL, None
    ),
    "a chunk of no size": Case(answering_once(CHUNKED + b"zz\r\nok\r\n0\r\n\r\n"), E.PROTOCOL, None),
    "a chunk that ends early": Case(answering_once(CHUNKED, b"10\r\nok"), E.RESET),
}
SLOW = [
    name for name, case in CASES.items() if "drip" in name or case.error_class in (E.TIMEOUT_HEADERS, E.TIMEOUT_BODY)
]


async def _meets(name: str, seconds: float) -> None:
    case = CASES[name]
    async with receiving(case.behave) as receiver, Transport(LAPTOP) as transport:
        began = perf_counter()
        exchange = await transport.send(outgoing(receiver.url, body=case.body, timeout=seconds))
        took = perf_counter() - began

    assert exchange.error_class is case.error_class, f"{name}: {exchange.detail}"
    # What breaks HTTP right after the headers may have come with them, and then there was no answer.
    assert exchange.status in ((case.status, 200) if case.error_class is E.PROTOCOL else (case.status,)), name
    assert exchange.succeeded == (case.error_class is None)
    assert exchange.truncated == case.truncated
    assert len(exchange.body) <= LONGEST_BODY
    assert sum(len(key) + len(value) for key, value in exchange.headers) <= LONGEST_HEADERS
    assert bool(exchange.detail) == (case.error_class is not None)
    assert took < seconds + 2.0


@pytest.mark.parametrize("name", sorted(CASES.keys() - SLOW))
async def test_a_receiver_is_called_by_what_it_does(name: str) -> None:
    await _meets(name, 10.0)


async def test_whoever_keeps_us_waiting_is_left_in_time() -> None:
    assert len(SLOW) >= 7
    async with asyncio.TaskGroup() as group:
        for name in SLOW:
            group.create_task(_meets(name, 1.0))


async def test_a_bomb_is_kept_as_it_came() -> None:
    async with receiving(CASES["gzip bomb"].behave) as receiver, Transport(LAPTOP) as transport:
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.body == BOMB[:LONGEST_BODY]


async def test_a_body_that_came_in_part_is_kept() -> None:
    async with receiving(half_closed) as receiver, Transport(LAPTOP) as transport:
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.body == b"half"


async def test_headers_that_are_too_many_are_kept_in_part() -> None:
    answer = status(200, *(f"x-{number}: {'y' * 1000}" for number in range(20)))
    async with receiving(answering(answer)) as receiver, Transport(LAPTOP) as transport:
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.succeeded
    assert 7 <= len(exchange.headers) <= 8


async def test_a_header_of_strange_bytes_can_be_written_down() -> None:
    answer = HEAD + b"x-strange: \xff\xfe\xe9\r\ncontent-length: 0\r\n\r\n"
    async with receiving(answering(answer)) as receiver, Transport(LAPTOP) as transport:
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.succeeded
    assert exchange.header("x-strange") is not None
    str(exchange.headers).encode()


async def test_a_connection_closed_between_two_uses_costs_no_attempt() -> None:
    gone = asyncio.Event()

    async def closes_after_one(visit: Visit) -> None:
        await visit.request()
        await visit.write(OK)
        if visit.number == 1:
            gone.set()
            await visit.request()  # the second use of this connection: nobody answers

    async with receiving(closes_after_one) as receiver, Transport(LAPTOP) as transport:
        first = await transport.send(outgoing(receiver.url))
        await gone.wait()
        second = await transport.send(outgoing(receiver.url))

    assert first.succeeded
    assert second.succeeded
    assert receiver.connections == 2


async def test_a_new_connection_that_is_closed_is_not_tried_again() -> None:
    async with receiving(answering_once()) as receiver, Transport(LAPTOP) as transport:
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.error_class is E.RESET
    assert receiver.connections == 1


async def test_a_reused_connection_that_has_begun_to_answer_is_not_tried_again() -> None:
    async def breaks_off_the_second(visit: Visit) -> None:
        await visit.request()
        await visit.write(OK)
        await visit.request()
        await visit.write(HEAD)

    async with receiving(breaks_off_the_second) as receiver, Transport(LAPTOP) as transport:
        await transport.send(outgoing(receiver.url))
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.error_class is E.RESET
    assert receiver.connections == 1


async def test_an_answer_that_nobody_asked_for_answers_nothing() -> None:
    idle, said = asyncio.Event(), asyncio.Event()

    async def speaks_out_of_turn(visit: Visit) -> None:
        await visit.request()
        await visit.write(status(204))
        if visit.number == 1:
            await idle.wait()
            await visit.write(status(299))
            said.set()
            await visit.reader.read()

    async with receiving(speaks_out_of_turn) as receiver, Transport(LAPTOP) as transport:
        await transport.send(outgoing(receiver.url))
        idle.set()
        await said.wait()
        for _ in range(5):  # what is written on the loopback is there at once; the event loop has to look
            await asyncio.sleep(0)
        exchange = await transport.send(outgoing(receiver.url))

    assert exchange.status == 204
    assert receiver.connections == 2


async def test_a_flapping_receiver_is_told_as_it_is_each_time() -> None:
    flapping = answering(*itertools.islice(itertools.cycle([OK, status(503)]), 10))
    async with receiving(flapping) as receiver, Transport(LAPTOP) as transport:
        seen = [(await transport.send(outgoing(receiver.url))).error_class for _ in range(10)]

    assert seen == [None, E.HTTP_5XX] * 5
    assert receiver.connections == 1


async def test_a_receiver_that_recovers_is_reached_again() -> None:
    async def fails_three_times(visit: Visit) -> None:
        await visit.request()
        if visit.number > 3:
            await visit.write(OK)

    async with receiving(fails_three_times) as receiver, Transport(LAPTOP) as transport:
        seen = [(await transport.send(outgoing(receiver.url))).error_class for _ in range(5)]

    assert seen == [E.RESET] * 3 + [None] * 2


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with Transport(LAPTOP) as transport:
            exchange = await transport.send(outgoing(f"http://127.0.0.1:{unused.getsockname()[1]}/"))

    assert exchange.error_class is E.CONNECT_REFUSED


async def test_a_full_backlog_is_a_connection_that_does_not_come() -> None:
    loop = asyncio.get_running_loop()
    sockets = [socket.socket() for _ in range(6)]
    listener, *callers = sockets
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(listener.getsockname())
    try:
        async with Transport(LAPTOP, phase_limits={**PHASE_LIMITS, Phase.CONNECT: 0.2}) as transport:
            began = loop.time()
            exchange = await transport.send(outgoing(f"http://127.0.0.1:{listener.getsockname()[1]}/"))
            took = loop.time() - began
    finally:
        for one in sockets:
            one.close()

    assert exchange.error_class is E.CONNECT_TIMEOUT
    assert took < 1.0


# TLS. The authority is ours, the name is known to the transport's resolver alone.

AUTHORITY = trustme.CA()
NAME = "hooks.example"


def _server(authority: trustme.CA = AUTHORITY, name: str = NAME, expired: bool = False) -> ssl.SSLContext:
    yesterday = utc_now() - timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    not_after = yesterday if expired else None
    authority.issue_cert(name, not_before=yesterday - timedelta(days=9), not_after=not_after).configure_cert(context)
    return context


def _old() -> ssl.SSLContext:
    context = _server()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


def _asks_for_name() -> ssl.SSLContext:
    def choose(_socket: object, name: str | None, _context: object) -> int | None:
        return None if name == NAME else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = _server()
    context.sni_callback = choose
    return context


@asynccontextmanager
async def trusting(**options: float) -> AsyncIterator[Transport]:
    trust = ssl.create_default_context()
    AUTHORITY.configure_trust(trust)
    limits = {**PHASE_LIMITS, Phase.TLS: 0.3}
    resolve = names(hooks_example=["127.0.0.1"], other_example=["127.0.0.1"])
    async with Transport(LAPTOP, resolver=resolve, ssl_context=trust, phase_limits=limits) as transport:
        yield transport


@pytest.mark.parametrize(
    ("tls", "host", "error_class", "says"),
    [
        (_server, NAME, None, ""),
        (_asks_for_name, NAME, None, ""),
        (_asks_for_name, "other.example", E.TLS_OTHER, "TLS"),
        (lambda: _server(expired=True), NAME, E.TLS_CERT_EXPIRED, "expired"),
        (lambda: _server(trustme.CA()), NAME, E.TLS_OTHER, "authority"),
        (_server, "other.example", E.TLS_HOSTNAME, "another host name"),
        (_server, "127.0.0.1", E.TLS_HOSTNAME, "another address"),
        (_old, NAME, E.TLS_OTHER, "TLS"),
    ],
    ids=["good", "SNI required", "SNI refused", "expired", "unknown CA", "wrong host", "wrong address", "TLS 1.0"],
)
async def test_tls_is_verified(tls, host: str, error_class: ErrorClass | None, says: str) -> None:  # type: ignore[no-untyped-def]
    async with receiving(answering(OK), tls=tls()) as receiver, trusting() as transport:
        exchange = await transport.send(outgoing(receiver.at(host)))

    assert exchange.error_class is error_class
    assert says in exchange.detail
    assert (exchange.timings.tls is None) == (exchange.timings.connect is None)


async def test_a_certificate_signed_by_itself_is_not_trusted() -> None:
    alone = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with alone.private_key_pem.tempfile() as key, alone.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    async with receiving(answering(OK), tls=context) as receiver, trusting() as transport:
        exchange = await transport.send(outgoing(receiver.at(NAME)))

    assert exchange.error_class is E.TLS_OTHER
    assert "signed by itself" in exchange.detail


async def test_a_plain_server_under_https_is_a_tls_failure() -> None:
    async def speaks_http(visit: Visit) -> None:
        await visit.write(status(400))
        await visit.reader.read()

    async with receiving(speaks_http) as receiver, trusting() as transport:
        receiver.scheme = "https"
        exchange = await transport.send(outgoing(receiver.at(NAME)))

    assert exchange.error_class is E.TLS_OTHER


async def test_a_tls_server_under_http_is_no_http() -> None:
    async with receiving(answering(OK), tls=_server()) as receiver, trusting() as transport:
        receiver.scheme = "http"
        exchange = await transport.send(outgoing(receiver.at(NAME)))

    assert exchange.error_class in (E.PROTOCOL, E.RESET)


async def test_a_handshake_that_is_never_answered_has_a_limit_of_its_own() -> None:
    async def mute(visit: Visit) -> None:
        await visit.reader.read(1)
        await asyncio.get_running_loop().create_future()

    async with receiving(mute) as receiver, trusting() as transport:
        receiver.scheme = "https"
        began = perf_counter()
        exchange = await transport.send(outgoing(receiver.at(NAME), timeout=5.0))

    assert exchange.error_class is E.TLS_OTHER
    assert "handshake" in exchange.detail
    assert perf_counter() - began < 2.0


async def test_a_handshake_that_breaks_off_is_a_tls_failure() -> None:
    async def hangs_up(visit: Visit) -> None:
        await visit.reader.read(1)

    async with receiving(hangs_up) as receiver, trusting() as transport:
        receiver.scheme = "https"
        exchange = await transport.send(outgoing(receiver.at(NAME)))

    assert exchange.error_class is E.TLS_OTHER


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak of our memory")
async def test_a_thousand_floods_fit_into_64_mib() -> None:
    async with _flood() as url, Transport(LAPTOP, per_host=512) as transport:
        await transport.send(outgoing(url))
        before = _memory(reset=True)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(transport.send(outgoing(url, timeout=20.0))) for _ in range(1000)]
        grown = _memory() - before

    exchanges: list[Exchange] = [task.result() for task in tasks]
    assert {exchange.error_class for exchange in exchanges} == {None}
    assert sum(exchange.truncated for exchange in exchanges) == 1000
    assert grown < 64 * 2**20, f"grew by {grown / 2**20:.0f} MiB"


def _memory(*, reset: bool = False) -> int:
    """The most bytes in memory since the last reset; after one, those of now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@asynccontextmanager
async def _flood() -> AsyncIterator[str]:
    """A receiver of endless answers and bombs in a process of its own, so that its memory is not ours."""
    script = Path(__file__).with_name("flood_main.py")
    process = await create_subprocess_exec(sys.executable, script, stdout=PIPE)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()

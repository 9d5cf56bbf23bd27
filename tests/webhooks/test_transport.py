"""The transport among friends: what is sent, what is kept, how long it took; and every failure has its class."""

import asyncio
import inspect
import logging
import socket
import ssl
import threading
from collections.abc import Sequence

import aiohttp
import pytest
import trustme
from aiohttp import client_exceptions, http_exceptions
from receivers import LAPTOP, OK, Visit, answering, names, outgoing, receiving, status

from tramontane.webhooks.failures import FAILURES, failure_of, failure_of_status
from tramontane.webhooks.flight import PHASE_LIMITS, Phase
from tramontane.webhooks.models import ErrorClass, Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.resolver import Resolver
from tramontane.webhooks.transport import Transport


async def test_a_post_is_sent_as_it_was_given() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        heard.append(await visit.request())
        await visit.write(OK)

    headers = (("content-type", "application/json"), ("webhook-id", "msg_1"), ("X-Webhook-Id", "msg_1"))
    async with receiving(listen) as receiver, Transport(LAPTOP) as transport:
        url = receiver.at("127.0.0.1", "/a/b?c=d")
        exchange = await transport.send(Outgoing(url=url, headers=headers, body=b'{"a": 1}'))

    head, _, body = heard[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    sent = dict(line.split(": ", 1) for line in lines)
    assert first == "POST /a/b?c=d HTTP/1.1"
    assert body == b'{"a": 1}'
    assert sent["webhook-id"] == sent["X-Webhook-Id"] == "msg_1"
    assert sent["Host"] == f"127.0.0.1:{receiver.port}"
    assert sent["accept-encoding"] == "identity"
    assert exchange.succeeded
    assert (exchange.status, exchange.body, exchange.truncated) == (200, b"ok", False)
    assert exchange.headers == (("content-length", "2"),)
    assert exchange.remote_ip == "127.0.0.1"


async def test_cookies_are_not_kept() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        while True:
            heard.append(await visit.request())
            await visit.write(status(200, "set-cookie: a=b"))

    async with receiving(listen) as receiver, Transport(LAPTOP) as transport:
        for _ in range(2):
            await transport.send(outgoing(receiver.url))

    assert len(heard) == 2
    assert b"cookie" not in heard[1].lower()


async def test_each_phase_of_a_new_connection_is_timed_and_a_pooled_one_has_none() -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(server)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    async def slow(host: str) -> Sequence[str]:
        await asyncio.sleep(0.02)
        return ["127.0.0.1"]

    async def listen(visit: Visit) -> None:
        while True:
            await visit.request()
            await asyncio.sleep(0.03)
            await visit.write(OK)

    transport = Transport(LAPTOP, resolver=slow, ssl_context=trust)
    async with receiving(listen, tls=server) as receiver, transport:
        first = (await transport.send(outgoing(receiver.at("hooks.example")))).timings
        second = (await transport.send(outgoing(receiver.at("hooks.example")))).timings

    assert first.dns is not None
    assert first.connect is not None
    assert first.tls is not None
    assert first.first_byte is not None
    assert first.dns >= 19
    assert first.connect > 0
    assert first.tls > 0
    assert first.first_byte >= 29
    assert first.total >= first.dns + first.connect + first.tls + first.first_byte
    assert (second.dns, second.connect, second.tls) == (None, None, None)
    assert second.first_byte is not None
    assert 29 <= second.first_byte <= second.total
    assert receiver.connections == 1


async def test_connections_to_one_host_are_shared_and_counted() -> None:
    open_now = most = 0

    async def listen(visit: Visit) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            await answering(OK)(visit)
        finally:
            open_now -= 1

    async with (
        receiving(listen) as receiver,
        Transport(LAPTOP, per_host=3) as transport,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(transport.send(outgoing(receiver.url))) for _ in range(30)]

    assert all(task.result().succeeded for task in tasks)
    assert most == receiver.connections == 3


async def test_who_finds_no_free_connection_waits_within_its_own_time() -> None:
    async def mute(visit: Visit) -> None:
        await visit.request()
        await visit.reader.read()

    async with (
        receiving(mute) as receiver,
        Transport(LAPTOP, per_host=1) as transport,
        asyncio.TaskGroup() as group,
    ):
        first = group.create_task(transport.send(outgoing(receiver.url, timeout=0.3)))
        second = group.create_task(transport.send(outgoing(receiver.url, timeout=0.1)))

    assert first.result().error_class is ErrorClass.TIMEOUT_HEADERS
    assert second.result().error_class is ErrorClass.CONNECT_TIMEOUT
    assert "free connection" in second.result().detail


async def test_a_cancelled_exchange_closes_its_connection() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def listen(visit: Visit) -> None:
        await visit.request()
        await visit.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        begun.set()
        assert await visit.reader.read() == b""
        gone.set()

    async with receiving(listen) as receiver, Transport(LAPTOP) as transport:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(transport.send(outgoing(receiver.url)))
            await begun.wait()
            task.cancel()
        async with asyncio.timeout(5):
            await gone.wait()

    assert task.cancelled()


async def test_a_name_without_an_address_is_a_dns_failure() -> None:
    async with Transport(LAPTOP, resolver=names(empty_example=[])) as transport:
        for host in ("unknown.example", "empty.example"):
            exchange = await transport.send(outgoing(f"https://{host}/"))
            assert exchange.error_class is ErrorClass.DNS
            assert exchange.timings.dns is not None
            assert exchange.timings.connect is None


async def test_a_lookup_has_a_limit_of_its_own() -> None:
    async def hang(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    limits = {**PHASE_LIMITS, Phase.DNS: 0.05}
    async with Transport(LAPTOP, resolver=hang, phase_limits=limits) as transport:
        exchange = await transport.send(outgoing("https://hooks.example/", timeout=10))
        with pytest.raises(TimeoutError):
            await transport.resolve("hooks.example")

    assert exchange.error_class is ErrorClass.DNS
    assert 45 <= (exchange.timings.dns or 0) < 2000


async def test_a_limit_of_a_phase_does_not_outlive_it() -> None:
    async def listen(visit: Visit) -> None:
        await visit.request()
        await asyncio.sleep(0.25)
        await visit.write(OK)

    limits = dict.fromkeys(PHASE_LIMITS, 0.2)
    resolve = names(hooks_example=["127.0.0.1"])
    async with receiving(listen) as receiver, Transport(LAPTOP, resolver=resolve, phase_limits=limits) as transport:
        assert (await transport.send(outgoing(receiver.at("hooks.example")))).succeeded


async def test_an_address_that_does_not_answer_gives_way_to_one_that_does() -> None:
    async with receiving(answering(OK)) as receiver:
        resolve = names(hooks_example=["::1", "127.0.0.1"])
        async with Transport(LAPTOP, resolver=resolve) as transport:
            exchange = await transport.send(outgoing(receiver.at("hooks.example")))

    assert exchange.succeeded
    assert exchange.remote_ip == "127.0.0.1"


async def test_the_systems_resolver_is_asked_when_no_other_is_given() -> None:
    policy = AddressPolicy(allow_hosts=frozenset({"localhost"}))
    async with receiving(answering(OK)) as receiver, Transport(policy) as transport:
        assert "127.0.0.1" in await transport.resolve("localhost")
        assert (await transport.send(outgoing(receiver.at("localhost")))).succeeded
        with pytest.raises(OSError, match=r".+"):
            await transport.resolve("nobody.invalid")


async def test_a_lookup_that_hangs_holds_one_thread_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[str] = []
    release = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        lookups.append(host)
        if host == "slow.example":
            release.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver()
    try:
        async with asyncio.TaskGroup() as group:
            impatient = group.create_task(resolver("slow.example"))
            patient = [group.create_task(resolver("slow.example")) for _ in range(50)]
            assert await resolver("quick.example") == ("192.0.2.1",)
            impatient.cancel()
            release.set()
    finally:
        resolver.close()

    assert lookups.count("slow.example") == 1
    assert {tuple(task.result()) for task in patient} == {("192.0.2.1",)}


async def test_neither_body_nor_secret_nor_query_reaches_a_log_or_a_detail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    details = []
    async with receiving(answering(b"nonsense s3cret\r\n\r\n")) as receiver, Transport(LAPTOP) as transport:
        for host in ("127.0.0.1", "10.0.0.1", "unknown.example"):
            url = receiver.at(host, "/s3cret?key=s3cret")
            headers = (("authorization", "Bearer s3cret"),)
            exchange = await transport.send(Outgoing(url=url, headers=headers, body=b"s3cret", timeout=2.0))
            details.append(exchange.detail)

    assert all(details)
    assert "s3cret" not in " ".join(details)
    assert "s3cret" not in caplog.text


def _exceptions() -> list[type[Exception]]:
    kinds: set[type[Exception]] = {OSError, ConnectionError, TimeoutError, socket.gaierror, socket.herror, RuntimeError}
    for module in (client_exceptions, http_exceptions, ssl):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Exception) and not issubclass(kind, Warning | TypeError):
                kinds.add(kind)
    kinds.update(ConnectionError.__subclasses__())
    return sorted(kinds, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", _exceptions(), ids=lambda kind: kind.__name__)
def test_every_failure_has_a_class(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    if isinstance(error, aiohttp.ClientConnectorError):
        error._os_error = OSError(5, "some failure")
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_code = 1
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error._certificate_error = ssl.SSLError()

    if kind is not Exception:
        assert isinstance(error, FAILURES)
    for phase in Phase:
        error_class, detail = failure_of(error, phase)
        assert isinstance(error_class, ErrorClass)
        assert detail.isprintable()


@pytest.mark.parametrize(
    ("error", "phase", "error_class"),
    [
        (TimeoutError(), Phase.QUEUE, ErrorClass.CONNECT_TIMEOUT),
        (TimeoutError(), Phase.DNS, ErrorClass.DNS),
        (TimeoutError(), Phase.CONNECT, ErrorClass.CONNECT_TIMEOUT),
        (TimeoutError(), Phase.TLS, ErrorClass.TLS_OTHER),
        (TimeoutError(), Phase.HEADERS, ErrorClass.TIMEOUT_HEADERS),
        (TimeoutError(), Phase.BODY, ErrorClass.TIMEOUT_BODY),
        (OSError(101, "Network is unreachable"), Phase.CONNECT, ErrorClass.CONNECT_REFUSED),
        (OSError("Multiple exceptions: …"), Phase.CONNECT, ErrorClass.CONNECT_REFUSED),
        (ConnectionResetError(), Phase.HEADERS, ErrorClass.RESET),
        (BrokenPipeError(), Phase.HEADERS, ErrorClass.RESET),
        (aiohttp.ServerDisconnectedError(), Phase.HEADERS, ErrorClass.RESET),
        (aiohttp.ClientPayloadError(), Phase.BODY, ErrorClass.RESET),
        (ssl.SSLError(), Phase.TLS, ErrorClass.TLS_OTHER),
        (RuntimeError("the handler is closed"), Phase.HEADERS, ErrorClass.RESET),
        (http_exceptions.BadHttpMessage("…"), Phase.HEADERS, ErrorClass.PROTOCOL),
    ],
)
def test_a_failure_is_called_by_its_name(error: Exception, phase: Phase, error_class: ErrorClass) -> None:
    assert failure_of(error, phase)[0] is error_class


def test_only_2xx_is_a_success() -> None:
    assert [code for code in range(100, 1000) if failure_of_status(code) is None] == list(range(200, 300))

"""Nothing inside is ever called: no socket connects, no listener accepts, whatever way the address comes in."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from receivers import LAPTOP, OK, Receiver, Visit, answering, names, outgoing, receiving, status

from tramontane.webhooks.models import ErrorClass, Exchange, Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.target import Target, read_target
from tramontane.webhooks.transport import Transport

# Kept apart from the lists of the code on purpose: the same facts, written down twice.
RANGES = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
    203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20
    5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
DENIED = RANGES.split()
PUBLIC = "93.184.216.34"


class Gullible(AddressPolicy):
    """Believes every URL that can be read: what is left is the guard at the socket."""

    def check_url(self, url: str, field: str = "callback") -> Target:
        return read_target(url, field)


class Blind(AddressPolicy):
    """Not even reads it."""

    def check_url(self, url: str, field: str = "callback") -> Target:
        return Target(url=url, scheme="http", host="blind.example", port=80, address=None)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that sockets of this process were told to connect to."""
    addresses: list[object] = []
    connect = socket.socket.connect

    def spy(self: socket.socket, address: object) -> None:
        addresses.append(address)
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", spy)
    return addresses


@asynccontextmanager
async def inside() -> AsyncIterator[Receiver]:
    """The listener that must never hear of us."""
    async with receiving(answering(OK)) as listener:
        yield listener
        # A connection that waits in the backlog would count as well.
        await asyncio.sleep(0)
        assert listener.connections == 0


def ends(prefix: str) -> tuple[str, str]:
    network = ip_network(prefix)
    return str(network[0]), str(network[-1])


def refused(exchange: Exchange) -> bool:
    return (
        exchange.error_class is ErrorClass.BLOCKED_SSRF
        and (exchange.status, exchange.headers, exchange.body, exchange.remote_ip) == (None, (), b"", None)
        and bool(exchange.detail)
    )


@pytest.mark.parametrize("prefix", DENIED)
async def test_a_denied_range_is_never_dialled(prefix: str, dialled: list[object]) -> None:
    answers: dict[str, Sequence[str]] = {}
    literals = []
    for number, address in enumerate(ends(prefix)):
        answers[f"alone{number}_example"] = [address]
        answers[f"before{number}_example"] = [PUBLIC, address]
        answers[f"after{number}_example"] = [address, PUBLIC]
        literals.append(f"[{address}]" if ":" in address else address)
        if ":" not in address:
            answers[f"mapped{number}_example"] = [f"::ffff:{address}"]
            literals.append(f"[::ffff:{address}]")
    hosts = [name.replace("_", ".") for name in answers] + literals

    for policy in (AddressPolicy(), Gullible()):
        async with Transport(policy, resolver=names(**answers)) as transport:
            for host in hosts:
                for url in (f"https://{host}/", f"http://{host}:8080/"):
                    assert refused(await transport.send(outgoing(url))), url

    assert dialled == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "a.localhost",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "[fe80::1%lo]",
        "[::1%25lo]",
        "①②⑦.0.0.1",
        "１２７.0.0.1",
        "127。0。0。1",
        "127%2e0%2e0%2e1",
        "user@127.0.0.1",
        "hooks.example@127.0.0.1",
        "user:word@127.0.0.1",
    ],
)
async def test_no_spelling_of_loopback_reaches_it(host: str, dialled: list[object]) -> None:
    async with inside() as listener:
        url = f"http://{host}:{listener.port}/"
        async with Transport(AddressPolicy()) as transport:
            assert refused(await transport.send(outgoing(url)))
        async with Transport(Gullible()) as transport:
            assert not (await transport.send(outgoing(url))).succeeded
    assert dialled == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "[::1]", "localhost"]
)
async def test_the_guard_at_the_socket_needs_nobody_to_have_read_the_url(host: str, dialled: list[object]) -> None:
    async with inside() as listener, Transport(Blind()) as transport:
        exchange = await transport.send(outgoing(f"http://{host}:{listener.port}/"))

    assert not exchange.succeeded
    assert dialled == []


async def test_a_name_that_leads_elsewhere_between_two_attempts_is_judged_again(dialled: list[object]) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"]]

    async def flip(host: str) -> Sequence[str]:
        return answers.pop(0)

    closing = answering(status(200, "connection: close"))
    async with receiving(closing) as receiver, Transport(LAPTOP, resolver=flip) as transport:
        exchanges = [await transport.send(outgoing(receiver.at("hooks.example"))) for _ in range(3)]

    assert exchanges[0].succeeded
    assert refused(exchanges[1])
    assert refused(exchanges[2])
    assert dialled == [("127.0.0.1", receiver.port)]


async def test_an_answer_that_changes_after_it_was_judged_is_judged_at_the_socket(dialled: list[object]) -> None:
    class Flipping(list[str]):
        """Shows the good address to whoever looks first."""

        def __iter__(self) -> Iterator[str]:
            looks.append(1)
            return iter(["127.0.0.1"] if len(looks) == 1 else ["10.0.0.1"])

    looks: list[int] = []

    async def resolve(host: str) -> Sequence[str]:
        return Flipping(["127.0.0.1"])

    async with Transport(LAPTOP, resolver=resolve) as transport:
        exchange = await transport.send(outgoing("http://hooks.example:8080/"))

    assert len(looks) == 2
    assert refused(exchange)
    assert dialled == []


async def test_a_pooled_connection_grows_old_and_its_name_is_judged_again() -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def flip(host: str) -> Sequence[str]:
        return answers.pop(0)

    async with receiving(answering(OK)) as receiver, Transport(LAPTOP, resolver=flip, longest_age=0.0) as transport:
        first = await transport.send(outgoing(receiver.at("hooks.example")))
        second = await transport.send(outgoing(receiver.at("hooks.example")))

    assert first.succeeded
    assert refused(second)


@pytest.mark.parametrize("code", [300, 301, 302, 303, 305, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async with inside() as listener:
        elsewhere = answering(status(code, f"location: {listener.url}", f"refresh: 0; url={listener.url}"))
        async with receiving(elsewhere) as receiver, Transport(LAPTOP) as transport:
            exchange = await transport.send(outgoing(receiver.url))

    assert exchange.error_class is ErrorClass.REDIRECT
    assert exchange.header("location") == listener.url


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with inside() as listener, receiving(answering(OK)) as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, listener.url)
            monkeypatch.setenv(name.upper(), listener.url)
        monkeypatch.delenv("no_proxy", raising=False)
        async with Transport(LAPTOP) as transport:
            assert (await transport.send(outgoing(receiver.url))).succeeded


async def test_a_denied_range_wins_over_an_allowed_one(dialled: list[object]) -> None:
    policy = AddressPolicy(
        allow_cidrs=(ip_network("127.0.0.0/8"),),
        allow_hosts=frozenset({"hooks.example"}),
        deny_cidrs=(ip_network("127.0.0.1/32"),),
    )
    async with inside() as listener, Transport(policy, resolver=names(hooks_example=["127.0.0.1"])) as transport:
        assert refused(await transport.send(outgoing(listener.url)))
        assert refused(await transport.send(outgoing(listener.at("hooks.example"))))
    assert dialled == []


async def test_credentials_of_a_cloud_stay_closed_in_an_allowed_range(dialled: list[object]) -> None:
    everything = AddressPolicy(allow_cidrs=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    resolve = names(
        hooks_example=["169.254.169.254"],
        six_example=["fd00:ec2::254"],
        mapped_example=["::ffff:169.254.169.254"],
        gateway_example=["64:ff9b::a9fe:a9fe"],
        other_example=["100.100.100.200"],
    )
    async with Transport(everything, resolver=resolve) as transport:
        for host in ("hooks", "six", "mapped", "gateway", "other"):
            assert refused(await transport.send(outgoing(f"http://{host}.example/latest/meta-data/")))
        assert refused(await transport.send(outgoing("http://169.254.169.254/latest/meta-data/")))
    assert dialled == []


async def test_without_tls_only_what_is_allowed_is_dialled(dialled: list[object]) -> None:
    resolve = names(hooks_example=[PUBLIC])
    for policy in (AddressPolicy(), LAPTOP):
        async with Transport(policy, resolver=resolve) as transport:
            exchange = await transport.send(outgoing("http://hooks.example/"))
            assert refused(exchange)
            assert "TLS" in exchange.detail
    assert dialled == []


async def test_a_line_break_in_the_path_adds_no_header() -> None:
    async with inside() as listener, Transport(LAPTOP) as transport:
        for path in ("/\r\nx-evil: 1", "/\nx", "/\x00", "/a b", "/\\evil", "/\u2028"):
            assert refused(await transport.send(outgoing(listener.at("127.0.0.1", path))))


async def test_an_encoded_line_break_stays_encoded() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        heard.append(await visit.request())
        await visit.write(OK)

    async with receiving(listen) as receiver, Transport(LAPTOP) as transport:
        await transport.send(outgoing(receiver.at("127.0.0.1", "/%0d%0ax-evil:1?q=%0a")))

    assert heard[0].startswith(b"POST /%0D%0Ax-evil:1?q=%0A HTTP/1.1\r\n")


async def test_a_line_break_in_a_header_sends_nothing() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        heard.append(await visit.request())

    async with receiving(listen) as receiver, Transport(LAPTOP) as transport:
        evil = Outgoing(url=receiver.url, headers=(("x", "a\r\nx-evil: 1"),), body=b"{}", timeout=2.0)
        exchange = await transport.send(evil)

    assert not exchange.succeeded
    assert heard == []


def test_every_denied_range_is_denied_at_both_ends_and_what_is_beside_it_is_not() -> None:
    policy = AddressPolicy()
    networks = [ip_network(prefix) for prefix in DENIED]
    for network in networks:
        for address in ends(str(network)):
            assert not policy.judge_address(address, "hooks.example").passed, address
        for beside in _beside(network):
            covered = any(beside.version == other.version and beside in other for other in networks)
            public = not covered and (beside.version == 4 or beside in ip_network("2000::/3"))
            assert policy.judge_address(str(beside), "hooks.example").passed is public, beside


def _beside(network: IPv4Network | IPv6Network) -> list[IPv4Address | IPv6Address]:
    """The addresses just before and just after."""
    kind, highest = type(network[0]), 2**network.max_prefixlen
    return [kind(number) for number in (int(network[0]) - 1, int(network[-1]) + 1) if 0 <= number < highest]

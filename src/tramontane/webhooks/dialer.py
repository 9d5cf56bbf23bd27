"""Dialer: aiohttp's connector with a guard at the socket.

Every socket is opened here, for names and literals, first dials and repeated ones alike, and none before the policy
has judged the very address that it will call. There is no time between check and use, and Host, SNI, certificate and
pool stay those of the name.
"""

import errno
import socket
import ssl
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from tramontane.webhooks.flight import FLIGHT, Flight, Phase
from tramontane.webhooks.policy import AddressPolicy, Verdict
from tramontane.webhooks.resolver import Resolve

#: Connections to one host, and in all. As many as the widest window: whoever waited for one would spend its own time.
PER_HOST: Final = 64
TOTAL: Final = 512
#: Seconds: a connection unused for so long is closed; one of this age is not used again, so that the policy is asked
#: anew, and the name looked up.
LONGEST_IDLE: Final = 60.0
LONGEST_AGE: Final = 300.0
# An answer counts for 16 KiB. What a flood can put into our memory at once is bounded where it arrives, in the kernel.
_RECEIVE_BUFFER: Final = 32 * 1024
#: Bytes of an answer, whatever they are: what no reader asks for, such as trailers and early hints, ends here.
LONGEST_ANSWER: Final = 2**20


class DialRefused(OSError):
    """The policy forbids the address."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(errno.EACCES, "forbidden by the address policy")
        self.verdict = verdict


class Dialer(aiohttp.TCPConnector):
    """Connects flights; see `Flight`. It dials for nobody who has none."""

    def __init__(
        self,
        policy: AddressPolicy,
        resolve: Resolve,
        *,
        ssl_context: ssl.SSLContext | None = None,
        per_host: int = PER_HOST,
        total: int = TOTAL,
        longest_age: float = LONGEST_AGE,
    ) -> None:
        super().__init__(
            resolver=_Lookup(policy, resolve),
            use_dns_cache=False,
            socket_factory=self._open_socket,
            ssl=ssl_context or True,
            keepalive_timeout=LONGEST_IDLE,
            limit=total,
            limit_per_host=per_host,
        )
        self._policy = policy
        self._longest_age = longest_age
        # aiohttp makes the protocol when TCP is connected and TLS has yet to begin: nothing else tells that moment.
        self._factory: Any = self._connected

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        """A connection from the pool that is fit to be used, or a new one."""
        flight = FLIGHT.get()
        flight.enter(Phase.QUEUE)
        while True:
            connection = await super().connect(req, traces, timeout)
            line = connection.protocol
            assert isinstance(line, Line), "aiohttp made the protocol by itself"
            if line.is_fit(flight, self._longest_age):
                break
            connection.close()
        line.take(flight)
        flight.enter(Phase.HEADERS)
        return connection

    def _connected(self) -> "Line":
        flight = FLIGHT.get()
        if flight.target.secure:
            flight.enter(Phase.TLS)
        return Line(self._loop)

    def _open_socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """The guard. aiohttp asks for a socket with the address that it connects it to next."""
        family, kind, protocol, _, address = address_info
        flight = FLIGHT.get()
        _admit(self._policy, str(address[0]), flight)
        flight.enter(Phase.CONNECT)
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        return opened


class Line(ResponseHandler):
    """One connection: how old it is, whether it has been used, and which flight listens to it."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self._made_at: float = loop.time()
        self._used = False
        self._flight: Flight | None = None
        self._remote_ip: str | None = None
        self._heard = 0

    def is_fit(self, flight: Flight, longest_age: float) -> bool:
        """Whether it may carry this flight. On a used one nothing may have come in the meantime: it answers nothing."""
        if not self._used:
            return True
        return not flight.fresh and not self.should_close and self._loop.time() - self._made_at < longest_age

    def take(self, flight: Flight) -> None:
        """Carry this flight now."""
        if not self._used and self.transport is not None:
            peer = self.transport.get_extra_info("peername")
            self._remote_ip = str(peer[0]) if peer else None
        flight.reused, flight.remote_ip = self._used, self._remote_ip
        self._used = True
        self._flight = flight
        self._heard = 0

    def data_received(self, data: bytes) -> None:
        flight = self._flight
        if flight is not None:
            if not self._heard:
                flight.hear()
            self._heard += len(data)
            if self._heard > LONGEST_ANSWER:
                flight.flooded = True
                if self.transport is not None:
                    self.transport.abort()
                return
        super().data_received(data)


class _Lookup(AbstractResolver):
    """A `Resolve` as aiohttp wants it. One forbidden address forbids them all: such a name is no accident."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        flight = FLIGHT.get()
        flight.enter(Phase.DNS)
        addresses = await self._resolve(host)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        for address in addresses:
            _admit(self._policy, address, flight)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing of ours to close."""


def _admit(policy: AddressPolicy, address: str, flight: Flight) -> None:
    verdict = policy.judge_address(address, flight.target.host, secure=flight.target.secure)
    if not verdict.passed:
        flight.refused = verdict
        raise DialRefused(verdict)

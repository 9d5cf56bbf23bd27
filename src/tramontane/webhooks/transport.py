"""Transport: one POST, sent once, and what came of it.

A receiver may refuse, lie, drip, flood or fall silent: there is an Exchange within the time, and little memory is
used for it. Redirects are never followed, cookies never kept, answers never decompressed, certificates always
verified, and no environment variable sends a request elsewhere.
"""

import asyncio
import io
import ssl
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Final

import aiohttp
from yarl import URL

from tramontane.errors import CallbackBlocked
from tramontane.webhooks.dialer import LONGEST_AGE, PER_HOST, TOTAL, Dialer
from tramontane.webhooks.failures import FAILURES, failure_of, failure_of_status
from tramontane.webhooks.flight import FLIGHT, PHASE_LIMITS, Flight, Phase
from tramontane.webhooks.models import ErrorClass, Exchange, Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.resolver import Resolve, Resolver
from tramontane.webhooks.target import Target

#: Bytes kept of an answer's body and of its headers.
LONGEST_BODY: Final = 16 * 1024
LONGEST_HEADERS: Final = 8 * 1024
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)
# aiohttp warns of bytes above this, since it sends them in one piece; of a file it sends pieces.
_LONGEST_PIECE: Final = 2**20


class Transport:
    """Sends deliveries through one pool of connections. An async context manager, of one event loop.

    resolver: addresses of a host name; the system's own when None. ssl_context: whom to trust, if not the public
    authorities. phase_limits: seconds for DNS, connect and TLS. per_host, total: connections at a time; who finds none
    free waits within his own timeout. longest_age: seconds until a connection is no longer used again.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        resolver: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
        phase_limits: Mapping[Phase, float] = PHASE_LIMITS,
        per_host: int = PER_HOST,
        total: int = TOTAL,
        longest_age: float = LONGEST_AGE,
    ) -> None:
        self._policy = policy
        self._own_resolver = Resolver()  # no thread before the first lookup
        self._resolve: Resolve = resolver or self._own_resolver
        self._phase_limits = phase_limits
        self._dialer = partial(
            Dialer,
            policy,
            self._resolve,
            ssl_context=ssl_context,
            per_host=per_host,
            total=total,
            longest_age=longest_age,
        )
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop
        # Judging a URL takes as long as sending to it; what was judged is a frozen value of a frozen policy.
        self._target = lru_cache(4096)(self._judged)

    async def __aenter__(self) -> "Transport":
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=self._dialer(),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=_NO_TIMEOUT,  # the flight has the one timer
            read_bufsize=LONGEST_BODY,
            max_headers=100,
            headers={"accept-encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        self._own_resolver.close()

    async def send(self, outgoing: Outgoing) -> Exchange:
        """POST `outgoing`. Whatever the receiver does becomes an Exchange; only a cancellation is raised."""
        try:
            target, url = self._target(outgoing.url)
        except CallbackBlocked as blocked:
            return Exchange(error_class=ErrorClass.BLOCKED_SSRF, detail=str(blocked))
        flight = Flight(target, outgoing.timeout, self._loop, self._phase_limits)
        token = FLIGHT.set(flight)
        response, body, failure = None, bytearray(), None
        try:
            async with flight.limit:
                response = await self._answer(url, outgoing, flight)
                flight.enter(Phase.BODY)
                await _read(response.content, body)
        except FAILURES as error:
            failure = _failure(error, flight)
        finally:
            FLIGHT.reset(token)
            if response is not None:
                # Read to its end, the connection has gone back to the pool, and this does nothing.
                response.close()
        return _exchange(flight, response, body, failure)

    async def resolve(self, host: str) -> Sequence[str]:
        """The addresses that `host` leads to now; none are dialled. Raises OSError, TimeoutError included."""
        async with asyncio.timeout(self._phase_limits[Phase.DNS]):
            return await self._resolve(host)

    def _judged(self, url: str) -> tuple[Target, URL]:
        target = self._policy.check_url(url, "")
        return target, URL(target.url, encoded=True)

    async def _answer(self, url: URL, outgoing: Outgoing, flight: Flight) -> aiohttp.ClientResponse:
        """The answer's status and headers."""
        try:
            return await self._request(url, outgoing)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # A pooled connection may have been closed by the receiver just as we wrote: that tells nothing of it.
            if not flight.reused or flight.answered_at is not None:
                raise
        flight.fresh = True
        return await self._request(url, outgoing)

    async def _request(self, url: URL, outgoing: Outgoing) -> aiohttp.ClientResponse:
        assert self._session is not None, "enter the transport before sending"
        body = outgoing.body if len(outgoing.body) <= _LONGEST_PIECE else io.BytesIO(outgoing.body)
        return await self._session.post(url, data=body, headers=outgoing.headers, allow_redirects=False)


async def _read(content: aiohttp.StreamReader, body: bytearray) -> None:
    """Read into `body` until its end, or until there is more than counts."""
    while len(body) <= LONGEST_BODY and (chunk := await content.readany()):
        body += chunk


def _failure(error: Exception, flight: Flight) -> tuple[ErrorClass, str]:
    if (refused := flight.refused) is not None:
        return ErrorClass.BLOCKED_SSRF, f"{refused.detail}: {refused.hint}" if refused.hint else refused.detail
    if flight.flooded:
        return ErrorClass.PROTOCOL, "more came than any answer has"
    return failure_of(error, flight.phase)


def _exchange(
    flight: Flight,
    response: aiohttp.ClientResponse | None,
    body: bytearray,
    failure: tuple[ErrorClass, str] | None,
) -> Exchange:
    if response is not None:
        # The status decides; a body that breaks off only spoils a success.
        failure = failure_of_status(response.status) or failure
    return Exchange(
        status=response.status if response is not None else None,
        error_class=failure[0] if failure else None,
        detail=failure[1] if failure else "",
        headers=_headers(response.headers) if response is not None else (),
        body=bytes(body[:LONGEST_BODY]),
        truncated=len(body) > LONGEST_BODY,
        remote_ip=flight.remote_ip,
        timings=flight.timings(),
    )


def _headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The headers that fit, in lower case, without what no UTF-8 text can hold."""
    kept, room = [], LONGEST_HEADERS
    for name, value in headers.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        kept.append((name.lower(), value if value.isascii() else value.encode("utf-8", "replace").decode()))
    return tuple(kept)

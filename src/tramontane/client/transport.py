"""The way to a server: a request goes out, an answer comes back, its body as it comes. Here it is HTTP."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, Self

import aiohttp
from yarl import URL

from tramontane.errors import ConfigurationError, TramontaneError

_CONNECT: Final = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `path` is quoted and has the query in it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


class Answer(Protocol):
    """A status, headers (found under any case), and a body that is still coming."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Found under lower-case names."""

    async def block(self) -> bytes:
        """The next bytes of the body; none at its end. Raises Lost."""


class Transport(Protocol):
    """Carries requests to one server."""

    @property
    def where(self) -> str:
        """The server, as messages name it."""

    def exchange(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """The answer to a request, whatever its status. Leaving the block lets go of it. Raises Lost."""


class Lost(Exception):
    """No answer, or no more of it, for now.

    retry_after: seconds that the server asked us to wait. nobody: there was not even a connection. error: what is
    raised to the caller when it stays so.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float = 0.0,
        nobody: bool = False,
        error: TramontaneError | None = None,
    ) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
        self.retry_after = retry_after
        self.nobody = nobody


class HttpTransport:
    """Connections to a server, kept open between requests. Use it as `async with`."""

    def __init__(self, url: str) -> None:
        self.where = url
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # Without aiohttp's own limits: five minutes would end a stream, and a hundred connections would let one wait.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT), connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def exchange(self, request: Request) -> AsyncIterator[Answer]:
        """Ask over HTTP. A redirect is an answer like any other: a POST that followed it could turn into a GET."""
        if self._session.closed:
            raise RuntimeError("this client is closed")
        url = URL(f"{self.where}{request.path}", encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=request.headers, data=request.body, allow_redirects=False
            ) as response:
                yield _HttpAnswer(response)
        except aiohttp.InvalidURL:
            raise ConfigurationError(f"{self.where} is no address of a server") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from None


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._content = response.content

    async def block(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from None


def _lost(error: Exception) -> Lost:
    match error:
        case aiohttp.ClientConnectorError():
            return Lost(error.os_error.strerror or "no connection", nobody=True)
        case aiohttp.ConnectionTimeoutError():
            return Lost("no connection in time", nobody=True)
        case _:
            return Lost("the connection broke")

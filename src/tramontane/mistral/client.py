"""MistralClient: one request, its limits in time, its end."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Raw

from tramontane.errors import (
    ConfigurationError,
    InvalidInput,
    MalformedAnswer,
    MistralError,
    UpstreamTimeout,
)
from tramontane.ids import utc_now
from tramontane.limits import Heard
from tramontane.mistral.completion import Completion, read_completion
from tramontane.mistral.failures import ERROR_BODY, answered, error_from, transport_error
from tramontane.mistral.headers import heard_in
from tramontane.mistral.stream import ChatStream, Timeouts
from tramontane.mistral.tap import EVENTS, Connector
from tramontane.settings import Settings

#: An answer that is not streamed is read up to this many bytes.
LONGEST_BODY = 64 * 2**20

#: Takes what the heads of answers say of limits.
Heads = Callable[[Heard], None]

_JSON = "application/json"


class MistralClient:
    """Calls of the Mistral API, each one attempt: retrying is its caller's.

    server_url: without `/v1`. connections: how many calls may be open at once; more of them wait for their turn.

    Every call raises a MistralError for whatever Mistral or the network does, and cancelling a call closes its
    connection, which is what makes Mistral stop. Use it as `async with MistralClient(...) as client`, or call
    `aclose`. It belongs to the event loop of its first call.

    Raises ConfigurationError for an address that is none, or a key that no header can carry.
    """

    def __init__(
        self, *, api_key: str, server_url: str, timeouts: Timeouts | None = None, connections: int = 1000
    ) -> None:
        self._url, self._host = _address(server_url)
        self._timeouts = timeouts or Timeouts()
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._connector: Connector | None = None
        self._closed = False
        self._headers = {
            "accept-encoding": "identity",  # a compressor on the way would hold tokens back
            "content-type": _JSON,
            "user-agent": f"tramontane/{version('tramontane')}",
            **_authorization(api_key),
        }

    @classmethod
    def from_settings(cls, settings: Settings) -> "MistralClient":
        """A client as the settings have it."""
        timeouts = Timeouts(
            connect=settings.connect_timeout,
            first_token=settings.first_token_timeout,
            silence=settings.silence_timeout,
        )
        return cls(api_key=settings.mistral_api_key, server_url=settings.mistral_server_url, timeouts=timeouts)

    async def __aenter__(self) -> "MistralClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, those of running calls included. Closing twice is closing once."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def stream(
        self, request: Mapping[str, Any], *, api_key: str | None = None, heard: Heads | None = None
    ) -> AsyncIterator[ChatStream]:
        """`POST /v1/chat/completions`, answered as it is written. Leaving before the end closes the connection.

        request: Mistral's own fields. Values may be `msgspec.Raw`: they are sent byte for byte. Only `stream` is ours.
        api_key: in place of the client's own. heard: told what the answer's head says of limits, a refusal's too.
        """
        started_at = asyncio.get_running_loop().time()
        body = _body(request, stream=True)
        async with self._call("POST", "v1/chat/completions", body, EVENTS, started_at, api_key, heard) as response:
            assert self._connector is not None, "the call was made through it"
            tap, choices = self._connector.tap(response), _choices(request)
            stream = ChatStream(response, tap, choices=choices, timeouts=self._timeouts, started_at=started_at)
            try:
                yield stream
            finally:
                stream.close()

    async def complete(self, request: Mapping[str, Any]) -> Completion:
        """`POST /v1/chat/completions`, answered as a whole. `request` is as for `stream`."""
        started_at = asyncio.get_running_loop().time()
        body = _body(request, stream=False)
        async with self._call("POST", "v1/chat/completions", body, _JSON, started_at) as response:
            with answered(response.status, response.headers):
                return read_completion(await self._whole(response, started_at), response.headers)

    async def models(self) -> bytes:
        """`GET /v1/models`: the list as Mistral wrote it."""
        started_at = asyncio.get_running_loop().time()
        async with self._call("GET", "v1/models", None, _JSON, started_at) as response:
            with answered(response.status, response.headers):
                return await self._whole(response, started_at)

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        accept: str,
        started_at: float,
        api_key: str | None = None,
        heard: Heads | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer with status 200 and the content type `accept`; every other one is raised as what it means."""
        own = {} if api_key is None else _authorization(api_key)
        response = await self._open(method, path, body, {"accept": accept, **own}, started_at)
        if heard is not None:
            heard(heard_in(response.status, response.headers, utc_now()))
        try:
            if response.status != 200:
                raise await self._refusal(response, started_at)
            if response.content_type != accept:
                with answered(response.status, response.headers):
                    raise MalformedAnswer(f"Mistral answered 200, but not with {accept}")
            yield response
        finally:
            # Read to its end, the connection has long gone back to its pool, and this does nothing.
            response.close()

    async def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], started_at: float
    ) -> aiohttp.ClientResponse:
        """Send the request; the answer's status and headers."""
        phase, seconds = self._first_limit()
        headers = {**self._headers, **headers}
        try:
            async with asyncio.timeout_at(started_at + seconds) as limit:
                return await self._opened().request(
                    method, f"{self._url}/{path}", data=body, headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientError, OSError) as error:
            # asyncio's own TimeoutError is an OSError as well, and means our limit only when that has passed.
            late = UpstreamTimeout(phase, seconds) if limit.expired() else None
            failure = late or transport_error(error, host=self._host, answering=False, connect=self._timeouts.connect)
        # Raised out here, where nothing hangs on to it: aiohttp's exception may hold the request, and so the key.
        raise failure

    def _opened(self) -> aiohttp.ClientSession:
        # Made here and not in the constructor: a session belongs to the loop that runs when it is made.
        if self._closed:
            raise RuntimeError("this MistralClient is closed")
        if self._session is None:
            self._connector = Connector(limit=self._connections)
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect),
                trust_env=False,
            )
        return self._session

    def _first_limit(self) -> tuple[str, float]:
        total, first = self._timeouts.total, self._timeouts.first_token
        return ("total", total) if total is not None and total < first else ("first_token", first)

    async def _refusal(self, response: aiohttp.ClientResponse, started_at: float) -> MistralError:
        told = b""
        with suppress(MistralError):  # the status says enough when the body does not come
            told = await self._read(response, started_at, ERROR_BODY)
        return error_from(response.status, response.headers, told, now=utc_now())

    async def _whole(self, response: aiohttp.ClientResponse, started_at: float) -> bytes:
        body = await self._read(response, started_at, LONGEST_BODY)
        if len(body) > LONGEST_BODY:
            raise MalformedAnswer(f"Mistral's answer is over {LONGEST_BODY} bytes")
        return body

    async def _read(self, response: aiohttp.ClientResponse, started_at: float, most: int) -> bytes:
        """The body, or of one over `most` bytes what came until that was clear."""
        blocks, size = [], 0
        now = asyncio.get_running_loop().time
        silence, total = self._timeouts.silence, self._timeouts.total
        ends_at = math.inf if total is None else started_at + total
        try:
            async with asyncio.timeout(None) as limit:
                while size <= most:
                    limit.reschedule(min(now() + silence, ends_at))
                    block = await response.content.readany()
                    if not block:
                        break
                    blocks.append(block)
                    size += len(block)
        except (aiohttp.ClientError, OSError) as error:
            connect = self._timeouts.connect
            failure = transport_error(error, host=self._host, answering=True, connect=connect)
            if limit.expired():
                over = total is not None and now() >= ends_at
                failure = UpstreamTimeout("total", total or 0.0) if over else UpstreamTimeout("silence", silence)
        else:
            return b"".join(blocks)
        raise failure


def _body(request: Mapping[str, Any], *, stream: bool) -> bytes:
    try:
        return msgspec.json.encode({**request, "stream": stream})
    except (TypeError, ValueError) as error:
        raise InvalidInput("request", f"is no JSON: {error}") from None


def _choices(request: Mapping[str, Any]) -> int:
    """How many choices were asked for, `n`."""
    n = request.get("n")
    try:
        number = msgspec.json.decode(n) if isinstance(n, Raw) else n
    except ValueError:
        return 1
    return number if isinstance(number, int) else 1


def _address(server_url: str) -> tuple[str, str]:
    """The address without its trailing slash, and the host alone, which is what messages show."""
    try:
        parts = urlsplit(server_url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError("MISTRAL_SERVER_URL must be an http:// or https:// address")
    return server_url.rstrip("/"), host


def _authorization(api_key: str) -> dict[str, str]:
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("MISTRAL_API_KEY holds characters that no key has")
    # Without a key the header is left out, and Mistral's own 401 says the rest.
    return {"authorization": f"Bearer {key}"} if key else {}

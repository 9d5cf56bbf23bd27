"""Calls of one server: the caller's headers, limits of time, and how long a server that is away is waited for."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from inspect import isawaitable
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import msgspec

from tramontane.client.faults import Unreachable
from tramontane.client.problems import refuse
from tramontane.client.transport import Answer, Lost, Request, Transport
from tramontane.errors import ConfigurationError, TramontaneError

#: Sent with every request; a function is asked each time anew, so that a token may be a fresh one.
Headers: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]

#: A connection that is silent this long (seconds, three heartbeats) is dead: half-open sockets raise nothing.
STALL: Final = 45.0
#: The longest pause between two tries, in seconds; the first one is the server's `retry`, else this.
_LONGEST_PAUSE: Final = 15.0
_FIRST_PAUSE: Final = 0.5


class Calls:
    """Asks a server. Every call raises what the server's problem document says, as an error of our own tree.

    patience: seconds that a server which is away is waited for. One that was never there is not waited for.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        api_key: str | None = None,
        headers: Headers | None = None,
        patience: float = 60.0,
    ) -> None:
        self.where = transport.where
        self.patience = patience
        #: There has been a connection.
        self.met = False
        self._transport = transport
        self._headers = headers
        self._key = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def once(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """One try, of what may not be repeated. The answer's JSON object, empty for none. Raises Unreachable."""
        try:
            return await self._json(method, path, **how)
        except Lost as lost:
            raise self.unreachable(lost) from None

    async def until_answered(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """As many tries as it takes, of what may be repeated. Raises Unreachable when patience is at its end."""
        pauses = Pauses(self)
        while True:
            try:
                return await self._json(method, path, **how)
            except Lost as lost:
                await pauses.wait(lost)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        silence: float = STALL,
    ) -> AsyncIterator[Answer]:
        """An answer that is a success, its body still to come; silence: seconds until its head is there.

        Raises Lost for an answer that may come later, else what the problem says.
        """
        request = await self._request(method, path, headers or {}, params, json)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(silence):
                    answer = await stack.enter_async_context(self._transport.exchange(request))
                    self.met = True
                    if answer.status >= 300:
                        await refuse(answer, self.where)
            except TimeoutError:
                raise Lost("it is silent") from None
            except Lost as lost:
                self.met = self.met or not lost.nobody
                raise
            yield answer

    def unreachable(self, lost: Lost) -> TramontaneError:
        """The error for a server that is given up: it is away, or it has said again and again what keeps it."""
        if lost.error is not None:
            return lost.error
        return Unreachable(f"no Tramontane server answers at {self.where}: {lost.reason}")

    async def _json(self, method: str, path: str, *, silence: float = STALL, **how: Any) -> dict[str, Any]:
        async with self.open(method, path, silence=silence, **how) as answer:
            body = bytearray()
            while block := await read_block(answer, silence):
                body += block
        if not body:
            return {}
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ConfigurationError(f"{self.where} is no Tramontane server: it answers in something else") from None

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], params: Mapping[str, str] | None, json: Any
    ) -> Request:
        own = self._headers() if callable(self._headers) else self._headers or {}
        all_headers = {**self._key, **(await own if isawaitable(own) else own), **headers}
        if json is not None:
            all_headers["content-type"] = "application/json"
        query = f"?{urlencode(params)}" if params else ""
        body = None if json is None else msgspec.json.encode(json)
        return Request(method, f"{path}{query}", all_headers, body)


class Pauses:
    """Waits between tries: full jitter, doubling, until patience is at its end."""

    def __init__(self, calls: Calls) -> None:
        #: Milliseconds that the server wants the first pause to be.
        self.first: int | None = None
        self._calls = calls
        self._tries = 0
        self._since = 0.0

    def reset(self) -> None:
        """Something has come: the next loss is a first one."""
        self._tries = 0

    async def wait(self, lost: Lost) -> None:
        """Wait before the next try. Raises Unreachable when there shall be none."""
        now = asyncio.get_running_loop().time()
        if self._tries == 0:
            self._since = now
        patience = self._calls.patience if self._calls.met else 0.0
        if now - self._since >= patience:
            raise self._calls.unreachable(lost)
        first = _FIRST_PAUSE if self.first is None else self.first / 1000
        pause = random.uniform(0, min(_LONGEST_PAUSE, first * 2 ** min(self._tries, 16)))  # noqa: S311 - no secret
        pause = max(pause, lost.retry_after)
        if lost.error is not None and now + pause - self._since > patience:
            raise lost.error  # it has said how long it will be, and that is too long
        self._tries += 1
        await asyncio.sleep(pause)


async def read_block(answer: Answer, silence: float) -> bytes:
    """The next bytes of a body; none at its end. Raises Lost, also after so many seconds without any."""
    try:
        async with asyncio.timeout(silence):
            return await answer.block()
    except TimeoutError:
        raise Lost("it is silent") from None

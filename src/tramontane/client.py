"""A client of our HTTP API, for the terminal: the seed of the public one, and until then not for others to build on.

    async with ApiClient("http://127.0.0.1:8787") as client:
        async with client.chat_stream({"messages": [{"role": "user", "content": "Hello!"}]}) as events:
            async for event in events:
                ...

Whatever the connection does, a job is asked for once and its events come once each, in order.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
import msgspec

from tramontane.errors import (
    BodyTooLarge,
    ConfigurationError,
    Conflict,
    DatabaseError,
    IdempotencyMismatch,
    InternalError,
    InvalidCursor,
    InvalidInput,
    InvalidJSON,
    JobNotEnded,
    NotFound,
    NotSupported,
    StreamExpired,
    TramontaneError,
)
from tramontane.ids import new_id, show_id
from tramontane.models import FINAL_EVENTS
from tramontane.sse import Parser

#: A connection that is silent this long (seconds, three heartbeats) is dead: half-open sockets raise nothing.
_STALL: Final = 45.0
_CONNECT: Final = 5.0
#: The longest pause between two tries, in seconds; the first one is the server's `retry`, else this.
_LONGEST_PAUSE: Final = 15.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PROBLEM: Final = 64 * 1024

_BY_FIELD: Final = {kind.code: kind for kind in (InvalidInput, InvalidJSON, NotSupported, BodyTooLarge)}
_BY_DETAIL: Final = {
    kind.code: kind for kind in (NotFound, Conflict, IdempotencyMismatch, JobNotEnded, StreamExpired, DatabaseError)
}


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of a job as the server tells it. `data` is the frame's JSON object."""

    seq: int
    type: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """True for the last event of a job."""
        return self.type in FINAL_EVENTS


class ApiClient:
    """Calls of one server. Use it as `async with`.

    patience: seconds that a server which has answered before is waited for when it does not; one that never has
    is not waited for. Every call raises what the server's problem document says, as an error of our own tree, and
    ConfigurationError when no server answers.
    """

    def __init__(self, url: str, *, patience: float = 60.0) -> None:
        self.url = url
        self._patience = patience
        self._met = False
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # Its own timeouts only: aiohttp would end a stream after five minutes.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def answers(self) -> bool:
        """Whether a server is there."""
        try:
            await self._json("GET", "/healthz", silence=2.0)
        except (_Lost, TramontaneError):
            return False
        return True

    async def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Have a job done; the server's 202. Repeated under one key until the server answers, so it is one job."""
        headers = {"idempotency-key": idempotency_key or _new_key()}
        pauses = _Pauses(self)
        while True:
            try:
                return await self._json("POST", "/api/jobs", json=body, headers=headers)
            except _Lost as lost:
                await pauses.wait(lost)

    def chat_stream(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> "EventStream":
        """Have a job done, and be told its events."""
        return EventStream(self, body=body, key=idempotency_key or _new_key())

    def follow(self, job_id: str, after: int = 0) -> "EventStream":
        """A job's events after a cursor."""
        return EventStream(self, job_id=job_id, after=after)

    async def get(self, job_id: str, *, wait: int = 0) -> dict[str, Any]:
        """A job; with `wait` once it has ended, or after so many seconds (60 at most)."""
        headers = {"prefer": f"wait={wait}"} if wait else {}
        return await self._ask("GET", f"/api/jobs/{job_id}", headers=headers, silence=wait + _STALL)

    async def list(self, **filters: str | int | None) -> dict[str, Any]:
        """`{jobs, next}`. Filters are those of the API; one that is None is left out."""
        return await self._ask(
            "GET", "/api/jobs", params={name: str(v) for name, v in filters.items() if v is not None}
        )

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job; the job as it is then."""
        return await self._ask("POST", f"/api/jobs/{job_id}/cancel")

    async def retry(self, job_id: str) -> dict[str, Any]:
        """A new job that asks the same as an ended one; the server's 202."""
        return await self._ask("POST", f"/api/jobs/{job_id}/retry")

    async def delete(self, job_id: str) -> None:
        """Erase an ended job."""
        await self._ask("DELETE", f"/api/jobs/{job_id}")

    async def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """One try, of what may not be repeated or need not be."""
        try:
            return await self._json(method, path, **how)
        except _Lost as lost:
            raise lost.error(self.url) from None

    async def _json(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        async with self.call(method, path, **how) as response:
            body = await response.read()
        if not body:
            return {}
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ConfigurationError(f"{self.url} is no Tramontane server: it answers in something else") from None

    @asynccontextmanager
    async def call(
        self, method: str, path: str, *, silence: float = _STALL, **how: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response that is a success. Raises `_Lost` for one that may come later, else what the problem says."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence)
        try:
            async with self._session.request(method, f"{self.url}{path}", timeout=timeout, **how) as response:
                self._met = True
                if response.status >= 400:
                    await _refuse(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Lost(_reason(error)) from None

    @property
    def patience(self) -> float:
        """Seconds that the server is waited for."""
        return self._patience if self._met else 0.0


class EventStream:
    """A job's events, each once and in order, over as many connections as it takes.

    The job is asked for by one POST (repeated only under its own Idempotency-Key, and only until a response has come);
    everything after is read by the cursor.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        body: Mapping[str, Any] | None = None,
        key: str = "",
        job_id: str = "",
        after: int = 0,
    ) -> None:
        #: Empty until the server has taken the job.
        self.job_id = job_id
        #: seq of the last event that was handed out.
        self.cursor = after
        self._client = client
        self._body = body
        self._key = key
        self._connection = AsyncExitStack()
        self._response: aiohttp.ClientResponse | None = None
        self._parser = Parser()
        self._ready: deque[ServerEvent] = deque()
        self._pauses = _Pauses(client)
        self._ended = False
        self._skipped = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerEvent:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            try:
                await self._read()
            except _Lost as lost:
                await self._disconnect()
                await self._pauses.wait(lost)
        event = self._ready.popleft()
        self.cursor, self._ended = event.seq, event.final
        return event

    async def _read(self) -> None:
        if self._response is None and not await self._connect():
            return
        assert self._response is not None
        try:
            block = await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Lost(_reason(error)) from None
        if not block:
            # A server that drains ends its streams properly and says how soon to come back.
            raise _Lost("the server closed the connection")
        for message in self._parser.feed(block):
            if event := _event(message.event, message.data, message.id):
                await self._take(event)

    async def _take(self, event: ServerEvent) -> None:
        last = self._ready[-1].seq if self._ready else self.cursor
        if event.seq <= last:
            return
        if int(event.data.get("from", event.seq)) > last + 1:
            if self._skipped:
                raise InternalError(f"the stream of {self.job_id} skips from event {last} to {event.seq}")
            self._skipped = True
            raise _Lost("the stream skipped an event")
        self._skipped = False
        self._pauses.reset()
        self._ready.append(event)

    async def _connect(self) -> bool:
        """False when the server says that nothing is left to tell."""
        if self.job_id:
            path, cursor = f"/api/jobs/{self.job_id}/events", {"last-event-id": str(self.cursor)}
            call = self._client.call("GET", path, headers=cursor)
        else:
            key = {"idempotency-key": self._key}
            call = self._client.call("POST", "/api/chat/stream", json=self._body, headers=key)
        response = await self._connection.enter_async_context(call)
        self._parser = Parser()
        self._parser.retry = self._pauses.first
        self.job_id = self.job_id or response.headers.get("x-job-id", "")
        if response.status == 204:
            self._ended = True
        elif response.content_type != "text/event-stream" or not self.job_id:
            raise ConfigurationError(f"{self._client.url} is no Tramontane server: it answers with no stream of events")
        self._response = response
        return not self._ended

    async def _disconnect(self) -> None:
        self._pauses.first = self._parser.retry
        self._response = None
        await self._connection.aclose()


class _Lost(Exception):
    """No answer, for now."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after

    def error(self, url: str) -> ConfigurationError:
        return ConfigurationError(f"no Tramontane server answers at {url}: {self.reason}")


class _Pauses:
    """Waits between tries: full jitter, doubling, until the client's patience is spent."""

    def __init__(self, client: ApiClient) -> None:
        #: Milliseconds that the server wants the first pause to be.
        self.first: int | None = None
        self._client = client
        self._tries = 0
        self._since = 0.0

    def reset(self) -> None:
        self._tries = 0

    async def wait(self, lost: _Lost) -> None:
        now = asyncio.get_running_loop().time()
        if self._tries == 0:
            self._since = now
        if now - self._since >= self._client.patience:
            raise lost.error(self._client.url)
        first = _FIRST_PAUSE if self.first is None else self.first / 1000
        pause = random.uniform(0, min(_LONGEST_PAUSE, first * 2**self._tries))  # noqa: S311
        self._tries += 1
        await asyncio.sleep(max(pause, lost.retry_after))


async def _refuse(response: aiohttp.ClientResponse) -> None:
    """Raise what a status from 400 on means."""
    told = await response.content.read(_LONGEST_PROBLEM)
    try:
        problem = msgspec.json.decode(told, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    code, detail = str(problem.get("code", "")), str(problem.get("detail") or f"HTTP {response.status}")
    if response.status in (408, 429, 502, 503, 504):
        asked = response.headers.get("retry-after", "")
        raise _Lost(detail, min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else 0.0)
    raise _error(response.status, code, detail, str(problem.get("field", "")))


def _error(status: int, code: str, detail: str, field: str) -> TramontaneError:
    if code == InvalidCursor.code:
        return InvalidCursor(detail.removeprefix("after: "), past_head=status == 409)
    if kind := _BY_FIELD.get(code):
        return kind(field, detail.removeprefix(f"{field}: "))
    if refusal := _BY_DETAIL.get(code):
        return refusal(detail)
    return InternalError(f"the server says {status}: {detail}")


def _event(name: str, text: str, cursor: str) -> ServerEvent | None:
    """The event of a frame; None for what has no place in the log, such as a ping."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        raise _Lost("the stream is garbled") from None
    seq = fields.get("seq")
    return ServerEvent(seq, name, fields) if isinstance(seq, int) and cursor == str(seq) else None


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or "no connection"
        case TimeoutError():
            return "it is silent"
        case _:
            return "the connection broke"


def _new_key() -> str:
    return show_id("key", new_id())

"""The verbs of the HTTP interface, each one request: they take and give what the wire has."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self
from urllib.parse import quote

from tramontane.client.calls import STALL, Calls, Headers
from tramontane.client.reading import Reading
from tramontane.client.stream import EventStream
from tramontane.client.transport import HttpTransport, Transport
from tramontane.errors import TramontaneError
from tramontane.ids import new_id, show_id

#: Seconds in which a server that is there says so.
_PROMPT: Final = 2.0


class ApiClient:
    """Calls of one server. Use it as `async with`.

        async with ApiClient("http://127.0.0.1:8787") as client:
            async with client.chat_stream({"messages": [{"role": "user", "content": "Hello!"}]}) as events:
                async for event in events:
                    ...

    Whatever the connection does, a job is asked for once and its events come once each, in order. Every call raises
    what the server's problem document says, as an error of our own tree, and Unreachable when no server answers: at
    once when there has never been one, after `patience` seconds when it has gone.
    """

    def __init__(
        self,
        server: str | Transport,
        *,
        api_key: str | None = None,
        headers: Headers | None = None,
        patience: float = 60.0,
    ) -> None:
        self._transport: Transport = HttpTransport(server) if isinstance(server, str) else server
        self._calls = Calls(self._transport, api_key=api_key, headers=headers, patience=patience)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if isinstance(self._transport, HttpTransport):
            await self._open.enter_async_context(self._transport)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def url(self) -> str:
        """The server, as it was named."""
        return self._calls.where

    async def answers(self) -> bool:
        """Whether a server is there."""
        try:
            await self._calls.once("GET", "/healthz", silence=_PROMPT)
        except TramontaneError:
            return False
        return True

    async def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Have a job done; the server's 202. Repeated under one key until the server answers, so it is one job."""
        headers = {"idempotency-key": idempotency_key or _new_key()}
        return await self._calls.until_answered("POST", "/api/jobs", json=body, headers=headers)

    async def submit_bulk(self, bodies: Sequence[Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Have many jobs done; `{accepted, replayed, refused, jobs}`. Repeated under one key, so each is one job."""
        headers = {"idempotency-key": idempotency_key or _new_key()}
        return await self._calls.until_answered("POST", "/api/jobs/bulk", json=bodies, headers=headers)

    def chat_stream(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> EventStream:
        """Have a job done, and be told its events."""
        return EventStream(self._calls, body=body, key=idempotency_key or _new_key())

    def follow(self, job_id: str, after: int = 0, *, reading: Reading | None = None) -> EventStream:
        """A job's events after a cursor, or after what a reading knows."""
        return EventStream(self._calls, job_id=job_id, reading=reading or Reading(after))

    async def get(self, job_id: str, *, wait: int = 0) -> dict[str, Any]:
        """A job; with `wait` once it has ended, or after so many seconds (60 at most)."""
        headers = {"prefer": f"wait={wait}"} if wait else {}
        return await self._calls.until_answered("GET", _job(job_id), headers=headers, silence=wait + STALL)

    async def list(self, **filters: str | int | None) -> dict[str, Any]:
        """`{jobs, next}`. Filters are those of the API; one that is None is left out."""
        given = {name: str(value) for name, value in filters.items() if value is not None}
        return await self._calls.until_answered("GET", "/api/jobs", params=given)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job; the job as it is then."""
        return await self._calls.until_answered("POST", f"{_job(job_id)}/cancel")

    async def retry(self, job_id: str) -> dict[str, Any]:
        """A new job that asks the same as an ended one; the server's 202."""
        return await self.ask("POST", f"{_job(job_id)}/retry")

    async def retry_all(self, **wanted: Any) -> dict[str, Any]:
        """New jobs for ended ones that match and have not been retried: a page, `{retried, jobs, next}`."""
        given = {name: value for name, value in wanted.items() if value is not None}
        return await self._calls.until_answered("POST", "/api/jobs/retry", json=given)

    async def delete(self, job_id: str) -> None:
        """Erase an ended job."""
        await self._calls.until_answered("DELETE", _job(job_id))

    async def ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """One try, of what may not be repeated or need not be; the answer's JSON object, empty for none."""
        return await self._calls.once(method, path, **how)


def _job(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _new_key() -> str:
    return show_id("key", new_id())

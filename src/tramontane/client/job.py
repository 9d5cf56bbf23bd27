"""A job in the hands of whoever asked for it: `await job` is its result, `job.events()` what it says on the way."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import msgspec

from tramontane.client.api import ApiClient
from tramontane.client.events import StreamAttempt, StreamChunk, StreamError, StreamEvent, typed
from tramontane.client.problems import failure
from tramontane.client.reading import Reading
from tramontane.errors import Interrupted, NotFound

#: Seconds that one request for the result waits; proxies cut silent ones after about a minute.
_LONG_POLL: Final = 30


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a completed job answered. `str(result)` is its text."""

    job_id: str
    request_id: str
    content: str
    finish_reason: str
    completed_at: datetime
    #: Mistral's own; None when it reported none.
    usage: dict[str, Any] | None = None
    #: Mistral's whole answer, untouched.
    completion: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.content


class Job:
    """A durable job. It goes on whether anybody holds this value or not; only `cancel` stops it."""

    def __init__(self, api: ApiClient, job_id: str) -> None:
        self.id = job_id
        self._api = api
        self._reading = Reading()
        self._result: Result | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    @property
    def text(self) -> str:
        """The answer as far as this value has read it."""
        return self._result.content if self._result else self._reading.text

    async def result(self, *, timeout: float | None = None) -> Result:
        """The answer, once the job has ended.

        timeout: seconds; after them TimeoutError is raised, and the job goes on. A job that failed or was cancelled
        raises its error: what its last attempt met, such as RateLimited, or Cancelled. Raises NotFound for a job that
        is not there, or whose contents were erased.
        """
        if self._result is None:
            async with asyncio.timeout(timeout):
                job = await self._api.get(self.id, wait=_LONG_POLL)
                while job["completedAt"] is None:
                    job = await self._api.get(self.id, wait=_LONG_POLL)
            if job["error"] is not None:
                raise failure(job["error"], self.id)
            if job["result"] is None:
                raise NotFound(f"the contents of {self.id} were erased")
            self._result = msgspec.convert(job["result"], Result)
        return self._result

    async def events(self, after: int = 0) -> AsyncGenerator[StreamEvent, None]:
        """What the job says after event number `after`, to its last event: each event once, in order.

        Lost connections are made good. The text is checked by its length and SHA-256, as far as it was read from the
        beginning by this value. Raises ProtocolGap when it is not whole, NotFound, StreamExpired for events past their
        retention (the result may still be there), and Unreachable.
        """
        known = self._reading
        self._reading = reading = known.copy() if 0 < after == known.cursor else Reading(after)
        async with aclosing(self._tell(reading)) as events:
            async for event in events:
                yield event

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The answer, piece by piece, while it is written: all pieces together are the answer.

        Raises the job's error, and Interrupted when an attempt began again and says something else than the pieces
        did: `events` shows such turns.
        """
        self._reading = reading = Reading()
        pieces: list[str] = []
        said: str | None = None  # what an attempt has taken back, and may be saying again
        async with aclosing(self._tell(reading)) as events:
            async for event in events:
                if isinstance(event, StreamError):
                    raise failure({"code": event.code, "message": event.error, "retryable": event.retryable}, self.id)
                if isinstance(event, StreamAttempt):
                    said = "".join(pieces)
                piece = event.content if isinstance(event, StreamChunk) else ""
                if said is not None:
                    text = reading.text
                    if not text.startswith(said) and not said.startswith(text):
                        raise _another(self.id)
                    piece = text[len(said) :]
                    said = said if len(text) < len(said) else None
                if piece:
                    pieces.append(piece)
                    yield piece
        if said is not None:
            raise _another(self.id)

    async def _tell(self, reading: Reading) -> AsyncGenerator[StreamEvent, None]:
        async with self._api.follow(self.id, reading=reading) as stream:
            async for told in stream:
                if event := typed(told):
                    yield event

    async def cancel(self) -> None:
        """Stop the job, and the call to Mistral with it. An ended one stays as it is."""
        await self._api.cancel(self.id)

    async def details(self) -> dict[str, Any]:
        """The job as `GET /api/jobs/{id}` has it."""
        return await self._api.get(self.id)

    async def retry(self) -> "Job":
        """A new job that asks the same. Raises JobNotEnded."""
        return Job(self._api, (await self._api.retry(self.id))["jobId"])

    async def delete(self) -> None:
        """Erase what an ended job said and heard. Raises JobNotEnded."""
        await self._api.delete(self.id)


def _another(job_id: str) -> Interrupted:
    return Interrupted(f"{job_id} began again, and what it says now is not what it said before")

"""One job's events, each once and in order, over as many connections as it takes."""

import logging
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Self
from urllib.parse import quote

from tramontane.client.calls import STALL, Calls, Pauses, read_block
from tramontane.client.faults import ProtocolGap
from tramontane.client.frames import ServerEvent, read_frame
from tramontane.client.reading import Reading
from tramontane.client.transport import Answer, Lost
from tramontane.errors import ConfigurationError
from tramontane.sse import Parser
from tramontane.telemetry import log

_LOGGER: Final = logging.getLogger(__name__)
_MEDIA_TYPE: Final = "text/event-stream"
#: So many heartbeats without a sign of life are the end of a connection.
_BEATS: Final = 3


class EventStream:
    """An async iterator of a job's events, and an async context manager that closes its connection.

    The job is asked for by one POST of `body` (repeated only under `key`, and only until a response has come), or is
    there already as `job_id`; everything after is read by the cursor of `reading`.

    Raises ProtocolGap for a stream that does not add up, after it was asked for once more.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        body: Mapping[str, Any] | None = None,
        key: str = "",
        job_id: str = "",
        reading: Reading | None = None,
    ) -> None:
        #: Empty until the server has taken the job.
        self.job_id = job_id
        #: Moves with each event that is handed out.
        self.reading = reading or Reading()
        self._calls = calls
        self._body = body
        self._key = key
        self._connection = AsyncExitStack()
        self._answer: Answer | None = None
        self._parser = Parser()
        self._ready: deque[ServerEvent] = deque()
        self._pauses = Pauses(calls)
        self._silence = STALL
        self._over = False
        self._gap = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerEvent:
        while True:
            try:
                while self._ready:
                    if event := self._take(self._ready.popleft()):
                        return event
                if self._over or self.reading.ended:
                    raise StopAsyncIteration
                await self._read()
            except Lost as lost:
                log(_LOGGER, logging.DEBUG, "stream.lost", job=self.job_id, after=self.reading.cursor, error=lost)
                await self._disconnect()
                await self._pauses.wait(lost)

    def _take(self, event: ServerEvent) -> ServerEvent | None:
        try:
            taken = self.reading.take(event)
        except ProtocolGap as gap:
            if self._gap:
                raise
            self._gap = True
            self._ready.clear()
            raise Lost(gap.message) from None
        if taken is not None:
            self._gap = False
            self._pauses.reset()
            if beat := taken.data.get("heartbeatMs"):
                self._silence = _BEATS * float(beat) / 1000
        return taken

    async def _read(self) -> None:
        if self._answer is None:
            await self._connect()
            return
        block = await read_block(self._answer, self._silence)
        if not block:
            # A server that drains ends its streams properly and says how soon to come back.
            raise Lost("the server closed the connection")
        for message in self._parser.feed(block):
            if event := read_frame(message):
                self._ready.append(event)

    async def _connect(self) -> None:
        if self.job_id:
            cursor = {"last-event-id": str(self.reading.cursor)}
            path = f"/api/jobs/{quote(self.job_id, safe='')}/events"
            call = self._calls.open("GET", path, headers=cursor)
        else:
            call = self._calls.open("POST", "/api/chat/stream", json=self._body, headers={"idempotency-key": self._key})
        answer = await self._connection.enter_async_context(call)
        self._parser = Parser()
        self._parser.retry = self._pauses.first
        self.job_id = self.job_id or answer.headers.get("x-job-id", "")
        if answer.status == 204:
            # Nothing is left to tell.
            self._over = True
            await self._disconnect()
            return
        if not answer.headers.get("content-type", "").startswith(_MEDIA_TYPE) or not self.job_id:
            raise ConfigurationError(f"{self._calls.where} is no Tramontane server: it answers with no event stream")
        self._answer = answer

    async def _disconnect(self) -> None:
        self._pauses.first = self._parser.retry
        self._answer = None
        await self._connection.aclose()

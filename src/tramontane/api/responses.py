"""The response that is a stream. Pure ASGI: one send per wake-up, nothing kept for a slow reader but its cursor."""

import asyncio
import math
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tramontane import sse
from tramontane.streams import Stream, Streams

#: A reader that takes nothing for this long (seconds) is let go; it resumes by its cursor.
_STUCK: Final = 30.0
_FULL: Final = 8 * 1024  # bytes of a write that others are likely to follow at once


class EventStreamResponse(Response):
    """Sends a stream until it ends or its reader leaves. A reader that leaves cancels nothing but its reading."""

    def __init__(self, stream: Stream, streams: Streams, headers: dict[str, str]) -> None:
        super().__init__(None, 200, headers, media_type=sse.MEDIA_TYPE)
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self.headers["cache-control"] = "no-cache, no-transform"
        self.headers["x-accel-buffering"] = "no"
        self.headers["x-content-type-options"] = "nosniff"
        self.headers["referrer-policy"] = "no-referrer"
        self._stream = stream
        self._heartbeat = streams.heartbeat
        self._now = asyncio.get_running_loop().time
        #: When the write that is under way began.
        self._since = math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(send))
                watching = [
                    tasks.create_task(_left(receive, sending)),
                    tasks.create_task(self._let_go_of_the_stuck(sending)),
                ]
                await asyncio.wait([sending])
                for task in watching:
                    task.cancel()
        finally:
            self._stream.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._write(send, sse.opening(self._heartbeat))
        async for block in self._stream:
            await self._write(send, block)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, block: bytes) -> None:
        self._since = self._now()
        await send({"type": "http.response.body", "body": block, "more_body": True})
        self._since = math.inf
        if len(block) >= _FULL:
            # There is more, and the socket may take everything at once; others have their turn all the same.
            await asyncio.sleep(0)

    async def _let_go_of_the_stuck(self, sending: "asyncio.Task[None]") -> None:
        # Looked at now and then: a timer for each write would cost more than the write.
        while self._now() - self._since < _STUCK:  # noqa: ASYNC110
            await asyncio.sleep(_STUCK / 4)
        sending.cancel()


async def _left(receive: Receive, sending: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    sending.cancel()

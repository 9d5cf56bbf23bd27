"""The response that is a stream. Pure ASGI: one send per wake-up, nothing kept for a slow reader but its cursor."""

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tramontane import sse
from tramontane.streams import Stream, Streams

#: A reader that takes nothing for this long (seconds) is let go; it resumes by its cursor.
_STUCK: Final = 30.0


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(send))
                leaving = tasks.create_task(_left(receive, sending))
                await asyncio.wait([sending])
                leaving.cancel()
        finally:
            self._stream.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._write(send, sse.opening(self._heartbeat))
        async for block in self._stream:
            if not await self._write(send, block):
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, block: bytes) -> bool:
        try:
            async with asyncio.timeout(_STUCK):
                await send({"type": "http.response.body", "body": block, "more_body": True})
        except TimeoutError:
            return False
        # The socket may take everything at once; other readers have their turn all the same.
        await asyncio.sleep(0)
        return True


async def _left(receive: Receive, sending: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    sending.cancel()

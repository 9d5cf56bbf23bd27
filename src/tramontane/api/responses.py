"""The response that is a stream: nothing is kept for a slow reader but its cursor.

Where the server offers its wire, frames go there as they come; else by ASGI's `send`, one per wake-up.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tramontane import sse
from tramontane.api.connection import Wire, wire_of
from tramontane.stream import Stream
from tramontane.streams import Streams

#: Where a request's scope has a list of what goes on once all layers are done. Middleware has its say on a head; after
#: that each frame would cost a call of every layer, and each idle reader their memory.
AFTERWARDS: Final = "tramontane.afterwards"

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
        self._wire: Wire | None = None
        self._now = asyncio.get_running_loop().time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's three
        """Send the head; what follows it is told once this has returned."""
        with ExitStack() as stack:
            self._wire = wire_of(scope)
            stack.callback(self._stream.close)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                self._wire = None
                await send({"type": "http.response.body", "body": b""})
                return
            scope[AFTERWARDS].append(self.tell)
            stack.pop_all()

    async def tell(self, receive: Receive, send: Send) -> None:
        """Tell what comes after the head, by the wire or by the server's own `send`."""
        stream, wire = self._stream, self._wire
        self._wire = None  # it knows the request, which knows us
        try:
            if wire is None:
                await self._send(stream, receive, send)
                return
            stream.tell, stream.let_go = wire.write, wire.cut
            with wire.watched(stream.leave):
                await self._write(stream, wire)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            stream.close()

    async def _write(self, stream: Stream, wire: Wire) -> None:
        wire.write(sse.opening(self._heartbeat))
        async for block in stream:
            if not wire.write(block):
                stream.writing_since = self._now()
                await wire.room()
                stream.writing_since = math.inf
            if len(block) >= _FULL:
                # There is more, and the socket may take everything at once; others have their turn all the same.
                await asyncio.sleep(0)

    async def _send(self, stream: Stream, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as reading:
            stream.let_go = reading.cancel
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(_left(receive, reading.cancel))
                await send({"type": "http.response.body", "body": sse.opening(self._heartbeat), "more_body": True})
                async for block in stream:
                    stream.writing_since = self._now()
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                    stream.writing_since = math.inf
                    if len(block) >= _FULL:
                        await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                watching.cancel()


async def _left(receive: Receive, leave: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()

"""The body of a response, written straight to its connection.

ASGI's `send` is a coroutine with a dictionary for each piece, and its server checks each anew; a frame costs less than
that. This module alone knows uvicorn from within. Under another server there is no wire, and `send` has to do.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION: Final = "tramontane.wire"


class Connection(HttpToolsProtocol):
    """uvicorn's connection, for those who write to it themselves."""

    #: What of a response is being written now by somebody other than uvicorn.
    wire: "Wire | None" = None

    def on_headers_complete(self) -> None:
        """A request has come: offer the wire of its response. Weakly, as the response holds the request."""
        super().on_headers_complete()
        self.scope["extensions"] = {_EXTENSION: {"cycle": weakref.ref(self.cycle)}}

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or we have cut it off."""
        super().connection_lost(exc)
        if self.wire is not None:
            self.wire.lost()


class Wire:
    """What one response has of its connection. To be made before its head is sent."""

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self._flow = cycle.flow
        self._send = cycle.transport.write
        self._closing = cycle.transport.is_closing
        self._on_lost: Callable[[], object] | None = None
        self._chunked = cycle.scope["http_version"] == "1.1"
        if not self._chunked:
            cycle.chunked_encoding = False  # HTTP/1.0 knows no chunks: there the end of the connection is the body's

    def write(self, block: bytes) -> bool:
        """Write a piece of the body; False once the client has to be waited for."""
        if block and not self._closing():  # an empty chunk would be the end; a closed transport raises
            self._send(b"%x\r\n%b\r\n" % (len(block), block) if self._chunked else block)
        return not self._flow.write_paused

    async def room(self) -> None:
        """Wait for the client to take what it was sent, or to go."""
        await self._flow.drain()

    def cut(self) -> None:
        """End the connection now. What the client has not taken is dropped."""
        self._connection.transport.abort()

    @contextmanager
    def watched(self, on_lost: Callable[[], object]) -> Iterator[None]:
        """Within the block: call `on_lost` when the client goes, or if it has gone before."""
        self._connection.wire, self._on_lost = self, on_lost
        self._flow.resume_reading()  # or its going would not be seen
        if self._closing():
            self.lost()
        try:
            yield
        finally:
            self._connection.wire = self._on_lost = None

    def lost(self) -> None:
        """The client has gone."""
        self._cycle.disconnected = True  # uvicorn says so to the last request alone, when several came at once
        if self._on_lost is not None:
            self._on_lost()


def wire_of(scope: Scope) -> Wire | None:
    """The wire of this request's response, if its server offers one."""
    extension = scope.get("extensions", {}).get(_EXTENSION)
    cycle = extension and extension["cycle"]()
    if cycle is None:
        return None
    connection = cycle.transport.get_protocol()
    return Wire(connection, cycle) if isinstance(connection, Connection) else None

"""A tap on a connection: the body of a streamed answer goes to its reader as it arrives.

aiohttp connects, encrypts, pools, sends the request, and reads the answer's head. Past the head every chunk would
cost it two rounds of its parser, a buffer, a future and two coroutines: more than all that we do to a chunk. So the
body is taken off before it gets there, and aiohttp is only told when it has ended, as if it had been empty.
"""

import asyncio
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import aiohttp
import httptools
from aiohttp.connector import Connection

from tramontane.errors import MistralError, Truncated

EVENTS = "text/event-stream"

_LAST_CHUNK = b"0\r\n\r\n"


class Sink(Protocol):
    """What takes a body. None of these may raise."""

    def feed(self, block: bytes) -> None:
        """The next bytes."""

    def end(self) -> None:
        """The body ended by the rules of HTTP."""

    def fail(self, error: MistralError) -> None:
        """It did not, and nothing more will come."""


class Connector(aiohttp.TCPConnector):
    """aiohttp's, with a tap on each connection whose request accepts an event stream."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._taps: WeakKeyDictionary[Connection, Tap] = WeakKeyDictionary()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """A connection for the request, new or from the pool."""
        connection = await super().connect(req, traces, timeout)
        transport, below = connection.transport, connection.protocol
        if req.headers.get("accept") == EVENTS and transport is not None and below is not None:
            self._taps[connection] = Tap(transport, below)
        return connection

    def tap(self, response: aiohttp.ClientResponse) -> "Tap | None":
        """The tap on an answer's connection; None for an answer that is already over, or was asked for as a whole."""
        return self._taps.get(response.connection) if response.connection else None


class Tap(asyncio.Protocol):
    """Stands between a connection and aiohttp while one request is answered.

    The head passes. If it says 200, reading pauses until somebody opens the tap; otherwise the tap is taken off again.
    """

    __slots__ = (
        "_below",
        "_ended",
        "_head",
        "_held",
        "_lost",
        "_parser",
        "_reusable",
        "_sink",
        "_transport",
        "on_body",
    )

    def __init__(self, transport: asyncio.Transport, below: asyncio.Protocol) -> None:
        self._transport = transport
        self._below = below
        #: What came of the head; whole once `_held` is a list of what came after it.
        self._head = b""
        self._held: list[bytes] | None = None
        self._sink: Sink | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reusable = self._ended = self._lost = False
        transport.set_protocol(self)

    def into(self, sink: Sink, *, chunked: bool) -> None:
        """Open it: the body runs into a sink. chunked: as the head has it; then the connection can serve again."""
        self._sink = sink
        self._reusable = chunked
        self.on_body = sink.feed
        self._parser = httptools.HttpResponseParser(self)
        self.data_received(b"".join((self._head, *(self._held or ()))))
        if self._lost:
            self._over(_broken_off())
        self.resume()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection."""
        parser = self._parser
        if parser is None:
            self._wait(data)
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._ended:
                self._over(Truncated("Mistral's answer broke the rules of HTTP before it had ended"))
                self._transport.abort()
            self._reusable = False
        if self._ended:
            self._end()

    def on_message_begin(self) -> None:
        """For the parser. Nobody asked for an answer after this one: such a connection does not serve again."""
        if self._ended:
            self._reusable = False

    def on_message_complete(self) -> None:
        """For the parser."""
        self._ended = True

    def eof_received(self) -> bool | None:
        """The other side has said all it has to say."""
        return self._below.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._lost = True
        self._below.connection_lost(exc)
        self._over(_broken_off())

    def pause_writing(self) -> None:
        """For aiohttp, which writes."""
        self._below.pause_writing()

    def resume_writing(self) -> None:
        """For aiohttp, which writes."""
        self._below.resume_writing()

    def _wait(self, data: bytes) -> None:
        """Pass the head on, and keep what comes after it."""
        if self._held is not None:
            self._held.append(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        self._below.data_received(data[: len(data) - len(rest)])
        if not end:
            return
        status, self._head = head[9:12], b""
        if status == b"200":
            self._head, self._held = head + end, [rest]
            self.pause()
        elif status.startswith(b"1"):
            # Word that an answer will come, such as 103; the answer's own head follows.
            if rest:
                self._wait(rest)
        else:
            # A refusal is for aiohttp to read.
            self._transport.set_protocol(self._below)
            if rest:
                self._below.data_received(rest)

    def _end(self) -> None:
        transport, below, sink = self._transport, self._below, self._sink
        self._parser = self._sink = None
        transport.set_protocol(below)
        self.resume()
        if sink is not None:
            sink.end()
        if self._reusable:
            below.data_received(_LAST_CHUNK)

    def _over(self, error: MistralError) -> None:
        if self._sink is not None:
            self._sink.fail(error)
        self._parser = self._sink = None


def _broken_off() -> Truncated:
    return Truncated("the connection to Mistral broke off before the answer had ended")

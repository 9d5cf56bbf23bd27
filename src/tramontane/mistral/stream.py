"""An answer while it is being written."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import aiohttp
from msgspec import Raw

from tramontane.errors import MistralError, Truncated, UpstreamTimeout
from tramontane.mistral.answer import Answer
from tramontane.mistral.choice import Delta
from tramontane.mistral.failures import transport_error
from tramontane.mistral.frames import Frames
from tramontane.mistral.headers import CORRELATION_ID, RateHeaders, rate_headers

#: Once the answer is whole, its end of body is waited for this long (seconds): it lets the connection serve again.
LINGER = 1.0


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for Mistral, in seconds. Time that the reader of a stream takes is not counted as Mistral's."""

    #: For a connection: a free place among ours, name, handshakes.
    connect: float = 10.0
    #: From the call to the first token, or to the first byte of an answer that is not streamed.
    first_token: float = 120.0
    #: Between two frames. Comments do not count: they show that a gateway lives, not that the model writes.
    silence: float = 30.0
    #: From the call to the end of the answer; None for no limit of our own.
    total: float | None = None


class ChatStream:
    """`async for delta in stream`, and after the end the whole answer.

    Iterating raises Truncated when the stream ends without a `finish_reason`, GenerationFailed when Mistral reports
    a failure, MalformedAnswer and UpstreamTimeout. What came before the failure is given out first, and can be read
    from `content` and its siblings afterwards.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, *, choices: int, timeouts: Timeouts, started_at: float
    ) -> None:
        self.correlation_id: str | None = response.headers.get(CORRELATION_ID)
        self.rate: RateHeaders = rate_headers(response.headers)
        self._answer = Answer(choices)
        self._body = response.content
        self._status = response.status
        self._host = response.url.host or ""
        self._frames = Frames()
        self._ready: deque[Delta] = deque()
        self._failure: MistralError | None = None
        self._ended = False
        self._timeouts = timeouts
        self._watch = _Watch(response.content, timeouts, started_at)

    def __aiter__(self) -> "ChatStream":
        return self

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    @property
    def finish_reason(self) -> str | None:
        """Mistral's word for why the first choice ended; None until then."""
        return self._answer.choices[0].finish_reason

    @property
    def usage(self) -> Raw | None:
        """What Mistral reports, as it wrote it; None when it reports nothing. Never a guess."""
        return self._answer.usage

    @property
    def content(self) -> str:
        """The text of the first choice so far."""
        return self._answer.choices[0].content

    @property
    def thinking(self) -> str:
        """The thoughts of the first choice so far."""
        return self._answer.choices[0].thinking

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls of the first choice so far, each merged from its fragments."""
        return self._answer.choices[0].tool_calls

    def completion(self) -> bytes:
        """The answer as one `chat.completion` object, as Mistral sends it when nobody asks for a stream."""
        return self._answer.completion()

    def close(self) -> None:
        """Stop the clocks. The connection is the client's to close."""
        self._watch.stop()

    async def _read(self) -> None:
        """Take in the next block that brings a frame, or the end."""
        frame = False
        self._watch.waiting_since = self._watch.now()
        try:
            while not frame and not self._ended:
                block = await self._body.readany()
                if block:
                    frame = self._take(block)
                else:
                    self._end()
        except MistralError as error:
            self._fail(error)
        except (aiohttp.ClientError, OSError) as error:
            limit = self._timeouts.connect
            self._fail(transport_error(error, host=self._host, answering=True, connect=limit))
        finally:
            self._watch.waiting_since = None

    def _take(self, block: bytes) -> bool:
        payloads = self._frames.feed(block)
        answer = self._answer
        for payload in payloads:
            self._ready.extend(answer.feed(payload))
        if answer.complete:
            # Past the finish_reason nothing can fail any more; what is left of the body only frees the connection.
            self._watch.limit("silence", min(LINGER, self._timeouts.silence))
        elif self._ready:
            self._watch.limit("silence", self._timeouts.silence)
        return bool(payloads)

    def _end(self) -> None:
        self._ended = True
        if not self._answer.complete:
            self._fail(Truncated("Mistral's stream ended without a finish_reason"))

    def _fail(self, error: MistralError) -> None:
        self._ended = True
        if not self._answer.complete:
            error.status, error.correlation_id = self._status, self.correlation_id
            self._failure = error


class _Watch:
    """Ends a read that takes too long.

    One timer per limit, set again only when it rings: a frame costs one look at the clock, and no timer. Time counts
    while a read waits, so a slow reader is not held against Mistral.
    """

    __slots__ = ("_body", "_call_at", "_phase", "_seconds", "_started_at", "_timer", "_total", "now", "waiting_since")

    def __init__(self, body: aiohttp.StreamReader, timeouts: Timeouts, started_at: float) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        #: When the read that waits now began to (`now` is the clock), None while none does.
        self.waiting_since: float | None = None
        self._body = body
        self._call_at = loop.call_at
        self._started_at = started_at
        self._phase, self._seconds = "first_token", timeouts.first_token
        self._timer = loop.call_at(started_at + timeouts.first_token, self._ring)
        self._total: asyncio.TimerHandle | None = None
        if timeouts.total is not None:
            self._total = loop.call_at(started_at + timeouts.total, self._end, "total", timeouts.total)

    def limit(self, phase: str, seconds: float) -> None:
        """From now on, one read may wait `seconds`, and `phase` is what is told of one that waits longer."""
        if seconds != self._seconds or phase != self._phase:
            self._phase, self._seconds = phase, seconds
            self._arm(self.now() + seconds)

    def stop(self) -> None:
        self._timer.cancel()
        if self._total is not None:
            self._total.cancel()

    def _ring(self) -> None:
        if self.waiting_since is None:
            self._arm(self.now() + self._seconds)
            return
        # A frame without a token, such as the one that opens the answer, does not put the first token off.
        since = self._started_at if self._phase == "first_token" else self.waiting_since
        if self.now() < since + self._seconds:
            self._arm(since + self._seconds)
        else:
            self._end(self._phase, self._seconds)

    def _arm(self, at: float) -> None:
        self._timer.cancel()
        self._timer = self._call_at(at, self._ring)

    def _end(self, phase: str, seconds: float) -> None:
        self._body.set_exception(UpstreamTimeout(phase, seconds))

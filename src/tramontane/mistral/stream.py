"""An answer while it is being written."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from msgspec import Raw

from tramontane.errors import MistralError, Truncated, UpstreamTimeout
from tramontane.mistral.answer import Answer
from tramontane.mistral.choice import Delta
from tramontane.mistral.frames import Frames
from tramontane.mistral.headers import CORRELATION_ID, RateHeaders, rate_headers
from tramontane.mistral.tap import Tap

#: Once the answer is whole, its end of body is waited for this long (seconds): it lets the connection serve again.
LINGER = 1.0
#: Bytes that may come while the reader does not wait for any; past them no more is read until it does.
MOST_AHEAD = 256 * 1024


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
        self, response: aiohttp.ClientResponse, tap: Tap | None, *, choices: int, timeouts: Timeouts, started_at: float
    ) -> None:
        self.correlation_id: str | None = response.headers.get(CORRELATION_ID)
        self.rate: RateHeaders = rate_headers(response.headers)
        self._answer = Answer(choices)
        self._status = response.status
        self._frames = Frames()
        self._ready: deque[Delta] = deque()
        self._failure: MistralError | None = None
        self._ended = False
        self._timeouts = timeouts
        self._create_future = asyncio.get_running_loop().create_future
        #: What the reader waits on; None while it does not wait.
        self._waiter: asyncio.Future[None] | None = None
        self._watch = _Watch(self.fail, timeouts, started_at)
        self._tap = tap
        #: Bytes that came since the reader last had to wait.
        self._ahead = 0
        if tap is None:
            self.end()
        else:
            tap.into(self, chunked="transfer-encoding" in response.headers)

    def __aiter__(self) -> "ChatStream":
        return self

    async def __anext__(self) -> Delta:
        ready, watch = self._ready, self._watch
        while not ready:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            assert self._waiter is None, "a stream has one reader"
            if self._ahead > MOST_AHEAD and self._tap is not None:
                self._tap.resume()
            self._ahead = 0
            self._waiter = self._create_future()
            watch.waiting_since = watch.now()
            try:
                await self._waiter
            finally:
                self._waiter = watch.waiting_since = None
        return ready.popleft()

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

    def feed(self, block: bytes) -> None:
        """For the tap: the next bytes of the body."""
        if self._ended:
            return
        answer, ready, watch = self._answer, self._ready, self._watch
        try:
            payloads = self._frames.feed(block)
            for payload in payloads:
                ready.extend(answer.feed(payload))
        except MistralError as error:
            self.fail(error)
            return
        if answer.complete:
            # Past the finish_reason nothing can fail any more; what is left of the body only frees the connection.
            watch.limit("silence", min(LINGER, self._timeouts.silence))
        elif ready:
            watch.limit("silence", self._timeouts.silence)
        if ready:
            self._wake()
        elif payloads and watch.waiting_since is not None:
            watch.waiting_since = watch.now()
        self._ahead += len(block)
        if self._ahead > MOST_AHEAD and ready and self._tap is not None:
            self._tap.pause()

    def end(self) -> None:
        """For the tap: the body is over."""
        if not self._ended and not self._answer.complete:
            self.fail(Truncated("Mistral's stream ended without a finish_reason"))
        self._ended = True
        self._wake()

    def fail(self, error: MistralError) -> None:
        """For the tap and the clocks: the body will not come to its end."""
        if not self._ended and not self._answer.complete:
            error.status, error.correlation_id = self._status, self.correlation_id
            self._failure = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Watch:
    """Ends a read that takes too long.

    One timer per limit, set again only when it rings: a frame costs one look at the clock, and no timer. Time counts
    while a read waits, so a slow reader is not held against Mistral.
    """

    __slots__ = ("_call_at", "_fail", "_phase", "_seconds", "_started_at", "_timer", "_total", "now", "waiting_since")

    def __init__(self, fail: Callable[[MistralError], None], timeouts: Timeouts, started_at: float) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        #: When the read that waits now began to (`now` is the clock), None while none does.
        self.waiting_since: float | None = None
        self._fail = fail
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
        self._fail(UpstreamTimeout(phase, seconds))

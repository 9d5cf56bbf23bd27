"""A call to Mistral as those see it who operate the fleet: measured, and part of its job's trace."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from tramontane.metrics import Metrics
from tramontane.mistral import ChatStream
from tramontane.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is answered."""

    stream: ChatStream
    #: To be told of each token.
    token: Callable[[], None]


class Calls:
    """Watches calls to Mistral."""

    def __init__(self, metrics: Metrics | None = None, tracing: Tracing | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._tracing = tracing or Tracing()

    @asynccontextmanager
    async def watch(self, model: str, asked: AbstractAsyncContextManager[ChatStream]) -> AsyncIterator[Call]:
        """Enter `asked`, and watch it from there to the end. What is raised in the block is how the call failed."""
        clock = asyncio.get_running_loop().time
        with self._tracing.chat(model) as chat, self._metrics.call(model, clock) as call:
            async with asked as stream:
                call.answered()
                try:
                    yield Call(stream, call.token)
                finally:
                    # Of an answer that broke off too: what Mistral has reported, it has billed.
                    usage = bytes(stream.usage) if stream.usage else None
                    if usage:
                        call.usage(usage)
                    chat.answered(stream.completion, usage, stream.correlation_id)

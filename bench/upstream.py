"""CPU of one streamed chunk: a bare aiohttp loop, ours, and the official SDK, against one server in one run.

The server runs in a process of its own and writes one chunk at a time, as Mistral does, so that a chunk costs a
wake-up and a read of the socket as well. What those cost is the machine's affair: hence the bare loop beside ours,
the same chunks in bursts (many frames in one read), and what we do to a frame without any socket.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from mistralai.client import Mistral

from bench.processes import simulator_process
from tramontane.mistral import MistralClient
from tramontane.mistral.answer import Answer
from tramontane.mistral.frames import Frames

CHUNKS = 100
PER_SECOND = 100  # of one stream
# Enough of them to keep a core busy: one that falls asleep between two chunks wakes up with cold caches.
STREAMS = 60
STREAMS_OF_SDK = 10
ROUNDS = 3
MODEL = "mistral-small-latest"
QUESTION = "Which wind blows beside the mistral?"

Call = Callable[[], Awaitable[int]]

_FRAME = (
    b'data: {"id":"cb17a0cb17a0cb17a0cb17a0cb17a0cb","object":"chat.completion.chunk","created":1763795000,"model":'
    b'"mistral-small-latest","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"p":"abcdef"}\n\n'
)


@contextlib.asynccontextmanager
async def callers(url: str) -> AsyncIterator[tuple[Call, Call, Call]]:
    """Three ways to stream the same answer, each over one client: bare, ours, official. Each tells how much came."""
    headers = {"authorization": "Bearer bench"}
    messages = [{"role": "user", "content": QUESTION}]
    request = {"model": MODEL, "messages": messages}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        MistralClient(api_key="bench", server_url=url) as client,
        Mistral(api_key="bench", server_url=url) as official,
    ):

        async def read_bare() -> int:
            body = {**request, "stream": True}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                blocks = 0
                while await response.content.readany():
                    blocks += 1
                return blocks

        async def read_ours() -> int:
            async with client.stream(request) as stream:
                return len([delta async for delta in stream])

        async def read_official() -> int:
            stream = await official.chat.stream_async(model=MODEL, messages=messages)
            async with stream as events:
                return len([event async for event in events])

        yield read_bare, read_ours, read_official


async def microseconds(call: Call, streams: int = STREAMS) -> float:
    """CPU of this process for one chunk, user and system, while so many streams run."""
    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            tasks.create_task(_counted(call))
    return (time.process_time() - before) / (streams * CHUNKS) * 1e6


async def _counted(call: Call) -> None:
    came = await call()
    assert came > 0, "nothing came"


def without_socket() -> float:
    """CPU of one chunk from its bytes to a delta, in µs."""
    frames, answer, times = Frames(), Answer(1), 20_000
    before = time.process_time()
    for _ in range(times):
        for payload in frames.feed(_FRAME):
            answer.feed(payload)
    return (time.process_time() - before) / times * 1e6


async def run() -> dict[str, float]:
    """The figures: µs of CPU per chunk, and their ratios. Of some rounds the best, since noise only ever adds."""
    async with (
        simulator_process(tokens=CHUNKS, tokens_per_second=PER_SECOND) as url,
        callers(url) as (read_bare, read_ours, read_official),
    ):
        pairs = [(await microseconds(read_bare), await microseconds(read_ours)) for _ in range(ROUNDS + 1)]
        bare, ours = (min(times) for times in zip(*pairs[1:], strict=True))
        official = min([await microseconds(read_official, STREAMS_OF_SDK) for _ in range(2)])
    async with simulator_process(tokens=CHUNKS, tokens_per_second=0) as url, callers(url) as (_, read_ours, _):
        burst = min([await microseconds(read_ours) for _ in range(ROUNDS)])
    return {
        "bare aiohttp, µs per chunk": bare,
        "ours, µs per chunk": ours,
        "ours in bursts, µs per chunk": burst,
        "ours without the socket, µs per chunk": min(without_socket() for _ in range(ROUNDS)),
        "official SDK, µs per chunk": official,
        "bare aiohttp to ours": bare / ours,
        "official SDK to ours": official / ours,
    }


if __name__ == "__main__":
    for name, figure in asyncio.run(run()).items():
        print(f"{name:38} {figure:8.2f}")

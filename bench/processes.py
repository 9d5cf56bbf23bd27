"""What is not ours to be measured, in processes of its own: the simulator, and the clients."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

_MAIN = """
import asyncio, sys
from tramontane.simulator import Behaviour, Simulator
async def main():
    behaviour = Behaviour(tokens_per_second=float(sys.argv[1]) or None, tokens=int(sys.argv[2]))
    requests, tokens, window = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    async with Simulator(
        seed=1, behaviour=behaviour, request_limit=requests, token_limit=tokens, window=window
    ) as simulator:
        print(simulator.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
try:
    import uvloop; uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def simulator_process(
    *,
    tokens: int,
    tokens_per_second: float = 0,
    request_limit: int = 10**9,
    token_limit: int = 10**12,
    window: float = 60.0,
) -> AsyncIterator[str]:
    """Start a simulator with answers of that length, as fast as it can or at a pace; gives its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MAIN,
        str(tokens_per_second),
        str(tokens),
        str(request_limit),
        str(token_limit),
        str(window),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


_LOAD = """
import asyncio, sys, time
port, count, clients = map(int, sys.argv[1:4])
path, until = sys.argv[4].encode(), sys.argv[5].encode()
body = sys.stdin.buffer.read()
request = b"POST %s HTTP/1.1\\r\\nhost: localhost\\r\\ncontent-length: %d\\r\\n\\r\\n" % (path, len(body)) + body
async def client(numbers):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in numbers:
        writer.write(request)
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        if b"chunked" in head:
            answer = await reader.readuntil(b"\\r\\n0\\r\\n\\r\\n")
        else:
            length = int(head.lower().split(b"content-length: ")[1].split(b"\\r")[0])
            answer = await reader.readexactly(length)
        assert until in head + answer, head + answer
    writer.close()
async def main():
    numbers = iter(range(count))
    began = time.perf_counter()
    await asyncio.gather(*(client(numbers) for _ in range(clients)))
    print(count / (time.perf_counter() - began), flush=True)
asyncio.run(main())
"""


async def load(port: int, path: str, body: bytes, count: int, *, clients: int, until: bytes) -> float:
    """POST `body` so many times from so many clients, each reading its answer to the end; answers per second.

    until: what must be in an answer.
    """
    arguments = ("-c", _LOAD, str(port), str(count), str(clients), path, until.decode())
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(body)
    assert process.returncode == 0
    return float(out)

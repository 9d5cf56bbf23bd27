"""The simulator in a process of its own, so that its CPU is not counted as ours."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

_MAIN = """
import asyncio, sys
from tramontane.simulator import Behaviour, Simulator
async def main():
    behaviour = Behaviour(tokens_per_second=float(sys.argv[1]) or None, tokens=2000)
    async with Simulator(seed=1, behaviour=behaviour, request_limit=10**9, token_limit=10**12) as simulator:
        print(simulator.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
try:
    import uvloop; uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def simulator_process(*, tokens_per_second: float = 0) -> AsyncIterator[str]:
    """Start a simulator, as fast as it can or at a pace; gives its address, and ends it afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MAIN,
        str(tokens_per_second),
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

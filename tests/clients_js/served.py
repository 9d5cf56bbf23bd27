"""What the tests of the JavaScript client talk to: `tramontane serve` as a process, a proxy that cuts connections."""

import asyncio
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from tramontane.simulator import Simulator

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "js"


def required(program: str, *names: str) -> str:
    """The path of a program. Without it a test skips, and in CI it fails."""
    for name in names:
        if found := shutil.which(name):
            return found
    missing = f"{program} is not on the PATH"
    if "CI" in os.environ:  # noqa: TID251 - the one thing a test asks of its surroundings
        pytest.fail(missing)
    pytest.skip(missing)


def node() -> str:
    return required("node", "node")


async def run_node(*words: str, stdin: Any = None) -> bytes:
    """What a Node program prints, once it has ended well."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(node(), *words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=CLIENT)
    out, err = await process.communicate(msgspec.json.encode(stdin))
    assert process.returncode == 0, (out + err).decode()[-8000:]
    return out


@asynccontextmanager
async def serve(simulator: Simulator, data_dir: Path, database_url: str = "") -> AsyncIterator[str]:
    """`tramontane serve` on that database, else on one of its own; its address."""
    settings = {
        "MISTRAL_API_KEY": "key",
        "MISTRAL_SERVER_URL": simulator.url,
        "DATABASE_URL": database_url,
        "TRAMONTANE_DATA_DIR": str(data_dir),
        "TRAMONTANE_CONCURRENCY": "50",
        "TRAMONTANE_RATE_LIMIT": "0",
        "TRAMONTANE_HEARTBEAT": "1s",
        "TRAMONTANE_POLL": "0.2s",
        "TRAMONTANE_GRACE": "0.2s",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tramontane", "serve", "--port", "0"),
        env=dict(os.environ) | settings,  # noqa: TID251 - the child's
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            greeting = (await process.stdout.readline()).decode()
        assert greeting.startswith("tramontane serve: "), greeting
        yield greeting.split(": ", 1)[1].strip()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


class CuttingProxy:
    """Passes connections on to a server, and cuts each after a random number of bytes of the answer.

    Numbers are spread evenly over their orders of magnitude, so that a cut can fall anywhere, and yet a frame of any
    size gets through at last.
    """

    def __init__(self, url: str, *, seed: int, longest: int = 8 * 1024) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self._chance = random.Random(seed)
        self._longest = longest
        self.cutting = True
        #: Bytes that get through before a cut may fall.
        self.spared = 0
        self.cuts = 0
        self.posts = 0
        self.url = ""

    @asynccontextmanager
    async def run(self) -> AsyncIterator["CuttingProxy"]:
        """Listen on a free port until the block is left."""
        passing: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = tasks.create_task(self._pass_on(reader, writer))
                passing.add(task)
                task.add_done_callback(passing.discard)

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            server.close()
            for task in list(passing):
                task.cancel()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter | None = None
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self._ask(reader, to_server))
                tasks.create_task(self._answer(from_server, writer, asking))
        except* OSError:
            pass
        finally:
            for end in (to_server, writer):
                if end is not None:
                    end.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while block := await reader.read(65536):
            self.posts += block.startswith(b"POST ")
            to_server.write(block)

    async def _answer(
        self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter, asking: "asyncio.Task[None]"
    ) -> None:
        room = None
        while block := await from_server.read(65536):
            if self.cutting:
                room = self.spared + round(self._longest ** self._chance.random()) if room is None else room
                block = block[:room]
                room -= len(block)
            writer.write(block)
            await writer.drain()
            if room == 0:
                self.cuts += 1
                break
        asking.cancel()

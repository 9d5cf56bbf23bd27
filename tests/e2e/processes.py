"""Real processes of ours, to be killed: `async with Processes(…) as processes: await processes.start("worker")`.

Whatever happens in a test, none of them is left when the block is: neither a stopped one, nor the embedded Postgres.
Should the tests themselves be killed, the processes find their standard input closed and end.
"""

import asyncio
import os
import select
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import asyncpg
import msgspec
from nursery import Child, spawn

from tramontane.embedded.home import PORT, find_home
from tramontane.embedded.postmaster import find_postmaster

_MAIN = Path(__file__).with_name("process_main.py")
_START = 30.0  # seconds, recovery of Postgres included


class Mistral(Protocol):
    """Where the processes find what they take for Mistral: a Simulator, or a process that is one."""

    @property
    def url(self) -> str: ...


@dataclass(eq=False)
class Process:
    """A process that works, or has been killed."""

    role: str
    running: Child
    #: Our end of its standard input: it ends when this is closed.
    held: BinaryIO
    #: Of the API, or of the receiver; None for a worker.
    url: str | None
    log: BinaryIO

    @property
    def pid(self) -> int:
        return self.running.pid

    @property
    def alive(self) -> bool:
        return self.running.returncode is None

    def signal(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    async def kill(self) -> None:
        """`kill -9`, and nothing of it is left when this returns."""
        self.signal(signal.SIGKILL)
        await self._gone()

    async def stop(self, *, within: float = 20.0) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(within):
            return await self._gone()

    def written(self) -> str:
        """What it has logged so far."""
        self.log.seek(0)
        return self.log.read().decode()

    async def _gone(self) -> int:
        self.held.close()
        return await self.running.wait()


class Processes:
    """The processes of one test, with the settings they share. Without `database_url` they share a data directory."""

    def __init__(self, simulator: Mistral, data_dir: Path, *, database_url: str = "", **environment: object) -> None:
        self.data_dir = data_dir
        self.started: list[Process] = []
        self._environment = {
            "MISTRAL_API_KEY": "a-key",
            "MISTRAL_SERVER_URL": simulator.url,
            "DATABASE_URL": database_url,
            "TRAMONTANE_DATA_DIR": str(data_dir),
            "TRAMONTANE_PORT": "0",
            "TRAMONTANE_RATE_LIMIT": "0",
            "TRAMONTANE_HEARTBEAT": "1",
            "TRAMONTANE_POLL": "0.2",
            "TRAMONTANE_GRACE": "0.2",
            "TRAMONTANE_BACKOFF": "0.1",
        } | {name: str(value) for name, value in environment.items()}

    def add_environment(self, **environment: object) -> None:
        """For those that are started from now on."""
        self._environment |= {name: str(value) for name, value in environment.items()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.started:
            ended = process.running.returncode
            await process.kill()
            # Shown for a test that failed.
            print(f"--- {process.role} {process.pid} ended by {ended}\n{process.written()[-4000:]}")
            process.log.close()
        await end_postgres(self.data_dir)

    async def start(self, role: str, **environment: object) -> Process:
        """A process of that role (serve, api, worker, receiver), once it works."""
        own = {name: str(value) for name, value in environment.items()}
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        (stdin, held), (said, stdout) = os.pipe(), os.pipe()
        running = spawn(
            [str(_MAIN), role],
            dict(os.environ) | self._environment | own,  # noqa: TID251 - the child's
            stdin=stdin, stdout=stdout, stderr=log.fileno(),
        )  # fmt: skip
        os.close(stdin)
        os.close(stdout)
        process = Process(role, running, os.fdopen(held, "wb"), None, log)
        self.started.append(process)
        await asyncio.to_thread(select.select, [said], [], [], _START)
        os.set_blocking(said, False)
        with os.fdopen(said, "rb") as greeting:
            line = greeting.readline()
        assert line, f"it did not start: {process.written()[-2000:]}"
        process.url = msgspec.json.decode(line)["url"]
        return process

    @property
    def postmaster(self) -> int | None:
        """The pid of the embedded Postgres."""
        return find_postmaster(find_home(self.data_dir / "postgres").cluster)

    def kill_postgres(self) -> None:
        """`kill -9` of the postmaster: its children follow by themselves."""
        if (pid := self.postmaster) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to the database of these processes, that sees our tables."""
        search_path = {"search_path": "tramontane"}
        if url := self._environment["DATABASE_URL"]:
            return await asyncpg.connect(url, server_settings=search_path)
        home = find_home(self.data_dir / "postgres")
        name = "tramontane"
        return await asyncpg.connect(
            host=str(home.sockets), port=PORT, user=name, database=name, server_settings=search_path
        )


async def end_postgres(data_dir: Path) -> None:
    """End the embedded server of a directory, if there is one, and see that nothing of it is left."""
    directory = data_dir / "postgres"
    if not directory.exists():
        return
    cluster = find_home(directory).cluster
    if (pid := find_postmaster(cluster)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
    await until(lambda: find_postmaster(cluster) is None and not orphans(cluster))


def orphans(cluster: Path) -> list[int]:
    """Backends that still work in a cluster, wherever their postmaster is. Linux only; elsewhere none are seen."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").samefile(cluster):
                found.append(int(process.name))
    return found


async def until(holds: Callable[[], Any], *, within: float = 20.0) -> None:
    """Return once `holds` does: for what other processes do, of which nobody tells us."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.01)

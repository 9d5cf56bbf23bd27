"""The processes: a Postgres, servers, workers, two receivers, and a simulated Mistral that knows limits."""

import asyncio
import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from processes import Process, Processes

from tramontane.database import open_database
from tramontane.embedded import EmbeddedServer, embedded_postgres
from tramontane.embedded.postmaster import find_postmaster
from tramontane.errors import DatabaseError
from tramontane.ports import listen_on
from tramontane.settings import Settings
from tramontane.store import prepare
from tramontane.webhooks.signatures import new_secret

_SETTINGS: dict[str, object] = {
    "TRAMONTANE_CONCURRENCY": 8,
    "TRAMONTANE_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
    "TRAMONTANE_WEBHOOK_TIMEOUT": 5,
    "TRAMONTANE_LOG_LEVEL": "warning",
    "REQUEST_LIMIT": 10**6,
    "TOKEN_LIMIT": 10**9,
}
_DISK = 700 * 2**20  # bytes of the small disk


@dataclass(frozen=True)
class _Place:
    """Where a process is found; it may be another one tomorrow."""

    url: str


@dataclass(eq=False)
class Town:
    """All of it. What was killed is started again under the same name."""

    processes: Processes
    postgres: EmbeddedServer
    directory: Path
    secret: str
    #: Bytes of the disk of Postgres when it is one of its own, else 0.
    disk: int
    mistral: Process
    living: dict[str, Process] = field(default_factory=dict)
    own: dict[str, dict[str, object]] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        return [name for name in self.living if name.startswith(kind)]

    def log(self, receiver: str) -> Path:
        return self.directory / f"{receiver}.log"

    def url(self, name: str) -> str:
        return str(self.living[name].url)

    async def start(self, name: str, **environment: object) -> Process:
        """Start `worker-1` or the like, as often as it takes: the database may be away."""
        self.own[name] = environment or self.own.get(name, {})
        role = name.partition("-")[0]
        async with asyncio.timeout(90):
            while True:
                with suppress(AssertionError, TimeoutError):
                    self.living[name] = await self.processes.start(role, **self.own[name])
                    return self.living[name]
                await asyncio.sleep(0.3)

    async def revive(self) -> None:
        """Postgres works when this returns, whatever was done to it."""
        async with asyncio.timeout(60):
            while True:
                with suppress(DatabaseError):
                    await self.postgres.revive()
                    return
                await asyncio.sleep(0.2)

    @property
    def postmaster(self) -> int | None:
        return find_postmaster(self.postgres.home.cluster)

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        kwargs: dict[str, Any] = self.postgres.connect_kwargs
        return await asyncpg.connect(**kwargs, timeout=5, server_settings={"search_path": "tramontane"})

    async def command(self, *words: str) -> bytes:
        """What `tramontane …` prints, on the database of the town."""
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tramontane", *words),
            env=dict(os.environ) | {"DATABASE_URL": self.postgres.dsn},  # noqa: TID251 - the child's
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await running.communicate()
        assert running.returncode == 0, words
        return printed


@asynccontextmanager
async def open_town(
    *, servers: int, workers: int, heartbeat: float = 1.0, tokens_per_second: float = 100, **environment: object
) -> AsyncIterator[Town]:
    """A town that works. Nothing of it is left when the block is."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tm-", dir=_memory())))
        directory.chmod(0o711)  # noqa: ASYNC240 - once, in memory
        disk = stack.enter_context(_small_disk(directory))
        postgres = await stack.enter_async_context(embedded_postgres(directory / "disk" / "postgres"))
        await _prepare(postgres)
        secret = new_secret()
        processes = Processes(
            _Place(""),
            directory / "data",
            database_url=postgres.dsn,
            **_SETTINGS
            | {
                "TRAMONTANE_HEARTBEAT": heartbeat,
                "TRAMONTANE_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
                "TRAMONTANE_WEBHOOK_SECRET": secret,
                "TOKENS_PER_SECOND": tokens_per_second,
            }
            | environment,
        )
        # Not by its own end: that shows every log, which is for tests of a few processes.
        stack.push_async_callback(_end, processes)
        mistral = await processes.start("mistral")
        processes.add_environment(MISTRAL_SERVER_URL=mistral.url)
        town = Town(processes, postgres, directory, secret, disk, mistral)
        async with asyncio.TaskGroup() as tasks:
            for name in ("receiver-honest", "receiver-hostile"):
                town.log(name).touch()
                tasks.create_task(town.start(name, RECEIVER_LOG=town.log(name), RECEIVER_PORT=_free_port()))
            for number in range(servers):
                tasks.create_task(town.start(f"api-{number + 1}"))
            for number in range(workers):
                tasks.create_task(town.start(f"worker-{number + 1}"))
        yield town


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


def _free_port() -> int:
    with listen_on("127.0.0.1", 0) as bound:
        port: int = bound.getsockname()[1]
        return port


class _small_disk:  # noqa: N801 - used as a context manager alone
    """A file system of its own for Postgres, that can be filled: a tmpfs, where we may mount one."""

    def __init__(self, directory: Path) -> None:
        self._place = directory / "disk"
        self._mounted = False

    def __enter__(self) -> int:
        self._place.mkdir(mode=0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=755", "tmpfs", str(self._place)]
        if os.geteuid() == 0 and shutil.which("mount"):
            self._mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        return _DISK if self._mounted else 0

    def __exit__(self, *_: object) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", str(self._place)], check=True)


async def _prepare(postgres: EmbeddedServer) -> None:
    connection = await asyncpg.connect(**postgres.connect_kwargs)
    # A small disk holds little log; and what outlives a power failure is not what is asked here.
    for setting in ("max_wal_size = '64MB'", "fsync = off", "wal_recycle = off"):
        await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    async with open_database(Settings(database_url=postgres.dsn)) as database:
        await prepare(database)


async def _end(processes: Processes) -> None:
    for process in processes.started:
        await process.kill()
        process.log.close()

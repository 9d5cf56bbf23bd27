"""What the tests stand on: a real Postgres, a simulated Mistral, and settings that do not wait.

One embedded server runs per test process, and one of the oldest supported version if a test asks for it. Every test
that asks for a database gets one of its own, copied from a migrated template, and it is gone afterwards.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
import pytest_asyncio

from tramontane.database import Database, open_database
from tramontane.embedded import EmbeddedServer, embedded_postgres
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.simulator import Simulator

_NUMBERS = itertools.count(1)


#: Seconds: whoever is given more may need them.
_LONG = 60
#: Each worker has two Postgres of its own.
_MOST_WORKERS = 8


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, and two at least: many tests wait for other processes."""
    return max(2, min(os.cpu_count() or 1, _MOST_WORKERS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones begin first, lest one worker is left alone with them at the end. The others stay shuffled."""
    given = [item.get_closest_marker("timeout") for item in items]
    long = {item for item, mark in zip(items, given, strict=True) if mark is not None and mark.args[0] > _LONG}
    items.sort(key=lambda item: item not in long)


def _short_dir() -> Path:
    """A directory with a short name (a socket fits in) that the account of Postgres can reach when we are root.

    In memory where there is enough of it: no test needs its data to outlive a power failure.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30
    directory = Path(tempfile.mkdtemp(prefix="tm-", dir=memory if roomy else None))
    directory.chmod(0o711)
    return directory


@pytest.fixture(scope="session")
def make_dir() -> Callable[[], Path]:
    """For fixtures of a wider scope than `short_dir`; whoever calls it removes what it made."""
    return _short_dir


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """An empty directory for an embedded server; `tmp_path` is too long for that, and closed when we are root."""
    directory = _short_dir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def settings(short_dir: Path) -> Settings:
    """Settings that notice a dead worker after a second. They name no database: see `database_url`."""
    return Settings(data_dir=short_dir / "data", heartbeat=1.0, poll=0.2, port=0, simulator_port=0)


@pytest_asyncio.fixture
async def simulator() -> "AsyncIterator[Simulator]":
    """A simulated Mistral on a free port of the loopback, with `url`, a script of faults and a ledger."""
    from tramontane.simulator import Simulator

    async with Simulator(seed=1, port=0) as running:
        yield running


@pytest_asyncio.fixture
async def database_url(postgres_18: EmbeddedServer) -> AsyncIterator[str]:
    """The address of a fresh, migrated database, for `Settings(database_url=…)` and for other processes."""
    async with _copy_of_template(postgres_18) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_database_url(postgres_18: EmbeddedServer) -> AsyncIterator[str]:
    """The same for a whole module, whose tests leave nothing behind that another would mind."""
    async with _copy_of_template(postgres_18) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database."""
    async with open_database(Settings(database_url=database_url)) as opened:
        yield opened


@pytest_asyncio.fixture
async def any_database(any_postgres: EmbeddedServer) -> AsyncIterator[Database]:
    """The same on every Postgres that we support: what the store promises holds on all."""
    async with _copy_of_template(any_postgres) as url, open_database(Settings(database_url=url)) as opened:
        yield opened


@pytest_asyncio.fixture
async def empty_database_url(postgres_18: EmbeddedServer) -> AsyncIterator[str]:
    """The address of a database without anything in it."""
    async with _copy_of_template(postgres_18, "template1") as url:
        yield url


@pytest.fixture(params=["embedded-18", "url-16"])
def any_postgres(request: pytest.FixtureRequest) -> EmbeddedServer:
    server: EmbeddedServer = request.getfixturevalue(f"postgres_{request.param[-2:]}")
    return server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_18() -> AsyncIterator[EmbeddedServer]:
    async with _server(18) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_16() -> AsyncIterator[EmbeddedServer]:
    async with _server(16) as server:
        yield server


@asynccontextmanager
async def _server(version: int) -> AsyncIterator[EmbeddedServer]:
    directory = _short_dir()
    try:
        async with embedded_postgres(directory / "postgres", version=version) as server:
            # Where it is a disk after all.
            await _execute(server, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            yield server
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def _copy_of_template(server: EmbeddedServer, template: str = "migrated") -> AsyncIterator[str]:
    if template == "migrated":
        await _ensure_template(server)
    name = f"test_{next(_NUMBERS)}"
    # Files are copied in a third of the time that it takes to log them page by page.
    await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield _url(server, name)
    await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def _ensure_template(server: EmbeddedServer) -> None:
    """Migrate once per server."""
    from tramontane.store import prepare

    if await _execute(server, "SELECT 1 FROM pg_database WHERE datname = 'migrated'") == "SELECT 1":
        return
    await _execute(server, "DROP DATABASE IF EXISTS unfinished", "CREATE DATABASE unfinished")
    async with open_database(Settings(database_url=_url(server, "unfinished"))) as unfinished:
        await prepare(unfinished)
    await _execute(server, "ALTER DATABASE unfinished RENAME TO migrated")


def _url(server: EmbeddedServer, name: str) -> str:
    return server.dsn.replace("@/tramontane?", f"@/{name}?")


async def _execute(server: EmbeddedServer, *statements: str) -> str:
    """Run statements one by one; the answer to the last of them, such as `SELECT 1` for one row."""
    answer = ""
    connection = await asyncpg.connect(**server.connect_kwargs)
    try:
        for statement in statements:
            answer = await connection.execute(statement)
    finally:
        await connection.close()
    return answer

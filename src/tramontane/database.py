"""The database: one pool of connections, to the embedded Postgres or to that of DATABASE_URL, and its migrations.

A connection of the pool carries no session state from one use to the next: settings are made by `SET LOCAL`, advisory
locks are those of a transaction, and who wants to LISTEN takes a connection of its own.
"""

import asyncio
import functools
import hashlib
import importlib.resources
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg

from tramontane.errors import DatabaseError
from tramontane.settings import Settings
from tramontane.telemetry import log

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

_Connect = Callable[..., Coroutine[Any, Any, Any]]  # gives a connection, to a pool or to one of us

SCHEMA = "tramontane"
#: The channel on which a migration is told of, once it is committed.
MIGRATED: Final = "tramontane_migrated"
_FIRST_OWN_TYPE: Final = 16384  # types below are Postgres's, under the same numbers everywhere
_OLDEST = 16  # the oldest major version of Postgres that our SQL is tried on
_CONNECT_TIMEOUT = 10.0  # seconds
_CLOSE_TIMEOUT = 10.0  # seconds that borrowers of connections get at the end
_MIGRATION_LOCK = 0x7472616D  # advisory, of the session; any constant of our own
#: Seconds that a migration waits for a table which a transaction holds: all who come after it wait as long.
_LOCK_PATIENCE = 2.0
_LOCK_TRIES = 30
_MIGRATION = re.compile(r"(\d{4})_(\w+)\.sql")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database that answers. Its connections find our tables without a schema name; json comes and goes as text."""

    pool: "Pool"
    #: Whether it is our own Postgres, rather than the one of DATABASE_URL.
    embedded: bool
    #: Host and name of the database, or the directory of the embedded one, for logs: no password.
    describe: str
    _connect: "_Connect"

    async def connect(self) -> "Connection":
        """A connection outside the pool, for LISTEN or a session's lock. Whoever asks for it closes it."""
        with _plain_errors(self.describe):
            connection: Connection = await self._connect()
            return connection


@asynccontextmanager
async def open_database(settings: Settings, *, connections: int = 10) -> AsyncIterator[Database]:
    """The database of the settings: the embedded one in `data_dir`/postgres unless there is a DATABASE_URL.

    The pool opens connections as they are needed, up to `connections`. The embedded server is started again when it
    is found dead by one that wants a connection. Raises DatabaseError, in one line that names the remedy and never
    shows the password.
    """
    if settings.database_url:
        with _plain_errors("DATABASE_URL"):
            describe = _describe(settings.database_url)
        connect = _connector(dsn=settings.database_url)
        async with _open(connect, describe, embedded=False, connections=connections) as database:
            yield database
        return
    if sys.platform == "win32":
        raise DatabaseError("the embedded Postgres does not run on Windows yet: set DATABASE_URL")
    from tramontane.embedded import embedded_postgres

    async with embedded_postgres(settings.data_dir / "postgres") as server:
        connect = _reviving(_connector(**server.connect_kwargs, password=""), server.revive)
        describe = f"embedded Postgres {server.version} in {server.home.path}"
        async with _open(connect, describe, embedded=True, connections=connections) as database:
            yield database


#: Tables of a queue are empty at one moment and full at the next, and a prepared statement keeps the plan of its first
#: moment until somebody analyzes. Every statement of ours has an index to go by. An ordinary scan of one marks what it
#: finds dead; a bitmap would read a queue's past again and again, until it is vacuumed. None is worth compiling.
_PLANNING: Final = {"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}


def _connector(**target: Any) -> _Connect:
    async def connect(*_: Any, **given: Any) -> Any:
        session = {"search_path": SCHEMA, "application_name": "tramontane", **_PLANNING}
        given = given | target | {"connection_class": _Connection}
        return await asyncpg.connect(**given, server_settings=session, timeout=_CONNECT_TIMEOUT)

    return connect


class _Asked(NamedTuple):
    """Stands for the statement by which asyncpg asks. One with a name has displaced no other."""

    name: str


class _Connection(asyncpg.Connection):
    """Knows Postgres's own types from the connections before it.

    asyncpg asks for each kind of array on each connection anew: seven questions of 3 ms, while the first jobs of a new
    connection wait. The answers are the same in every database.
    """

    #: What is told of an array, its element first.
    _told: ClassVar[dict[int, list[asyncpg.Record]]] = {}

    async def _introspect_types(self, typeoids: Collection[int], timeout: float | None) -> tuple[Any, Any]:
        if all(oid in self._told for oid in typeoids):
            return [row for oid in typeoids for row in self._told[oid]], _Asked("known")
        rows, statement = await super()._introspect_types(typeoids, timeout)  # type: ignore[misc] # not in the stubs
        told = {row["oid"]: row for row in rows}
        for oid, row in told.items():
            if oid < _FIRST_OWN_TYPE and row["elemtype"] in told:
                self._told[oid] = [told[row["elemtype"]], row]
        return rows, statement


def _reviving(connect: _Connect, revive: Callable[[], Awaitable[None]]) -> _Connect:
    async def connect_to_the_living(*given: Any, **more: Any) -> Any:
        try:
            return await connect(*given, **more)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            await revive()
            return await connect(*given, **more)

    return connect_to_the_living


@asynccontextmanager
async def _open(connect: _Connect, describe: str, *, embedded: bool, connections: int) -> AsyncIterator[Database]:
    assert connections >= 2, "pgqueuer keeps one connection for LISTEN"
    with _plain_errors(describe):
        pool = asyncpg.create_pool(min_size=0, max_size=connections, connect=connect, reset=_nothing)
        await pool
    try:
        with _plain_errors(describe):
            major = int(await pool.fetchval("SHOW server_version_num")) // 10000
            encoding = await pool.fetchval("SHOW server_encoding")
        if major < _OLDEST:
            raise DatabaseError(f"{describe} is Postgres {major}: {_OLDEST} or newer is needed")
        if encoding != "UTF8":
            raise DatabaseError(f"{describe} is encoded in {encoding}: create one with `createdb --encoding=UTF8`")
        yield Database(pool=pool, embedded=embedded, describe=describe, _connect=connect)
    finally:
        await _close(pool, describe)


async def _nothing(_: object) -> None:
    """What a pool does with a connection that comes back, after the rollback of a transaction left open.

    asyncpg's own reset is a round trip that undoes session state, and we have none.
    """


async def _close(pool: "Pool", describe: str) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await pool.close()
    except (TimeoutError, OSError, asyncpg.InterfaceError):
        log(_LOGGER, logging.WARNING, "database.closed_hard", database=describe)
        pool.terminate()


# What goes wrong, in one line


@contextmanager
def _plain_errors(describe: str) -> Iterator[None]:
    """Turn what asyncpg and the system raise into DatabaseError. No text that might quote the URL gets through."""
    try:
        yield
    except DatabaseError:
        raise
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, ValueError) as error:
        raise DatabaseError(_explain(error, describe)) from None


def _explain(error: Exception, describe: str) -> str:  # noqa: PLR0911 - a table
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return f"{describe} refuses the user or the password of DATABASE_URL: {_first_line(error)}"
        case asyncpg.InvalidCatalogNameError():
            return f"{describe}: that database does not exist; create it (`createdb`) or correct DATABASE_URL"
        case asyncpg.InsufficientPrivilegeError():
            return f"{describe}: {_first_line(error)}; the user needs GRANT CREATE ON DATABASE, or a schema {SCHEMA}"
        case asyncpg.TooManyConnectionsError():
            return f"{describe} has no connection left: raise its max_connections or run fewer processes"
        case asyncpg.CannotConnectNowError():
            return f"{describe} is starting up or shutting down: try again"
        case asyncpg.PostgresError():
            return f"{describe}: {_first_line(error)}"
        case socket.gaierror():
            return f"{describe} cannot be reached, its host name is unknown: correct DATABASE_URL"
        case TimeoutError():
            return (
                f"{describe} does not answer within {_CONNECT_TIMEOUT:g} s: is the address right, a firewall between?"
            )
        case OSError():
            return f"{describe} cannot be reached ({_system(error)}): is Postgres running there? See DATABASE_URL"
        case ValueError():
            return "DATABASE_URL cannot be read: special characters of the password are percent-encoded (`/` is %2F)"
    return f"{describe} cannot be used: {type(error).__name__}"


def _first_line(error: asyncpg.PostgresError) -> str:
    return str(error.args[0]).split("\n", 1)[0]


def _system(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "no address of it answers"


def _describe(url: str) -> str:
    """`host:5432/database` of a URL. Raises ValueError for one in which a password's characters would be misread."""
    parts = urlsplit(url)
    if "@" in url and (url.count("@") > 1 or "@" not in parts.netloc):
        raise ValueError("a part of the password may pass for something else")
    query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    host = parts.netloc.rpartition("@")[2] or query.get("host", ["localhost"])[-1]
    database = parts.path.lstrip("/") or query.get("dbname", query.get("database", [""]))[-1] or parts.username or ""
    if ":" not in host and not host.startswith("/"):
        host = f"{host}:{parts.port or query.get('port', ['5432'])[-1]}"
    return f"{host}/{database}"


# Migrations


async def migrate(
    database: Database,
    *,
    also: "Callable[[Connection], Awaitable[None]]" = _nothing,
    directory: Traversable | None = None,
) -> list[str]:
    """Apply the numbered SQL files that this database has not seen, in order. Returns their names.

    A file is `NNNN_name.sql`; it and its row in `tramontane.migrations` are one transaction, so a crash leaves a number
    applied or not. `also` comes before the files, on the same connection and outside a transaction, every time.
    Processes that migrate at once take turns, and others work meanwhile: a file that has to wait for their transactions
    lets go, and tries again. One number that we do not know is the next version's, beside which this one works.

    Raises DatabaseError when the database has more of those, when a file was changed after it was applied, when one
    fails, or when no moment comes in which the tables are free.
    """
    files = _read(directory)
    connection = await database.connect()
    try:
        with _plain_errors(database.describe):
            await _lock(connection, database.describe)
            await _make_table(connection)
            applied = await _applied(connection)
            pending = _pending(files, applied, database.describe)
            if len(applied) > len(files):
                return []  # of the next version, the queue's tables too
            await connection.execute("SELECT set_config('lock_timeout', $1, false)", f"{_LOCK_PATIENCE * 1000:.0f}")
            await _when_free(functools.partial(also, connection), "the queue's tables")
            for file in pending:
                await _when_free(functools.partial(_apply, connection, file), f"migration {file.name}")
    finally:
        await connection.close()  # and with it the lock
    return [file.name for file in pending]


async def status(database: Database, *, directory: Traversable | None = None) -> tuple[list[str], list[str]]:
    """Names of the migrations that are applied, and of those that are not. Changes nothing.

    Raises DatabaseError as `migrate` does.
    """
    files = _read(directory)
    connection = await database.connect()
    try:
        with _plain_errors(database.describe):
            known = await connection.fetchval("SELECT to_regclass('tramontane.migrations') IS NOT NULL")
            applied = await _applied(connection) if known else {}
    finally:
        await connection.close()
    pending = _pending(files, applied, database.describe)
    return [file.name for file in files if file not in pending], [file.name for file in pending]


async def steps_ahead(database: Database) -> int:
    """How many migrations the database has that this version does not know; below 0 those that it lacks."""
    applied = await database.pool.fetchval(f"SELECT max(number) FROM {SCHEMA}.migrations")  # noqa: S608 - a constant
    return int(applied or 0) - _newest()


@functools.cache
def _newest() -> int:
    return max(file.number for file in _read(None))


@dataclass(frozen=True)
class _Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def _read(directory: Traversable | None) -> list[_Migration]:
    found = directory or importlib.resources.files("tramontane") / "migrations"
    numbered = [(match, file) for file in found.iterdir() if (match := _MIGRATION.fullmatch(file.name))]
    files = [
        _Migration(int(match[1]), match[0].removesuffix(".sql"), file.read_text("utf-8")) for match, file in numbered
    ]
    files.sort(key=lambda file: file.number)
    assert len({file.number for file in files}) == len(files), "two migrations have one number"
    return files


async def _lock(connection: "Connection", describe: str) -> None:
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _MIGRATION_LOCK):
        log(_LOGGER, logging.INFO, "migrations.waiting", database=describe)
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)


async def _make_table(connection: "Connection") -> None:
    # CREATE SCHEMA IF NOT EXISTS wants the right to create one even where there is one.
    if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(
        f"""CREATE TABLE IF NOT EXISTS {SCHEMA}.migrations (
            number     integer PRIMARY KEY,
            name       text NOT NULL,
            checksum   text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )"""
    )


async def _applied(connection: "Connection") -> dict[int, str]:
    """Checksums by number."""
    rows = await connection.fetch(f"SELECT number, checksum FROM {SCHEMA}.migrations")  # noqa: S608 - a constant
    return {row["number"]: row["checksum"] for row in rows}


def _pending(files: list[_Migration], applied: dict[int, str], describe: str) -> list[_Migration]:
    if unknown := applied.keys() - {file.number for file in files}:
        ours = files[-1].number if files else 0
        # Each migration leaves a database that the version before it can work with, and promises no more.
        if unknown != {ours + 1}:
            raise DatabaseError(
                f"{describe} is of a newer version of Tramontane: it has migration {max(unknown):04}, and this version "
                f"knows those up to {ours:04}; upgrade Tramontane"
            )
        log(_LOGGER, logging.WARNING, "database.newer", database=describe, has=ours + 1, known=ours)
    for file in files:
        if applied.get(file.number, file.checksum) != file.checksum:
            raise DatabaseError(
                f"{describe}: migration {file.name} was changed after it had been applied; restore the file, "
                "and put the change into a new one"
            )
    return [file for file in files if file.number not in applied]


async def _when_free(change: Callable[[], Awaitable[None]], what: str) -> None:
    """Make a change of tables that are in use. While it waits everybody queues behind it, so it does not wait long."""
    for _ in range(_LOCK_TRIES):
        try:
            await change()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            log(_LOGGER, logging.WARNING, "migrations.tables_in_use", change=what)
            await asyncio.sleep(_LOCK_PATIENCE / 2)
        else:
            return
    raise DatabaseError(
        f"{what} found no moment in which the tables were free: end the long transactions (`pg_stat_activity` shows "
        "them), and start again"
    )


async def _apply(connection: "Connection", file: _Migration) -> None:
    record = f"INSERT INTO {SCHEMA}.migrations (number, name, checksum) VALUES ($1, $2, $3)"  # noqa: S608 - a constant
    try:
        async with connection.transaction():
            await connection.execute(file.sql)
            await connection.execute(record, file.number, file.name, file.checksum)
            await connection.execute("SELECT pg_notify($1, '')", MIGRATED)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"migration {file.name} failed and left no trace: {_first_line(error)}") from error
    log(_LOGGER, logging.INFO, "migration.applied", migration=file.name)

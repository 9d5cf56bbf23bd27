"""The life of the server: the first user starts it, the last one stops it, a crash may come between any two lines."""

import asyncio
import fcntl
import logging
import os
import re
import shlex
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from tramontane.embedded.account import NOTICE, check_passwd_entry, run
from tramontane.embedded.binaries import INSTALLS, find_binaries
from tramontane.embedded.home import PORT, Home, find_home
from tramontane.embedded.postmaster import find_postmaster, forget_foreign_pid, is_postmaster, says_ready
from tramontane.errors import ConfigurationError, DatabaseError
from tramontane.telemetry import log

_NAME = "tramontane"  # of the database and of its owner
_OPTIONS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "cluster_name": _NAME,
    "autovacuum_naptime": "15s",  # the queue's table turns over by the minute
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Rows and statements hold people's messages: neither may reach the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
_ORPHANS = 30.0  # seconds that the children of a killed postmaster get to notice and end
_STOP = 60.0  # seconds that the last checkpoint gets
_LOG_SIZE = 10 * 2**20  # bytes of server.log that make the next start begin a new one
_LOGGER = logging.getLogger("tramontane.embedded")


@dataclass(frozen=True, kw_only=True)
class EmbeddedServer:
    """A Postgres that runs as long as the context that gave this value."""

    home: Home
    #: Major version; for an existing directory the one that made it.
    version: int

    @property
    def connect_kwargs(self) -> dict[str, Any]:
        """Arguments of `asyncpg.connect` and `asyncpg.create_pool`."""
        return {"host": str(self.home.sockets), "port": PORT, "user": _NAME, "database": _NAME}

    @property
    def dsn(self) -> str:
        """The same as a URL, for psql and pg_dump as well."""
        return f"postgresql://{_NAME}@/{_NAME}?host={quote(str(self.home.sockets), safe='')}&port={PORT}"

    async def revive(self) -> None:
        """Start the server again if it has died under us; nothing happens while it answers."""
        async with _starting(self.home) as lock:
            await _ensure_running(self.home, self.version, lock)


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, version: int = 18) -> AsyncIterator[EmbeddedServer]:
    """Postgres in `data_dir`, which is made if there is none, running until the last of its users leaves.

    Any number of processes may use one directory, and one process may use it several times. `version` (18 or 16) is
    for a new directory; an old one is run by the version that made it. Recovery after a crash is waited for, however
    long. Raises ConfigurationError for what is wrong with the directory or the account, DatabaseError for what is
    wrong with Postgres, each in one line.
    """
    with _plain_errors(data_dir):
        home = await asyncio.to_thread(find_home, data_dir)
        users = home.open_lock("users.lock")
    try:
        async with _starting(home) as lock:
            fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with _plain_errors(home.path):
                running = await _ensure_running(home, version, lock)
        yield EmbeddedServer(home=home, version=running)
    finally:
        try:
            # The directory may have been deleted under us; Postgres notices that by itself within a minute.
            with suppress(FileNotFoundError):
                async with _starting(home):
                    if _is_last(users, home):
                        await _stop(home)
        finally:
            os.close(users)


@contextmanager
def _plain_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"the data directory {directory} cannot be used: {reason}; choose another by TRAMONTANE_DATA_DIR"
        ) from error


@asynccontextmanager
async def _starting(home: Home) -> AsyncIterator[int]:
    """Nobody else starts or stops the server meanwhile. Waits for its turn without blocking the loop."""
    lock = home.open_lock("start.lock")
    try:
        waited = _Patience("another process starts or stops it", home)
        while not _exclusive(lock):
            await waited.a_while(0.02)
        yield lock
    finally:
        os.close(lock)


def _exclusive(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_last(users: int, home: Home) -> bool:
    """Whether nobody else uses the server. Under the start lock no newcomer can slip in between."""
    # Another directory may have taken the place of ours; its server is not ours to stop.
    ours = os.path.samestat(os.fstat(users), os.stat(home.path / "users.lock"))
    return ours and _exclusive(users)


class _Patience:
    """Waits in small steps and says every few seconds what for."""

    def __init__(self, reason: str, home: Home) -> None:
        self._reason, self._home = reason, home
        self._waited = 0.0

    async def a_while(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._waited += seconds
        if self._waited >= NOTICE:
            log(_LOGGER, logging.INFO, "postgres.waiting", reason=self._reason, home=self._home.path)
            self._waited = 0.0


async def _ensure_running(home: Home, version: int, lock: int) -> int:
    """The major version of the server, which answers when this returns."""
    version = await _ensure_cluster(home, version, lock)
    waited = _Patience("it recovers or shuts down", home)
    while not await _answers(home):
        pid = find_postmaster(home.cluster)
        if pid is None:
            await _launch(home, version)
        elif says_ready(home.cluster) and not (home.sockets / f".s.PGSQL.{PORT}").exists():
            raise DatabaseError(
                f"Postgres runs in {home.path}, but its socket in {home.sockets} is gone: end it with "
                f"`kill -INT {pid}` and start again"
            )
        else:
            await waited.a_while(0.05)
    return version


async def _ensure_cluster(home: Home, version: int, lock: int) -> int:
    """The version that the cluster was made by, now or earlier."""
    if not home.cluster.exists():
        await _make_cluster(home, version, lock)
    try:
        made_by = int((home.cluster / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError):
        raise DatabaseError(f"{home.cluster} is damaged, its PG_VERSION is no version: restore it or move it") from None
    if made_by not in INSTALLS:
        raise DatabaseError(
            f"{home.cluster} was made by Postgres {made_by}; here are only {' and '.join(map(str, sorted(INSTALLS)))}: "
            f"move the data by pg_dump of Postgres {made_by}"
        )
    return made_by


async def _make_cluster(home: Home, version: int, lock: int) -> None:
    """A cluster is made beside its place and renamed: an interrupted initdb leaves nothing to be believed.

    The start lock is initdb's as well, lest one that has outlived its user writes on while the next begins.
    """
    if home.account is None:
        check_passwd_entry()
    fresh = home.path / "cluster.new"
    await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
    initdb = [str(find_binaries(version, home.account) / "initdb"), "--pgdata", str(fresh), "--username", _NAME]
    initdb += ["--locale=C", "--encoding=UTF8", "--auth=trust", "--data-checksums", "--no-instructions"]
    code, output = await run(initdb, home.account, "initdb", lock=lock)
    if code:
        raise DatabaseError(f"Postgres could not make its data directory in {home.path}: {_reason(output)}")
    os.rename(fresh, home.cluster)
    _sync_directory(home.path)
    log(_LOGGER, logging.INFO, "postgres.created", home=home.path, version=version)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _answers(home: Home) -> bool:
    """Whether a connection succeeds. Makes the database where a crash has come between initdb and that."""
    target: dict[str, Any] = {"host": str(home.sockets), "port": PORT, "user": _NAME, "password": "", "timeout": 10}
    try:
        try:
            connection = await asyncpg.connect(database=_NAME, **target)
        except asyncpg.InvalidCatalogNameError:
            connection = await asyncpg.connect(database="postgres", **target)
            await connection.execute(f"CREATE DATABASE {_NAME}")
        await connection.close()
    except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
        return False
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"the embedded Postgres in {home.path} refuses us: {error.args[0]}") from error
    return True


async def _launch(home: Home, version: int) -> None:
    """Start the postmaster, detached, and wait until it is ready, which after a crash is when it has recovered."""
    for file in (home.cluster / "postmaster.pid", home.sockets / f".s.PGSQL.{PORT}.lock"):
        forget_foreign_pid(file, home.cluster)
    _begin_new_log(home.log)
    argv = [str(find_binaries(version, home.account) / "pg_ctl"), "start", "--wait", "--timeout=1000000"]
    argv += ["--pgdata", str(home.cluster), "--log", str(home.log), "--options", _options(home)]
    patience = _ORPHANS
    while True:
        before = home.log.stat().st_size if home.log.exists() else 0
        code, output = await run(argv, home.account, "start and recovery")
        # Or one is there already, whose starter was killed before it had left a pid file.
        if code == 0 or find_postmaster(home.cluster):
            break
        reason = _reason(_read_from(home.log, before) or output)
        # A killed postmaster's children hold the shared memory until they notice that they are orphans.
        if "shared memory block" not in reason or patience <= 0:
            raise DatabaseError(f"Postgres did not start in {home.path}: {reason}")
        await asyncio.sleep(0.1)
        patience -= 0.1
    log(_LOGGER, logging.INFO, "postgres.started", home=home.path, version=version, pid=find_postmaster(home.cluster))


def _options(home: Home) -> str:
    """What pg_ctl hands to a shell: quoted for that and, since it is a list, for Postgres before."""
    directories = '"' + str(home.sockets).replace('"', '""') + '"'
    options = _OPTIONS | {"unix_socket_directories": directories}
    return " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())


async def _stop(home: Home) -> None:
    pid = find_postmaster(home.cluster)
    if pid is None:
        return
    os.kill(pid, signal.SIGINT)  # the fast mode: open transactions are rolled back, then a checkpoint
    for _ in range(int(_STOP / 0.01)):
        if not is_postmaster(pid, home.cluster):
            log(_LOGGER, logging.INFO, "postgres.stopped", home=home.path)
            return
        await asyncio.sleep(0.01)
    log(_LOGGER, logging.WARNING, "postgres.stops_slowly", home=home.path, pid=pid)


def _reason(output: str) -> str:
    """The last line that says why, without its time and pid."""
    told = re.findall(r"(?:PANIC|FATAL|ERROR|error):\s+(.*)", output)
    lines = told or output.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")


def _read_from(path: Path, offset: int) -> str:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - 2**16))
        return file.read().decode(errors="replace")
    return ""


def _begin_new_log(log: Path) -> None:
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_SIZE:
            log.replace(log.with_name("server.log.1"))

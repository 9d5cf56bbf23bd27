"""A process learns of a migration that another one makes."""

import asyncio
from importlib.resources import files
from pathlib import Path

from tramontane.app import open_app
from tramontane.database import migrate
from tramontane.settings import Settings

PREPARED = "SELECT * FROM jobs"


async def test_statements_that_were_prepared_before_a_migration_are_not_refused_after_it(
    database_url: str, tmp_path: Path
) -> None:
    async with open_app(Settings(database_url=database_url), worker=False) as app:
        pool = app.database.pool
        known = [row["name"] for row in await pool.fetch("SELECT name FROM migrations")]
        async with pool.acquire() as connection, connection.transaction():
            await connection.fetch(PREPARED)
        for name in known:
            text = files("tramontane").joinpath("migrations", f"{name}.sql").read_text("utf-8")
            (tmp_path / f"{name}.sql").write_text(text)
        (tmp_path / f"{len(known) + 1:04}_wider.sql").write_text("ALTER TABLE jobs ADD COLUMN wider text")
        first = await pool.fetchval("SELECT pg_backend_pid()")
        await migrate(app.database, directory=tmp_path)
        async with asyncio.timeout(5):
            while await pool.fetchval("SELECT pg_backend_pid()") == first:  # noqa: ASYNC110 - a connection that is changed tells nobody
                await asyncio.sleep(0.01)
        async with pool.acquire() as connection, connection.transaction():
            await connection.fetch(PREPARED)

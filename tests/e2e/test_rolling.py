"""A fleet that is operated: leaders die and freeze, workers drain, and the next version moves in while jobs run."""

import asyncio
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from clients import Client, Reader, follow
from processes import Process, Processes, until

from tramontane.database import migrate, open_database
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    async with Processes(simulator, short_dir / "data", database_url=database_url) as processes:
        yield processes


def url_of(process: Process) -> str:
    assert process.url is not None
    return process.url


def leads(process: Process) -> bool:
    """Whether it has led at any time."""
    return "leader.leads" in process.written()


# Leaders


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_leader_that_dies_or_freezes_is_replaced_within_ten_seconds(
    fleet: Processes, how: signal.Signals
) -> None:
    first = await fleet.start("worker")
    await until(lambda: leads(first))
    second = await fleet.start("worker")
    assert not leads(second)
    began = time.monotonic()
    first.signal(how)
    await until(lambda: leads(second), within=10)
    print(f"replaced after {time.monotonic() - began:.1f} s")
    if how is signal.SIGSTOP:
        # Back again, it finds that it leads no more, and works on.
        first.signal(signal.SIGCONT)
        await until(lambda: "leader.lost" in first.written())
        assert first.alive


# Drains


async def test_a_worker_that_drains_hands_its_answer_on_and_nobody_counts_a_failure(
    fleet: Processes, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens=3000, tokens_per_second=100)
    first = await fleet.start("serve")
    async with Client.to(url_of(first)) as here:
        accepted = await here.submit()
        reader, ids = Reader(), accepted["jobId"]
        await simulator.wait_for_chunks(1, 10)
        second = await fleet.start("serve")
        simulator.behaviour = Behaviour(tokens=3000)
        async with Client.to(url_of(second)) as there, asyncio.TaskGroup() as tasks:
            # Its stream ends in good order, and goes on at the other one from the cursor.
            where = iter((here,))
            following = tasks.create_task(follow(lambda: next(where, there), ids, reader, until=30))
            await until(lambda: reader.seq >= 3)
            assert await first.stop() == 0
            await following
            job = await there.job(ids)
    assert (job["status"], job["failures"]) == ("completed", 0)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["handover", "completed"]
    assert reader.text == job["result"]["content"]
    assert reader.visits >= 2
    assert reader.events.count("start") == 1


# Upgrades


class NextVersion:
    """What a later version brings: our migrations, and its own after them."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self._url = url
        source = Path(str(files("tramontane") / "migrations"))
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns("__*"))
        self.newest = max(int(match[1]) for name in directory.iterdir() if (match := re.match(r"(\d{4})_", name.name)))

    async def migrate(self, sql: str) -> None:
        """Bring one more migration, as a process of that version does at its start."""
        self.newest += 1
        (self.directory / f"{self.newest:04}_next.sql").write_text(sql)
        async with open_database(Settings(database_url=self._url), connections=2) as database:
            assert len(await migrate(database, directory=self.directory)) == 1


#: Additive, on the busiest tables.
WIDER = """
    ALTER TABLE jobs ADD COLUMN next_thing text NOT NULL DEFAULT 'none';
    ALTER TABLE job_attempts ADD COLUMN next_thing integer;
    CREATE INDEX jobs_next_thing ON jobs (next_thing) WHERE next_thing <> 'none';
"""


async def test_jobs_run_on_while_the_next_version_migrates_and_this_one_starts_beside_it(
    fleet: Processes, simulator: Simulator, database_url: str, tmp_path: Path
) -> None:
    simulator.behaviour = Behaviour(tokens=40, tokens_per_second=40)
    upgrade = NextVersion(tmp_path / "next", database_url)
    api, old = await fleet.start("api"), await fleet.start("worker", TRAMONTANE_CONCURRENCY="50")
    accepted: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def submit(client: Client) -> None:
        while not enough.is_set():
            accepted.append(await client.submit())  # none of which may be refused
            await asyncio.sleep(0.02)

    async with Client.to(url_of(api)) as client:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(submit(client))
            await simulator.wait_for_chunks(10, 5)
            await upgrade.migrate(WIDER)
            beside = await fleet.start("worker", TRAMONTANE_CONCURRENCY="50")
            assert "database.newer" in beside.written()
            enough.set()
        jobs = [await client.job(one["jobId"], wait=20) for one in accepted]
        assert {(job["status"], job["attempt"], job["failures"]) for job in jobs} == {("completed", 1, 0)}
        assert simulator.totals().calls == len(jobs)
        assert old.alive
        assert await readiness(client) == (200, None)

        # One step further it is too old, and says so; it does not guess.
        await upgrade.migrate("CREATE TABLE later ()")
        assert await readiness(client) == (503, "the database is 2 migrations ahead of this version: upgrade it")
        with pytest.raises(AssertionError, match="is of a newer version of Tramontane"):
            await fleet.start("worker")


async def readiness(client: Client) -> tuple[int, str | None]:
    async with client.session.get(f"{client.url}/readyz") as response:
        return response.status, (await response.json()).get("detail")


async def until_a_lock_is_waited_for(fleet: Processes) -> None:
    waited = (
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE NOT l.granted AND d.datname = current_database())"
    )
    connection = await fleet.connect()
    async with asyncio.timeout(8):
        while not await connection.fetchval(waited):  # noqa: ASYNC110 - of locks nobody tells us
            await asyncio.sleep(0.01)
    await connection.close()


async def test_a_migration_waits_behind_a_long_transaction_without_holding_up_the_fleet(
    fleet: Processes, simulator: Simulator, database_url: str, tmp_path: Path
) -> None:
    upgrade = NextVersion(tmp_path / "next", database_url)
    serve = await fleet.start("serve")
    async with Client.to(url_of(serve)) as client, asyncio.TaskGroup() as tasks:
        connection = await fleet.connect()
        long = connection.transaction()
        await long.start()
        await connection.execute("SELECT count(*) FROM jobs")
        migrating = tasks.create_task(upgrade.migrate(WIDER))
        await until_a_lock_is_waited_for(fleet)  # and others queue behind that
        began = time.monotonic()
        job = await client.job((await client.submit())["jobId"], wait=20)
        took = time.monotonic() - began
        assert job["status"] == "completed"
        assert took < 6, "it lets go every two seconds"
        assert not migrating.done()
        await long.rollback()
        await connection.close()
    assert migrating.exception() is None

"""Processes are killed at every turn of a job: nothing acknowledged is lost, and readers see every word once."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from clients import BROKEN, Client, Reader, follow
from processes import Process, Processes, until

from tramontane.simulator import Behaviour, Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

SLOW = Behaviour(tokens=150, tokens_per_second=150)
CUT_WAITING = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
FOR_EVER = Behaviour(tokens=3000, tokens_per_second=100)


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    """Processes on one Postgres that outlives them."""
    async with Processes(simulator, short_dir / "data", database_url=database_url) as processes:
        yield processes


@pytest_asyncio.fixture
async def box(simulator: Simulator, short_dir: Path) -> AsyncIterator[Processes]:
    """Processes with an embedded Postgres of their own."""
    async with Processes(simulator, short_dir / "data") as processes:
        yield processes


@pytest_asyncio.fixture
async def clients() -> AsyncIterator["Clients"]:
    async with AsyncExitStack() as stack:
        yield Clients(stack)


class Clients:
    """Clients of processes, kept until the test ends."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def of(self, process: Process) -> Client:
        assert process.url is not None
        return await self._stack.enter_async_context(Client.to(process.url))


async def write_ups(fleet: Processes) -> list[tuple[Any, ...]]:
    """Jobs as (state, attempt, failures, final events, dense), by the database's own account."""
    connection = await fleet.connect()
    try:
        rows = await connection.fetch(
            "SELECT j.state, j.attempt, j.failures,"
            " count(*) FILTER (WHERE e.type IN ('complete', 'error')) AS finals,"
            " coalesce(array_agg(e.seq ORDER BY e.seq) = array(SELECT generate_series(1, j.head)), false) AS dense"
            " FROM jobs j LEFT JOIN events e ON e.job_id = j.id GROUP BY j.tenant_id, j.id ORDER BY j.id"
        )
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


# Workers


async def test_a_killed_workers_job_is_taken_over_and_readers_see_one_attempt_event(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.script(FOR_EVER, SLOW)
    client = await clients.of(await fleet.start("api"))
    doomed = await fleet.start("worker")
    accepted = await client.submit()
    early, late = Reader(), Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: client, accepted["jobId"], early))
        await simulator.wait_for_chunks(1, 40)
        heir = await fleet.start("worker")
        await doomed.kill()
        began = time.monotonic()
        await simulator.wait_for_calls(2, timeout=15)
        took = time.monotonic() - began
    await follow(lambda: client, accepted["jobId"], late)
    job = await client.job(accepted["jobId"])

    assert heir.alive
    assert took < 4.0, "heartbeat 1 s, poll 0.2 s"
    for reader in (early, late):
        (attempt,) = (frame.data for frame in reader.frames if frame.event == "attempt")
        assert (attempt["attempt"], attempt["mode"], attempt["keep"] > 0) == (2, "continue", True)
        assert attempt["reason"] == "worker_lost"
        assert reader.text == job["result"]["content"]
    # Two readers may see the same text in other pieces; where it begins, turns and ends is the same.
    pieces = [[frame for frame in reader.frames if frame.event != "chunk"] for reader in (early, late)]
    assert pieces[0] == pieces[1]
    assert early.visits == 1
    assert (job["status"], job["attempt"], job["failures"]) == ("completed", 2, 1)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lost", "completed"]
    assert job["usage"] == job["result"]["usage"]
    assert job["usage"]["completion_tokens"] == simulator.ledger[1].completion_tokens


@pytest.mark.timeout(90)
async def test_with_the_default_heartbeat_a_take_over_comes_within_15_seconds(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.script(FOR_EVER)
    defaults = {"TRAMONTANE_HEARTBEAT": "", "TRAMONTANE_POLL": ""}
    client = await clients.of(await fleet.start("api", **defaults))
    doomed = await fleet.start("worker", **defaults)
    accepted = await client.submit()
    await simulator.wait_for_chunks(1, 10)
    await fleet.start("worker", **defaults)
    await doomed.kill()
    began = time.monotonic()
    await simulator.wait_for_calls(2, timeout=30)

    assert time.monotonic() - began < 15.0
    assert (await client.job(accepted["jobId"], wait=10))["status"] == "completed"


async def test_a_lone_worker_that_is_killed_finds_its_job_when_it_comes_back(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.script(FOR_EVER)
    client = await clients.of(await fleet.start("api"))
    worker = await fleet.start("worker")
    accepted = await client.submit()
    await simulator.wait_for_chunks(1, 10)
    await worker.kill()
    await fleet.start("worker")
    job = await client.job(accepted["jobId"], wait=20)

    assert (job["status"], job["attempt"]) == ("completed", 2)


async def test_a_job_that_kills_its_workers_fails_after_its_attempts(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    client = await clients.of(await fleet.start("api"))
    accepted = await client.submit()
    for _ in range(3):
        victim = await fleet.start("worker", DIE_AT="called")
        async with asyncio.timeout(20):
            await victim.running.wait()
    await fleet.start("worker")
    reader = await follow(lambda: client, accepted["jobId"], Reader())
    job = await client.job(accepted["jobId"])
    innocent = await client.job((await client.submit())["jobId"], wait=20)

    assert reader.final is not None
    assert (reader.final.event, reader.final.data["code"]) == ("error", "interrupted")
    assert reader.events == ["start", "attempt", "attempt", "error"]
    assert (job["status"], job["attempt"], job["failures"]) == ("failed", 3, 3)
    assert job["error"]["code"] == "interrupted"
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lost", "lost", "failed"]
    assert innocent["status"] == "completed"
    assert simulator.totals().calls == 1


async def test_a_worker_that_dies_right_after_an_ending_has_ended_the_job(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    client = await clients.of(await fleet.start("api"))
    victim = await fleet.start("worker", DIE_AT="ended")
    accepted = await client.submit()
    async with asyncio.timeout(20):
        await victim.running.wait()
    job = await client.job(accepted["jobId"])
    await fleet.start("worker")
    await client.job((await client.submit())["jobId"], wait=20)

    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert await client.job(accepted["jobId"]) == job
    assert simulator.totals().calls == 2


async def test_what_a_worker_writes_after_it_was_overtaken_changes_nothing(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.script(FOR_EVER)
    client = await clients.of(await fleet.start("api"))
    sleeper = await fleet.start("worker")
    accepted = await client.submit()
    await simulator.wait_for_chunks(1, 20)
    sleeper.signal(signal.SIGSTOP)
    await fleet.start("worker")
    job = await client.job(accepted["jobId"], wait=20)
    before = await client.read(accepted["jobId"])
    sleeper.signal(signal.SIGCONT)
    # Its text is refused, so it hangs up on Mistral; then it works on as if nothing had been.
    await simulator.wait_for_ends(1, "disconnected")
    after = [await client.job((await client.submit())["jobId"], wait=20) for _ in range(4)]

    assert (job["status"], job["attempt"], job["failures"]) == ("completed", 2, 1)
    assert await client.read(accepted["jobId"]) == before
    assert await client.job(accepted["jobId"]) == job
    assert sleeper.alive
    assert [one["attempt"] for one in after] == [1] * 4
    assert all(finals == 1 and dense for *_, finals, dense in await write_ups(fleet))


async def test_a_worker_that_is_told_to_stop_hands_over_and_that_is_no_failure(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.script(FOR_EVER)
    client = await clients.of(await fleet.start("api"))
    leaver = await fleet.start("worker")
    accepted = await client.submit(attempts=1)
    await simulator.wait_for_chunks(1, 20)
    await fleet.start("worker")
    began = time.monotonic()
    code = await leaver.stop()
    took = time.monotonic() - began
    reader = await follow(lambda: client, accepted["jobId"], Reader())
    job = await client.job(accepted["jobId"])

    assert code == 0
    assert took < 5.0, "its grace is 0.2 s"
    assert (job["status"], job["attempt"], job["failures"]) == ("completed", 2, 0)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["handover", "completed"]
    assert reader.text == job["result"]["content"]
    assert [frame.data["reason"] for frame in reader.frames if frame.event == "attempt"] == ["handover"]


async def test_a_worker_that_is_told_to_stop_finishes_what_its_grace_allows(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.behaviour = SLOW
    client = await clients.of(await fleet.start("api"))
    leaver = await fleet.start("worker", TRAMONTANE_GRACE=10)
    accepted = await client.submit()
    await simulator.wait_for_chunks(1, 20)
    code = await leaver.stop()
    job = await client.job(accepted["jobId"])

    assert code == 0
    assert (job["status"], job["attempt"]) == ("completed", 1)


async def test_a_lone_worker_that_had_to_let_go_of_all_its_jobs_takes_them_up_again(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    client = await clients.of(await fleet.start("api"))
    accepted = [await client.submit() for _ in range(2)]
    holder, cutter = await fleet.connect(), await fleet.connect()
    async with holder.transaction():
        # The starts wait for this table, and their connections are cut meanwhile.
        await holder.execute("LOCK TABLE job_attempts IN SHARE MODE")
        await fleet.start("worker", TRAMONTANE_CONCURRENCY=1)
        while not await cutter.fetchval(CUT_WAITING):  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.01)
    await holder.close()
    await cutter.close()
    jobs = [await client.job(one["jobId"], wait=10) for one in accepted]

    assert [job["status"] for job in jobs] == ["completed"] * 2
    assert simulator.totals().calls == 2


async def test_a_worker_whose_connection_is_cut_while_it_registers_works_all_the_same(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    client = await clients.of(await fleet.start("api"))
    holder, cutter = await fleet.connect(), await fleet.connect()
    async with holder.transaction():
        await holder.execute("LOCK TABLE workers IN SHARE MODE")
        worker = await fleet.start("worker")
        while not await cutter.fetchval(CUT_WAITING):  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.01)
    await holder.close()
    await cutter.close()
    job = await client.job((await client.submit())["jobId"], wait=10)

    assert worker.alive
    assert job["status"] == "completed"


# The server, and Postgres with it


async def serving_again(box: Processes, clients: Clients, simulator: Simulator, *, postgres: bool) -> None:
    """Kill `serve` in mid-answer, and its Postgres if asked; start it again; all is as if nothing had been."""
    simulator.behaviour = SLOW
    server = await box.start("serve")
    client = await clients.of(server)
    accepted = [await client.submit() for _ in range(8)]
    readers = {one["jobId"]: Reader() for one in accepted}
    async with asyncio.TaskGroup() as tasks:
        for job_id, reader in readers.items():
            tasks.create_task(follow(lambda: client, job_id, reader))
        await simulator.wait_for_chunks(3, 50)
        await until(lambda: any(reader.visits for reader in readers.values()))
        if postgres:
            box.kill_postgres()
        await server.kill()
        client = await clients.of(await box.start("serve"))
    jobs = [await client.job(one["jobId"]) for one in accepted]

    assert [job["status"] for job in jobs] == ["completed"] * 8
    assert max(job["attempt"] for job in jobs) == 2
    for job in jobs:
        reader = readers[job["jobId"]]
        assert reader.text == job["result"]["content"]
        assert reader.events.count("start") == 1
    assert max(reader.visits for reader in readers.values()) > 1
    assert all(finals == 1 and dense for *_, finals, dense in await write_ups(box))


async def test_a_server_killed_in_mid_answer_goes_on_when_it_is_started_again(
    box: Processes, clients: Clients, simulator: Simulator
) -> None:
    await serving_again(box, clients, simulator, postgres=False)


async def test_a_server_killed_with_its_postgres_goes_on_when_it_is_started_again(
    box: Processes, clients: Clients, simulator: Simulator
) -> None:
    await serving_again(box, clients, simulator, postgres=True)


async def test_every_acknowledged_job_outlives_a_kill_of_everything(
    box: Processes, clients: Clients, simulator: Simulator
) -> None:
    server = await box.start("serve", TRAMONTANE_CONCURRENCY=2)
    client = await clients.of(server)
    acknowledged: list[str] = []

    async def submit_until_it_dies() -> None:
        with suppress(*BROKEN):
            while True:
                acknowledged.append((await client.submit())["jobId"])

    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(submit_until_it_dies())
        await simulator.wait_for_calls(20)
        box.kill_postgres()
        await server.kill()
    client = await clients.of(await box.start("serve", TRAMONTANE_CONCURRENCY=50))
    jobs = [await client.job(job_id, wait=30) for job_id in acknowledged]

    assert len(jobs) >= 20
    assert {job["status"] for job in jobs} == {"completed"}


async def test_postgres_killed_under_a_running_server_loses_nothing(
    box: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.behaviour = SLOW
    server = await box.start("serve")
    client = await clients.of(server)
    accepted = await client.submit()
    reader = Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: client, accepted["jobId"], reader))
        await simulator.wait_for_chunks(1, 30)
        box.kill_postgres()
    job = await client.job(accepted["jobId"])
    later = await client.job((await client.submit())["jobId"], wait=20)

    assert server.alive
    assert job["status"] == "completed"
    assert reader.text == job["result"]["content"]
    assert later["status"] == "completed"


async def test_a_postgres_that_cuts_every_connection_loses_nothing(
    fleet: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.behaviour = SLOW
    server = await fleet.start("serve")
    client = await clients.of(server)
    accepted = [await client.submit() for _ in range(3)]
    readers = {one["jobId"]: Reader() for one in accepted}
    connection = await fleet.connect()
    async with asyncio.TaskGroup() as tasks:
        for job_id, reader in readers.items():
            tasks.create_task(follow(lambda: client, job_id, reader))
        for chunks in (20, 60, 100):
            await simulator.wait_for_chunks(1, chunks)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    await connection.close()
    jobs = [await client.job(one["jobId"]) for one in accepted]
    later = await client.job((await client.submit())["jobId"], wait=20)

    assert server.alive
    for job in jobs:
        assert (job["status"], readers[job["jobId"]].text) == ("completed", job["result"]["content"])
    assert later["status"] == "completed"


async def test_a_second_server_on_one_directory_shares_its_postgres_and_survives_the_first(
    box: Processes, clients: Clients, simulator: Simulator
) -> None:
    simulator.behaviour = SLOW
    first = await box.start("serve")
    second = await box.start("serve")
    postmaster = box.postmaster
    client, other = await clients.of(first), await clients.of(second)
    accepted = await client.submit()
    await simulator.wait_for_chunks(1, 10)
    seen_by_other = await other.job(accepted["jobId"])
    code = await first.stop()
    job = await other.job(accepted["jobId"], wait=20)
    still_there = box.postmaster
    last_code = await second.stop()

    assert first.url != second.url
    assert seen_by_other["status"] == "running"
    assert (code, last_code) == (0, 0)
    assert job["status"] == "completed"
    assert postmaster is not None
    assert still_there == postmaster
    assert box.postmaster is None, "the last one turns off the light"

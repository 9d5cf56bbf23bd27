"""Several processes share one database: its queue, its rate, its keys and its streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from clients import Client, Reader, follow
from processes import Processes

from tramontane.simulator import Behaviour, Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    async with Processes(simulator, short_dir / "data", database_url=database_url) as processes:
        yield processes


def url_of(process: object) -> str:
    url = getattr(process, "url", None)
    assert isinstance(url, str)
    return url


async def test_two_workers_share_one_queue_and_each_job_runs_once(fleet: Processes, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(tokens=10, tokens_per_second=200)
    async with Client.to(url_of(await fleet.start("api"))) as client:
        for _ in range(2):
            await fleet.start("worker")
        async with asyncio.TaskGroup() as tasks:
            submits = [tasks.create_task(client.submit()) for _ in range(60)]
        jobs = [await client.job(submit.result()["jobId"], wait=30) for submit in submits]
    connection = await fleet.connect()
    shares = await connection.fetch("SELECT count(*) AS jobs FROM job_attempts GROUP BY worker_id")
    await connection.close()

    assert {(job["status"], job["attempt"]) for job in jobs} == {("completed", 1)}
    assert simulator.totals().calls == 60
    assert len(shares) == 2
    assert min(share["jobs"] for share in shares) >= 10


async def test_the_fleet_starts_no_more_than_its_rate_in_any_second(fleet: Processes, simulator: Simulator) -> None:
    rate = {"TRAMONTANE_RATE_LIMIT": "10", "TRAMONTANE_CONCURRENCY": "50"}
    async with Client.to(url_of(await fleet.start("serve", **rate))) as client:
        await fleet.start("worker", **rate)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(client.submit())
        calls = await simulator.wait_for_calls(50, timeout=20)
    connection = await fleet.connect()
    rows = await connection.fetch("SELECT started_at FROM job_attempts ORDER BY started_at")
    await connection.close()

    starts = [(row["started_at"] - rows[0]["started_at"]).total_seconds() for row in rows]
    assert max(sum(start <= other < start + 1 for other in starts) for start in starts) <= 10, starts
    assert starts[-1] < 6.0, "and no fewer either"
    # From the start to Mistral is a way of its own; the first ten also open connections and wake what has slept.
    seen = [call.started for call in calls][10:]
    assert max(sum(call <= other < call + 0.8 for other in seen) for call in seen) <= 10, seen


async def test_a_cancel_reaches_a_job_that_runs_in_another_process_within_100_ms(
    fleet: Processes, simulator: Simulator
) -> None:
    # Mistral has fallen silent: there is no next write that would be refused, so word must come.
    simulator.behaviour = Behaviour(silence_after=5)
    took = []
    async with Client.to(url_of(await fleet.start("api"))) as client:
        worker = await fleet.start("worker")
        for number in range(1, 6):
            accepted = await client.submit()
            await simulator.wait_for_chunks(number, 5)
            asked = time.monotonic()
            job = await client.cancel(accepted["jobId"])
            (*_, call) = await simulator.wait_for_ends(number, "disconnected")
            assert call.ended is not None
            took.append(call.ended - asked)
            assert job["status"] == "cancelled"
            reader = await follow(lambda: client, accepted["jobId"], Reader())
            assert reader.final is not None
            assert reader.final.data["code"] == "cancelled"

    assert worker.alive
    # The median, since other programs have the processor too.
    assert sorted(took)[2] < 0.1, took


async def test_one_key_is_one_job_whichever_process_is_asked(fleet: Processes, simulator: Simulator) -> None:
    urls = [url_of(await fleet.start("api")), url_of(await fleet.start("serve"))]
    async with Client.to(urls[0]) as one, Client.to(urls[1]) as other, asyncio.TaskGroup() as tasks:
        submits = [tasks.create_task(client.submit(key=f"key-{n % 5}")) for n in range(25) for client in (one, other)]
        ids = {(await submit)["jobId"] for submit in submits}
        jobs = [await one.job(job_id, wait=20) for job_id in ids]

    assert len(jobs) == 5
    assert {job["status"] for job in jobs} == {"completed"}
    assert simulator.totals().calls == 5


async def test_readers_follow_on_one_process_what_another_writes_and_change_over_in_mid_stream(
    fleet: Processes, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens=200, tokens_per_second=200)
    first, second = await fleet.start("api"), await fleet.start("api")
    await fleet.start("worker")
    reader = Reader()
    async with Client.to(url_of(first)) as one, Client.to(url_of(second)) as other:
        clients = [one]
        accepted = await one.submit()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(lambda: clients[-1], accepted["jobId"], reader))
            await simulator.wait_for_chunks(1, 60)
            clients.append(other)
            await first.kill()
        job = await other.job(accepted["jobId"])

    assert reader.text == job["result"]["content"]
    assert reader.visits == 2
    assert (job["status"], job["attempt"]) == ("completed", 1)

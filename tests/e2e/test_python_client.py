"""The Python client against real processes: connections that are cut, servers that are killed, users who press Ctrl-C.

TRAMONTANE_CHAOS_CUTS says how many cuts.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cutting import Cutter
from processes import Processes

from tramontane import StreamAttempt, StreamComplete, Tramontane, TramontaneSync
from tramontane.simulator import Behaviour, Simulator

CUTS = int(os.environ.get("TRAMONTANE_CHAOS_CUTS", "500"))  # noqa: TID251 - a setting of the tests
READERS = 16

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60 + CUTS // 20)]


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    environment = {"TRAMONTANE_CONCURRENCY": READERS, "TRAMONTANE_FLUSH": "0.002"}
    async with Processes(simulator, short_dir / "data", database_url=database_url, **environment) as processes:
        yield processes


async def served(processes: Processes) -> str:
    url = (await processes.start("serve")).url
    assert url
    return url


async def test_cuts_anywhere_lose_and_repeat_nothing_and_no_job_is_asked_for_twice(
    fleet: Processes, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=400)
    asked = 0

    async def use(cutter: Cutter, reader: int) -> None:
        nonlocal asked
        async with Tramontane(cutter.url) as t:
            while cutter.cuts < CUTS:
                asked += 1
                text = f"For the {asked}. time reader {reader} hears the wind: " + "tramontane 🌬️, mistral 𝄞; " * 20
                job = await t.submit(f"Say: {text}")
                events = [event async for event in job.events()]
                assert isinstance(events[-1], StreamComplete)
                assert job.text == text
                assert (await job).content == text

    async with Cutter(await served(fleet), most=3000) as cutter:
        async with asyncio.TaskGroup() as tasks:
            for reader in range(READERS):
                tasks.create_task(use(cutter, reader))
        print(cutter.cuts, asked)
        assert cutter.cuts >= CUTS
        assert simulator.totals().calls == asked


async def test_readers_outlive_servers_that_are_killed_and_deployed(fleet: Processes, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=40)
    texts = {f"Reader {number} hears the wind: " + "tramontane, mistral; " * 25 for number in range(4)}
    began, heard = asyncio.Event(), set[str]()
    attempts = 0

    async def read(t: Tramontane, text: str) -> str:
        nonlocal attempts
        job = await t.submit(f"Say: {text}", attempts=20)
        async for event in job.events():
            attempts += isinstance(event, StreamAttempt)
            if len(job.text) > 40:
                heard.add(text)
            if heard == texts:
                began.set()
        return job.text

    server = await fleet.start("serve")
    assert server.url
    async with Cutter(server.url, most=None) as cutter, Tramontane(cutter.url) as t, asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(read(t, text)) for text in texts]
        for end in (server.kill, server.stop):
            await began.wait()
            began.clear()
            await end()
            server = await fleet.start("serve")
            assert server.url
            cutter.target = server.url
    assert {each.result() for each in reading} == texts
    assert attempts >= len(texts)


async def run(script: str, *words: str, **environment: str) -> "asyncio.subprocess.Process":
    """A program of a user."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *words),
        env=dict(os.environ) | environment,  # noqa: TID251 - the child's
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


WAITING = """
import sys
from tramontane import TramontaneSync
with TramontaneSync(*sys.argv[1:]) as t:
    job = t.submit("Hello!")
    for event in job.events():
        print(event.type, flush=True)
"""


@pytest.mark.parametrize("embedded", [False, True])
async def test_ctrl_c_ends_a_blocking_program_cleanly(
    fleet: Processes, simulator: Simulator, database_url: str, embedded: bool
) -> None:
    simulator.behaviour = Behaviour(silence_after=3)
    environment = {
        "DATABASE_URL": database_url,
        "MISTRAL_SERVER_URL": simulator.url,
        "MISTRAL_API_KEY": "a-key",
        "TRAMONTANE_GRACE": "0.1",
    }
    program = await run(WAITING, *([] if embedded else [await served(fleet)]), **environment)
    assert program.stdout
    assert [await program.stdout.readline() for _ in range(2)] == [b"start\n", b"chunk\n"]
    program.send_signal(signal.SIGINT)
    async with asyncio.timeout(4.5):
        _, said = await program.communicate()

    assert program.returncode == -signal.SIGINT
    assert said.decode().rstrip().endswith("KeyboardInterrupt")
    assert said.count(b"Traceback") == 1
    connection = await fleet.connect()
    state = await connection.fetchval("SELECT state FROM jobs")
    await connection.close()
    assert state == ("queued" if embedded else "running"), "handed back, or none of the client's business"


IN_A_CELL = """
import asyncio, sys
from tramontane import TramontaneSync
async def cell():
    with TramontaneSync(sys.argv[1]) as t:
        print("".join(t.stream("Say: tramontane")))
asyncio.run(cell())
"""


async def test_a_blocking_client_works_where_a_loop_runs_already(fleet: Processes) -> None:
    program = await run(IN_A_CELL, await served(fleet))
    assert await program.communicate() == (b"tramontane\n", b"")


def test_an_engine_with_its_own_postgres_runs_beside_a_plain_program(short_dir: Path) -> None:
    import threading

    ready, over = threading.Event(), threading.Event()
    url = ""

    async def mistral() -> None:
        nonlocal url
        async with Simulator(port=0) as simulator:
            url = simulator.url
            ready.set()
            await asyncio.to_thread(over.wait)

    beside = threading.Thread(target=lambda: asyncio.run(mistral()))
    beside.start()
    ready.wait()
    try:
        with TramontaneSync(data_dir=str(short_dir / "data"), mistral_server_url=url, mistral_api_key="a-key") as t:
            answers = t.map(["Say: one", "Say: two"])
            assert [str(answer) for answer in answers] == ["one", "two"]
    finally:
        over.set()
        beside.join()

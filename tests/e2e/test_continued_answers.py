"""Workers are killed, frozen and sent home in mid-sentence: the next one takes the sentence up where it stands."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from clients import Client, Reader, follow
from processes import Process, Processes

from tramontane.simulator import Behaviour, Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

#: Paced, and without an echo: every token of the ledger is one of the answer.
STEADY = Behaviour(tokens=150, tokens_per_second=100, echo="none")
#: It falls silent in mid-sentence, so that whoever hears it is still there to be killed.
BROKEN_OFF = STEADY.but("silence_after=41")


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    """Processes on one Postgres that outlives them."""
    async with Processes(simulator, short_dir / "data", database_url=database_url) as processes:
        yield processes


@pytest_asyncio.fixture
async def client(fleet: Processes) -> AsyncIterator[Client]:
    """Of an API without a worker."""
    async with AsyncExitStack() as stack:
        api = await fleet.start("api")
        assert api.url is not None
        yield await stack.enter_async_context(Client.to(api.url))


async def in_one_go(client: Client, simulator: Simulator) -> dict[str, Any]:
    """The same question, answered without a fault: what every reader must have in the end."""
    paced, simulator.behaviour = simulator.behaviour, STEADY.but("tokens_per_second=none")
    job = await client.job((await client.submit())["jobId"], wait=20)
    simulator.behaviour = paced
    result: dict[str, Any] = job["result"]
    return result


def prove_continued(reader: Reader, simulator: Simulator, whole: str) -> None:
    """The reader has the whole text; each later call, of those that came first, was given what was there of it."""
    assert reader.text == whole
    said, calls = "", iter(simulator.ledger[1:])
    for frame in reader.frames:
        if frame.event == "attempt":
            assert (frame.data["mode"], frame.data["keep"]) == ("continue", len(said.encode("utf-16-le")) // 2)
            assert next(calls).request["messages"][-1]["content"] == said.rstrip()
        said += frame.data.get("content", "")


async def test_an_answer_that_outlives_two_workers_is_one_answer_and_no_token_of_it_is_asked_for_twice(
    fleet: Processes, client: Client, simulator: Simulator
) -> None:
    simulator.behaviour = STEADY
    simulator.script(BROKEN_OFF, BROKEN_OFF)
    workers = [await fleet.start("worker")]
    accepted = await client.submit()
    reader = Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: client, accepted["jobId"], reader))
        for number in (1, 2):
            await simulator.wait_for_chunks(number, 41, timeout=15)
            workers.append(await fleet.start("worker"))
            await workers[number - 1].kill()
    job = await client.job(accepted["jobId"])
    calls = list(simulator.ledger)
    whole = await in_one_go(client, simulator)

    prove_continued(reader, simulator, whole["content"])
    assert (job["status"], job["attempt"], job["failures"]) == ("completed", 3, 2)
    assert (job["result"]["content"], job["result"]["finishReason"]) == (whole["content"], "stop")
    assert job["result"]["unreportedAttempts"] == 2
    assert [call.completion_tokens for call in calls] == [40, 40, 70]
    assert job["usage"]["completion_tokens"] == calls[2].completion_tokens
    assert reader.visits == 1


async def test_a_worker_that_wakes_up_while_its_answer_is_continued_can_write_nothing(
    fleet: Processes, client: Client, simulator: Simulator
) -> None:
    simulator.behaviour = STEADY
    sleeper = await fleet.start("worker")
    accepted = await client.submit()
    reader = Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: client, accepted["jobId"], reader))
        await simulator.wait_for_chunks(1, 30)
        sleeper.signal(signal.SIGSTOP)
        await fleet.start("worker")
        await simulator.wait_for_chunks(2, 20, timeout=15)
        # In the middle of the other's sentence, with all that Mistral has sent meanwhile in its hands.
        sleeper.signal(signal.SIGCONT)
    job = await client.job(accepted["jobId"])
    whole = await in_one_go(client, simulator)

    prove_continued(reader, simulator, whole["content"])
    assert {frame.data["attempt"] for frame in reader.frames[reader.events.index("attempt") :]} == {2}
    assert (job["status"], job["attempt"], job["failures"]) == ("completed", 2, 1)
    assert sleeper.alive


async def test_a_worker_that_is_sent_home_leaves_all_that_it_has_heard(
    fleet: Processes, client: Client, simulator: Simulator
) -> None:
    simulator.script(BROKEN_OFF, STEADY)
    leaver = await fleet.start("worker")
    accepted = await client.submit(attempts=1)
    reader = Reader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(lambda: client, accepted["jobId"], reader))
        await simulator.wait_for_chunks(1, 41)
        await fleet.start("worker")
        assert await leaver.stop() == 0
    job = await client.job(accepted["jobId"])
    calls = list(simulator.ledger)
    whole = await in_one_go(client, simulator)

    prove_continued(reader, simulator, whole["content"])
    assert (job["status"], job["failures"]) == ("completed", 0)
    assert [frame.data["reason"] for frame in reader.frames if frame.event == "attempt"] == ["handover"]
    assert [call.completion_tokens for call in calls] == [40, 110]


async def test_a_job_that_is_never_resumed_is_said_again_from_its_beginning(
    fleet: Processes, client: Client, simulator: Simulator
) -> None:
    simulator.script(BROKEN_OFF, STEADY)
    doomed: Process = await fleet.start("worker")
    accepted = await client.submit(resume="never")
    await simulator.wait_for_chunks(1, 41)
    await fleet.start("worker")
    await doomed.kill()
    reader = await follow(lambda: client, accepted["jobId"], Reader())

    [attempt] = [frame.data for frame in reader.frames if frame.event == "attempt"]
    assert (attempt["mode"], attempt["keep"], attempt["reason"]) == ("restart", 0, "worker_lost")
    assert simulator.ledger[1].completion_tokens == 150

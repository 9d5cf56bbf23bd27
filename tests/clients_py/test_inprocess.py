"""An engine in this process: its application called as a function, and what becomes of its jobs when it is left."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from holding import engine

from tramontane import Tramontane
from tramontane.client import InProcess
from tramontane.client.transport import Lost, Request
from tramontane.simulator import Behaviour, Simulator
from tramontane.tasks import task_group

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ASK = Request("GET", "/api/jobs?status=queued", {"X-Name": "a value"})
HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(block: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": block, "more_body": more}


async def test_an_application_gets_a_request_and_its_answer_comes_back() -> None:
    async def application(scope: Any, receive: Receive, send: Send) -> None:
        asked = await receive()
        said = (scope["method"], scope["path"], scope["query_string"], dict(scope["headers"])[b"x-name"], asked["body"])
        await send(HEAD)
        await send(body(repr(said).encode()))
        await send(body(b"", more=False))

    async with task_group() as tasks, InProcess(application, tasks).exchange(ASK) as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
        assert await answer.block() == b"('GET', '/api/jobs', b'status=queued', b'a value', b'')"
        assert [await answer.block() for _ in range(2)] == [b"", b""]


async def test_an_application_waits_for_its_reader_and_learns_that_it_has_left() -> None:
    sent = 0
    stuck, left = asyncio.Event(), asyncio.Event()

    async def application(_: Any, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send(HEAD)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    await send(body(b"more"))
                    sent += 1
        stuck.set()
        assert (await receive())["type"] == "http.disconnect"
        await send(body(b"to nobody"))
        left.set()

    async with task_group() as tasks:
        async with InProcess(application, tasks).exchange(ASK) as answer:
            assert await answer.block() == b"more"
            await stuck.wait()
            assert sent <= 2
        await left.wait()


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_breaks_is_a_lost_connection(begun: bool) -> None:
    async def application(_: Any, __: Receive, send: Send) -> None:
        if begun:
            await send(HEAD)
        raise ValueError

    async with task_group() as tasks:
        with pytest.raises(Lost, match="broke off"):
            async with InProcess(application, tasks).exchange(ASK) as answer:
                await answer.block()


async def test_an_error_in_the_block_comes_out_and_running_jobs_are_handed_back(
    simulator: Simulator, database_url: str
) -> None:
    simulator.behaviour = Behaviour(silence_after=3)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the whole block is what raises
        async with Tramontane(**engine(simulator, database_url)) as t:
            job = await t.submit("Hello!")
            await simulator.wait_for_chunks(1, 3)
            reading = job.events()  # left open: the end of the block ends it, too
            await anext(reading)
            raise ZeroDivisionError
    connection = await asyncpg.connect(database_url)
    row = await connection.fetchrow("SELECT state, failures FROM tramontane.jobs")
    await connection.close()
    await reading.aclose()

    assert row is not None
    assert tuple(row) == ("queued", 0)


async def test_jobs_that_were_handed_back_go_on_with_the_next_engine(simulator: Simulator, database_url: str) -> None:
    simulator.script(Behaviour(silence_after=3))
    async with Tramontane(**engine(simulator, database_url)) as t:
        job = await t.submit("Say: tramontane, mistral")
        await simulator.wait_for_chunks(1, 3)
    async with Tramontane(**engine(simulator, database_url)) as t:
        assert str(await t.job(job.id)) == "tramontane, mistral"

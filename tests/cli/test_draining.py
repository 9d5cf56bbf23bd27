"""A server that is told to stop while many read: every stream ends as HTTP has it, and goes on at the next server."""

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clients import Client, Frames, Reader, follow
from terminal import Running, Terminal

from tramontane.simulator import Behaviour, Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

JOBS, READERS_OF_EACH = 5, 12
TEXT = "Reader of job {}, the wind says: " + "tramontane 🌬️, mistral; " * 25


async def test_a_stopping_server_ends_its_streams_within_a_second_and_they_resume_at_the_next(
    short_dir: Path, database_url: str, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=40)
    terminal = Terminal(
        short_dir / "data",
        DATABASE_URL=database_url,
        MISTRAL_SERVER_URL=simulator.url,
        MISTRAL_API_KEY="key",
        TRAMONTANE_HEARTBEAT="1s",
        TRAMONTANE_POLL="0.2s",
        TRAMONTANE_GRACE="0.2s",
        TRAMONTANE_RATE_LIMIT="0",
    )
    readers: list[tuple[str, Reader]] = []
    with terminal.serve() as server:
        async with Client.to(server.url) as client:
            texts: dict[str, str] = {}
            for number in range(JOBS):
                text = TEXT.format(number)
                texts[(await client.submit(f"Say: {text}"))["jobId"]] = text
            readers = [(job_id, Reader()) for job_id in texts for _ in range(READERS_OF_EACH)]
            asked: list[int] = []
            async with asyncio.TaskGroup() as tasks:
                reading = [tasks.create_task(read_to_the_end(client, *each)) for each in readers]
                await simulator.wait_for_chunks(JOBS, 20)
                told_at = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                tasks.create_task(keep_asking(client, next(iter(texts)), asked, reading))
            ended = max(task.result() for task in reading) - told_at
        stopped = await asyncio.to_thread(stop, server)
    with terminal.serve() as second:
        async with Client.to(second.url) as client, asyncio.TaskGroup() as tasks:
            for job_id, reader in readers:
                assert reader.final is None, "the server stopped in mid-answer"
                tasks.create_task(follow(lambda: client, job_id, reader))

    assert stopped == 0
    assert ended < 1.0
    assert set(asked) <= {200}, "whoever comes late is sent on like the others, or finds nobody"
    for job_id, reader in readers:
        assert reader.text == texts[job_id]
        assert reader.events.count("start") == 1
        assert reader.final is not None


async def read_to_the_end(client: Client, job_id: str, reader: Reader) -> float:
    """One connection; when its body ended. Raises if it was cut, or ended in the middle of a frame."""
    frames = Frames()
    async with client.events(job_id) as response:
        assert response.status == 200
        async for block in response.content.iter_any():
            for frame in frames.feed(block):
                reader.take(frame)
    assert frames.unfinished == b""
    assert len(frames.retries) == 2, "it says when to come back"
    return time.monotonic()


async def keep_asking(client: Client, job_id: str, asked: list[int], reading: list["asyncio.Task[Any]"]) -> None:
    """Ask for one more stream, and another, as long as those before are not over."""
    while not all(task.done() for task in reading):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with client.events(job_id) as response:
                asked.append(response.status)
                await response.read()
        await asyncio.sleep(0.01)


def stop(server: Running) -> int:
    return server.process.join(20)

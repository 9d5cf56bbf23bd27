"""Processes are killed at random, Postgres among them, while people submit and read. Nothing may be lost or doubled.

TRAMONTANE_CHAOS_KILLS says how many kills (20), TRAMONTANE_CHAOS_SEED repeats the choices of an earlier run.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clients import BROKEN, Client, Reader, follow
from processes import Process, Processes

from tramontane.simulator import Behaviour, Simulator

Request = Callable[[Client], Awaitable[dict[str, Any]]]

KILLS = int(os.environ.get("TRAMONTANE_CHAOS_KILLS", "20"))  # noqa: TID251 - a setting of the tests
SEED = int(os.environ.get("TRAMONTANE_CHAOS_SEED", random.randrange(2**32)))  # noqa: TID251
USERS = 6
ROLES = ["api", "worker", "worker"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120 + 6 * KILLS)]


class Town:
    """The processes, the one that kills them, and those who use them meanwhile."""

    def __init__(self, processes: Processes, session: aiohttp.ClientSession, simulator: Simulator) -> None:
        self.readers: dict[str, Reader] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        #: What each job was asked to say: no two the same, so a call at the simulator tells whose it is.
        self.asked: dict[str, str] = {}
        self.over = False
        self._processes = processes
        self._session = session
        self._simulator = simulator
        self._chance = random.Random(SEED)
        self._living: list[Process] = []

    async def open(self) -> None:
        self._living = [await self._processes.start(role) for role in ROLES]

    def client(self) -> Client:
        url = self._living[0].url
        assert url is not None
        return Client(self._session, url)

    async def kill(self, times: int) -> Counter[str]:
        """Kill something, have it started again if nobody else does, let a few calls go by, and so on."""
        killed = Counter[str]()
        for _ in range(times):
            victim = self._chance.choice([*range(len(ROLES)), "postgres"])
            await self._progress(self._chance.randrange(6))
            if isinstance(victim, int):
                await self._living[victim].kill()
                self._living[victim] = await self._processes.start(ROLES[victim])
                killed[ROLES[victim]] += 1
            else:
                self._processes.kill_postgres()
                killed[victim] += 1
        self.over = True
        return killed

    async def use(self, user: int) -> None:
        """Submit a job, read its stream to the end, and again."""
        number = 0
        while not self.over:
            number += 1
            text = f"User {user} asks for the {number}. time, and the wind answers: " + "mistral 🌬️, " * 25
            accepted = await self._insist(_submission(text, f"{user}/{number}"))
            job_id = accepted["jobId"]
            self.asked[job_id] = text
            reader = self.readers[job_id] = Reader()
            await follow(self.client, job_id, reader)
            self.jobs[job_id] = await self._insist(partial(Client.job, job_id=job_id))

    async def _insist(self, request: Request) -> dict[str, Any]:
        """Ask until there is an answer."""
        while True:
            with suppress(*BROKEN):
                return await request(self.client())
            await asyncio.sleep(0.1)

    async def _progress(self, calls: int) -> None:
        await self._simulator.wait_for_calls(self._simulator.totals().calls + calls, timeout=30)


def _submission(text: str, key: str) -> Request:
    # Under a key, so that whoever got no answer may ask again.
    return partial(Client.submit, content=f"Say: {text}", key=key, attempts=100)


async def test_kills_at_random_lose_nothing_and_double_nothing(simulator: Simulator, short_dir: Path) -> None:
    print(f"TRAMONTANE_CHAOS_SEED={SEED}")
    simulator.behaviour = Behaviour(tokens_per_second=100)
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=20)
    async with (
        Processes(simulator, short_dir / "data") as processes,
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        town = Town(processes, session, simulator)
        await town.open()
        async with asyncio.TaskGroup() as tasks:
            for user in range(USERS):
                tasks.create_task(town.use(user))
            killed = await town.kill(KILLS)
        connection = await processes.connect()
        rows = await connection.fetch(
            "SELECT j.state, j.attempt, array_agg(e.seq ORDER BY e.seq) AS seqs, j.head,"
            " count(*) FILTER (WHERE e.type IN ('complete', 'error')) AS finals"
            " FROM jobs j JOIN events e ON e.job_id = j.id GROUP BY j.tenant_id, j.id"
        )
        await connection.close()

    calls = Counter(str(call.request["messages"][0]["content"]).removeprefix("Say: ") for call in simulator.ledger)
    print(f"{dict(killed)}, {len(town.jobs)} jobs, {sum(calls.values())} calls")
    assert len(town.jobs) == len(town.asked) == len(rows) >= USERS
    for job_id, job in town.jobs.items():
        text = town.asked[job_id]
        assert job["status"] == "completed"
        assert job["result"]["content"] == town.readers[job_id].text == text
        assert calls[text] <= job["attempt"], "nothing is paid for more often than it was tried"
    for row in rows:
        assert row["state"] == "completed"
        assert row["finals"] == 1
        assert row["seqs"] == list(range(1, row["head"] + 1))

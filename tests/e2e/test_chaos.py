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
import msgspec
import pytest
from clients import BROKEN, Client, Reader, follow
from processes import Process, Processes

from tramontane.simulator import Behaviour, Call, Simulator
from tramontane.simulator.prose import tokens_of

Request = Callable[[Client], Awaitable[dict[str, Any]]]

KILLS = int(os.environ.get("TRAMONTANE_CHAOS_KILLS", "20"))  # noqa: TID251 - a setting of the tests
SEED = int(os.environ.get("TRAMONTANE_CHAOS_SEED", random.randrange(2**32)))  # noqa: TID251
USERS = 6
#: Of each job: so many streams are open while things are killed, six times as many in all.
READERS = 6
#: UTF-16 units: less text than this is asked for again rather than continued.
LEAST_TO_CONTINUE = 32
ROLES = ["api", "worker", "worker"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120 + 6 * KILLS)]


class Town:
    """The processes, the one that kills them, and those who use them meanwhile."""

    def __init__(self, processes: Processes, session: aiohttp.ClientSession, simulator: Simulator) -> None:
        self.readers: dict[str, list[Reader]] = {}
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
        """Submit a job, have it read to the end by several, and again."""
        number = 0
        while not self.over:
            number += 1
            text = f"User {user} asks for the {number}. time, and the wind answers: " + "mistral 🌬️, " * 25
            accepted = await self._insist(_submission(text, f"{user}/{number}"))
            job_id = accepted["jobId"]
            self.asked[job_id] = text
            readers = self.readers[job_id] = [Reader() for _ in range(READERS)]
            async with asyncio.TaskGroup() as tasks:
                for reader in readers:
                    tasks.create_task(follow(self.client, job_id, reader))
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
    # Without an echo each token of the ledger is one of the answer.
    simulator.behaviour = Behaviour(tokens_per_second=100, echo="none")
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
            " count(*) FILTER (WHERE e.type IN ('complete', 'error')) AS finals,"
            " array_agg(e.type ORDER BY e.seq) AS types, array_agg(e.body::text ORDER BY e.seq) AS bodies"
            " FROM jobs j JOIN events e ON e.job_id = j.id GROUP BY j.tenant_id, j.id"
        )
        await connection.close()

    calls: dict[str, list[Call]] = {text: [] for text in town.asked.values()}
    for call in simulator.ledger:
        calls[str(call.request["messages"][0]["content"]).removeprefix("Say: ")].append(call)
    billed = sum(call.completion_tokens for call in simulator.ledger)
    owed = sum(len(tokens_of(text)) for text in calls)
    visits = sum(reader.visits for readers in town.readers.values() for reader in readers)
    print(f"{dict(killed)}, {len(town.jobs)} jobs, {READERS * len(town.jobs)} readers in {visits} visits")
    print(f"{simulator.totals().calls} calls, {billed} tokens billed for answers of {owed}")
    assert len(town.jobs) == len(town.asked) == len(rows) >= USERS
    for job_id, job in town.jobs.items():
        text = town.asked[job_id]
        assert job["status"] == "completed"
        assert job["result"]["content"] == text
        # Each has checked offsets, length and SHA-256 as it read, and that its frames tile the log.
        assert [reader.text for reader in town.readers[job_id]] == [text] * READERS
        assert len(calls[text]) <= job["attempt"], "nothing is paid for more often than it was tried"
    for row in rows:
        assert row["state"] == "completed"
        assert row["finals"] == 1
        assert row["seqs"] == list(range(1, row["head"] + 1))
        kept, text = kept_at_attempts(list(zip(row["types"], row["bodies"], strict=True)))
        prove_nothing_kept_was_paid_for_twice(calls[text], kept, text)


def kept_at_attempts(events: list[tuple[str, str]]) -> tuple[list[str], str]:
    """From a job's log: the text that each attempt found there and had to go on from, and the text at the end."""
    kept, said = [""], ""
    for kind, body in events:
        fields = msgspec.json.decode(body)
        if kind == "attempt":
            if _units(said) < LEAST_TO_CONTINUE:
                assert (fields["mode"], fields["keep"]) == ("restart", 0)
                said = ""
            else:
                assert (fields["mode"], fields["keep"]) == ("continue", _units(said))
            kept.append(said)
        elif kind == "chunk":
            said += fields["content"]
    return kept, said


def prove_nothing_kept_was_paid_for_twice(calls: list[Call], kept: list[str], text: str) -> None:
    """Each call was made by an attempt, in their order, was given what was kept then, and was billed for the rest."""
    attempts = iter(kept)
    for call in calls:
        last = call.request["messages"][-1]
        given = str(last["content"]) if last.get("prefix") else ""
        # An attempt that was killed before it called has no call of its own.
        assert any(given == found.rstrip() for found in attempts), f"{given!r} is not what was kept: {kept}"
        rest = len(tokens_of(text)) - len(tokens_of(given))
        # Cut off at a space, a token may be two.
        assert call.completion_tokens <= rest + 1, f"{call.completion_tokens} tokens, and {rest} were missing"


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2

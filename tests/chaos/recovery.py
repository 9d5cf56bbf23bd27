"""How soon somebody else goes on where a process was killed, at the settings that a fleet has by default."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from clients import Client

from chaos.checks import Finding
from chaos.run import new_tenant
from chaos.town import Town, open_town
from tramontane.settings import Settings

T = TypeVar("T")

_JOBS = 12
#: What a fleet promises, in seconds.
AGAIN_WITHIN, LED_WITHIN = 15.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Seconds from `kill -9`: until each job of the worker ran again, until another one led."""

    again: list[float]
    led: list[float]

    def findings(self) -> list[Finding]:
        """Two lines of the report."""
        return [
            _within("a killed worker's jobs run again (s)", self.again, AGAIN_WITHIN),
            _within("a killed leader is replaced (s)", self.led, LED_WITHIN),
        ]


def _within(claim: str, took: list[float], most: float) -> Finding:
    counted = f"{len(took)}: p50 {sorted(took)[len(took) // 2]:.1f}, max {max(took):.1f}" if took else "none"
    wrong = [f"{seconds:.1f} s" for seconds in took if seconds > most] if took else ["nothing was measured"]
    return Finding(claim, counted, f"≤ {most:g}", tuple(wrong))


async def measure(kills: int) -> Recovery:
    """Kill the leader, which has jobs as well, as often as that; each time a new worker takes its place."""
    again: list[float] = []
    led: list[float] = []
    async with open_town(
        servers=1,
        workers=3,
        heartbeat=Settings.heartbeat,
        tokens_per_second=5,
        TRAMONTANE_POLL=Settings.poll,
        TRAMONTANE_LOG_LEVEL="info",
        TRAMONTANE_RATE_LIMIT=0,
    ) as town:
        tenant = await new_tenant(town, "acme")
        headers = {"authorization": f"Bearer {tenant.key}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            client = Client(session, town.url("api-1"))
            for round_ in range(kills):
                ids = [await _submit(client, f"{round_}.{number}") for number in range(_JOBS)]
                leader = await _until(lambda: _leader(town), within=30)
                await _until(lambda: _all_run(town, _JOBS), within=30)
                struck = await _running(town, town.living[leader].pid)
                await town.living.pop(leader).kill()
                killed = asyncio.get_running_loop().time()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_note(led, killed, lambda: _leader(town)))
                    tasks.create_task(_note_each(again, killed, lambda: _running_again(town), struck))
                for job_id in ids:
                    await client.cancel(job_id)
                await town.start(leader)
    return Recovery(again=again, led=led)


async def _submit(client: Client, name: str) -> str:
    job = await client.submit(f"Say: {name} " + "the wind " * 400, attempts=100)
    return str(job["jobId"])


async def _leader(town: Town) -> str | None:
    """The worker that leads, by what they log."""
    for name in town.names("worker"):
        written = town.living[name].written()
        if written.rfind("leader.leads") > written.rfind("leader.lost"):
            return name
    return None


async def _all_run(town: Town, count: int) -> bool:
    connection = await town.connect()
    try:
        running: int = await connection.fetchval("SELECT count(*) FROM jobs WHERE state = 'running'")
    finally:
        await connection.close()
    return running == count


async def _running(town: Town, pid: int) -> set[str]:
    connection = await town.connect()
    try:
        rows = await connection.fetch(
            "SELECT a.job_id FROM job_attempts a JOIN workers w ON w.id = a.worker_id"
            " WHERE a.outcome = 'running' AND w.pid = $1",
            pid,
        )
    finally:
        await connection.close()
    return {str(row["job_id"]) for row in rows}


async def _running_again(town: Town) -> set[str]:
    connection = await town.connect()
    try:
        rows = await connection.fetch("SELECT id FROM jobs WHERE state = 'running' AND attempt > 1")
    finally:
        await connection.close()
    return {str(row["id"]) for row in rows}


async def _note(into: list[float], since: float, ask: Callable[[], Awaitable[object]]) -> None:
    await _until(ask, within=60)
    into.append(asyncio.get_running_loop().time() - since)


async def _note_each(into: list[float], since: float, ask: Callable[[], Awaitable[set[str]]], all_: set[str]) -> None:
    left = set(all_)
    async with asyncio.timeout(90):
        while left:
            back = left & await ask()
            into += [asyncio.get_running_loop().time() - since] * len(back)
            left -= back
            await asyncio.sleep(0.05)


async def _until(ask: Callable[[], Awaitable[T | None]], *, within: float) -> T:
    async with asyncio.timeout(within):
        while not (found := await ask()):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.05)
        return found

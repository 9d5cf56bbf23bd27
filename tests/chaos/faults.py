"""What is done to the town: one fault after the other, by chance, and some of them at the same time.

A fault is over when its method returns, and what it killed runs again. Those of `_BACKGROUND` last for a while and are
met by others on their way.
"""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
from processes import Process

from chaos.evidence import Strikes
from chaos.town import Town

#: How often each kind comes, in relation to the others.
WEIGHTS = {
    "kill -9 of a worker": 6,
    "kill -9 of a server": 3,
    "kill -9 of the honest receiver": 1,
    "worker frozen beyond its heartbeat": 4,
    "server frozen": 1,
    "Postgres: immediate restart": 2,
    "Postgres: kill -9": 1,
    "every connection taken": 1,
    "disk full": 1,
    "clock jumps ahead": 2,
    "storm of 429": 2,
}
_BACKGROUND = {"worker frozen beyond its heartbeat", "server frozen", "clock jumps ahead", "storm of 429"}


class Faults:
    """Does harm for some seconds. A seed repeats the choices, though not what they meet.

    pause: longest between two faults, in seconds. length: how long a fault lasts, in relation to its usual length.
    """

    def __init__(self, town: Town, seed: int, *, pause: float, length: float) -> None:
        self.strikes = Strikes()
        self._town = town
        self._chance = random.Random(seed)
        self._pause = pause
        self._length = length
        self._busy: set[str] = set()
        self._clock = asyncio.get_running_loop().time
        deeds: list[Callable[[], Awaitable[None]]] = [
            self._kill_worker,
            self._kill_server,
            self._kill_receiver,
            self._freeze_worker,
            self._freeze_server,
            self._restart_postgres,
            self._kill_postgres,
            self._take_connections,
            self._fill_disk,
            self._jump_clock,
            self._storm,
        ]
        self._deeds = dict(zip(WEIGHTS, deeds, strict=True))
        if not town.disk:
            self.strikes.skipped["disk full"] = "a disk of our own could not be mounted (that takes root)"
            del self._deeds["disk full"]

    async def rage(self, seconds: float) -> None:
        """Every kind once, in any order, and then by weight until the time is over. All is well again at the end."""
        end = self._clock() + seconds
        first = self._chance.sample(list(self._deeds), k=len(self._deeds))
        async with asyncio.TaskGroup() as tasks:
            while first or self._clock() < end:
                kind = first.pop() if first else self._choose()
                deed = self._do(kind)
                if kind in _BACKGROUND:
                    tasks.create_task(deed)
                else:
                    await deed
                await asyncio.sleep(self._chance.uniform(0, self._pause))

    def _choose(self) -> str:
        kinds = list(self._deeds)
        [kind] = self._chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])
        return kind

    async def _do(self, kind: str) -> None:
        if kind in _BACKGROUND:
            if kind in self._busy:
                return
            self._busy.add(kind)
        self.strikes.done[kind] += 1
        try:
            await self._deeds[kind]()
        finally:
            self._busy.discard(kind)

    async def _kill_worker(self) -> None:
        await self._kill(self._victim("worker"))

    async def _kill_server(self) -> None:
        await self._kill(self._victim("api"))

    async def _kill_receiver(self) -> None:
        # Back at once, and seldom: what a delivery waits after its third failure is longer than this run.
        await self._kill("receiver-honest", away=0.0)
        if self.strikes.done["kill -9 of the honest receiver"] >= 2:
            self._deeds.pop("kill -9 of the honest receiver", None)

    async def _kill(self, name: str, *, away: float = 2.0) -> None:
        process = self._town.living[name]
        if name.startswith("worker"):
            await self._strike(process)
        await process.kill()
        await self._a_while(0, away)
        await self._town.start(name)

    async def _freeze_worker(self) -> None:
        process = self._town.living[self._victim("worker")]
        await self._strike(process)
        await self._freeze(process)

    async def _freeze_server(self) -> None:
        await self._freeze(self._town.living[self._victim("api")])

    async def _freeze(self, process: Process) -> None:
        process.signal(signal.SIGSTOP)
        await self._a_while(2, 4)
        process.signal(signal.SIGCONT)

    async def _restart_postgres(self) -> None:
        await self._end_postgres(signal.SIGQUIT)

    async def _kill_postgres(self) -> None:
        await self._end_postgres(signal.SIGKILL)

    async def _end_postgres(self, number: signal.Signals) -> None:
        await self._strike(None)
        if (pid := self._town.postmaster) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        await self._a_while(0, 2)
        await self._town.revive()

    async def _take_connections(self) -> None:
        """Take all that are free, end those of the fleet, and take these as well, for a few seconds."""
        await self._strike(None)
        taken: list[Any] = []
        try:
            await self._take(taken)
            await taken[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tramontane'"
            )
            end = self._clock() + self._chance.uniform(1, 3) * self._length
            while self._clock() < end:
                await self._take(taken)
                await asyncio.sleep(0.05)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, IndexError):
            pass  # there was no Postgres to take them of
        finally:
            for connection in taken:
                connection.terminate()

    async def _take(self, taken: list[Any]) -> None:
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await self._town.connect())

    async def _fill_disk(self) -> None:
        """Leave no byte for Postgres for a few seconds. It may well die of it; that is mended once there is room."""
        await self._strike(None)
        ballast = self._town.directory / "disk" / "ballast"
        await asyncio.to_thread(_fill, ballast)
        await self._a_while(2, 4)
        ballast.unlink()
        await self._town.revive()

    async def _jump_clock(self) -> None:
        process = self._town.living[self._victim(self._chance.choice(["worker", "api"]))]
        process.signal(signal.SIGUSR1)
        await self._a_while(3, 8)
        process.signal(signal.SIGUSR2)

    async def _storm(self) -> None:
        self._town.mistral.signal(signal.SIGUSR1)
        await self._a_while(1, 3)
        self._town.mistral.signal(signal.SIGUSR2)

    async def _a_while(self, least: float, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(least, most) * self._length)

    def _victim(self, kind: str) -> str:
        return self._chance.choice(self._town.names(kind))

    async def _strike(self, process: Process | None) -> None:
        """Count the attempts that are under way in a worker, or in all of them, before harm is done."""
        self.strikes.interruptions += 1
        which = "" if process is None else f" AND w.pid = {process.pid}"
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await self._town.connect()
            try:
                self.strikes.struck += await connection.fetchval(
                    "SELECT count(*) FROM job_attempts a JOIN workers w ON w.id = a.worker_id"
                    f" WHERE a.outcome = 'running'{which}"
                )
            finally:
                connection.terminate()


def _fill(path: "os.PathLike[str]") -> None:
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 2**20)
    with suppress(OSError), open(path, "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)

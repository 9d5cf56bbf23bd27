"""Tenants: they submit, read along, cancel, and write down what they were promised."""

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from clients import BROKEN, Client, Reader, visit

from chaos.evidence import Asked
from chaos.town import Town

_OPEN = 25  # jobs that one user has open at a time
_PATIENCE = 300.0  # seconds until somebody asks no more; only a broken fleet needs so many
_HOSTILE = ("/hole", "/endless", "/reset", "/redirect", "/broken", "/slow/3000")


@dataclass(frozen=True)
class Tenant:
    """Somebody with a key to the API."""

    name: str
    key: str


class Crowd:
    """Users of several tenants, until they are told that it is over."""

    def __init__(self, town: Town, tenants: list[Tenant], seed: int, *, pause: float) -> None:
        self.asked: dict[str, Asked] = {}
        self.answers = Counter[int]()
        self.surprises: dict[int, str] = {}
        self.followed = 0
        self.misread: list[str] = []
        self.over = False
        self._town = town
        self._tenants = tenants
        self._seed = seed
        self._pause = pause
        self._numbers = itertools.count(1)
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for tenant in self._tenants:
            headers = {"authorization": f"Bearer {tenant.key}"}
            timeout = aiohttp.ClientTimeout(total=None, connect=3, sock_read=10)
            connector = aiohttp.TCPConnector(limit=0)
            session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
            self._sessions[tenant.name] = await self._stack.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def use(self, tenant: Tenant, number: int) -> None:
        """One user: submit, and never have more than so many jobs open."""
        chance = random.Random(f"{self._seed}/{tenant.name}/{number}")
        mine: deque[str] = deque()
        async with asyncio.TaskGroup() as tasks:
            while not self.over:
                asked = await self._submit(tenant, chance)
                mine.append(asked.job_id)
                if chance.random() < 0.1:
                    tasks.create_task(self._follow(asked))
                elif chance.random() < 0.08:
                    tasks.create_task(self._cancel(asked, chance.uniform(0, 1)))
                if len(mine) >= _OPEN:
                    await self._wait(tenant.name, mine.popleft())
                await asyncio.sleep(chance.uniform(0, 2 * self._pause))

    def client(self, tenant: str) -> Client:
        """A client of the tenant, at any of the servers."""
        name = random.choice(self._town.names("api"))
        return Client(self._sessions[tenant], self._town.url(name))

    async def call(self, tenant: str, ask: Callable[[Client], Awaitable[tuple[int, Any]]]) -> tuple[int, Any]:
        """Ask until there is an answer that is none of an outage. Whatever came is counted by its status."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                with suppress(*BROKEN):
                    status, body = await ask(self.client(tenant))
                    self.answers[status] += 1
                    if status != 503:
                        return status, body
                await asyncio.sleep(0.1)

    async def send(self, tenant: str, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """`call` for one request; the body is JSON, or text that is none."""

        async def ask(client: Client) -> tuple[int, Any]:
            async with client.session.request(method, client.url + path, **request) as response:
                if "json" in response.content_type:
                    return response.status, await response.json(content_type=None)
                return response.status, await response.text()

        return await self.call(tenant, ask)

    async def _submit(self, tenant: Tenant, chance: random.Random) -> Asked:
        number = next(self._numbers)
        text = f"{tenant.name}#{number}: " + "the mistral blows 🌬️ " * chance.randrange(4, 20)
        told = chance.random()
        hostile = told < 0.05
        path = chance.choice(_HOSTILE) if hostile else chance.choice(["/fine", "/slow/50"]) if told < 0.7 else None
        deadline = chance.random() < 0.1
        body: dict[str, Any] = {
            "kind": "chat",
            "request": {"messages": [{"role": "user", "content": f"Say: {text}"}]},
            "attempts": 100,
            "priority": chance.choice([0, 0, 0, 5, -5]),
            "metadata": {"tenant": tenant.name},
        }
        if deadline:
            body["deadline"] = f"{chance.choice([1, 3, 300])}s"
        if path:
            receiver = "receiver-hostile" if hostile else "receiver-honest"
            body["callback"] = self._town.url(receiver) + path
        headers = {"idempotency-key": f"{tenant.name}-{number}"}
        status, answer = await self.send(tenant.name, "POST", "/api/jobs", json=body, headers=headers)
        while status != 202:
            self.surprises.setdefault(status, f"POST /api/jobs: {str(answer)[:300]}")
            await asyncio.sleep(1)
            status, answer = await self.send(tenant.name, "POST", "/api/jobs", json=body, headers=headers)
        asked = Asked(
            tenant=tenant.name, job_id=answer["jobId"], text=text, path=path, hostile=hostile, deadline=deadline
        )
        self.asked[asked.job_id] = asked
        return asked

    async def _wait(self, tenant: str, job_id: str) -> None:
        while not self.over:
            _, job = await self.send(tenant, "GET", f"/api/jobs/{job_id}", headers={"prefer": "wait=5"})
            if isinstance(job, dict) and job.get("completedAt"):
                return
            await asyncio.sleep(0.1)

    async def _cancel(self, asked: Asked, after: float) -> None:
        await asyncio.sleep(after)
        status, job = await self.send(asked.tenant, "POST", f"/api/jobs/{asked.job_id}/cancel")
        asked.cancelled = job["status"] if status == 200 else f"HTTP {status}"

    async def _follow(self, asked: Asked) -> None:
        """Read along to the end, coming back with the cursor whenever the connection breaks."""
        reader = Reader()
        try:
            async with asyncio.timeout(_PATIENCE):
                while reader.final is None:
                    with suppress(*BROKEN):
                        await visit(self.client(asked.tenant), asked.job_id, reader)
                    await asyncio.sleep(0 if reader.final else 0.2)
        except (AssertionError, TimeoutError, KeyError, ValueError) as error:
            where = f"after event {reader.seq}, on visit {reader.visits}"
            self.misread.append(f"{asked.job_id}: {type(error).__name__} {str(error)[:200]} {where}")
        self.followed += 1

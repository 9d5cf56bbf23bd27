"""A fleet under Mistral's limits: workers in processes of their own, beside the simulator, on one embedded Postgres.

The simulator's minute is six seconds long, so that ten of its windows pass in one.
"""

import asyncio
import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from bench.engine import BODY
from bench.processes import simulator_process
from tramontane.api.schemas import new_job
from tramontane.app import App, open_app
from tramontane.ids import new_id, utc_now
from tramontane.limits import Heard
from tramontane.models import NewJob, WorkerInfo
from tramontane.settings import Settings
from tramontane.store import BucketStore, LimitStore

WINDOW = 6.0
WINDOWS = 8
REQUESTS, TOKENS = 60, 50_000
BUCKET = ("*", "mistral-small-latest")

_WAITING = """
WITH made AS (
    INSERT INTO jobs (tenant_id, id, kind, state, request_id, model, attempts, backoff_kind, backoff_seconds,
                      timeout_seconds, priority, run_at, due, created_at, prompt_tokens)
    SELECT 'tenant-' || n % 3, uuidv7(), 'chat', 'queued', 'req', 'mistral-small-latest', 3, 'fixed', 1, 60, 0,
           $2, true, $2, 30
      FROM generate_series(1, $1::integer) AS n
    RETURNING tenant_id, id
)
INSERT INTO job_contents (tenant_id, job_id, request) SELECT tenant_id, id, $3::text::json FROM made
"""


@contextlib.asynccontextmanager
async def fleet(url: str, *, workers: int = 0, concurrency: int = 5, rate: float = 0.0) -> AsyncIterator["Fleet"]:
    """An engine without a worker of its own, on a data directory of its own, and workers beside it."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        os.chmod(directory, 0o711)  # as root, Postgres runs under another account
        settings = Settings(data_dir=Path(directory) / "data", mistral_api_key="bench", mistral_server_url=url)
        async with open_app(settings, worker=False) as app:
            one = Fleet(app, url, concurrency, rate)
            try:
                await one.grow(workers)
                yield one
            finally:
                await one.close()


class Fleet:
    """Processes that work on one database."""

    def __init__(self, app: App, url: str, concurrency: int, rate: float) -> None:
        self.app, self.pool = app, app.database.pool
        self._url, self._concurrency, self._rate = url, concurrency, rate
        self._workers: list[asyncio.subprocess.Process] = []

    async def grow(self, workers: int) -> None:
        """Start workers until there are so many, and wait until their slots count."""
        environment = {
            **os.environ,
            "MISTRAL_API_KEY": "bench",
            "MISTRAL_SERVER_URL": self._url,
            "TRAMONTANE_DATA_DIR": str(self.app.settings.data_dir),
            "TRAMONTANE_CONCURRENCY": str(self._concurrency),
            "TRAMONTANE_RATE_LIMIT": str(self._rate),
            "TRAMONTANE_LIMIT_WINDOW": str(WINDOW),
            "TRAMONTANE_LOG_LEVEL": "error",
        }
        while len(self._workers) < workers:
            arguments = ("-m", "tramontane", "worker")
            self._workers.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL
                )
            )
        while await self.pool.fetchval("SELECT count(*) FROM workers WHERE stopped_at IS NULL") < workers:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for process in self._workers:
            process.terminate()
        for process in self._workers:
            await process.wait()

    async def submit(self, tenant: str, count: int, tokens: int = 10, **fields: Any) -> list[NewJob]:
        """Have jobs done whose answers have so many tokens."""
        body, settings, now = BODY % tokens, self.app.settings, utc_now()
        made = (new_job(body, settings, tenant=tenant, idempotency_key=None, now=now) for _ in range(count))
        jobs = [dataclasses.replace(job, **fields) for job in made]
        for start in range(0, count, 200):
            await self.app.jobs._store.submit(jobs[start : start + 200], utc_now())
        return jobs

    async def started(self, job: NewJob) -> datetime:
        """When a job started, once it has."""
        ask = "SELECT started_at FROM jobs WHERE tenant_id = $1 AND id = $2"
        while (at := await self.pool.fetchval(ask, job.key.tenant, job.key.id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return at  # type: ignore[no-any-return]


async def _ledger(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/simulator/ledger") as answer:
        calls: list[dict[str, Any]] = (await answer.json())["calls"]
        return calls


async def under_limits(name: str, tokens: int) -> dict[str, float]:
    """Eight workers and three tenants with unequal backlogs, as long as eight windows."""
    mistral = simulator_process(
        tokens=tokens, tokens_per_second=4000, request_limit=REQUESTS, token_limit=TOKENS, window=WINDOW
    )
    async with mistral as url, fleet(url) as one:
        for tenant, count in (("large", 900), ("middle", 400), ("small", 220)):
            await one.submit(tenant, count, tokens)
        await one.grow(8)
        while not (calls := await _ledger(url)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        # What was let through while nothing was known of the limits is part of the run.
        began = calls[0]["started"]
        await asyncio.sleep(WINDOW * WINDOWS + 0.5)
        calls = [call for call in await _ledger(url) if call["started"] - began < WINDOW * WINDOWS]
        rows = await one.pool.fetch(
            "SELECT tenant_id, count(*) AS jobs FROM job_attempts WHERE outcome = 'completed' GROUP BY tenant_id"
        )
    answered = [call for call in calls if call["status"] == 200]
    refused = sum(call["status"] == 429 for call in calls)
    used = sum(call["prompt_tokens"] + call["completion_tokens"] for call in answered)
    bound = max(len(answered) / (REQUESTS * WINDOWS), used / (TOKENS * WINDOWS))
    jobs = [row["jobs"] for row in rows]
    fair = sum(jobs) / 3
    return {
        f"{name}: calls": len(calls),
        f"{name}: share of 429, %": 100 * refused / len(calls),
        f"{name}: of what the limits allow, %": 100 * bound,
        f"{name}: tenant furthest from its fair share, %": 100 * max(abs(count - fair) / fair for count in jobs),
    }


async def priority_beside(waiting: int = 100_000) -> dict[str, float]:
    """Milliseconds from the first slot that becomes free to the start of a job of high priority."""
    async with simulator_process(tokens=50, tokens_per_second=50) as url, fleet(url) as one:
        await one.pool.execute(_WAITING, waiting, utc_now(), (BODY % 50).decode())
        await one.grow(8)
        await asyncio.sleep(3)
        waits = []
        for _ in range(10):
            asked = utc_now()
            [job] = await one.submit("tenant-0", 1, 50, priority=9)
            at = await one.started(job)
            free = await one.pool.fetchval("SELECT min(ended_at) FROM job_attempts WHERE ended_at > $1", asked)
            waits.append((at - max(free, asked)).total_seconds() * 1000 if free else 0.0)
            await asyncio.sleep(0.3)
    return {f"high priority beside {waiting:,}: ms after a free slot, worst of 10": max(waits)}


async def admission_cost() -> dict[str, float]:
    """Milliseconds of admission per job at 100 and at 1,000,000 waiting, in rounds of ten jobs and of one.

    Both backlogs are there at once, on a server each, and rounds alternate: the machine is the same for both.
    """
    figures: dict[str, float] = {}
    async with _backlog(100) as few, _backlog(1_000_000) as many:
        for size in (10, 1):
            rounds = [(await _round(few, size), await _round(many, size)) for _ in range(200)]
            at_few, at_many = (statistics.median(times) for times in zip(*rounds, strict=True))
            figures[f"admission, ms per job at 100 waiting, rounds of {size}"] = at_few
            figures[f"admission, ms per job at 1,000,000 waiting, rounds of {size}"] = at_many
            figures[f"1,000,000 waiting / 100 waiting, rounds of {size}"] = at_many / at_few
    return figures


@contextlib.asynccontextmanager
async def _backlog(waiting: int) -> AsyncIterator[Fleet]:
    """Jobs of three tenants that wait for one worker, which is not there."""
    async with fleet("http://127.0.0.1:1") as one:
        now = utc_now()
        worker = WorkerInfo(id=new_id(), concurrency=0, heartbeat_seconds=1e6, host="here", pid=1)
        await LimitStore(one.pool).register(worker, rate=0, now=now)
        heard = Heard(at=now, limit_requests=50_000, remaining_requests=50_000, limit_tokens=10**8)
        await BucketStore(one.pool).learn(BUCKET, [heard], [], now, timedelta(seconds=60))
        await one.pool.execute(_WAITING, waiting, now, "{}")
        await one.pool.execute("CHECKPOINT")
        yield one


async def _round(one: Fleet, size: int) -> float:
    """Milliseconds per job of one round, whose jobs end at once and make room for as many new ones."""
    await one.pool.execute("UPDATE workers SET concurrency = $1", size)
    began = time.perf_counter()
    admitted = (await LimitStore(one.pool).admit(utc_now())).admitted
    took = time.perf_counter() - began
    assert len(admitted) == size
    await one.pool.execute(
        "UPDATE jobs SET state = 'completed', completed_at = now() WHERE admitted_at IS NOT NULL AND state = 'queued'"
    )
    await one.pool.execute(_WAITING, size, utc_now(), "{}")
    await one.pool.execute("DELETE FROM tramontane_pgqueuer")
    return took * 1000 / size


async def growth(seconds: float = 6.0) -> dict[str, float]:
    """Jobs per second of one worker to four, whose jobs wait a second each for Mistral."""
    figures = {}
    async with simulator_process(tokens=10, tokens_per_second=10) as url, fleet(url, concurrency=15) as one:
        await one.pool.execute(_WAITING, 4000, utc_now(), (BODY % 10).decode())
        for workers in (1, 2, 3, 4):
            await one.grow(workers)
            await asyncio.sleep(3)
            ask = "SELECT count(*) FROM jobs WHERE state = 'completed'"
            before, began = await one.pool.fetchval(ask), time.perf_counter()
            await asyncio.sleep(seconds)
            done, took = await one.pool.fetchval(ask) - before, time.perf_counter() - began
            figures[f"jobs per second, {workers} of 15 slots"] = done / took
    return figures


_PARTS: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
    "requests": lambda: under_limits("requests", 20),
    "tokens": lambda: under_limits("tokens", 970),
    "priority": priority_beside,
    "cost": admission_cost,
    "growth": growth,
}


async def run() -> dict[str, float]:
    """All figures of this module."""
    figures: dict[str, float] = {}
    for part in _PARTS.values():
        figures |= await part()
    return figures


if __name__ == "__main__":
    import uvloop

    async def _some() -> None:
        for part in sys.argv[1:] or _PARTS:
            for name, value in (await _PARTS[part]()).items():
                print(f"{name:70} {value:10.2f}", flush=True)

    uvloop.run(_some())

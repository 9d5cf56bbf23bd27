"""The engine end to end, beside the bare lifecycle: the same transactions without HTTP, Mistral and streams.

Everything runs on one embedded Postgres. Both rates are measured in one run, so their ratio holds on a noisy machine.
"""

import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.processes import load, simulator_process
from tramontane.api import serving
from tramontane.api.schemas import new_job
from tramontane.app import App, open_app
from tramontane.appender import Appender, Draft
from tramontane.ids import utc_now
from tramontane.mistral import Delta
from tramontane.models import Attempt, Ending, NewEvent, State
from tramontane.ports import listen_on
from tramontane.runner import Runner
from tramontane.settings import Settings
from tramontane.transcript import Transcript
from tramontane.wire import encode

CHUNKS = 10
BODY = b'{"model":"mistral-small-latest","max_tokens":%d,"messages":[{"role":"user","content":"Tell me of the wind."}]}'


@asynccontextmanager
async def engine(url: str, *, concurrency: int = 50, worker: bool = True, **more: Any) -> AsyncIterator[App]:
    """An engine on a data directory of its own, without a rate limit."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        os.chmod(directory, 0o711)  # as root, Postgres runs under another account
        settings = Settings(
            data_dir=Path(directory) / "data",
            mistral_api_key="bench",
            mistral_server_url=url,
            concurrency=concurrency,
            rate_limit=0.0,
            log_level="error",
            **more,
        )
        async with open_app(settings, worker=worker) as app:
            yield app


class BareRunner(Runner):
    """An attempt that needs no Mistral: the text is there at once, in the same number of deltas."""

    def __init__(self, appender: Appender) -> None:
        self._appender = appender

    async def run(self, attempt: Attempt) -> Ending:
        job, transcript = attempt.job, Transcript()
        draft = Draft(job.key, job.attempt, self._appender, lambda: None)
        for index in range(CHUNKS):
            draft.grow(transcript.add(Delta(" word", "", (), 0)), transcript.events)
            if index == 0:
                await asyncio.sleep(0.001)  # the first text is flushed at once, as with a stream
        rest = await draft.settle()
        final = NewEvent("complete", encode({"len": transcript.length}))
        result = encode({"content": " word" * CHUNKS})
        return Ending(
            key=job.key, attempt=job.attempt, entry_id=attempt.entry_id, state=State.COMPLETED, at=utc_now(),
            events=(*rest, final), result=result, usage='{"total_tokens":12}',
        )  # fmt: skip


async def pick_up(app: App, count: int = 200) -> dict[str, float]:
    """Milliseconds from the call of submit to the first line of the handler, one job at a time."""
    assert app.worker is not None
    seen: asyncio.Queue[float] = asyncio.Queue()
    run = app.worker._runner.run

    async def watched(attempt: Attempt) -> object:
        seen.put_nowait(time.perf_counter())
        return await run(attempt)

    app.worker._runner.run = watched  # type: ignore[method-assign,assignment]
    waits = []
    for number in range(count + 20):
        began = time.perf_counter()
        submitted = await app.jobs.submit(_new(app, 1))
        picked = await seen.get()
        if number >= 20:
            waits.append((picked - began) * 1000)
        await app.streams.wait_for_end(submitted.job.key, 10)
    app.worker._runner.run = run  # type: ignore[method-assign]
    waits.sort()
    return {"pick-up p50 ms": statistics.median(waits), "pick-up p99 ms": waits[int(len(waits) * 0.99)]}


async def whole_jobs(port: int, count: int) -> float:
    """Jobs per second over HTTP: submitted, run against the simulator, followed to their end by a reader each."""
    return await load(port, "/api/chat/stream", BODY % CHUNKS, count, clients=100, until=b"event: complete")


async def bare_jobs(app: App, count: int) -> float:
    """Jobs per second of the bare lifecycle."""
    assert app.worker is not None
    ended = 0
    done = asyncio.Event()

    def hook(_: object) -> None:
        nonlocal ended
        ended += 1
        if ended == count:
            done.set()

    app.worker.on("completed", hook)
    runner, app.worker._runner = app.worker._runner, BareRunner(app.worker._runner._appender)
    began = time.perf_counter()
    gate = asyncio.Semaphore(100)

    async def one() -> None:
        async with gate:
            await app.jobs.submit(_new(app, CHUNKS))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())
    await done.wait()
    app.worker._runner = runner
    app.worker._hooks.clear()
    return count / (time.perf_counter() - began)


async def submits(port: int, count: int = 3000) -> float:
    """Submits per second over HTTP, each durable before its answer, of jobs that wait for a far day."""
    body = b'{"kind":"chat","runAt":"2099-01-01T00:00:00Z","request":%s}' % (BODY % CHUNKS)
    return await load(port, "/api/jobs", body, count, clients=64, until=b"202 Accepted")


async def run() -> dict[str, float]:
    """All figures of this module."""
    figures: dict[str, float] = {}
    async with simulator_process(tokens=CHUNKS) as upstream, engine(upstream) as app:
        figures |= await pick_up(app)
        bound = listen_on("127.0.0.1", 0)
        port: int = bound.getsockname()[1]
        async with serving(app, bound):
            figures["submits per second over HTTP"] = await submits(port)
            await app.database.pool.execute("DELETE FROM jobs WHERE state = 'queued'")
            await whole_jobs(port, 200)
            rates = [(await whole_jobs(port, 1000), await bare_jobs(app, 1000)) for _ in range(3)]
        figures["whole jobs per second"] = max(whole for whole, _ in rates)
        figures["bare lifecycles per second"] = max(bare for _, bare in rates)
        figures["whole jobs / bare lifecycles"] = statistics.median(whole / bare for whole, bare in rates)
    return figures


def cpu_seconds() -> float:
    """CPU of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _new(app: App, tokens: int):  # type: ignore[no-untyped-def]
    return new_job(BODY % tokens, app.settings, tenant="default", idempotency_key=None, now=utc_now())


if __name__ == "__main__":
    import uvloop

    for name, value in uvloop.run(run()).items():
        print(f"{name:40} {value:10.2f}")

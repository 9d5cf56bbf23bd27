"""What readers cost and how long they wait: many of them, far behind, idle, and all at once.

The readers are a process of their own. Delivery is measured beside a bare asyncio writer: the same bytes, in the same
pieces and at the same pace, to the same readers, and nothing else. What binds is the ratio of the two.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, cast

from bench.engine import cpu_seconds, engine
from bench.processes import simulator_process
from tramontane.api import serving
from tramontane.api.schemas import new_job
from tramontane.app import App
from tramontane.appender import Appender, Draft
from tramontane.ids import show_id, utc_now
from tramontane.models import Batch, JobKey, NewEvent
from tramontane.ports import listen_on
from tramontane.store import EventStore
from tramontane.wire import encode

STREAMS, PACE, SECONDS = 100, 50, 4
PAIRS = 5
IDLE = 4000
HISTORY = 10_000
FINAL = NewEvent("complete", b'{"totalTokens":0}')

_READERS = r"""
import asyncio, json, re, sys, time
port, streams, request, times = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4].encode(), int(sys.argv[6])
paths = json.loads(sys.argv[3]) * times
clock, gate = time.perf_counter, asyncio.Semaphore(100)
opened, delays, firsts, wholes, events, ended = 0, [], [], [], 0, 0
async def read(path):
    global opened, events, ended
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        began = clock()
        writer.write(request.replace(b"PATH", path.encode()))
        await reader.readuntil(b"hb=15000\n\n")
    opened += 1
    if opened == streams:
        print("ready", flush=True)
    rest, first = b"", True
    while block := await reader.read(2**18):
        now = clock()
        if first and b"id: " in block:
            firsts.append(now - began)
            first = False
        rest += block
        cut = rest.rfind(b"\n\n") + 2
        frames, rest = rest[:cut], rest[cut:]
        delays.extend(now - float(sent) for sent in re.findall(rb"@([0-9.]+)", frames))
        for seq, start in re.findall(rb'"seq":([0-9]+)(?:,"from":([0-9]+))?', frames):
            events += int(seq) - int(start or seq) + 1
        if b"event: complete" in frames:
            break
        if rest.endswith(b"0\r\n\r\n"):
            ended += 1
            break
    wholes.append(clock() - began)
    writer.close()
async def main():
    at_once = int(sys.argv[5])
    for start in range(0, len(paths), at_once):
        await asyncio.gather(*map(read, paths[start:start + at_once]))
asyncio.run(main())
result = {"delays": delays, "firsts": firsts, "wholes": wholes, "events": events, "ended": ended, "at": clock()}
print(json.dumps(result), flush=True)
"""
_GET = "GET PATH HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Readers:
    """Readers in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def result(self) -> dict[str, Any]:
        """What they saw, once all their streams have ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert await self._process.wait() == 0
        result: dict[str, Any] = json.loads(line)
        return result


async def readers(port: int, paths: list[str], *, times: int = 1, request: str = _GET, at_once: int = 10**6) -> Readers:
    """Open the streams; returns when all are open, or the first of those that come one after the other."""
    first = min(at_once, len(paths) * times)
    numbers = (json.dumps(paths), request, str(at_once), str(times))
    arguments = ("-c", _READERS, str(port), str(first), *numbers)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, limit=2**28)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return Readers(process)


async def run() -> dict[str, float]:
    """All figures of this page. Where no job is run there is no worker either: its rounds would count as delivery."""
    async with simulator_process(tokens=20, tokens_per_second=200) as upstream:
        async with served(upstream, worker=True) as (app, port):
            figures = await _idle(app, port)  # first: later ones would live in memory that others have given back
        async with served(upstream, worker=True) as (_, port):
            figures |= await _starts(port)
        async with served(upstream, worker=False) as (app, port):
            figures |= await _delivery(app, port)
            figures |= await _resumes(app, port)
        # An engine of its own: how Postgres plans the append depends on what it knows of the tables.
        async with served(upstream, worker=False) as (app, port):
            figures |= await _durable(app, port, "young")
            await app.database.pool.execute("ANALYZE")  # as autovacuum does, sooner or later
            figures |= await _durable(app, port, "analyzed")
    return figures


@asynccontextmanager
async def served(upstream: str, *, worker: bool) -> AsyncIterator[tuple[App, int]]:
    """An engine with an API that lets one address have all the streams."""
    async with engine(upstream, concurrency=100, worker=worker, heartbeat=600.0, streams_per_address=10_000) as app:
        bound = listen_on("127.0.0.1", 0)
        async with serving(app, bound):
            yield app, bound.getsockname()[1]


async def jobs(app: App, count: int) -> list[JobKey]:
    """Running jobs that nobody runs."""
    body = b'{"request":{"messages":[{"role":"user","content":"?"}]},"runAt":"2100-01-01T00:00:00Z"}'
    keys = []
    for _ in range(count):
        job = new_job(body, app.settings, tenant="default", idempotency_key=None, now=utc_now())
        keys.append((await app.jobs.submit(job)).job.key)
    ids = [key.id for key in keys]
    await app.database.pool.execute(
        "UPDATE jobs SET state = 'running', attempt = 1, admitted_at = now() WHERE id = ANY ($1::uuid[])", ids
    )
    return keys


def events_of(keys: list[JobKey]) -> list[str]:
    return [f"/api/jobs/{show_id('job', key.id)}/events" for key in keys]


def chunk(number: int) -> NewEvent:
    """A word that says when it was told."""
    word = f" @{time.perf_counter():014.6f}"
    return NewEvent("chunk", encode({"off": number * 16, "content": word, "tokenCount": number + 1}))


# Delivery


async def _delivery(app: App, port: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    bare_cpu, cpus, _, _, delays = await _pairs(app, port, PACE, PACE * SECONDS // 2)
    figures |= {"bare CPU us per event and reader": median(bare_cpu), "CPU us per event and reader": median(cpus)}
    figures |= {"bare / ours, CPU per event": _ratio(bare_cpu, cpus)} | _spread("memory to client ms", delays)
    bare_cpu, cpus, bare_rate, rate, _ = await _pairs(app, port, 0, 500)
    figures |= {"bare events/s": median(bare_rate), "events/s at full speed": median(rate)}
    figures |= {"ours / bare, events/s": _ratio(rate, bare_rate)}
    figures |= {"bare / ours, CPU per event at full speed": _ratio(bare_cpu, cpus)}
    keys = await jobs(app, 1)
    reading = await readers(port, events_of(keys), times=STREAMS)
    cpu, _, _ = await _told(_teller(app, keys), reading, PACE, PACE * SECONDS)
    return figures | {"CPU us per event and reader, 100 of one job": cpu}


async def _pairs(app: App, port: int, pace: float, count: int) -> tuple[list[float], ...]:
    """By the bare writer and by us in turn: CPU microseconds of both, events per second of both, and our delays."""
    measured: tuple[list[float], ...] = ([], [], [], [], [])
    for _ in range(PAIRS):
        bare_cpu, bare_rate, _result = await _told_by_bare_writer(pace, count)
        keys = await jobs(app, STREAMS)
        reading = await readers(port, events_of(keys))
        cpu, rate, result = await _told(_teller(app, keys), reading, pace, count)
        for column, value in zip(measured, (bare_cpu, cpu, bare_rate, rate), strict=False):
            column.append(value)
        measured[4].extend(result["delays"])
    return measured


def _ratio(ones: list[float], others: list[float]) -> float:
    """The median of the pairs' ratios: what disturbs one pair does not count."""
    return median(one / other for one, other in zip(ones, others, strict=True))


Tell = Callable[[int, bool], Awaitable[None]]


def _teller(app: App, keys: list[JobKey]) -> Tell:
    """Tells the readers of each job one event, which is in memory alone."""

    async def tell(number: int, final: bool) -> None:
        for key in keys:
            event = FINAL if final else chunk(number)
            app.streams.appended(Batch(key=key, attempt=1, number=number, events=(event,)), number + 1)

    return tell


async def _told(tell: Tell, reading: Readers, pace: float, count: int) -> tuple[float, float, dict[str, Any]]:
    """CPU microseconds per event and reader, events per second, and what the readers saw."""
    gc.collect()
    before, began = cpu_seconds(), time.perf_counter()
    for number in range(count):
        await tell(number, False)
        # At full speed the readers have their turn after every event.
        await asyncio.sleep(max(0.0, began + (number + 1) / pace - time.perf_counter()) if pace else 0)
    await tell(count, True)
    result = await reading.result()
    used, told = cpu_seconds() - before, STREAMS * (count + 1)
    assert result["events"] == told, result["events"]
    return used / told * 1e6, told / (result["at"] - began), result


async def _told_by_bare_writer(pace: float, count: int) -> tuple[float, float, dict[str, Any]]:
    """The same by a server that only writes."""
    transports: list[asyncio.WriteTransport] = []

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.WriteTransport", transport)

        def data_received(self, _: bytes) -> None:
            self.transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            self.transport.write(b"28\r\nretry: 500\n: tramontane 1 hb=15000\n\n\r\n")
            transports.append(self.transport)

    async def tell(number: int, final: bool) -> None:
        for transport in transports:
            event = FINAL if final else chunk(number)
            frame = (
                b'event: %s\ndata: {"type":"chat:chunk","jobId":"job_01M81SNJMTEFBSC10KGCM8","seq":%d,"attempt":1,%s\n'
                b"id: %d\n\n" % (event.type.encode(), number + 1, event.body[1:], number + 1)
            )
            transport.write(b"%x\r\n%s\r\n" % (len(frame), frame))

    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    async with server:
        reading = await readers(server.sockets[0].getsockname()[1], ["/"], times=STREAMS)
        told = await _told(tell, reading, pace, count)
        for transport in transports:
            transport.close()
    return told


# Through the log


async def _durable(app: App, port: int, state: str) -> dict[str, float]:
    """state: that of the database, for the names of the figures."""
    figures: dict[str, float] = {}
    for pace in (PACE, 0):
        keys = await jobs(app, STREAMS)
        reading = await readers(port, events_of(keys))
        appender = Appender(EventStore(app.database.pool), app.streams.appended, interval=app.settings.flush)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(appender.run())
            began = time.perf_counter()
            count = PACE * SECONDS if pace else 500
            writing = [tasks.create_task(_write(Draft(key, 1, appender, _lost), pace, count)) for key in keys]
            await asyncio.wait(writing)
            result = await reading.result()
            running.cancel()
        told = STREAMS * (count + 1)
        assert result["events"] == told, result["events"]
        if pace:
            figures |= _spread(f"token to client, {state} database, ms", result["delays"])
        else:
            figures |= {f"events/s, each committed first, {state}": told / (result["at"] - began)}
    return figures


def _lost() -> None:
    raise AssertionError("the log refused an attempt")


async def _write(draft: Draft, pace: float, count: int) -> None:
    ready: list[NewEvent] = []

    def take() -> list[NewEvent]:
        taken, ready[:] = list(ready), []
        return taken

    began = time.perf_counter()
    for number in range(count + 1):
        event = chunk(number) if number < count else FINAL
        ready.append(event)
        draft.grow(len(event.body), take)
        if len(ready) > 100:
            await draft.written()
        await asyncio.sleep(max(0.0, began + (number + 1) / pace - time.perf_counter()) if pace else 0)
    await draft.written()


# Beginnings, and beginnings again


async def _starts(port: int) -> dict[str, float]:
    body = '{"model":"mistral-small-latest","max_tokens":20,"messages":[{"role":"user","content":"Hello!"}]}'
    request = f"POST PATH HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    firsts: list[float] = []
    for number in range(10):  # the first round warms up; of the others, some meet a collection of garbage
        reading = await readers(port, ["/api/chat/stream"], times=STREAMS, request=request)
        result = await reading.result()
        firsts += result["firsts"] if number else []
    return _spread("POST to start, 100 at once, ms", firsts)


async def _resumes(app: App, port: int) -> dict[str, float]:
    [key] = await jobs(app, 1)
    events = tuple(chunk(number) for number in range(HISTORY - 1))
    store = EventStore(app.database.pool)
    for number in range(0, HISTORY, 1000):
        part = Batch(key=key, attempt=1, number=number // 1000 + 1, events=(*events, FINAL)[number : number + 1000])
        await store.append([part], utc_now())
    await app.database.pool.execute("UPDATE jobs SET state = 'completed', completed_at = now() WHERE id = $1", key.id)
    [path] = events_of([key])
    resumed = await (await readers(port, [f"{path}?after={HISTORY - 5}"], times=300, at_once=1)).result()
    replayed = await (await readers(port, [path], times=100, at_once=1)).result()
    assert replayed["events"] == 100 * HISTORY
    return _spread("resume to first missed event ms", resumed["firsts"]) | _spread(
        "replay of 10,000 events ms", replayed["wholes"]
    )


# Idle


async def _idle(app: App, port: int) -> dict[str, float]:
    keys = await jobs(app, 1)
    warm = await readers(port, events_of(keys), times=100)
    gc.collect()
    before = resident()
    reading = await readers(port, events_of(keys), times=IDLE)
    gc.collect()
    grown = resident() - before
    began = time.perf_counter()
    app.streams.drain()
    result = await reading.result()
    await warm.result()
    assert result["ended"] == IDLE
    seconds = float(result["at"]) - began
    return {"KB per idle reader, of 4,000": grown / IDLE / 1024, "4,000 streams ended properly, s": seconds}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _spread(name: str, seconds: object) -> dict[str, float]:
    assert isinstance(seconds, list)
    ordered = sorted(seconds)
    return {f"{name} p50": ordered[len(ordered) // 2] * 1e3, f"{name} p99": ordered[len(ordered) * 99 // 100] * 1e3}


if __name__ == "__main__":
    import uvloop

    for figure, value in uvloop.run(run()).items():
        print(f"{figure:52} {value:10.2f}")

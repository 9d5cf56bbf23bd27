"""Asks everybody what became of it, once all is quiet: the API, Mistral's ledger, the receivers' logs."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from clients import Client, Frames, Reader

from chaos.crowd import Crowd, Tenant
from chaos.evidence import Arrival, Asked, Evidence, Strikes, Told
from chaos.town import Town
from tramontane.errors import InvalidSignature
from tramontane.webhooks.signatures import verify

_STATUSES = ("queued", "running", "completed", "failed", "cancelled")
_AT_ONCE = 16


async def settle(town: Town, crowd: Crowd, *, within: float) -> None:
    """Return once every job has ended and every honest receiver was told, or when there is no hope any more."""
    due = {asked.job_id for asked in crowd.asked.values() if asked.path and not asked.hostile}
    try:
        async with asyncio.timeout(within):
            for asked in crowd.asked.values():
                while True:
                    _, job = await crowd.send(
                        asked.tenant, "GET", f"/api/jobs/{asked.job_id}", headers={"prefer": "wait=5"}
                    )
                    if not isinstance(job, dict) or "status" not in job or job.get("completedAt") is not None:
                        break
                    await asyncio.sleep(0.1)
            while due - {one.job_id for one in read_arrivals(town, "receiver-honest")}:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.5)
    except TimeoutError:
        pass  # the checks will say what is missing


async def gather(town: Town, crowd: Crowd, tenants: list[Tenant], strikes: Strikes) -> Evidence:
    """Everything that there is to know."""
    for name in town.names("api"):  # what a server remembers is not what is on disk
        await town.living[name].kill()
        await town.start(name)
    answers = crowd.answers.copy()
    jobs, told = await _read_jobs(crowd, crowd.asked.values())
    calls = await _read_ledger(str(town.mistral.url))
    arrivals = [one for name in ("receiver-honest", "receiver-hostile") for one in read_arrivals(town, name)]
    torn = await _torn(town)
    arrived = {one.job_id for one in arrivals}
    untold = [one for one in crowd.asked.values() if one.path and not one.hostile and one.job_id not in arrived]
    return Evidence(
        asked=crowd.asked,
        jobs=jobs,
        told=told,
        torn=torn,
        listed={tenant.name: await _list(crowd, tenant) for tenant in tenants},
        # The last, since it may do harm.
        trespasses=await _trespass(crowd, tenants),
        calls=calls,
        arrivals=arrivals,
        untold={one.job_id: await _excuse(crowd, one) for one in untold},
        strikes=strikes,
        answers=answers,
        surprises=crowd.surprises,
        followed=crowd.followed,
        misread=crowd.misread,
    )


def read_arrivals(town: Town, receiver: str) -> list[Arrival]:
    """What a receiver has written down, oldest first."""
    return [_arrival(msgspec.json.decode(line), town.secret) for line in _whole_lines(town.log(receiver))]


def _whole_lines(path: Path) -> list[bytes]:
    # It may have been killed in the middle of one, and then it has not answered.
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        found.append(line)
    return found


def _arrival(request: dict[str, Any], secret: str) -> Arrival:
    body: str = request["body"]
    try:
        now = datetime.fromtimestamp(request["at"], UTC)
        verify(body.encode(), request["headers"], secret, now=now)
        wrong = ""
    except InvalidSignature as error:
        wrong = str(error)
    told = msgspec.json.decode(body)
    headers = {name.lower(): value for name, value in request["headers"].items()}
    return Arrival(
        id=headers.get("webhook-id", ""),
        body=body,
        path=request["path"],
        wrong=wrong,
        job_id=told["data"].get("jobId", ""),
        event=told["event"],
        content=told["data"].get("content"),
    )


async def _read_jobs(crowd: Crowd, asked: Iterable[Asked]) -> tuple[dict[str, dict[str, Any] | str], dict[str, Told]]:
    jobs: dict[str, dict[str, Any] | str] = {}
    told: dict[str, Told] = {}
    waiting = iter(list(asked))

    async def read() -> None:
        for one in waiting:
            status, job = await crowd.send(one.tenant, "GET", f"/api/jobs/{one.job_id}")
            jobs[one.job_id] = job if status == 200 else f"HTTP {status}"
            told[one.job_id] = await _told(crowd, one)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(read())
    return jobs, told


async def _told(crowd: Crowd, asked: Asked) -> Told:
    """The job's log from its first event, held to every promise of a stream."""
    reader, frames = Reader(), Frames()

    async def ask(client: Client) -> tuple[int, Any]:
        async with client.events(asked.job_id) as response:
            return response.status, await response.read()

    try:
        status, body = await crowd.call(asked.tenant, ask)
        assert status == 200, f"HTTP {status}"
        for frame in frames.feed(body):
            reader.take(frame)
        assert reader.final is not None, "it has no end"
        assert not frames.unfinished, "it breaks off"
    except (AssertionError, ValueError, KeyError) as error:
        return Told(text=reader.text, head=reader.seq, wrong=str(error)[:200] or repr(error))
    return Told(text=reader.text, head=reader.seq, final=reader.final.event)


async def _torn(town: Town) -> list[str]:
    """Jobs whose rows are not numbered from 1 to the head, or have not one end: what no server can hide."""
    connection = await town.connect()
    try:
        rows = await connection.fetch(
            "SELECT j.id, j.head, count(e.seq), min(e.seq), max(e.seq),"
            " count(*) FILTER (WHERE e.type IN ('complete', 'error')) AS ends"
            " FROM jobs j LEFT JOIN events e ON e.tenant_id = j.tenant_id AND e.job_id = j.id"
            " GROUP BY j.tenant_id, j.id"
        )
    finally:
        await connection.close()
    return [str(dict(row)) for row in rows if not (row["head"] == row["count"] == row["max"] and row["ends"] == 1)]


async def _excuse(crowd: Crowd, asked: Asked) -> str:
    """What the API says of deliveries that did not arrive."""
    _, page = await crowd.send(asked.tenant, "GET", "/api/webhooks/deliveries", params={"jobId": asked.job_id})
    kept = ("status", "attempts", "tries", "dueAt", "nextAttemptAt", "errorClass", "hint")
    found = [{name: one.get(name) for name in kept} for one in page.get("deliveries", [])]
    return str(found or "no delivery")


async def _list(crowd: Crowd, tenant: Tenant) -> dict[str, list[dict[str, Any]]]:
    """All jobs of a tenant, page by page, for each status."""
    found: dict[str, list[dict[str, Any]]] = {}
    for status in _STATUSES:
        jobs = found[status] = []
        cursor: str | None = ""
        while cursor is not None:
            query = {"status": status, "limit": "200"} | ({"cursor": cursor} if cursor else {})
            code, page = await crowd.send(tenant.name, "GET", "/api/jobs", params=query)
            assert code == 200, page
            jobs += page["jobs"]
            cursor = page["next"]
    return found


async def _trespass(crowd: Crowd, tenants: list[Tenant]) -> Counter[int]:
    """Each tenant tries a few jobs of every other one: to read, to follow, to cancel, to erase."""
    answers = Counter[int]()
    for tenant in tenants:
        others = [one for one in crowd.asked.values() if one.tenant != tenant.name]
        for one in others[:: max(1, len(others) // 20)]:
            path = f"/api/jobs/{one.job_id}"
            for method, tail in (
                ("GET", ""),
                ("GET", "/events"),
                ("POST", "/cancel"),
                ("POST", "/retry"),
                ("DELETE", ""),
            ):
                status, _ = await crowd.send(tenant.name, method, path + tail)
                answers[status] += 1
    return answers


async def _read_ledger(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/simulator/ledger") as response:
        calls: list[dict[str, Any]] = (await response.json())["calls"]
        return calls

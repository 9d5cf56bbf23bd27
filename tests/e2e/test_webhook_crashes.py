"""Processes are killed at every turn of a delivery: each webhook arrives, and repeats are known by their id.

The receiver is a process of its own and writes down what comes before it answers. What it has written is the truth.
"""

import asyncio
import base64
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from clients import Client
from processes import Processes, until
from told import Told

from tramontane.database import Database
from tramontane.ids import show_id, utc_now
from tramontane.simulator import Behaviour, Simulator
from tramontane.vault import Vault
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.signatures import Verified, new_secret, verify

KILLS = int(os.environ.get("TRAMONTANE_CHAOS_KILLS", "8"))  # noqa: TID251 - a setting of the tests
SEED = int(os.environ.get("TRAMONTANE_CHAOS_SEED", random.randrange(2**32)))  # noqa: TID251
WEBHOOKS_PER_KILL = 10

SECRET = new_secret()
KEY = base64.urlsafe_b64encode(os.urandom(32)).decode()
WEBHOOKS: dict[str, Any] = {
    "TRAMONTANE_WEBHOOK_SECRET": SECRET,
    "TRAMONTANE_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
    "TRAMONTANE_ENCRYPTION_KEY": KEY,
}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120 + 6 * KILLS)]


@dataclass(frozen=True)
class Arrival:
    """A request at the receiver, with a signature that is valid."""

    at: float
    id: str
    body: str
    path: str
    told: Verified


class Receiver:
    """The receiver's process, and what it has written down."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def arrivals(self, path: str = "") -> list[Arrival]:
        """What came so far, oldest first. A signature that is not valid is an error."""
        found = []
        for line in self._log.read_bytes().splitlines():
            request = msgspec.json.decode(line)
            if request["path"].startswith(path):
                now = datetime.fromtimestamp(request["at"], UTC)
                told = verify(request["body"].encode(), request["headers"], SECRET, now=now)
                found.append(Arrival(request["at"], told.id, request["body"], request["path"], told))
        return found

    def count(self) -> int:
        """How many came so far."""
        return self._log.read_bytes().count(b"\n")

    def counts(self) -> Counter[str]:
        """How often each message came. No two bodies may share an id."""
        bodies = defaultdict[str, set[str]](set)
        for arrival in self.arrivals():
            bodies[arrival.id].add(arrival.body)
        assert all(len(one) == 1 for one in bodies.values())
        return Counter(arrival.id for arrival in self.arrivals())

    async def wait_for(self, count: int, path: str = "", *, within: float = 20.0) -> None:
        await until(lambda: len(self.arrivals(path)) >= count, within=within)


@pytest_asyncio.fixture
async def fleet(simulator: Simulator, database_url: str, short_dir: Path) -> AsyncIterator[Processes]:
    """Processes on one Postgres that outlives them."""
    async with Processes(simulator, short_dir / "data", database_url=database_url, **WEBHOOKS) as processes:
        yield processes


@pytest_asyncio.fixture
async def told(database: Database) -> Told:
    return Told(database)


async def start_receiver(processes: Processes, directory: Path) -> Receiver:
    log = directory / "received"
    log.touch()
    url = (await processes.start("receiver", RECEIVER_LOG=log)).url
    assert url is not None
    return Receiver(url, log)


def callback(receiver: Receiver, path: str = "/fine") -> dict[str, Any]:
    return {"url": receiver.url + path, "events": ["chat.completed"]}


async def settled(told: Told, count: int, *, within: float = 30.0) -> None:
    """Wait until so many deliveries have succeeded."""
    async with asyncio.timeout(within):
        while (await told.states()).count("succeeded") < count:  # noqa: ASYNC110 - only the database can tell
            await asyncio.sleep(0.05)


# At every turn


@pytest.mark.parametrize(
    ("place", "arrivals"), [("admitted", 1), ("sending", 1), ("sent", 2), ("recorded", 1)], ids=str
)
async def test_a_worker_killed_at_any_turn_of_a_delivery_loses_nothing(
    fleet: Processes, told: Told, short_dir: Path, place: str, arrivals: int
) -> None:
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(start_receiver(fleet, short_dir))
        api = tasks.create_task(fleet.start("api"))
        victim = tasks.create_task(fleet.start("worker", DIE_AT=place))
    receiver = starting.result()
    async with Client.to(str(api.result().url)) as client:
        accepted = await client.submit(callback=callback(receiver))
        async with asyncio.timeout(20):
            await victim.result().running.wait()
    await fleet.start("worker")
    await settled(told, 1)

    assert list(receiver.counts().values()) == [arrivals]
    assert {one.told.data["jobId"] for one in receiver.arrivals()} == {accepted["jobId"]}
    assert {one.told.attempt for one in receiver.arrivals()} == {1}
    [row] = await told.rows()
    assert (row["attempts"], row["tries"]) == (1, 1)
    assert len(await told.attempts(row["id"])) == 1


async def test_a_sender_that_was_frozen_past_its_heartbeat_writes_nothing_when_it_wakes(
    fleet: Processes, told: Told, short_dir: Path
) -> None:
    receiver = await start_receiver(fleet, short_dir)
    api = await fleet.start("api")
    async with Client.to(str(api.url)) as client:
        sleeper = await fleet.start("worker")
        await client.submit(callback=callback(receiver, "/slow/400"))
        await receiver.wait_for(1)
        sleeper.signal(signal.SIGSTOP)
        await fleet.start("worker")
        await settled(told, 1)
        [before] = await told.rows()
        lines = await told.attempts(before["id"])
        sleeper.signal(signal.SIGCONT)
        for _ in range(4):
            await client.submit(callback=callback(receiver))
        await settled(told, 5)

    # Its own answer is there, and refused; then it works on as if nothing had been.
    await until(lambda: "delivery.overtaken" in sleeper.written())
    assert sleeper.alive
    assert sorted(receiver.counts().values()) == [1, 1, 1, 1, 2]
    assert await told.row(before["id"]) == before
    assert await told.attempts(before["id"]) == lines
    assert len(lines) == 1


async def test_webhooks_outlive_a_restart_of_postgres(simulator: Simulator, short_dir: Path) -> None:
    async with Processes(simulator, short_dir / "data", **WEBHOOKS) as box:
        receiver = await start_receiver(box, short_dir)
        server = await box.start("serve", TRAMONTANE_CONCURRENCY=20)
        async with Client.to(str(server.url)) as client:
            accepted = [await client.submit(callback=callback(receiver, "/slow/500")) for _ in range(12)]
            await receiver.wait_for(2)
            box.kill_postgres()
            await until(lambda: {one["jobId"] for one in accepted} == jobs_of(receiver), within=40)
            assert server.alive
            connection = await box.connect()
            async with asyncio.timeout(20):
                while await connection.fetchval("SELECT count(*) FROM deliveries WHERE state <> 'succeeded'"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            tries = await connection.fetchval("SELECT count(*) FROM delivery_attempts WHERE status = 204")
            await connection.close()
    # It waits the outage out with its results: nothing is sent twice.
    assert set(receiver.counts().values()) == {1}
    assert tries == 12


def jobs_of(receiver: Receiver) -> set[str]:
    return {arrival.told.data["jobId"] for arrival in receiver.arrivals()}


# At random


class Siege:
    """A fleet whose workers are killed at random while webhooks are due."""

    def __init__(self, fleet: Processes, told: Told, receiver: Receiver, client: Client) -> None:
        self.accepted: set[str] = set()
        #: Deliveries that were under way when a worker was killed.
        self.under_way = 0
        self._fleet, self._told, self._receiver, self._client = fleet, told, receiver, client
        self._chance = random.Random(SEED)

    async def run(self) -> None:
        """Ask for jobs, let some of their webhooks arrive, kill a worker and start another; again and again."""
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(self._fleet.start("worker")) for _ in range(3)]
            for _ in range(KILLS):
                victim = workers.pop(0)
                process = await victim
                goal = self._receiver.count() + self._chance.randrange(WEBHOOKS_PER_KILL)
                await self._submit()
                with suppress(TimeoutError):
                    await until(lambda goal=goal: self._receiver.count() >= goal, within=3)  # type: ignore[misc]
                await process.kill()
                self.under_way += (await self._told.states()).count("dispatched")
                workers.append(tasks.create_task(self._fleet.start("worker")))

    async def _submit(self) -> None:
        for _ in range(WEBHOOKS_PER_KILL):
            job = await self._client.submit(callback=callback(self._receiver, "/slow/30"), attempts=100)
            self.accepted.add(job["jobId"])


async def test_kills_at_random_lose_no_webhook_and_repeat_no_more_than_were_under_way(
    fleet: Processes, told: Told, simulator: Simulator, short_dir: Path
) -> None:
    print(f"TRAMONTANE_CHAOS_SEED={SEED}")
    simulator.behaviour = Behaviour(tokens=5, tokens_per_second=1000)
    receiver = await start_receiver(fleet, short_dir)
    api = await fleet.start("api")
    async with Client.to(str(api.url)) as client:
        siege = Siege(fleet, told, receiver, client)
        await siege.run()
    await settled(told, len(siege.accepted), within=60)

    counts = receiver.counts()
    repeats = counts.total() - len(counts)
    print(f"{KILLS} kills, {len(counts)} webhooks, {repeats} repeats, {siege.under_way} under way when killed")
    assert len(siege.accepted) == len(counts) == WEBHOOKS_PER_KILL * KILLS
    assert jobs_of(receiver) == siege.accepted
    assert repeats <= siege.under_way
    rows = await told.rows()
    assert {show_id("msg", row["message_id"]) for row in rows} == set(counts)
    assert {(row["state"], row["attempts"]) for row in rows} == {("succeeded", 1)}


# Beside a dead one


async def latencies(told: Told, receiver: Receiver, path: str, count: int) -> list[float]:
    """Seconds from commit to arrival, of messages that come one after the other; in order of size."""
    sent: dict[str, float] = {}
    before = len(receiver.arrivals(path))
    for number in range(count):
        message = await told.publish("chat.completed", utc_now(), data={"n": number})
        sent[show_id("msg", message.id)] = utc_now().timestamp()
        await asyncio.sleep(0.01)
    await receiver.wait_for(before + count, path)
    return sorted(one.at - sent[one.id] for one in receiver.arrivals(path) if one.id in sent)


async def test_a_dead_endpoint_with_a_large_backlog_does_not_slow_a_healthy_one(
    fleet: Processes, told: Told, short_dir: Path
) -> None:
    receiver = await start_receiver(fleet, short_dir)
    secret = Vault([KEY]).seal(SECRET)
    await told.endpoint("chat.completed", url=f"{receiver.url}/fine", secret=secret)
    await fleet.start("worker", TRAMONTANE_WEBHOOK_TIMEOUT=1)
    await latencies(told, receiver, "/fine", 10)
    alone = await latencies(told, receiver, "/fine", 100)
    hole = await told.endpoint("chat.failed", url=f"{receiver.url}/hole", secret=secret)
    for _ in range(10):
        now = utc_now()
        await told.publish_all([new_message("chat.failed", now, tenant="default", data={}) for _ in range(1000)])
    await receiver.wait_for(1, "/hole")
    beside = await latencies(told, receiver, "/fine", 100)

    print(f"p50 {alone[50] * 1000:.1f} -> {beside[50] * 1000:.1f} ms, p99 {alone[98]:.4f} -> {beside[98]:.4f} s")
    # Less than one timeout of the dead one, of which ten thousand wait: how much less is for the bench to say.
    assert beside[50] < alone[50] + 0.5
    assert beside[98] < alone[98] + 1.0
    waiting = await told.pool.fetchval(
        "SELECT count(*) FROM deliveries WHERE endpoint_id = $1 AND state = 'waiting'", hole
    )
    assert waiting > 9900
    assert len(await told.entries()) < 100

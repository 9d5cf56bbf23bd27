"""Webhooks in few words: endpoints, messages, and the tries of a delivery, by a clock that stands still."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from lives import T0, Lives

from tramontane import queue
from tramontane.database import Database
from tramontane.ids import new_id
from tramontane.models import Callback, JobKey, WorkerInfo
from tramontane.store import DeliveryStore
from tramontane.store.messages import START_ALLOWANCE, START_HEALTH, publish
from tramontane.webhooks.health import Health
from tramontane.webhooks.messages import ENDINGS, new_message
from tramontane.webhooks.models import ErrorClass, Exchange, NewMessage, Sendable, Tried
from tramontane.webhooks.schedule import judge

FINE = Exchange(status=200)
ILL = Exchange(status=500, error_class=ErrorClass.HTTP_5XX, detail="answered 500")
REFUSED = Exchange(status=404, error_class=ErrorClass.HTTP_4XX, detail="answered 404")
SILENT = Exchange(error_class=ErrorClass.CONNECT_REFUSED, detail="the connection was refused")
GONE = Exchange(status=410, error_class=ErrorClass.GONE, detail="answered 410: gone for good")

ORIGIN = "https://hooks.example:443"


def callback(*, path: str = "/told", events: tuple[str, ...] = ENDINGS, **fields: Any) -> Callback:
    """A callback that the server's default secret signs."""
    return Callback(url=f"{ORIGIN}{path}", origin=ORIGIN, events=events, **fields)


def judged(sendable: Sendable, exchange: Exchange, now: datetime, *, random: float = 0.0) -> Tried:
    """What a sender makes of an exchange."""
    verdict = judge(exchange, attempt=sendable.attempts + 1, now=now, random=random)
    return Tried(
        sendable=sendable,
        state=verdict.state,
        due_at=verdict.due_at,
        counted=verdict.counted,
        hint=verdict.hint,
        started_at=now,
        exchange=exchange,
        outcome=verdict.outcome,
    )


class Told(Lives):
    """Lives that are told: the verbs about deliveries beside those about jobs."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.deliveries = DeliveryStore(database.pool)

    async def senders(self, places: int = 1000) -> None:
        """A worker that sends so many at a time, and that nobody takes for dead in the days that a test may cover."""
        worker = WorkerInfo(
            id=self.worker_id, concurrency=100, heartbeat_seconds=1e7, host="here", pid=1, deliveries=places
        )
        await self.limits.register(worker, rate=0, now=T0)
        await self.answered()

    async def endpoint(self, *events: str, tenant: str = "default", secret: bytes = b"sealed", **columns: Any) -> UUID:
        """A registered endpoint that wants everything, or those events."""
        row = {
            "tenant_id": tenant,
            "id": new_id(),
            "kind": "registered",
            "url": "https://receiver.example/told",
            "events": list(events or ("*",)),
            "allowance": START_ALLOWANCE,
            "health": START_HEALTH,
            "created_at": T0,
            "updated_at": T0,
        } | columns
        names, places = ", ".join(row), ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self.pool.execute(f"INSERT INTO endpoints ({names}) VALUES ({places})", *row.values())
        await self.pool.execute(
            "INSERT INTO endpoint_secrets (tenant_id, endpoint_id, id, secret, primary_from)"
            " VALUES ($1, $2, $2, $3, $4)",
            *(tenant, row["id"], secret, T0),
        )
        return UUID(str(row["id"]))

    async def set_endpoint(self, endpoint: UUID, **columns: Any) -> None:
        sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, 2))
        await self.pool.execute(f"UPDATE endpoints SET {sets} WHERE id = $1", endpoint, *columns.values())

    async def endpoint_row(self, endpoint: UUID) -> asyncpg.Record:
        row = await self.pool.fetchrow("SELECT * FROM endpoints WHERE id = $1", endpoint)
        assert row is not None
        return row

    async def health(self, endpoint: UUID) -> Health:
        return msgspec.json.decode((await self.endpoint_row(endpoint))["health"], type=Health)

    async def publish(self, event: str = "chat.completed", at: datetime = T0, **fields: Any) -> NewMessage:
        """A message, and its deliveries to whoever wants it."""
        given: dict[str, Any] = {"tenant": "default", "data": {"told": event}} | fields
        message = new_message(event, at, **given)
        await self.publish_all([message])
        return message

    async def publish_all(self, messages: list[NewMessage]) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            await publish(connection, messages)

    async def copy(self, delivery: UUID, *, origin: str = "replay", at: datetime = T0) -> UUID:
        """Another delivery of the same message, as a replay makes it."""
        copy = new_id()
        await self.pool.execute(
            "INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, job_id, seq,"
            " final, origin, run_id, state, due_at, created_at)"
            " SELECT tenant_id, $2, message_id, endpoint_id, callback, format, event, job_id, seq, final, $3, $2,"
            " 'waiting', $4, $4 FROM deliveries WHERE id = $1",
            *(delivery, copy, origin, at),
        )
        return copy

    async def admit(self, now: datetime = T0) -> list[UUID]:
        """A round of admission; the deliveries that it let through."""
        return [key.id for key in (await self.deliveries.admit(now)).admitted]

    async def load(self, now: datetime = T0) -> list[Sendable]:
        """All that the queue holds of deliveries, as a sender that takes it would see it, oldest entry first."""
        entries = await self.delivery_entries()
        return [one for one in await self.deliveries.load(entries, now) if one is not None]

    async def delivery_entries(self) -> list[queue.Entry]:
        ours = {row["id"] for row in await self.pool.fetch("SELECT id FROM deliveries")}
        return [queue.Entry(entry_id, key) for entry_id, _, key in await self.entries() if key.id in ours]

    async def load_one(self, now: datetime = T0) -> Sendable:
        [sendable] = await self.load(now)
        return sendable

    async def record(self, *tries: Tried, now: datetime = T0) -> list[bool]:
        return await self.deliveries.record(tries, worker_id=self.worker_id, now=now)

    async def send(self, now: datetime = T0, exchange: Exchange = FINE, *, random: float = 0.0) -> list[UUID]:
        """A round of admission, and the same answer to each of what it let through; those that were sent."""
        await self.admit(now)
        sent = [one for one in await self.load(now) if one.welcome]
        if sent:
            assert all(await self.record(*(judged(one, exchange, now, random=random) for one in sent), now=now))
        return [one.id for one in sent]

    async def tell(self, *, seq: int, job_id: UUID, **fields: Any) -> UUID:
        """A message of a job to the one endpoint there is; the id of its delivery."""
        final = fields.pop("final", False)
        event = "chat.completed" if final else "chat.started"
        message = await self.publish(event, seq=seq, job_id=job_id, final=final, **fields)
        [row] = await self.rows("message_id = $1", message.id)
        return UUID(str(row["id"]))

    async def rows(self, where: str = "true", *arguments: Any) -> list[asyncpg.Record]:
        """Deliveries, in the order in which they were made."""
        return await self.pool.fetch(f"SELECT * FROM deliveries WHERE {where} ORDER BY created_at, id", *arguments)

    async def row(self, delivery: UUID) -> asyncpg.Record:
        [row] = await self.rows("id = $1", delivery)
        return row

    async def states(self) -> list[str]:
        return [row["state"] for row in await self.rows()]

    async def messages(self) -> list[asyncpg.Record]:
        """Messages with their bodies, oldest first."""
        return await self.pool.fetch(
            "SELECT m.*, b.body, b.thin FROM messages m"
            " LEFT JOIN message_bodies b ON b.tenant_id = m.tenant_id AND b.message_id = m.id ORDER BY m.at, m.id"
        )

    async def attempts(self, delivery: UUID) -> list[asyncpg.Record]:
        return await self.pool.fetch("SELECT * FROM delivery_attempts WHERE delivery_id = $1 ORDER BY number", delivery)

    async def told(self, key: JobKey | None = None) -> list[str]:
        """What was told, of a job or of all, in order."""
        return [row["event"] for row in await self.messages() if key is None or row["job_id"] == key.id]

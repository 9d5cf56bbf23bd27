"""What was told, to whom, and how each try went: read, newest first. Listings have no body of a message in them."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec

from tramontane.errors import NotFound
from tramontane.ids import show_id
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements
from tramontane.webhooks.models import DeliveryState, Timings
from tramontane.webhooks.records import (
    AttemptFilter,
    AttemptLine,
    DeliveryFilter,
    DeliveryRecord,
    MessageFilter,
    MessageRecord,
)

SQL = Statements("history")


class HistoryStore:
    """Reading verbs about messages, deliveries and attempts. NotFound also stands for those of other tenants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def messages(
        self, tenant: str, wanted: MessageFilter, *, before: UUID | None, limit: int
    ) -> list[MessageRecord]:
        """Messages that match, from before a cursor."""
        given = (wanted.event, wanted.job_id, wanted.since, wanted.until)
        return [_message(row) for row in await self._list(SQL.list_messages, tenant, before, *given, limit)]

    async def message(self, tenant: str, message_id: UUID) -> MessageRecord:
        """A message with its body, as far as that is still there. Raises NotFound."""
        row = await self._pool.fetchrow(SQL.get_message, tenant, message_id)
        if row is None:
            raise NotFound(f"no such message: {show_id('msg', message_id)}")
        return _message(row)

    async def deliveries(
        self, tenant: str, wanted: DeliveryFilter, *, before: UUID | None, limit: int
    ) -> list[DeliveryRecord]:
        """Deliveries that match, from before a cursor."""
        rows = await self._list(
            SQL.list_deliveries,
            tenant,
            before,
            wanted.endpoint_id,
            wanted.event,
            wanted.state,
            wanted.error_class,
            wanted.job_id,
            wanted.message_id,
            wanted.since,
            wanted.until,
            limit,
        )
        return [_delivery(row) for row in rows]

    async def delivery(self, tenant: str, delivery_id: UUID) -> DeliveryRecord:
        """A delivery. Raises NotFound."""
        row = await self._pool.fetchrow(SQL.get_delivery, tenant, delivery_id)
        if row is None:
            raise NotFound(f"no such delivery: {show_id('dlv', delivery_id)}")
        return _delivery(row)

    async def attempts(
        self, tenant: str, wanted: AttemptFilter, *, before: tuple[UUID, int] | None, limit: int
    ) -> list[AttemptLine]:
        """Attempts that match, from before a cursor: a delivery and the number of its attempt."""
        rows = await self._list(
            SQL.list_attempts,
            tenant,
            before and before[0],
            before and before[1],
            wanted.endpoint_id,
            wanted.event,
            wanted.delivery_id,
            wanted.error_class,
            wanted.succeeded,
            wanted.since,
            wanted.until,
            limit,
        )
        return [_attempt(row) for row in rows]

    async def _list(self, statement: str, *given: object) -> Sequence[asyncpg.Record]:
        if any("\0" in one for one in given if isinstance(one, str)):
            return []  # no text in Postgres has one, and it refuses to compare with one
        return await self._pool.fetch(statement, *given)


def _message(row: asyncpg.Record) -> MessageRecord:
    return MessageRecord(
        id=row["id"], event=row["event"], at=row["at"], job_id=row["job_id"], seq=row["seq"], body=row["sent"]
    )


def _delivery(row: asyncpg.Record) -> DeliveryRecord:
    return DeliveryRecord(
        id=row["id"],
        message_id=row["message_id"],
        endpoint_id=row["endpoint_id"],
        callback=row["callback"],
        url=row["url"],
        event=row["event"],
        job_id=row["job_id"],
        seq=row["seq"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        tries=row["tries"],
        origin=row["origin"],
        due_at=row["due_at"],
        last_status=row["last_status"],
        last_error=row["last_error"],
        hint=row["hint"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
    )


def _attempt(row: asyncpg.Record) -> AttemptLine:
    headers = msgspec.json.decode(row["response_headers"] or "[]", type=tuple[tuple[str, str], ...])
    return AttemptLine(
        delivery_id=row["delivery_id"],
        number=row["number"],
        counted=row["counted"],
        endpoint_id=None if row["callback"] else row["endpoint_id"],
        event=row["event"],
        started_at=row["started_at"],
        status=row["status"],
        error_class=row["error_class"],
        detail=row["detail"],
        hint=row["hint"],
        timings=Timings(
            dns=row["dns_ms"],
            connect=row["connect_ms"],
            tls=row["tls_ms"],
            first_byte=row["first_byte_ms"],
            total=row["total_ms"],
        ),
        remote_ip=row["remote_ip"],
        headers=headers,
        body=row["response_body"] or b"",
        truncated=row["truncated"],
    )

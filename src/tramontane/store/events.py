"""The event log: append under the fence, read after a cursor, prune by age."""

from collections.abc import Sequence
from datetime import datetime

from tramontane.models import Batch, Event, JobKey, State
from tramontane.store.rows import Pool, event_from, key_from
from tramontane.store.statements import Statements

SQL = Statements("events")


class EventStore:
    """Verbs about events. Each is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def append(self, batches: Sequence[Batch], now: datetime) -> list[int | None]:
        """Append one batch for each of several attempts; all that is accepted is durable on return.

        Returns for each batch its job's new head. A repeated batch (its commit's outcome was unknown) is in the log
        once, and reported as accepted. None stands where the attempt has lost its fence: another one runs, or the job
        has ended.
        """
        rows = await self._pool.fetch(SQL.append_events, *_columns(batches), now)
        heads: list[int | None] = [None] * len(batches)
        for row in rows:
            heads[row["place"] - 1] = row["head"]
        if len(rows) < len(batches):
            repeated = await self._repeated([batch for batch, head in zip(batches, heads, strict=True) if head is None])
            pairs = zip(batches, heads, strict=True)
            heads = [repeated.get((batch.key, batch.attempt)) if head is None else head for batch, head in pairs]
        return heads

    async def _repeated(self, batches: Sequence[Batch]) -> dict[tuple[JobKey, int], int]:
        tenants, ids = [batch.key.tenant for batch in batches], [batch.key.id for batch in batches]
        fences = {key_from(row): row for row in await self._pool.fetch(SQL.fences, tenants, ids)}
        heads = {}
        for batch in batches:
            row = fences.get(batch.key)
            if row is None or row["state"] != State.RUNNING or row["attempt"] != batch.attempt:
                continue
            if row["batch"] >= batch.number:
                heads[batch.key, batch.attempt] = row["head"]
        return heads

    async def read(self, cursors: dict[JobKey, int], *, limit: int = 500) -> dict[JobKey, list[Event]]:
        """The next events of several jobs, each after its own cursor, at most `limit` of each, in order."""
        rows = await self._pool.fetch(
            SQL.read_after, [key.tenant for key in cursors], [key.id for key in cursors], list(cursors.values()), limit
        )
        events: dict[JobKey, list[Event]] = {}
        for row in rows:
            events.setdefault(JobKey(tenant=row["tenant_id"], id=row["job_id"]), []).append(event_from(row))
        return events

    async def gone(self, keys: Sequence[JobKey]) -> list[JobKey]:
        """Those of `keys` whose events were deleted by retention or erasure."""
        rows = await self._pool.fetch(SQL.gone, [key.tenant for key in keys], [key.id for key in keys]) if keys else []
        return [key_from(row) for row in rows]

    async def prune(self, *, ended_before: datetime, now: datetime, limit: int = 200) -> int:
        """Delete the events of at most `limit` jobs that ended before a time; returns how many jobs."""
        count: int = await self._pool.fetchval(SQL.prune_events, ended_before, limit, now)
        return count


def _columns(batches: Sequence[Batch]) -> tuple[list[object], ...]:
    # Every element of every array is looked at by the driver: events name their batch by its place, and nothing else.
    events = [(place, event) for place, batch in enumerate(batches, 1) for event in batch.events]
    return (
        [batch.key.tenant for batch in batches],
        [batch.key.id for batch in batches],
        [batch.attempt for batch in batches],
        [batch.number for batch in batches],
        [len(batch.events) for batch in batches],
        [place for place, _ in events],
        [event.type for _, event in events],
        [event.body.decode() for _, event in events],
    )

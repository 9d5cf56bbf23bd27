"""The event log: append under the fence, read after a cursor, prune by age."""

from collections.abc import Sequence
from datetime import datetime

from tramontane.models import Batch, Event, JobKey, State
from tramontane.store.rows import Pool, event_from, key_from
from tramontane.store.statements import Statements

SQL = Statements("events")

#: ASCII's record separator; inside JSON it is always escaped.
_SEPARATOR = "\x1e"


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

    async def history(self, key: JobKey, after: int, *, limit: int) -> list[Event]:
        """The next events of one job, at most `limit`: for readers that have much to read."""
        row = await self._pool.fetchrow(SQL.history, key.tenant, key.id, after, limit)
        if row is None or row["first"] is None:
            return []
        columns = (row[name].split(_SEPARATOR) for name in ("attempts", "types", "bodies"))
        return [  # their numbers are dense
            Event(seq=seq, attempt=int(attempt), type=type_, body=body.encode())
            for seq, (attempt, type_, body) in enumerate(zip(*columns, strict=True), row["first"])
        ]

    async def told(self, key: JobKey, *, head: int, types: Sequence[str]) -> list[Event]:
        """The events of some types up to the one numbered `head`, in order."""
        rows = await self._pool.fetch(SQL.told_until, key.tenant, key.id, head, list(types))
        return [event_from(row) for row in rows]

    async def gone(self, keys: Sequence[JobKey]) -> list[JobKey]:
        """Those of `keys` whose events were deleted by retention or erasure."""
        rows = await self._pool.fetch(SQL.gone, [key.tenant for key in keys], [key.id for key in keys]) if keys else []
        return [key_from(row) for row in rows]

    async def prune(self, *, ended_before: datetime, now: datetime, limit: int = 200) -> int:
        """Delete the events of at most `limit` jobs that ended before a time; returns how many jobs."""
        count: int = await self._pool.fetchval(SQL.prune_events, ended_before, limit, now)
        return count


def _columns(batches: Sequence[Batch]) -> list[str]:
    # Each column is one text, taken apart in SQL: of an array the driver would look at every element.
    # Events name their batch by its place, and nothing else.
    events = [(str(place), event) for place, batch in enumerate(batches, 1) for event in batch.events]
    return [
        _column([batch.key.tenant for batch in batches]),
        _column([str(batch.key.id) for batch in batches]),
        _column([str(batch.attempt) for batch in batches]),
        _column([str(batch.number) for batch in batches]),
        _column([str(len(batch.events)) for batch in batches]),
        _column([place for place, _ in events]),
        _column([event.type for _, event in events]),
        _column([event.body.decode() for _, event in events]),
    ]


def _column(values: list[str]) -> str:
    text = _SEPARATOR.join(values)
    if values and text.count(_SEPARATOR) != len(values) - 1:
        raise ValueError("an event holds a control character that no JSON may hold")
    return text

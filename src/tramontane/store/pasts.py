"""What a later attempt is told of the earlier ones."""

from collections.abc import Sequence

from tramontane.models import Event, JobKey, Past
from tramontane.store.rows import Connection, event_from, key_from
from tramontane.store.statements import Statements

SQL = Statements("pasts")


async def read_pasts(connection: Connection, keys: Sequence[JobKey]) -> dict[JobKey, Past]:
    """The pasts of jobs of which at least one attempt has ended, in the caller's transaction.

    Under the lock of a start they are whole: the attempts they tell of can write nothing more.
    """
    if not keys:
        return {}
    tenants, ids = [key.tenant for key in keys], [key.id for key in keys]
    events: dict[JobKey, list[Event]] = {}
    for row in await connection.fetch(SQL.told, tenants, ids):
        events.setdefault(key_from(row), []).append(event_from(row))
    return {
        (key := key_from(row)): Past(
            reason=row["reason"],
            events=tuple(events.get(key, ())),
            usages=tuple(usage.encode() for usage in row["usages"]),
            unreported=row["unreported"],
        )
        for row in await connection.fetch(SQL.ended_attempts, tenants, ids)
    }

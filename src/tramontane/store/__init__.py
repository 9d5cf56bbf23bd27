"""The store speaks the domain: no SQL above it, no row or connection out of it; one verb, one transaction."""

from tramontane import queue
from tramontane.database import Database, migrate
from tramontane.store.events import EventStore
from tramontane.store.jobs import Contents, JobStore
from tramontane.store.limits import LimitStore

__all__ = ["Contents", "EventStore", "JobStore", "LimitStore", "prepare"]


async def prepare(database: Database) -> list[str]:
    """Bring a database to this version's tables, pgqueuer's included. Returns the migrations that were applied."""
    return await migrate(database, also=queue.install)

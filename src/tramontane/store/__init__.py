"""The store speaks the domain: no SQL above it, no row or connection out of it; one verb, one transaction."""

from tramontane import queue
from tramontane.database import Database, migrate
from tramontane.store.deliveries import DeliveryStore
from tramontane.store.encryption import EncryptionStore
from tramontane.store.endpoints import EndpointStore
from tramontane.store.events import EventStore
from tramontane.store.history import HistoryStore
from tramontane.store.jobs import Contents, JobStore
from tramontane.store.limits import LimitStore
from tramontane.store.listeners import ListenerStore
from tramontane.store.recoveries import RecoveryStore

__all__ = [
    "Contents",
    "DeliveryStore",
    "EncryptionStore",
    "EndpointStore",
    "EventStore",
    "HistoryStore",
    "JobStore",
    "LimitStore",
    "ListenerStore",
    "RecoveryStore",
    "prepare",
]


async def prepare(database: Database) -> list[str]:
    """Bring a database to this version's tables, pgqueuer's included. Returns the migrations that were applied."""
    return await migrate(database, also=queue.install)

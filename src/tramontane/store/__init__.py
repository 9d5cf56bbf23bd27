"""The store speaks the domain: no SQL above it, no row or connection out of it; one verb, one transaction."""

from tramontane import queue
from tramontane.database import Database, migrate
from tramontane.store.buckets import BucketStore
from tramontane.store.census import CensusStore
from tramontane.store.deliveries import DeliveryStore
from tramontane.store.encryption import EncryptionStore
from tramontane.store.endpoints import EndpointStore
from tramontane.store.events import EventStore
from tramontane.store.history import HistoryStore
from tramontane.store.jobs import Contents, JobStore
from tramontane.store.keys import KeyStore
from tramontane.store.limits import LimitStore
from tramontane.store.listeners import ListenerStore
from tramontane.store.overdue import OverdueStore
from tramontane.store.pauses import PauseStore
from tramontane.store.recoveries import RecoveryStore
from tramontane.store.retention import RetentionStore
from tramontane.store.retries import RetryStore, asked_again
from tramontane.store.schedules import ScheduleStore, Turn
from tramontane.store.standings import Standing, StandingStore
from tramontane.store.surveys import Line, Survey, SurveyStore
from tramontane.store.tenants import TenantStore

__all__ = [
    "BucketStore",
    "CensusStore",
    "Contents",
    "DeliveryStore",
    "EncryptionStore",
    "EndpointStore",
    "EventStore",
    "HistoryStore",
    "JobStore",
    "KeyStore",
    "LimitStore",
    "Line",
    "ListenerStore",
    "OverdueStore",
    "PauseStore",
    "RecoveryStore",
    "RetentionStore",
    "RetryStore",
    "ScheduleStore",
    "Standing",
    "StandingStore",
    "Survey",
    "SurveyStore",
    "TenantStore",
    "Turn",
    "asked_again",
    "prepare",
]


async def prepare(database: Database) -> list[str]:
    """Bring a database to this version's tables, pgqueuer's included. Returns the migrations that were applied."""
    return await migrate(database, also=queue.install)

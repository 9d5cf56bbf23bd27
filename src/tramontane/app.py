"""The composition root: the only file that wires everything, and the owner of every service's task."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tramontane.admission import AdmissionService
from tramontane.appender import Appender
from tramontane.callbacks import Callbacks
from tramontane.database import Database, open_database
from tramontane.deliveries import Sender
from tramontane.endpoints import Endpoints
from tramontane.jobs import Jobs
from tramontane.listener import Listener
from tramontane.listening import Listeners
from tramontane.maintenance import Maintenance
from tramontane.mistral import MistralClient
from tramontane.places import Places
from tramontane.queue import Consumer, Entry, Work
from tramontane.runner import Runner
from tramontane.settings import Settings
from tramontane.store import (
    DeliveryStore,
    EncryptionStore,
    EndpointStore,
    EventStore,
    HistoryStore,
    JobStore,
    LimitStore,
    ListenerStore,
    RecoveryStore,
    prepare,
)
from tramontane.streams import Streams
from tramontane.tasks import beside, task_group
from tramontane.tickets import Tickets
from tramontane.vault import Vault, open_vault
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.resolver import Resolver
from tramontane.webhooks.transport import Transport
from tramontane.worker import Worker


@dataclass(frozen=True, kw_only=True)
class App:
    """A running process: the services that faces talk to."""

    settings: Settings
    database: Database
    jobs: Jobs
    streams: Streams
    places: Places
    tickets: Tickets
    callbacks: Callbacks
    endpoints: Endpoints
    listeners: Listeners
    #: None in a process that only serves the API.
    worker: Worker | None


@asynccontextmanager
async def open_app(settings: Settings, *, worker: bool) -> AsyncIterator[App]:
    """Start everything below the faces; on leaving, let running jobs have their grace, and stop.

    Raises DatabaseError and ConfigurationError with what to change.
    """
    async with open_database(settings, connections=10 + min(settings.concurrency, 20)) as database:
        await prepare(database)
        vault, policy = open_vault(settings), AddressPolicy.from_settings(settings)
        await EncryptionStore(database.pool).acquaint(vault.fingerprints)
        listener = Listener(database.connect)
        jobs, events = JobStore(database.pool, public_url=_public_url(settings)), EventStore(database.pool)
        streams = Streams(jobs, events, listener, heartbeat=settings.stream_heartbeat)
        service = Jobs(jobs, streams.wake)
        resolver = Resolver()
        endpoints = Endpoints(
            EndpointStore(database.pool),
            HistoryStore(database.pool),
            RecoveryStore(database.pool),
            policy,
            vault,
            resolver,
        )
        async with AsyncExitStack() as stack:
            stack.callback(resolver.close)
            await stack.enter_async_context(beside(listener.run(), streams.run(), service.run()))
            await listener.listening.wait()
            running = None
            if worker:
                parts = _Parts(settings, database, listener, streams, jobs, events, vault, policy)
                running = await stack.enter_async_context(_working(parts))
            yield App(
                settings=settings,
                database=database,
                jobs=service,
                streams=streams,
                places=Places(total=settings.streams, per_address=settings.streams_per_address),
                tickets=Tickets(vault),
                callbacks=Callbacks(policy, vault, settings),
                endpoints=endpoints,
                listeners=Listeners(ListenerStore(database.pool), vault, listener),
                worker=running,
            )


@dataclass(frozen=True)
class _Parts:
    """What a worker shares with the faces of its process."""

    settings: Settings
    database: Database
    listener: Listener
    streams: Streams
    jobs: JobStore
    events: EventStore
    vault: Vault
    policy: AddressPolicy


@asynccontextmanager
async def _working(parts: _Parts) -> AsyncIterator[Worker]:
    settings, pool, listener = parts.settings, parts.database.pool, parts.listener
    limits, deliveries = LimitStore(pool), DeliveryStore(pool)
    poll = min(1.0, settings.poll)
    admission = AdmissionService(limits, listener, poll=poll)
    delivery_admission = AdmissionService(deliveries, listener, poll=poll, channel="tramontane_deliveries")
    appender = Appender(parts.events, parts.streams.appended, interval=settings.flush)
    maintenance = Maintenance(
        parts.jobs,
        parts.events,
        limits,
        deliveries,
        heartbeat=settings.heartbeat,
        retention=settings.stream_retention,
        webhook_retention=settings.webhook_retention,
    )

    def consumer_of(work: Work, concurrency: int) -> Callable[[Callable[[Entry], Awaitable[None]]], Consumer]:
        return lambda handle: Consumer(
            pool,
            listener,
            handle,
            concurrency=concurrency,
            heartbeat=settings.heartbeat,
            poll=settings.poll,
            work=work,
        )

    async with (
        MistralClient.from_settings(settings) as mistral,
        Transport(parts.policy, per_host=settings.webhook_concurrency) as transport,
        beside(admission.run(), delivery_admission.run(), appender.run(), maintenance.run()),
        task_group() as tasks,
    ):
        worker = Worker(
            parts.jobs,
            limits,
            consumer_of(Work.JOB, settings.concurrency),
            Runner(mistral, appender),
            admission,
            settings,
            parts.streams.wake,
        )
        sender = Sender(
            deliveries,
            consumer_of(Work.DELIVERY, settings.webhook_concurrency),
            transport.send,
            parts.vault,
            delivery_admission,
            settings,
            worker_id=worker.id,
            dice=random.random,
        )
        tasks.create_task(worker.run())
        tasks.create_task(sender.run())
        try:
            yield worker
        finally:
            worker.stop()
            sender.stop()


def _public_url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_url or f"http://{host}:{settings.port}"

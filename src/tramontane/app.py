"""The composition root: the only file that wires everything, and the owner of every service's task."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tramontane.admission import AdmissionService
from tramontane.appender import Appender
from tramontane.authentication import Authentication
from tramontane.bulk import Bulk
from tramontane.callbacks import Callbacks
from tramontane.calls import Calls
from tramontane.database import Database, open_database
from tramontane.deliveries import Sender
from tramontane.endpoints import Endpoints
from tramontane.errors import ConfigurationError
from tramontane.gauge import Gauge
from tramontane.jobs import Jobs
from tramontane.leader import Leader, again
from tramontane.listener import Listener
from tramontane.listening import Listeners
from tramontane.maintenance import Maintenance
from tramontane.metrics import Metrics
from tramontane.mistral import MistralClient
from tramontane.operations import Operations
from tramontane.overdue import Overdue
from tramontane.places import Places
from tramontane.prices import Prices, read_prices
from tramontane.queue import Consumer, Entry, Work
from tramontane.runner import Runner
from tramontane.schedules import Schedules
from tramontane.settings import Settings
from tramontane.standings import Standings
from tramontane.store import (
    BucketStore,
    CensusStore,
    DeliveryStore,
    EncryptionStore,
    EndpointStore,
    EventStore,
    HistoryStore,
    JobStore,
    KeyStore,
    LimitStore,
    ListenerStore,
    OverdueStore,
    PauseStore,
    RecoveryStore,
    RetentionStore,
    RetryStore,
    ScheduleStore,
    StandingStore,
    SurveyStore,
    prepare,
)
from tramontane.streams import Streams
from tramontane.tasks import beside, task_group
from tramontane.tickets import Tickets
from tramontane.tracing import Tracing
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
    authentication: Authentication
    callbacks: Callbacks
    endpoints: Endpoints
    listeners: Listeners
    bulk: Bulk
    pauses: PauseStore
    schedules: Schedules
    standings: Standings
    surveys: SurveyStore
    operations: Operations
    tracing: Tracing
    #: None in a process that only serves the API.
    worker: Worker | None
    sender: Sender | None = None

    def drain(self) -> None:
        """Say that this process is about to end, and take no more jobs and webhooks; requests are still answered."""
        self.operations.draining = True
        for service in (self.worker, self.sender):
            if service is not None:
                service.stop()


@asynccontextmanager
async def open_app(settings: Settings, *, worker: bool, tracing: Tracing | None = None) -> AsyncIterator[App]:
    """Start everything below the faces; on leaving, let running jobs have their grace, and stop.

    tracing: makes the spans; those of the process' own provider when None.
    Raises DatabaseError and ConfigurationError with what to change.
    """
    prices = price_table(settings)
    async with open_database(settings, connections=10 + min(settings.concurrency, 20)) as database:
        await prepare(database)
        vault, policy = open_vault(settings), AddressPolicy.from_settings(settings)
        await EncryptionStore(database.pool).acquaint(vault.fingerprints)
        listener = Listener(database.connect)
        jobs = JobStore(database.pool, public_url=_public_url(settings), prices=prices)
        events = EventStore(database.pool)
        streams = Streams(jobs, events, listener, heartbeat=settings.stream_heartbeat)
        metrics, tracing = Metrics(), tracing or Tracing()
        operations = Operations(database, CensusStore(database.pool), metrics, listener)
        metrics.watch("tramontane_stream_readers", "streams that this process serves", streams.readers)
        standings = Standings(StandingStore(database.pool), queue_limit=settings.queue_limit)
        service = Jobs(jobs, streams.wake, metrics.ended, told=metrics.group("submit"), standings=standings)
        schedules = Schedules(ScheduleStore(database.pool), standings)
        authentication = Authentication(KeyStore(database.pool))
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
            await stack.enter_async_context(beside(listener.run(), streams.run(), service.run(), operations.run()))
            await listener.listening.wait()
            await authentication.watch(listener)
            running: tuple[Worker, Sender] | tuple[None, None] = (None, None)
            if worker:
                parts = _Parts(
                    settings, database, listener, streams, jobs, events, vault, policy, metrics, tracing, operations
                )
                running = await stack.enter_async_context(_working(parts, schedules, prices))
            yield App(
                settings=settings,
                database=database,
                jobs=service,
                streams=streams,
                places=Places(total=settings.streams, per_address=settings.streams_per_address),
                tickets=Tickets(vault),
                authentication=authentication,
                callbacks=Callbacks(policy, vault, settings),
                endpoints=endpoints,
                bulk=Bulk(jobs, RetryStore(database.pool), standings),
                pauses=PauseStore(database.pool),
                schedules=schedules,
                standings=standings,
                surveys=SurveyStore(database.pool),
                operations=operations,
                tracing=tracing,
                listeners=Listeners(ListenerStore(database.pool), vault, listener),
                worker=running[0],
                sender=running[1],
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
    metrics: Metrics
    tracing: Tracing
    operations: Operations


@asynccontextmanager
async def _working(parts: _Parts, schedules: Schedules, prices: Prices) -> AsyncIterator[tuple[Worker, Sender]]:
    settings, pool, listener = parts.settings, parts.database.pool, parts.listener
    limits, deliveries = LimitStore(pool), DeliveryStore(pool)
    poll = min(1.0, settings.poll)
    admission = AdmissionService(limits, listener, poll=poll)
    gauge = Gauge(BucketStore(pool), admission.wake, window=settings.limit_window)
    delivery_admission = AdmissionService(deliveries, listener, poll=poll, channel="tramontane_deliveries")
    appender = Appender(parts.events, parts.streams.appended, interval=settings.flush)
    maintenance = Maintenance(
        parts.jobs,
        parts.events,
        limits,
        deliveries,
        RetentionStore(pool),
        parts.metrics.ended,
        heartbeat=settings.heartbeat,
        retention=settings.stream_retention,
        result_retention=settings.result_retention,
        job_retention=settings.job_retention,
        webhook_retention=settings.webhook_retention,
    )
    overdue_jobs = OverdueStore(pool, public_url=_public_url(settings))
    overdue = Overdue(overdue_jobs, parts.streams.wake, parts.metrics.ended)
    leader = Leader(parts.database, maintenance.run, again(schedules.tick, every=1.0), again(overdue.tick, every=0.8))
    parts.metrics.watch("tramontane_leader", "1 in the process that leads", lambda: leader.leading)

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
        beside(admission.run(), delivery_admission.run(), appender.run(), leader.run(), gauge.run()),
        task_group() as tasks,
    ):
        worker = Worker(
            parts.jobs,
            limits,
            consumer_of(Work.JOB, settings.concurrency),
            Runner(mistral, appender, parts.vault, Calls(parts.metrics, parts.tracing), gauge),
            admission,
            settings,
            parts.streams.wake,
            prices,
            metrics=parts.metrics,
            tracing=parts.tracing,
            unfit=parts.operations.unfit,
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
            metrics=parts.metrics,
            tracing=parts.tracing,
        )
        tasks.create_task(worker.run())
        tasks.create_task(sender.run())
        try:
            yield worker, sender
        finally:
            worker.stop()
            sender.stop()


def price_table(settings: Settings) -> Prices:
    """The table of prices, read once: another one counts from the next start. Raises ConfigurationError."""
    if not settings.prices:
        return Prices()
    try:
        text = Path(settings.prices).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"TRAMONTANE_PRICES: {settings.prices} cannot be read: {error}") from None
    return read_prices(text, f"TRAMONTANE_PRICES: {settings.prices}")


def _public_url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_url or f"http://{host}:{settings.port}"

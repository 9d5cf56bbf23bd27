"""The composition root: the only file that wires everything, and the owner of every service's task."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tramontane.admission import AdmissionService
from tramontane.appender import Appender
from tramontane.database import Database, open_database
from tramontane.jobs import Jobs
from tramontane.listener import Listener
from tramontane.maintenance import Maintenance
from tramontane.mistral import MistralClient
from tramontane.queue import Consumer
from tramontane.runner import Runner
from tramontane.settings import Settings
from tramontane.store import EventStore, JobStore, LimitStore, prepare
from tramontane.streams import Streams
from tramontane.tasks import beside, task_group
from tramontane.worker import Worker


@dataclass(frozen=True, kw_only=True)
class App:
    """A running process: the services that faces talk to."""

    settings: Settings
    database: Database
    jobs: Jobs
    streams: Streams
    #: None in a process that only serves the API.
    worker: Worker | None


@asynccontextmanager
async def open_app(settings: Settings, *, worker: bool) -> AsyncIterator[App]:
    """Start everything below the faces; on leaving, let running jobs have their grace, and stop.

    Raises DatabaseError and ConfigurationError with what to change.
    """
    async with open_database(settings, connections=10 + min(settings.concurrency, 20)) as database:
        await prepare(database)
        listener = Listener(database.connect)
        jobs, events, limits = JobStore(database.pool), EventStore(database.pool), LimitStore(database.pool)
        streams = Streams(jobs, events, listener, heartbeat=settings.stream_heartbeat)
        service = Jobs(jobs, streams.wake)
        async with beside(listener.run(), streams.run(), service.run()):
            await listener.listening.wait()
            if worker:
                async with _working(settings, database, listener, streams, limits) as running:
                    yield App(settings=settings, database=database, jobs=service, streams=streams, worker=running)
            else:
                yield App(settings=settings, database=database, jobs=service, streams=streams, worker=None)


@asynccontextmanager
async def _working(
    settings: Settings, database: Database, listener: Listener, streams: Streams, limits: LimitStore
) -> AsyncIterator[Worker]:
    jobs, events = JobStore(database.pool), EventStore(database.pool)
    admission = AdmissionService(limits, listener, poll=min(1.0, settings.poll))
    appender = Appender(events, streams.appended, interval=settings.flush)
    maintenance = Maintenance(jobs, events, limits, heartbeat=settings.heartbeat, retention=settings.stream_retention)
    async with (
        MistralClient.from_settings(settings) as mistral,
        beside(admission.run(), appender.run(), maintenance.run()),
        task_group() as tasks,
    ):
        worker = Worker(
            jobs,
            limits,
            lambda handle: Consumer(
                database.pool,
                listener,
                handle,
                concurrency=settings.concurrency,
                heartbeat=settings.heartbeat,
                poll=settings.poll,
            ),
            Runner(mistral, appender),
            admission,
            settings,
            streams.wake,
        )
        tasks.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()

"""The four ways to hold a Tramontane (remote or embedded, asynchronous or not) as one: one suite is for all.

The asynchronous face is the measure; a blocking one is called in threads, where it may wait as long as it likes.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import pytest

from tramontane import JobSync, Result, StreamEvent, Tramontane, TramontaneSync
from tramontane.api import serving
from tramontane.app import open_app
from tramontane.embedded import EmbeddedServer
from tramontane.ports import listen_on, url_of
from tramontane.settings import Settings
from tramontane.simulator import Simulator

T = TypeVar("T")

#: Each is a group of its own, so that one process of the test run has all that share an engine.
FACES = [
    pytest.param(face, marks=pytest.mark.xdist_group(face))
    for face in ("remote", "embedded", "remote-sync", "embedded-sync")
]

_END = object()
_NUMBERS = itertools.count(1)


def engine(simulator: Simulator, database_url: str, **changes: Any) -> dict[str, Any]:
    """Settings of an engine that waits for nothing."""
    return {
        "database_url": database_url,
        "mistral_server_url": simulator.url,
        "mistral_api_key": "a-key",
        "rate_limit": 0.0,
        "heartbeat": 1.0,
        "poll": 0.2,
        "grace": 0.1,
        "backoff": 0.01,
        **changes,
    }


@asynccontextmanager
async def fresh_database(server: EmbeddedServer) -> AsyncIterator[str]:
    """The address of an empty database, for fixtures that outlive a test."""
    name = f"clients_{next(_NUMBERS)}"
    connection = await asyncpg.connect(server.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield server.dsn.replace("@/tramontane?", f"@/{name}?")
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[str]:
    """The address of a server in this process."""
    async with open_app(Settings(**settings), worker=True) as app:
        bound = listen_on("127.0.0.1", 0)
        async with serving(app, bound):
            yield url_of(bound)


@asynccontextmanager
async def opened(face: str, settings: dict[str, Any], **client: Any) -> AsyncIterator[Any]:
    """A Tramontane of that face, with the manners of the asynchronous one."""
    if face.startswith("embedded"):
        async with _held(face, **settings, **client) as held:
            yield held
    else:
        async with served(**settings) as url, _held(face, url, **client) as held:
            yield held


@asynccontextmanager
async def _held(face: str, *url: str, **options: Any) -> AsyncIterator[Any]:
    if not face.endswith("-sync"):
        async with Tramontane(*url, **options) as tramontane:
            yield tramontane
        return
    blocking = TramontaneSync(*url, **options)
    await asyncio.to_thread(blocking.__enter__)
    try:
        yield Threaded(blocking)
    finally:
        await asyncio.to_thread(blocking.__exit__)


class Threaded:
    """A TramontaneSync whose calls are made in threads."""

    def __init__(self, behind: TramontaneSync) -> None:
        self._behind = behind

    async def submit(self, *given: Any, **named: Any) -> "ThreadedJob":
        return ThreadedJob(await asyncio.to_thread(self._behind.submit, *given, **named))

    def job(self, job_id: str) -> "ThreadedJob":
        return ThreadedJob(self._behind.job(job_id))

    async def cancel(self, job_id: str) -> None:
        await asyncio.to_thread(self._behind.cancel, job_id)

    def stream(self, *given: Any, **named: Any) -> AsyncIterator[str]:
        return _each(lambda: self._behind.stream(*given, **named))

    def map(self, *given: Any, **named: Any) -> "ThreadedAnswers":
        return ThreadedAnswers(lambda: self._behind.map(*given, **named))


class ThreadedAnswers:
    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin

    def __aiter__(self) -> AsyncIterator[Any]:
        return _each(self._begin)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return asyncio.to_thread(lambda: list(self._begin())).__await__()


class ThreadedJob:
    def __init__(self, behind: JobSync) -> None:
        self._behind = behind

    id = property(lambda self: self._behind.id)
    text = property(lambda self: self._behind.text)

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.to_thread(self._behind.result).__await__()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return lambda *given, **named: asyncio.to_thread(getattr(self._behind, name), *given, **named)

    async def retry(self) -> "ThreadedJob":
        return ThreadedJob(await asyncio.to_thread(self._behind.retry))

    def events(self, after: int = 0) -> AsyncIterator[StreamEvent]:
        return _each(lambda: self._behind.events(after))

    def pieces(self) -> AsyncIterator[str]:
        return _each(self._behind.pieces)


async def _each(begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    items = await asyncio.to_thread(begin)
    try:
        while (item := await asyncio.to_thread(next, items, _END)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        await asyncio.to_thread(items.close)  # type: ignore[attr-defined]

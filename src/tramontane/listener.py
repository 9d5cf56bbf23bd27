"""One LISTEN connection per process, for everybody who waits for hints.

A hint may be lost, late or doubled: whoever takes one also polls. After a lost connection was made again, every
callback is called with an empty payload, which means "look at all you follow".
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from tramontane.errors import DatabaseError
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

Callback = Callable[[str], None]

#: What a database raises that is away, going, coming back, or out of room: another try may find it well.
OUTAGES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    DatabaseError,
)


class Listener:
    """Keeps a connection that listens, and makes it anew for as long as `run` runs.

    connect: opens a connection outside the pool. probe: seconds between two signs of life; a half-open connection
    is noticed after at most twice that long.
    """

    def __init__(self, connect: Callable[[], Awaitable["asyncpg.Connection[Any]"]], *, probe: float = 5.0) -> None:
        self._connect = connect
        self._probe = probe
        self._callbacks: defaultdict[str, list[Callback]] = defaultdict(list)
        self._connection: asyncpg.Connection[Any] | None = None
        # A connection does one thing at a time, and raises when asked for a second.
        self._turn = asyncio.Lock()
        #: Set while a connection listens.
        self.listening = asyncio.Event()

    async def add(self, channel: str, callback: Callback) -> None:
        """Call `callback` with the payload of each NOTIFY on `channel`. It must not block.

        While no connection can be had, this returns all the same: the next one listens to it.
        """
        self._callbacks[channel].append(callback)
        async with self._turn:
            if self._connection is None:
                return
            try:
                async with asyncio.timeout(self._probe):
                    await self._connection.add_listener(channel, self._deliver)
            except OUTAGES:
                self._connection.terminate()  # which the next sign of life will show to `run`

    async def remove(self, channel: str, callback: Callback) -> None:
        """Stop calling `callback`."""
        self._callbacks[channel].remove(callback)

    async def run(self) -> None:
        """Listen until cancelled."""
        delay = 0.1
        while True:
            try:
                await self._listen()
            except OUTAGES as error:
                log(logger, logging.WARNING, "listener.lost", error=type(error).__name__, retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0) if not self.listening.is_set() else 0.1
            self.listening.clear()

    async def _listen(self) -> None:
        connection = await self._connect()
        try:
            async with self._turn:
                for channel in list(self._callbacks):
                    await connection.add_listener(channel, self._deliver)
                self._connection = connection
            self.listening.set()
            for channel in list(self._callbacks):
                self._deliver(connection, 0, channel, "")
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            while not lost.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._probe):
                        await lost.wait()
                async with self._turn, asyncio.timeout(self._probe):
                    await connection.execute("SELECT 1")
        finally:
            self._connection = None
            connection.terminate()

    def _deliver(self, connection: object, pid: int, channel: str, payload: object) -> None:  # noqa: ARG002
        for callback in self._callbacks[channel]:
            callback(str(payload))

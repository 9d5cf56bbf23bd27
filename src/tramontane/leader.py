"""The leader: of all workers, the one that does what needs doing once.

Whoever holds an advisory lock of Postgres leads. The lock belongs to a connection, so it is free as soon as the
leader's process is gone. A leader that is there and does nothing (frozen, or cut off) says nothing on that connection
either, and Postgres ends it after `idle`: somebody else leads by then. The former leader, should it wake up, may for a
moment do its duties beside the new one; each of them can be done twice.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tramontane.database import Database
from tramontane.ids import utc_now
from tramontane.listener import OUTAGES
from tramontane.tasks import beside
from tramontane.telemetry import log

if TYPE_CHECKING:
    from tramontane.database import Connection

logger = logging.getLogger(__name__)

_LOCK: Final = 0x7472616E  # advisory, of the session; beside that of migrations
#: As `pg_locks` shows it: the key's halves.
_HELD: Final = """
    SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                    WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = $1::bigint::oid AND l.objsubid = 1
                      AND l.granted AND d.datname = current_database())
"""

Duty = Callable[[], Coroutine[Any, Any, None]]


class Leader:
    """Stands for election until cancelled, and runs the duties while it leads.

    duties: each runs until it is cancelled, which it may be at any point. poll: seconds between two looks whether
    somebody leads. idle: seconds of silence after which Postgres takes the lead away.
    """

    def __init__(self, database: Database, *duties: Duty, poll: float = 2.0, idle: float = 5.0) -> None:
        self._database = database
        self._duties = duties
        self._poll = poll
        self._idle = idle
        self.leading = False

    async def run(self) -> None:
        """Stand for election until cancelled; an outage ends a lead and no candidacy."""
        while True:
            try:
                # A candidate holds no connection: of those a database has few.
                if not await self._database.pool.fetchval(_HELD, _LOCK):
                    await self._stand()
            except OUTAGES as error:
                log(logger, logging.WARNING, "leader.lost", error=type(error).__name__)
            await asyncio.sleep(self._poll)

    async def _stand(self) -> None:
        connection = await self._database.connect()
        try:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                return  # another was quicker
            await connection.execute("SELECT set_config('idle_session_timeout', $1, false)", f"{self._idle * 1000:.0f}")
            self.leading = True
            log(logger, logging.INFO, "leader.leads")
            async with beside(*(duty() for duty in self._duties)):
                await self._stay(connection)
        finally:
            self.leading = False
            connection.terminate()  # and the lock is free, without a word that an outage could hold up

    async def _stay(self, connection: "Connection") -> None:
        """Show signs of life, until one is not answered."""
        while True:
            await asyncio.sleep(self._idle / 4)
            async with asyncio.timeout(self._idle):
                await connection.execute("SELECT 1")


def again(
    tick: Callable[[datetime], Awaitable[datetime | None]], *, every: float, clock: Callable[[], datetime] = utc_now
) -> Duty:
    """A duty that does `tick` again and again: at the time that it names, and at least every so many seconds."""

    async def run() -> None:
        while True:
            seconds = every
            try:
                if (next_at := await tick(clock())) is not None:
                    seconds = min(every, max(0.05, (next_at - clock()).total_seconds()))
            except Exception as error:  # noqa: BLE001 - the outermost loop of a duty
                log(logger, logging.WARNING, "leader.duty_failed", duty=tick.__qualname__, error=error)
            await asyncio.sleep(seconds)

    return run

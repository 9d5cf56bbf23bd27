"""The leader: one at a time, replaced when it dies, freezes or is cut off, by a real Postgres."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast

from lives import T0, in_the_background

from tramontane.database import Database, open_database
from tramontane.leader import Leader, again
from tramontane.settings import Settings


class Duty:
    """Counts who does it at present, and how often it was begun."""

    def __init__(self) -> None:
        self.doing = self.begun = 0
        self.begins = asyncio.Event()

    async def __call__(self) -> None:
        self.doing += 1
        self.begun += 1
        self.begins.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.doing -= 1


@asynccontextmanager
async def candidates(url: str, duty: Duty, number: int) -> AsyncIterator[list[Leader]]:
    """So many processes' worth of candidates, each with a pool of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(number):
            database = await stack.enter_async_context(open_database(Settings(database_url=url), connections=2))
            leader = Leader(database, duty, poll=0.05, idle=0.4)
            await stack.enter_async_context(in_the_background(leader.run()))
            found.append(leader)
        yield found


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not holds():  # noqa: ASYNC110 - of what the database decides nobody tells us
            await asyncio.sleep(0.01)


async def holders(database: Database) -> list[int]:
    rows = await database.pool.fetch(
        "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database AND d.datname = current_database()"
        " WHERE locktype = 'advisory' AND granted"
    )
    return [row["pid"] for row in rows]


async def test_of_several_candidates_one_leads_and_does_the_duty(database_url: str, database: Database) -> None:
    duty = Duty()
    async with candidates(database_url, duty, 3) as leaders:
        await until(lambda: any(leader.leading for leader in leaders))
        await asyncio.sleep(0.3)
        assert sum(leader.leading for leader in leaders) == 1
        assert (duty.doing, duty.begun) == (1, 1)
        assert len(await holders(database)) == 1
    assert duty.doing == 0


async def test_a_candidate_holds_no_connection_of_its_own(database_url: str, database: Database) -> None:
    async with candidates(database_url, Duty(), 3) as leaders:
        await until(lambda: any(leader.leading for leader in leaders))
        await asyncio.sleep(0.2)
        others = await database.pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND application_name = 'tramontane'"
        )
    assert others <= 3 + 1, "each pool's one, and the leader's"


async def test_when_the_leaders_connection_ends_another_leads(database_url: str, database: Database) -> None:
    duty = Duty()
    async with candidates(database_url, duty, 2) as leaders:
        await until(lambda: duty.doing == 1)
        [holder] = await holders(database)
        await database.pool.execute("SELECT pg_terminate_backend($1)", holder)
        await until(lambda: duty.begun == 2 and duty.doing == 1)
        assert sum(leader.leading for leader in leaders) == 1


class Frozen(Leader):
    """Takes the lead, and is not heard of again."""

    async def _stay(self, connection: object) -> None:
        await asyncio.Event().wait()


async def test_a_leader_that_says_nothing_loses_the_lead_to_another(database_url: str, database: Database) -> None:
    before, after = Duty(), Duty()
    frozen = Frozen(database, before, poll=0.05, idle=0.4)
    async with in_the_background(frozen.run()):
        await before.begins.wait()
        began = time.monotonic()
        async with candidates(database_url, after, 1) as [second]:
            await until(lambda: second.leading)
            assert time.monotonic() - began < 3
            assert before.doing == 1, "it does not know it yet, and may do its duty beside the new one"


class Mute:
    """A connection that gives the lead, and on which no sign of life is answered."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.fetchval, self.terminate = connection.fetchval, connection.terminate

    async def execute(self, query: str, *values: object) -> None:
        if query == "SELECT 1":
            await asyncio.Event().wait()
        await self._connection.execute(query, *values)


class CutOff:
    """A database with which new connections fall silent."""

    def __init__(self, database: Database) -> None:
        self._database, self.pool = database, database.pool

    async def connect(self) -> Mute:
        return Mute(await self._database.connect())


async def test_a_leader_that_is_not_answered_gives_its_duties_up_by_itself(database: Database) -> None:
    duty = Duty()
    leader = Leader(cast("Database", CutOff(database)), duty, poll=0.05, idle=0.05)
    async with in_the_background(leader.run()):
        await until(lambda: duty.begun == 2)


async def test_who_leads_lets_go_at_once_when_it_ends(database_url: str) -> None:
    duty = Duty()
    async with candidates(database_url, duty, 1) as [later]:
        await until(lambda: later.leading)
    async with candidates(database_url, duty, 1) as [next_one]:
        await until(lambda: next_one.leading)


async def test_a_duty_is_done_again_when_it_says_and_no_failure_ends_it() -> None:
    asked: list[datetime] = []
    enough = asyncio.Event()

    async def tick(now: datetime) -> datetime | None:
        asked.append(now)
        if len(asked) == 2:
            raise ValueError("once")
        if len(asked) == 4:
            enough.set()
        return T0 + timedelta(seconds=0.06) if len(asked) == 1 else None

    async with in_the_background(again(tick, every=0.01, clock=lambda: T0)()), asyncio.timeout(5):
        await enough.wait()
    assert set(asked) == {T0}

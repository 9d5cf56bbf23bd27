"""The admission service: it looks again on a hint, when a time has come, and after an outage."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from lives import Lives, in_the_background, new_job

from tramontane.admission import AdmissionService
from tramontane.database import Database
from tramontane.ids import utc_now
from tramontane.listener import Listener
from tramontane.models import Admission
from tramontane.store import LimitStore

NEVER = 60.0


class Rounds(LimitStore):
    """The real rounds of admission, counted; a round may be made to fail."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.pool)
        self.done: asyncio.Queue[Admission] = asyncio.Queue()
        self.failures = 0

    async def admit(self, now: datetime) -> Admission:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        admission = await super().admit(now)
        self.done.put_nowait(admission)
        return admission

    async def that_admits(self) -> Admission:
        """The next round that lets something through."""
        async with asyncio.timeout(8):
            while not (admission := await self.done.get()).admitted:
                pass
        return admission


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


@pytest.fixture
def rounds(database: Database) -> Rounds:
    return Rounds(database)


@pytest.fixture
async def listener(database: Database) -> AsyncIterator[Listener]:
    listener = Listener(database.connect)
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        yield listener


async def test_a_submit_elsewhere_is_admitted_on_its_hint(lives: Lives, rounds: Rounds, listener: Listener) -> None:
    service = AdmissionService(rounds, listener, poll=NEVER)
    async with in_the_background(service.run()):
        await rounds.done.get()
        # Nothing can be admitted by the submit itself: somebody else decides at that moment.
        await lives.worker(now=utc_now())
        async with lives.pool.acquire() as other, other.transaction():
            await other.execute("SELECT FROM limits FOR UPDATE")
            [job] = await lives.submit(new_job(run_at=utc_now()), now=utc_now())
        assert (await rounds.that_admits()).admitted == (job.key,)


async def test_a_free_slot_is_used_when_the_worker_says_so(lives: Lives, rounds: Rounds, listener: Listener) -> None:
    [job] = await lives.submit(new_job(run_at=utc_now()), now=utc_now())
    service = AdmissionService(rounds, listener, poll=NEVER)
    async with in_the_background(service.run()):
        await rounds.done.get()
        await lives.worker(now=utc_now())
        service.wake()
        assert (await rounds.that_admits()).admitted == (job.key,)


async def test_a_scheduled_job_is_admitted_when_its_time_has_come(
    lives: Lives, rounds: Rounds, listener: Listener
) -> None:
    await lives.worker(now=utc_now())
    run_at = utc_now() + timedelta(seconds=0.3)
    [job] = await lives.submit(new_job(run_at=run_at), now=utc_now())
    async with in_the_background(AdmissionService(rounds, listener, poll=NEVER).run()):
        assert (await rounds.that_admits()).admitted == (job.key,)
    assert run_at <= utc_now() < run_at + timedelta(seconds=5)


async def test_without_any_hint_the_poll_suffices(lives: Lives, rounds: Rounds, database: Database) -> None:
    deaf = Listener(database.connect)
    async with in_the_background(AdmissionService(rounds, deaf, poll=0.05).run()):
        await rounds.done.get()
        [job] = await lives.submit(new_job(run_at=utc_now()), now=utc_now())
        await lives.worker(now=utc_now())
        assert (await rounds.that_admits()).admitted == (job.key,)


async def test_a_failing_database_is_asked_again(lives: Lives, rounds: Rounds, listener: Listener) -> None:
    rounds.failures = 3
    await lives.submit(new_job(run_at=utc_now()), now=utc_now())
    await lives.worker(now=utc_now())
    async with in_the_background(AdmissionService(rounds, listener, poll=0.01).run()):
        assert len((await rounds.that_admits()).admitted) == 1


async def test_a_tick_returns_when_time_alone_may_allow_more(lives: Lives, listener: Listener) -> None:
    now = utc_now()
    await lives.submit(new_job(run_at=now + timedelta(seconds=40)), now=now)
    await lives.worker(now=now)
    service = AdmissionService(lives.limits, listener, poll=NEVER)
    assert await service.tick(now) == now + timedelta(seconds=40)

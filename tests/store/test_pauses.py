"""Pauses: what is not let through, for whom, and that it goes on when it is resumed."""

import asyncio

import pytest
from lives import T0, Lives, at, new_job

from tramontane.database import Database
from tramontane.errors import NotFound
from tramontane.store import PauseStore


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def pauses(lives: Lives) -> PauseStore:
    return PauseStore(lives.pool)


@pytest.mark.parametrize(
    ("tenant", "kind", "model", "waits"),
    [
        ("default", "*", "*", True),
        ("default", "chat", "*", True),
        ("default", "*", "mistral-small-latest", True),
        ("*", "*", "*", True),
        ("*", "chat", "mistral-small-latest", True),
        ("other", "*", "*", False),
        ("default", "embedding", "*", False),
        ("default", "chat", "mistral-large-latest", False),
    ],
)
async def test_what_is_paused_waits_and_goes_on_when_resumed(
    lives: Lives, pauses: PauseStore, tenant: str, kind: str, model: str, waits: bool
) -> None:
    made = await pauses.pause(tenant, kind, model, reason="", now=T0)
    [job] = await lives.submit()
    if not waits:
        assert len(await lives.entries()) == 1
        return
    assert await lives.entries() == []
    assert (await lives.limits.admit(at(1))).admitted == ()
    await pauses.resume(tenant, made.id, fleet=True)
    assert (await lives.limits.admit(at(2))).admitted == (job.key,)


async def test_a_resume_wakes_admission_wherever_it_runs(lives: Lives, pauses: PauseStore) -> None:
    made = await pauses.pause("default", "*", "*", reason="", now=T0)
    woken = asyncio.Event()
    async with lives.pool.acquire() as connection:
        listener = lambda *_: woken.set()  # noqa: E731 - to be taken off again
        await connection.add_listener("tramontane_admission", listener)
        await pauses.resume("default", made.id, fleet=False)
        async with asyncio.timeout(5):
            await woken.wait()
        await connection.remove_listener("tramontane_admission", listener)


async def test_others_pass_what_is_paused(lives: Lives, pauses: PauseStore) -> None:
    await pauses.pause("default", "*", "mistral-small-latest", reason="", now=T0)
    await lives.submit(new_job(priority=9))
    [other] = await lives.submit(new_job(model="mistral-large-latest"))
    assert [key for _, _, key in await lives.entries()] == [other.key]


async def test_a_repeated_pause_is_the_same_one_with_a_new_reason(pauses: PauseStore) -> None:
    first = await pauses.pause("default", "*", "m", reason="one", now=T0)
    second = await pauses.pause("default", "*", "m", reason="two", now=at(1))
    assert (second.id, second.reason, second.paused_at) == (first.id, "two", T0)
    assert await pauses.list("default") == [second]


async def test_a_tenant_sees_its_own_and_the_fleets_and_ends_its_own_alone(pauses: PauseStore) -> None:
    own = await pauses.pause("default", "*", "*", reason="", now=T0)
    fleet = await pauses.pause("*", "*", "*", reason="", now=at(1))
    other = await pauses.pause("other", "*", "*", reason="", now=at(2))
    assert await pauses.list("default") == [own, fleet]
    for foreign in (fleet, other):
        with pytest.raises(NotFound):
            await pauses.resume("default", foreign.id, fleet=False)
    with pytest.raises(NotFound):
        await pauses.resume("default", other.id, fleet=True)
    await pauses.resume("default", own.id, fleet=False)
    await pauses.resume("default", fleet.id, fleet=True)
    assert await pauses.list("default") == []

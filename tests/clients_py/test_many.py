"""Many jobs through the Python clients, and what they raise when nothing more is taken."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import pytest_asyncio

from tramontane import Tramontane, TramontaneSync
from tramontane.errors import BudgetExhausted, DeadlineExceeded, InvalidInput, QueueFull

if TYPE_CHECKING:
    from tramontane.simulator import Simulator


@pytest.fixture
def embedded(database_url: str, simulator: "Simulator") -> dict[str, Any]:
    """Settings of an engine in this process."""
    return {
        "database_url": database_url,
        "mistral_server_url": simulator.url,
        "mistral_api_key": "key",
        "rate_limit": 0.0,
        "poll": 0.2,
        "heartbeat": 1.0,
    }


@pytest_asyncio.fixture
async def t(embedded: dict[str, Any]) -> AsyncIterator[Tramontane]:
    async with Tramontane(**embedded) as opened:
        yield opened


async def test_many_prompts_become_jobs_in_their_order(t: Tramontane) -> None:
    jobs = await t.submit_many([f"Say: {number}" for number in range(5)], model="mistral-large-latest", priority=2)
    assert [(await job).content for job in jobs] == ["0", "1", "2", "3", "4"]
    details = await jobs[0].details()
    assert (details["model"], details["priority"]) == ("mistral-large-latest", 2)


async def test_under_one_key_prompts_keep_their_jobs_page_by_page(
    embedded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.engine._PAGE", 2)
    async with Tramontane(worker=False, **embedded) as t:

        def prompts() -> Iterator[str]:
            yield from ("a", "b", "c", "d", "e")

        first = await t.submit_many(prompts(), idempotency_key="load")
        second = await t.submit_many(prompts(), idempotency_key="load")
        other = await t.submit_many(prompts())
    assert [job.id for job in first] == [job.id for job in second]
    assert len({job.id for job in first + other}) == 10


async def test_what_is_refused_is_raised_with_the_index_of_its_prompt(t: Tramontane) -> None:
    with pytest.raises(InvalidInput, match="priority") as raised:
        await t.submit_many(["a", "b"], priority=10**9)
    assert raised.value.__notes__ == ["prompt 0"]
    with pytest.raises(InvalidInput, match="put it in a list"):
        await t.submit_many("one text")


async def test_a_deadline_that_passes_is_raised_as_such(t: Tramontane, simulator: "Simulator") -> None:
    from tramontane.simulator import Behaviour

    simulator.behaviour = Behaviour(latency=20)
    first = [await t.submit("Hello") for _ in range(5)]
    late = await t.submit("Hello", deadline="1s", delay=0.01)
    with pytest.raises(DeadlineExceeded):
        await late
    for job in first:
        await job.cancel()


@pytest.mark.parametrize(
    ("columns", "error"),
    [("queue_limit) VALUES (0", QueueFull), ("daily_tokens, on_budget) VALUES (0, 'fail'", BudgetExhausted)],
)
async def test_whoever_is_sent_away_for_good_is_told_why(
    database_url: str, embedded: dict[str, Any], columns: str, error: type[Exception]
) -> None:
    names, _, values = columns.partition(") VALUES (")
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        f"INSERT INTO tramontane.tenants (id, created_at, updated_at, {names})"
        f" VALUES ('default', now(), now(), {values})"
    )
    await connection.close()
    async with Tramontane(worker=False, patience=0.1, **embedded) as t:
        with pytest.raises(error):
            await t.submit("Hello")
        with pytest.raises(error):
            await t.submit_many(["Hello"])


async def test_the_plain_client_submits_many_too(embedded: dict[str, Any]) -> None:
    def ask() -> list[str]:
        with TramontaneSync(**embedded) as t:
            return [job.result().content for job in t.submit_many(["Say: a", "Say: b"])]

    assert await asyncio.to_thread(ask) == ["a", "b"]

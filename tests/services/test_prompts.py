import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tramontane.errors import InvalidInput, RateLimited, TramontaneError, Unauthorized, UpstreamUnavailable
from tramontane.mistral import MistralClient
from tramontane.prompts import process_batch
from tramontane.retry import Backoff
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator

PROMPTS = [f"Question {n}?" for n in range(12)]


@asynccontextmanager
async def asking(simulator: Simulator) -> AsyncIterator[MistralClient]:
    async with MistralClient(api_key="key", server_url=simulator.url) as client:
        yield client


class Sleep:
    """Notes how long it was asked to wait, and does not."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


async def alone(client: MistralClient, prompt: str) -> str:
    request = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": prompt}]}
    return (await client.complete(request)).content


async def test_answers_stand_in_the_order_of_the_prompts(simulator: Simulator) -> None:
    async with asking(simulator) as client:
        expected = [await alone(client, prompt) for prompt in PROMPTS]
        simulator.script(*(Behaviour(latency=(12 - n) / 200) for n in range(12)))
        assert await process_batch(PROMPTS, client=client, concurrency=12) == expected
    assert len(set(expected)) == len(expected)


async def test_a_prompt_may_be_a_conversation_and_parameters_are_passed_on(simulator: Simulator) -> None:
    conversation = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    async with asking(simulator) as client:
        (short,) = await process_batch([conversation], client=client, max_tokens=3)
    assert isinstance(short, str)
    assert short
    assert simulator.ledger[0].completion_tokens == 3


async def test_no_more_calls_run_at_a_time_than_were_allowed(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(silence_after=3)
    async with asking(simulator) as client, asyncio.TaskGroup() as tasks:
        batch = tasks.create_task(process_batch(PROMPTS, client=client, concurrency=4))
        for number in range(1, 5):
            await simulator.wait_for_chunks(number, 3)
        assert len(simulator.ledger) == 4
        batch.cancel()


async def test_a_cancel_ends_all_calls(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(silence_after=3)
    async with asking(simulator) as client:
        async with asyncio.TaskGroup() as tasks:
            batch = tasks.create_task(process_batch(PROMPTS, client=client, concurrency=4))
            await simulator.wait_for_calls(4)
            batch.cancel()
        await simulator.wait_for_ends(4, "disconnected")
    assert batch.cancelled()
    assert len(simulator.ledger) == 4


async def test_what_may_pass_is_tried_again_after_the_time_that_mistral_asked_for(simulator: Simulator) -> None:
    simulator.script(Behaviour(status=429, retry_after=7), Behaviour(status=503), Behaviour())
    sleep = Sleep()
    async with asking(simulator) as client:
        (answer,) = await process_batch(["Hi"], client=client, backoff=Backoff(delay=2.0), sleep=sleep)
    assert isinstance(answer, str)
    assert len(simulator.ledger) == 3
    first, second = sleep.waits
    assert 7.0 <= first <= 7.0 * 1.3
    assert 4.0 <= second <= 4.0 * 1.3


async def test_a_stream_that_breaks_off_is_asked_for_again(simulator: Simulator) -> None:
    simulator.script(Behaviour(cut_after=4), Behaviour(end_after=4), Behaviour())
    async with asking(simulator) as client:
        (answer,) = await process_batch(["Hi"], client=client, sleep=Sleep())
        assert answer == await alone(client, "Hi")


async def test_attempts_are_counted(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(status=503)
    sleep = Sleep()
    async with asking(simulator) as client:
        with pytest.raises(UpstreamUnavailable):
            await process_batch(["Hi"], client=client, attempts=4, sleep=sleep)
    assert len(simulator.ledger) == 4
    assert len(sleep.waits) == 3


async def test_what_cannot_pass_is_not_tried_again(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(status=401)
    sleep = Sleep()
    async with asking(simulator) as client:
        with pytest.raises(Unauthorized):
            await process_batch(["Hi"], client=client, sleep=sleep)
    assert (len(simulator.ledger), sleep.waits) == (1, [])


async def test_errors_may_stand_in_the_place_of_answers(simulator: Simulator) -> None:
    simulator.script(Behaviour(), Behaviour(status=422), Behaviour())
    async with asking(simulator) as client:
        first, second, third = await process_batch(PROMPTS[:3], client=client, concurrency=1, on_error="return")
    assert isinstance(first, str)
    assert isinstance(second, TramontaneError)
    assert second.__notes__ == ["prompts[1]"]
    assert isinstance(third, str)


async def test_the_first_failure_is_raised_with_its_index_and_ends_the_rest(simulator: Simulator) -> None:
    simulator.script(Behaviour(silence_after=2), Behaviour(status=429))

    async def until_the_other_runs(seconds: float) -> None:
        await simulator.wait_for_chunks(1, 2)

    async with asking(simulator) as client:
        simulator.behaviour = Behaviour(status=401)
        with pytest.raises(Unauthorized) as caught:
            await process_batch(PROMPTS, client=client, concurrency=2, sleep=until_the_other_runs)
        await simulator.wait_for_ends(1, "disconnected")
    assert caught.value.__notes__ in (["prompts[0]"], ["prompts[1]"])
    assert caught.value.__cause__ is None
    assert len(simulator.ledger) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        (["a", " "], {}, "prompts[1]"),
        (["a", []], {}, "prompts[1]"),
        ("a question", {}, "prompts"),
        (["a"], {"concurrency": 0}, "concurrency"),
        (["a"], {"attempts": 0}, "attempts"),
        (["a"], {"on_error": "ignore"}, "on_error"),
        (["a"], {"stream": False}, "stream"),
    ],
)
async def test_bad_input_is_refused_before_the_first_call(
    simulator: Simulator, prompts: Any, options: dict[str, Any], field: str
) -> None:
    async with asking(simulator) as client:
        with pytest.raises(InvalidInput) as caught:
            await process_batch(prompts, client=client, **options)
    assert caught.value.field == field
    assert simulator.ledger == []


async def test_no_prompts_give_no_answers(simulator: Simulator) -> None:
    async with asking(simulator) as client:
        assert await process_batch([], client=client, progress=True) == []


async def test_progress_is_told_as_prompts_end(simulator: Simulator) -> None:
    simulator.script(Behaviour(status=422))
    told: list[tuple[int, int]] = []
    async with asking(simulator) as client:
        await process_batch(PROMPTS[:3], client=client, on_error="return", progress=lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_a_bar_shows_the_progress_on_stderr(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    async with asking(simulator) as client:
        await process_batch(PROMPTS[:3], client=client, progress=True)
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out == ""


async def test_without_a_client_the_batch_opens_its_own(simulator: Simulator) -> None:
    simulator.script(Behaviour(status=429, retry_after=0))
    settings = Settings(mistral_api_key="key", mistral_server_url=simulator.url)
    assert all(isinstance(answer, str) for answer in await process_batch(PROMPTS, settings=settings, sleep=Sleep()))


async def test_an_error_names_no_prompt(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(status=429)
    async with asking(simulator) as client:
        with pytest.raises(RateLimited) as caught:
            await process_batch(["my secret is 4711"], client=client, sleep=Sleep())
    assert "4711" not in f"{caught.value!r} {caught.value.__notes__}"

"""What a Tramontane does, whichever of its four faces one holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from holding import FACES, engine, fresh_database, opened

from tramontane import StreamChunk, StreamComplete, StreamError, StreamStart
from tramontane.embedded import EmbeddedServer
from tramontane.errors import (
    Cancelled,
    IdempotencyMismatch,
    InvalidInput,
    JobNotEnded,
    NotFound,
    RequestRefused,
    TramontaneError,
    Unauthorized,
)
from tramontane.simulator import Behaviour, Simulator

# One engine for each face: what these tests ask leaves nothing behind but ended jobs.
pytestmark = pytest.mark.asyncio(loop_scope="module")

WIND = "Le mistral 🌬️ souffle, la tramontane répond; " * 12
SLOWLY = Behaviour(tokens_per_second=500)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_simulator() -> AsyncIterator[Simulator]:
    async with Simulator(port=0) as simulator:
        yield simulator


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=FACES)
async def t(
    request: pytest.FixtureRequest, running_simulator: Simulator, postgres_18: EmbeddedServer
) -> AsyncIterator[Any]:
    async with (
        fresh_database(postgres_18) as url,
        opened(request.param, engine(running_simulator, url)) as tramontane,
    ):
        yield tramontane


@pytest.fixture(autouse=True)
def simulator(running_simulator: Simulator) -> Simulator:
    """The Mistral behind all faces, with its default manners."""
    running_simulator.behaviour = Behaviour()
    return running_simulator


async def test_awaiting_a_job_gives_its_answer(t: Any) -> None:
    job = await t.submit(f"Say: {WIND}", model="mistral-large-latest", request_id="req-123", metadata={"a": "b"})
    result = await job

    assert str(result) == result.content == WIND == job.text
    assert (result.job_id, result.request_id, result.finish_reason) == (job.id, "req-123", "stop")
    assert result.usage["total_tokens"] == result.usage["prompt_tokens"] + result.usage["completion_tokens"]
    assert result.completion["object"] == "chat.completion"
    assert result.completed_at.tzinfo is not None
    assert (await job.details())["metadata"] == {"a": "b"}


async def test_a_request_goes_to_mistral_as_it_is(t: Any, simulator: Simulator) -> None:
    request = {"messages": [{"role": "user", "content": "Say: no"}], "temperature": 0.5, "stop": ["."]}
    assert (await (await t.submit(request=request))).content == "no"

    sent = simulator.ledger[-1].request
    assert {name: sent[name] for name in request} == request


async def test_events_are_told_once_each_and_in_order_to_the_last(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = SLOWLY
    job = await t.submit(f"Say: {WIND}")
    events = [event async for event in job.events()]
    start, *chunks, complete = events

    assert isinstance(start, StreamStart)
    assert all(isinstance(chunk, StreamChunk) for chunk in chunks)
    assert "".join(chunk.content for chunk in chunks) == WIND == job.text
    assert [event.from_seq for event in chunks] == [event.seq + 1 for event in events[:-2]]
    assert isinstance(complete, StreamComplete)
    assert (complete.len, complete.attempts, complete.seq) == (
        len(WIND.encode("utf-16-le")) // 2,
        1,
        chunks[-1].seq + 1,
    )


async def test_events_go_on_after_any_cursor_and_know_the_text_still(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = SLOWLY
    job = await t.submit(f"Say: {WIND}")
    async with aclosing(job.events()) as events:
        seen = [await anext(events), await anext(events)]
    rest = [event async for event in job.events(after=seen[-1].seq)]

    assert rest[0].seq == seen[-1].seq + 1 or rest[0].from_seq == seen[-1].seq + 1
    assert job.text == WIND
    assert [event async for event in job.events(after=rest[-1].seq)] == []
    assert t.job(job.id).text == ""


async def test_another_holder_of_the_id_has_the_same_job(t: Any) -> None:
    job = await t.submit("Say: yes")
    assert (await t.job(job.id)).content == "yes"
    assert [event.type async for event in t.job(job.id).events()] == ["start", "chunk", "complete"]


async def test_a_stream_is_the_answer_in_pieces(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = SLOWLY
    pieces = [piece async for piece in t.stream(f"Say: {WIND}", temperature=0.1)]

    assert "".join(pieces) == WIND
    assert len(pieces) > 1
    assert all(pieces)


async def test_a_loop_may_be_left_and_the_job_goes_on(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = SLOWLY
    job = await t.submit(f"Say: {WIND}")
    async for _ in job.events():
        break
    assert (await job).content == WIND


@pytest.mark.parametrize(("broken", "outcome"), [(Behaviour(cut_after=12), "cut"), (Behaviour(end_after=12), "end")])
async def test_pieces_are_the_answer_also_when_an_attempt_breaks(
    t: Any, simulator: Simulator, broken: Behaviour, outcome: str
) -> None:
    await (await t.submit("Say: now"))  # whatever others have left has made its call by now
    simulator.script(broken)
    assert "".join([piece async for piece in t.stream(f"Say: {WIND}")]) == WIND
    assert simulator.ledger[-2].outcome == outcome


async def test_a_job_that_fails_raises_what_its_attempt_met(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(status=400)
    job = await t.submit("Hello!")
    with pytest.raises(RequestRefused) as raised:
        await job

    assert raised.value.code == "upstream_refused"
    assert raised.value.__notes__ == [job.id]
    last = [event async for event in job.events()][-1]
    assert isinstance(last, StreamError)
    assert (last.code, last.retryable, last.partial) == ("upstream_refused", False, False)
    with pytest.raises(RequestRefused):
        async for _ in job.pieces():
            pass


async def test_a_cancelled_job_raises_that_it_was(t: Any, simulator: Simulator) -> None:
    called = simulator.totals().calls
    simulator.behaviour = Behaviour(tokens_per_second=20)
    job, other = await t.submit("Hello!"), await t.submit("Hello!")
    await simulator.wait_for_chunks(called + 1, 2)
    await simulator.wait_for_chunks(called + 2, 2)
    await job.cancel()
    await t.cancel(other.id)
    await job.cancel()

    for each in (job, other):
        with pytest.raises(Cancelled):
            await each
    assert (await job.details())["status"] == "cancelled"


async def test_the_wait_for_a_result_may_have_an_end(t: Any, simulator: Simulator) -> None:
    called = simulator.totals().calls
    simulator.behaviour = Behaviour(silence_after=2)
    job = await t.submit("Hello!")
    with pytest.raises(TimeoutError):
        await job.result(timeout=0.05)
    await simulator.wait_for_chunks(called + 1, 2)
    await job.cancel()


async def test_a_job_is_retried_and_erased_once_it_has_ended(t: Any, simulator: Simulator) -> None:
    simulator.script(Behaviour(silence_after=2))
    called = simulator.totals().calls
    job = await t.submit("Say: yes")
    await simulator.wait_for_chunks(called + 1, 2)
    with pytest.raises(JobNotEnded):
        await job.retry()
    await job.cancel()
    again = await job.retry()
    assert again.id != job.id
    assert (await again).content == "yes"
    await again.delete()
    with pytest.raises(NotFound):
        await t.job(again.id)


async def test_one_key_is_one_job(t: Any) -> None:
    jobs = [await t.submit("Say: yes", idempotency_key="mine") for _ in range(3)]
    assert len({job.id for job in jobs}) == 1
    await jobs[0]  # or its call might take what another test has scripted
    with pytest.raises(IdempotencyMismatch):
        await t.submit("Say: no", idempotency_key="mine")


async def test_what_the_server_refuses_is_refused_by_its_name(t: Any) -> None:
    with pytest.raises(InvalidInput) as raised:
        await t.submit("Hello!", temperature="high")
    assert raised.value.field == "request.temperature"
    with pytest.raises(InvalidInput, match="either"):
        await t.submit()
    with pytest.raises(NotFound):
        await t.job("job_../../healthz?x=#")
    with pytest.raises(NotFound):
        async for _ in t.job("job_unknown").events():
            pass


async def test_answers_come_in_the_order_of_the_prompts(t: Any, simulator: Simulator) -> None:
    simulator.script(Behaviour(latency=0.1))
    prompts = [f"Say: {number}" for number in range(20)]
    assert [result.content for result in await t.map(prompts, concurrency=7)] == [str(n) for n in range(20)]
    assert [str(result) async for result in t.map(iter(prompts), model="mistral-large-latest")] == [
        str(n) for n in range(20)
    ]


async def test_no_more_prompts_are_asked_at_a_time_than_wanted(t: Any, simulator: Simulator) -> None:
    drawn = 0

    def prompts() -> Any:
        nonlocal drawn
        for drawn in range(1, 10):  # noqa: B007
            yield "Say: yes"

    async with aclosing(aiter(t.map(prompts(), concurrency=3, idempotency_key="drawn"))) as answers:
        await anext(answers)
        assert drawn == 4  # the one that would not fit has been drawn, too
    await t.map(["Say: yes"] * drawn, idempotency_key="drawn")


async def test_an_error_stands_in_its_place_when_that_is_wanted(t: Any, simulator: Simulator) -> None:
    prompts: list[Any] = ["Say: 0", [{"role": "nobody"}], "Say: 2"]
    first, error, last = await t.map(prompts, on_error="return")
    assert (first.content, last.content) == ("0", "2")
    assert isinstance(error, InvalidInput)
    assert error.__notes__ == ["prompts[1]"]


async def test_the_first_error_is_raised_and_cancels_the_rest(t: Any, simulator: Simulator) -> None:
    simulator.script(Behaviour(status=400, latency=0.2))
    simulator.behaviour = Behaviour(silence_after=2)
    with pytest.raises(TramontaneError) as raised:
        await t.map(["Hello!"] * 4, concurrency=4)

    assert raised.value.code == "upstream_refused"
    [note] = [note for note in raised.value.__notes__ if note.startswith("prompts")]
    assert note.startswith("prompts[")
    await simulator.wait_for_ends(simulator.totals().calls)


async def test_an_error_is_raised_at_once_and_not_when_its_turn_comes(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(silence_after=2)
    with pytest.raises(InvalidInput) as raised:
        await t.map(["Hello!", [{"role": "nobody"}]])

    assert raised.value.__notes__ == ["prompts[1]"]
    await simulator.wait_for_ends(simulator.totals().calls)


async def test_a_map_with_a_key_finds_its_jobs_again(t: Any, simulator: Simulator) -> None:
    before = simulator.totals().calls
    prompts = [f"Say: {number}" for number in range(4)]
    simulator.script(Behaviour(), Behaviour(latency=0.3))
    async with aclosing(aiter(t.map(prompts, concurrency=2, idempotency_key="import"))) as answers:
        assert str(await anext(answers)) == "0"
    assert [str(result) for result in await t.map(prompts, idempotency_key="import")] == ["0", "1", "2", "3"]
    assert simulator.totals().calls == before + 4


async def test_a_wrong_key_is_said_by_each_job(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(status=401)
    with pytest.raises(Unauthorized):
        await (await t.submit("Hello!"))


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"on_error": "ignore"}])
async def test_a_map_that_makes_no_sense_is_refused(t: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        await t.map(["Hello!"], **wrong)
    with pytest.raises(InvalidInput, match="put it in a list"):
        await t.map("Hello!")


async def test_many_read_one_job_at_a_time(t: Any, simulator: Simulator) -> None:
    simulator.behaviour = SLOWLY
    job = await t.submit(f"Say: {WIND}")

    async def read() -> str:
        return "".join([piece async for piece in t.job(job.id).pieces()])

    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(read()) for _ in range(5)]
    assert {each.result() for each in reading} == {WIND}

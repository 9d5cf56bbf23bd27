"""One attempt by itself: its time limit is Mistral's to keep, not the log's."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import msgspec
import pytest
from lives import T0, Lives, in_the_background, requeue

from tramontane.appender import Appender
from tramontane.database import Database
from tramontane.errors import AttemptLost, JobTimeout
from tramontane.mistral import MistralClient
from tramontane.models import Batch, Ending, State
from tramontane.runner import Failed, Runner
from tramontane.simulator import Behaviour, Simulator
from tramontane.store import EventStore


class SlowLog(EventStore):
    """The real log behind a gate."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.pool)
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    async def append(self, batches: Sequence[Batch], now: datetime) -> list[int | None]:
        self.asked.set()
        await self.gate.wait()
        return await super().append(batches, now)


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def log(database: Database) -> SlowLog:
    return SlowLog(database)


@pytest.fixture
async def runner(log: SlowLog, simulator: Simulator) -> AsyncIterator[Runner]:
    appender = Appender(log, lambda batch, head: None, interval=0.001)
    async with MistralClient(api_key="k", server_url=simulator.url) as mistral, in_the_background(appender.run()):
        yield Runner(mistral, appender)


def saying(text: str) -> bytes:
    return msgspec.json.encode(
        {"model": "mistral-small-latest", "messages": [{"role": "user", "content": f"Say: {text}"}]}
    )


async def test_a_whole_answer_is_an_ending_however_long_the_log_takes(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=500)
    attempt = await lives.running(request=saying("one two three four"), timeout_seconds=2.0)
    running = asyncio.ensure_future(runner.run(attempt))
    await log.asked.wait()
    await simulator.wait_for_ends(1, "complete")
    # The limit passes while the log does not answer.
    await asyncio.wait([running], timeout=2.2)
    assert not running.done()
    log.gate.set()
    outcome = await running
    assert isinstance(outcome, Ending)
    assert outcome.state == State.COMPLETED
    assert msgspec.json.decode(outcome.result or b"")["content"] == "one two three four"


async def test_a_timeout_waits_until_its_text_is_in_the_log(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    attempt = await lives.running(request=saying("one two three four"), timeout_seconds=0.2)
    running = asyncio.ensure_future(runner.run(attempt))
    await simulator.wait_for_ends(1, "disconnected")
    assert not running.done()
    log.gate.set()
    outcome = await running
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobTimeout)
    logged = "".join(msgspec.json.decode(event.body)["content"] for event in (await lives.log(attempt.job.key))[1:])
    assert (logged, outcome.length, outcome.unreported) == ("one two three", 13, True)


async def test_an_attempt_that_is_told_to_stop_leaves_its_text_in_the_log(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    attempt = await lives.running(request=saying("one two three four"))
    running = asyncio.ensure_future(runner.run(attempt))
    await simulator.wait_for_chunks(1, 4)
    await log.asked.wait()
    running.cancel()
    await simulator.wait_for_ends(1, "disconnected")
    log.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    logged = "".join(msgspec.json.decode(event.body)["content"] for event in (await lives.log(attempt.job.key))[1:])
    assert logged == "one two three"


async def test_a_later_attempt_that_was_overtaken_asks_mistral_nothing(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    first = await lives.running(request=saying("one two three four"))
    await lives.take_over(first)
    await lives.limits.admit(T0)
    second = await lives.start(first.job.key)
    running = asyncio.ensure_future(runner.run(second))
    await log.asked.wait()
    await lives.jobs.cancel(second.job.key, T0)
    log.gate.set()
    with pytest.raises(AttemptLost):
        await running
    assert simulator.ledger == []


async def test_what_mistral_reports_of_several_attempts_is_summed(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    log.gate.set()
    first = await lives.running(request=saying("one two three four"))
    await lives.jobs.requeue(dataclasses.replace(requeue(first, T0), usage='{"completion_tokens":100}'), T0)
    await lives.limits.admit(T0)
    outcome = await runner.run(await lives.start(first.job.key))
    assert isinstance(outcome, Ending)
    [call] = simulator.ledger
    own, whole = msgspec.json.decode(outcome.own_usage or ""), msgspec.json.decode(outcome.usage or "")
    assert own["completion_tokens"] == call.completion_tokens
    assert whole["completion_tokens"] == call.completion_tokens + 100
    assert whole["prompt_tokens"] == call.prompt_tokens
    assert not outcome.unreported


async def test_a_refused_append_is_a_lost_attempt(
    lives: Lives, log: SlowLog, runner: Runner, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    attempt = await lives.running(request=saying("one two three four"))
    running = asyncio.ensure_future(runner.run(attempt))
    await log.asked.wait()
    await lives.jobs.cancel(attempt.job.key, T0)
    log.gate.set()
    with pytest.raises(AttemptLost):
        await running
    await simulator.wait_for_ends(1, "disconnected")

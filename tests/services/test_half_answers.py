"""An answer that breaks off is gone on with: what readers see, what is asked of Mistral, and what is billed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from lives import Lives, new_job

from tramontane.app import App, open_app
from tramontane.database import Database
from tramontane.ids import utc_now
from tramontane.models import Job, State
from tramontane.seam import cut
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator
from tramontane.simulator.prose import tokens_of

POEM = "The tramontane comes down from the hills, cold and dry, and nobody — not even the sea 🌊 — has a word to say."
TOOL = {"type": "function", "function": {"name": "wind", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Told:
    """A job that has ended, and what its log and its result say."""

    job: Job
    events: list[tuple[str, dict[str, Any]]]
    result: dict[str, Any]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [body for name, body in self.events if name == kind]

    @property
    def attempts(self) -> list[tuple[Any, ...]]:
        return [(body["mode"], body["keep"], body["reason"]) for body in self.of("attempt")]

    @property
    def complete(self) -> dict[str, Any]:
        [body] = self.of("complete")
        return body


@pytest.fixture
async def app(database_url: str, simulator: Simulator) -> AsyncIterator[App]:
    fields: dict[str, Any] = {"mistral_server_url": simulator.url, "mistral_api_key": "a-key", "rate_limit": 0.0}
    settings = Settings(database_url=database_url, heartbeat=5.0, poll=0.5, silence_timeout=0.2, **fields)
    async with open_app(settings, worker=True) as app:
        yield app


@pytest.fixture
def ask(app: App, database: Database) -> Callable[..., Any]:
    """Runs a job to its end; a keyword is a field of Mistral's request, or, with `job_` before it, of the job."""
    lives = Lives(database)

    async def run(question: str = f"Say: {POEM}", **fields: Any) -> Told:
        job = {name.removeprefix("job_"): fields.pop(name) for name in list(fields) if name.startswith("job_")}
        request = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": question}], **fields}
        given: dict[str, Any] = {"request": msgspec.json.encode(request), "run_at": utc_now(), "backoff_seconds": 0.01}
        key = (await app.jobs.submit(new_job(**(given | job)))).job.key
        await app.streams.wait_for_end(key, 10)
        events = [(event.type, msgspec.json.decode(event.body)) for event in await lives.log(key)]
        result = (await app.jobs.contents(key)).result
        told = Told(await app.jobs.get(key), events, msgspec.json.decode(result or b"{}"))
        if told.job.state == State.COMPLETED:
            prove(told)
        return told

    return run


def prove(told: Told) -> None:
    """Read the log as a client does: offsets, length, checksum and result agree on the text."""
    text = ""
    for kind, body in told.events:
        if kind == "attempt":
            text = text.encode("utf-16-le")[: 2 * body["keep"]].decode("utf-16-le")
        elif kind == "chunk":
            assert body["off"] == units(text)
            text += body["content"]
    assert (told.complete["len"], told.complete["sha256"]) == (units(text), hashlib.sha256(text.encode()).hexdigest())
    content = told.result["completion"]["choices"][0]["message"]["content"]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    assert told.result["content"] == text == content
    assert told.result["finishReason"] == told.complete["finishReason"]
    assert told.complete["attempts"] == told.job.attempt


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


FAULTS = {
    "truncated": (Behaviour(end_after=15), "truncated"),
    "cut": (Behaviour(cut_after=15), "truncated"),
    "torn": (Behaviour(torn_after=15), "truncated"),
    "malformed": (Behaviour(malformed_after=15), "upstream"),
    "error": (Behaviour(error_after=15), "upstream"),
    "silent": (Behaviour(silence_after=15), "stall"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_however_an_answer_breaks_off_it_is_continued(
    ask: Callable[..., Any], simulator: Simulator, fault: str
) -> None:
    behaviour, reason = FAULTS[fault]
    simulator.script(behaviour)
    told = await ask()
    [(mode, keep, why)] = told.attempts
    assert (mode, why) == ("continue", reason)
    assert told.result["content"] == POEM
    assert [kind for kind, _ in told.events if kind != "chunk"] == ["start", "attempt", "complete"]
    assert simulator.ledger[1].request["messages"][-1] == {
        "role": "assistant",
        "content": "".join(body["content"] for kind, body in told.events if kind == "chunk" and body["off"] < keep),
        "prefix": True,
    }


@pytest.mark.parametrize("echo", ["whole", "split", "none"])
async def test_an_echo_is_stripped_however_it_comes(ask: Callable[..., Any], simulator: Simulator, echo: str) -> None:
    for manner in ("content=text", "content=parts", "split_frames, crlf"):
        simulator.behaviour = Behaviour(echo=echo).but(manner)
        simulator.script(simulator.behaviour.but("cut_after=14"))
        told = await ask()
        assert told.result["content"] == POEM
        assert told.attempts[0][0] == "continue"
        assert told.complete["totalTokens"] == len(tokens_of(POEM))


async def test_an_altered_echo_is_a_fresh_answer(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.script(Behaviour(cut_after=20), Behaviour(echo="altered"))
    told = await ask()
    [first, second] = told.attempts
    assert first[0] == "continue"
    assert (second[0], second[2]) == ("restart", "diverged")
    kept = cut(POEM, second[1])
    assert told.result["content"] == f"{kept}~{POEM[len(kept) + 1 :]}"
    assert 0 < second[1] < first[1]


async def test_no_token_is_billed_twice_that_could_be_continued(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(echo="none")
    alone = await ask()
    [whole] = simulator.ledger
    simulator.script(*[Behaviour(echo="none", cut_after=12)] * 2)
    told = await ask(job_attempts=4)
    assert told.result["content"] == alone.result["content"] == POEM
    assert [call.completion_tokens for call in simulator.ledger[1:]] == [11, 11, whole.completion_tokens - 22]
    assert told.complete["totalTokens"] == alone.complete["totalTokens"]


async def test_an_answer_that_is_cut_again_and_again_is_whole_in_the_end(
    ask: Callable[..., Any], simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens=90)
    alone = await ask("Tell me more.")
    faults = ["cut_after=40", "cut_after=5", "end_after=30, echo=split", "status=503", "torn_after=20, echo=none"]
    simulator.script(*(simulator.behaviour.but(fault) for fault in faults))
    told = await ask("Tell me more.", job_attempts=9)
    assert told.result["content"] == alone.result["content"]
    assert [mode for mode, _, _ in told.attempts] == ["continue"] * 5


async def test_usage_is_summed_and_what_was_not_reported_is_counted_and_not_guessed(
    ask: Callable[..., Any], app: App, simulator: Simulator
) -> None:
    simulator.script(Behaviour(cut_after=20), Behaviour(status=503), Behaviour(finish_reason="error"), Behaviour())
    told = await ask(job_attempts=5)
    reported = simulator.ledger[3]
    usage = told.result["usage"]
    assert usage["completion_tokens"] == reported.completion_tokens
    assert usage == told.complete["usage"] == msgspec.json.decode(told.job.usage or "")
    # Neither the refusal nor the last attempt: one was not billed, the other was reported.
    assert told.complete["unreportedAttempts"] == told.result["unreportedAttempts"] == 2
    records = await app.jobs.attempts(told.job.key)
    assert [record.unreported for record in records] == [True, False, True, False]
    assert [record.usage is not None for record in records] == [False, False, False, True]


async def test_an_answer_in_one_attempt_leaves_nothing_unreported(ask: Callable[..., Any]) -> None:
    told = await ask()
    assert "unreportedAttempts" not in told.complete
    assert "unreportedAttempts" not in told.result


# The seam


async def test_white_space_at_the_seam_is_there_once(ask: Callable[..., Any], simulator: Simulator) -> None:
    text = "One day the wind was late and nobody knew why.\n\n  \n\nIt came at noon."
    simulator.behaviour = Behaviour(echo="none")
    for cut_after in range(10, 18):
        simulator.script(Behaviour(cut_after=cut_after))
        assert (await ask(f"Say: {text}")).result["content"] == text
    sent = [call.request["messages"][-1]["content"] for call in simulator.ledger[1::2]]
    assert all(prefix == prefix.rstrip() for prefix in sent)


async def test_a_stop_string_that_the_cut_went_through_ends_the_answer(
    ask: Callable[..., Any], simulator: Simulator
) -> None:
    late = Behaviour(stops="late")
    begun = len(tokens_of(POEM[: POEM.index(" not")]))
    simulator.script(late.but(f"end_after={begun + 1}"), late)
    told = await ask(stop="nobody — not")
    before = "".join(body["content"] for body in told.of("chunk"))
    simulator.script(late)
    alone = await ask(stop="nobody — not")
    assert told.result["content"] == before == alone.result["content"]
    assert before.endswith("nobody —")
    assert told.complete["finishReason"] == alone.complete["finishReason"] == "stop"
    await simulator.wait_for_ends(3)


async def test_with_nothing_left_of_its_limit_an_answer_is_finished_without_a_call(
    ask: Callable[..., Any], simulator: Simulator
) -> None:
    simulator.script(Behaviour(end_after=13))
    told = await ask(max_tokens=12)
    assert (told.attempts[0][0], told.complete["finishReason"]) == ("continue", "length")
    assert len(simulator.ledger) == 1
    assert told.result["completion"]["object"] == "chat.completion"
    assert told.result["usage"] is None
    assert told.result["unreportedAttempts"] == 1


async def test_a_limit_is_lowered_by_what_was_said(ask: Callable[..., Any], simulator: Simulator) -> None:
    alone = await ask(max_tokens=18)
    simulator.script(Behaviour(cut_after=13))
    told = await ask(max_tokens=18)
    assert simulator.ledger[2].request["max_tokens"] == 6
    assert told.result["content"] == alone.result["content"]
    assert told.complete["finishReason"] == "length"


async def test_a_callers_own_prefix_is_continued_with_it(ask: Callable[..., Any], simulator: Simulator) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well, then: ", "prefix": True}]
    for echo in ("whole", "none"):
        simulator.behaviour = Behaviour(echo=echo)
        alone = await ask(messages=messages)
        simulator.script(simulator.behaviour.but("cut_after=30"))
        told = await ask(messages=messages)
        assert told.attempts[0][0] == "continue"
        assert told.result["content"] == alone.result["content"]


# What cannot be continued


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"n": 2},
        {"model": "magistral-medium-latest"},
        {"response_format": {"type": "json_object"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_cannot_be_continued_is_replayed_in_silence(
    ask: Callable[..., Any], simulator: Simulator, fields: dict[str, Any]
) -> None:
    simulator.script(Behaviour(cut_after=45))
    told = await ask(f"Say: {POEM * 3}", **fields)
    [(mode, keep, _)] = told.attempts
    assert (mode, keep >= 32) == ("replay", True)
    first, second = simulator.ledger
    assert first.request["random_seed"] == second.request["random_seed"]
    assert first.request == second.request
    assert told.result["content"] == POEM * 3
    thoughts = "".join(body.get("thinking", "") for body in told.of("chunk"))
    assert bool(thoughts) == ("model" in fields)
    assert thoughts in str(told.result["completion"])


async def test_a_replay_that_says_something_else_takes_back_what_it_has_to(
    ask: Callable[..., Any], simulator: Simulator
) -> None:
    simulator.script(Behaviour(end_after=60, tokens=80), Behaviour(seed=99, tokens=80))
    told = await ask("Hello", tools=[TOOL])
    [first, second] = told.attempts
    assert first[0] == "replay"
    assert (second[0], second[2]) == ("restart", "diverged")
    assert second[1] < first[1]


async def test_a_replay_that_ends_early_takes_back_the_rest(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.script(Behaviour(end_after=60, tokens=80), Behaviour(tokens=20))
    told = await ask("Hello", tools=[TOOL])
    [first, second] = told.attempts
    assert (first[0], second[0]) == ("replay", "restart")
    assert second[1] == units(told.result["content"]) < first[1]
    assert told.of("chunk")[-1]["off"] < first[1]


async def test_a_continuation_that_mistral_refuses_starts_again(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.script(Behaviour(cut_after=20), Behaviour(status=400))
    told = await ask()
    assert [(mode, why) for mode, _, why in told.attempts] == [("continue", "truncated"), ("restart", "refused")]
    assert (told.result["content"], told.job.attempt, told.job.failures) == (POEM, 2, 1)
    assert "prefix" not in str(simulator.ledger[2].request)


async def test_a_first_call_that_mistral_refuses_is_asked_once(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.script(Behaviour(status=400))
    assert (await ask()).job.state == State.FAILED
    assert len(simulator.ledger) == 1


async def test_a_job_may_ask_never_to_be_resumed(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.script(Behaviour(cut_after=20))
    told = await ask(job_resume="never", n=2)
    assert [(mode, keep) for mode, keep, _ in told.attempts] == [("restart", 0)]
    assert told.result["content"] == POEM
    first, second = simulator.ledger
    assert first.request == second.request
    assert "random_seed" not in first.request


async def test_when_its_attempts_are_spent_the_text_so_far_stays(ask: Callable[..., Any], simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(cut_after=12, echo="none")
    told = await ask(job_attempts=2)
    [error] = told.of("error")
    text = "".join(body["content"] for body in told.of("chunk"))
    assert (error["partial"], error["len"]) == (True, units(text))
    assert POEM.startswith(text)
    assert [mode for mode, _, _ in told.attempts] == ["continue"]
    assert simulator.totals().completion_tokens == told.of("chunk")[-1]["tokenCount"] == 22
    async with asyncio.timeout(5):
        await simulator.wait_for_ends(2)

"""The worker against a simulated Mistral: what becomes of a job, however its attempts end."""

import asyncio
import base64
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lives import Lives, new_job, until

from tramontane.app import App, open_app
from tramontane.database import Database
from tramontane.errors import AttemptLost, ConfigurationError, NotReady, SecretsLocked, Truncated
from tramontane.ids import new_id, utc_now
from tramontane.models import Attempt, Ending, Job, JobKey, State
from tramontane.queue import Entry
from tramontane.runner import Failed, Runner
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator
from tramontane.store import JobStore
from tramontane.vault import Vault

Opener = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture
def opened(database_url: str, simulator: Simulator) -> Opener:
    """Opens a whole process below its faces; a keyword changes a setting."""

    @asynccontextmanager
    async def open_(**changes: Any) -> AsyncIterator[App]:
        fields: dict[str, Any] = {
            "database_url": database_url,
            "mistral_server_url": simulator.url,
            "mistral_api_key": "a-key",
            "rate_limit": 0.0,
            "grace": 5.0,
            "heartbeat": 5.0,
            "poll": 0.5,
        }
        async with open_app(Settings(**(fields | changes)), worker=True) as app:
            yield app

    return open_


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


def asking(question: str = "Hello!", fields: dict[str, Any] | None = None, **job: Any) -> Any:
    request: dict[str, Any] = {
        "model": "mistral-small-latest",
        "messages": [{"role": "user", "content": question}],
        **(fields or {}),
    }
    given: dict[str, Any] = {"request": msgspec.json.encode(request), "run_at": utc_now(), "backoff_seconds": 0.01}
    return new_job(**(given | job))


async def submit(app: App, *args: Any, **fields: Any) -> JobKey:
    return (await app.jobs.submit(asking(*args, **fields))).job.key


async def ended(app: App, key: JobKey) -> Job:
    async with asyncio.timeout(10):
        await app.streams.wait_for_end(key, 10)
    job = await app.jobs.get(key)
    assert job.state.final
    return job


async def run(app: App, *args: Any, **fields: Any) -> Job:
    return await ended(app, await submit(app, *args, **fields))


def bodies(log: Sequence[Any], kind: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.body) for event in log if event.type == kind]


# Ends well


async def test_a_job_completes_and_its_events_tell_the_whole_answer(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    text = "Sète, 😀 and 👨‍👩‍👧: a small boat 🛶 waits — quietly. " * 20
    simulator.behaviour = Behaviour(tokens_per_second=2000)
    async with opened() as app:
        job = await run(app, f"Say: {text}")
    assert (job.state, job.attempt, job.failures) == (State.COMPLETED, 1, 0)
    log = await lives.log(job.key)
    assert [event.seq for event in log] == list(range(1, job.head + 1))
    chunks, [complete] = bodies(log, "chunk"), bodies(log, "complete")
    assert len(chunks) > 1
    assert "".join(one["content"] for one in chunks) == text
    seen = ""
    for one in chunks:
        assert one["off"] == len(seen.encode("utf-16-le")) // 2
        seen += one["content"]
    assert complete["len"] == len(text.encode("utf-16-le")) // 2 == len(text) + text.count("😀") + 60 + 20
    assert complete["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    counts = [one["tokenCount"] for one in chunks]
    assert counts == sorted(counts)
    assert complete["totalTokens"] == counts[-1] == simulator.ledger[0].completion_tokens
    assert (complete["finishReason"], complete["attempts"]) == ("stop", 1)


async def test_the_result_keeps_mistrals_usage_and_completion_untouched(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    async with opened() as app:
        job = await run(app, "Say: calm", request_id="req-9")
    result = msgspec.json.decode((await lives.jobs.contents(job.key)).result or b"")
    [call] = simulator.ledger
    usage = result["usage"]
    assert usage["completion_tokens"] == call.completion_tokens
    assert msgspec.json.decode(job.usage or "") == usage == result["completion"]["usage"]
    assert (result["content"], result["finishReason"], result["requestId"]) == ("calm", "stop", "req-9")
    assert result["completion"]["object"] == "chat.completion"
    assert result["completion"]["choices"][0]["message"]["content"] == "calm"
    assert bodies(await lives.log(job.key), "complete")[0]["usage"] == usage
    assert await lives.entries() == []
    [record] = await lives.jobs.attempts(job.key)
    assert record.outcome == "completed"
    assert record.correlation_id is not None


async def test_without_reported_usage_none_is_guessed(opened: Opener, lives: Lives, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(usage=False)
    async with opened() as app:
        job = await run(app)
    assert (job.state, job.usage) == (State.COMPLETED, None)
    assert msgspec.json.decode((await lives.jobs.contents(job.key)).result or b"")["usage"] is None


async def test_tool_calls_are_events_of_their_own(opened: Opener, lives: Lives, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(tool_calls="fragments")
    tool = {"type": "function", "function": {"name": "wind", "parameters": {"type": "object", "properties": {}}}}
    async with opened() as app:
        job = await run(app, "Call: wind", {"tools": [tool]})
    log = await lives.log(job.key)
    calls = [call for body in bodies(log, "tool") for call in body["toolCalls"]]
    assert calls[0]["function"]["name"] == "wind"
    assert bodies(log, "chunk") == []
    complete = bodies(log, "complete")[0]
    assert (complete["finishReason"], complete["len"], complete["totalTokens"]) == ("tool_calls", 0, 0)


async def test_thinking_is_told_beside_the_content_and_counts_for_no_length(opened: Opener, lives: Lives) -> None:
    async with opened() as app:
        job = await run(app, "Say: deep", {"model": "magistral-medium-latest"}, model="magistral-medium-latest")
    log = await lives.log(job.key)
    assert "".join(one.get("thinking", "") for one in bodies(log, "chunk")) != ""
    assert "".join(one["content"] for one in bodies(log, "chunk")) == "deep"
    assert bodies(log, "complete")[0]["len"] == 4


async def test_of_two_choices_the_first_is_streamed_and_both_are_in_the_completion(
    opened: Opener, lives: Lives
) -> None:
    async with opened() as app:
        job = await run(app, "Say: both", {"n": 2})
    result = msgspec.json.decode((await lives.jobs.contents(job.key)).result or b"")
    assert [choice["index"] for choice in result["completion"]["choices"]] == [0, 1]
    assert "".join(one["content"] for one in bodies(await lives.log(job.key), "chunk")) == "both"


async def test_no_more_than_the_concurrency_are_asked_at_once(opened: Opener, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(latency=0.05)
    async with opened(concurrency=2) as app:
        keys = [await submit(app) for _ in range(6)]
        for key in keys:
            assert (await ended(app, key)).state == State.COMPLETED
    calls = simulator.ledger
    for call in calls:
        assert sum(other.started <= call.started < (other.ended or 0) for other in calls) <= 2


# Ends badly


async def test_an_outage_of_mistral_is_retried_and_its_attempts_are_written_down(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.script(Behaviour(status=503), Behaviour(status=503))
    async with opened() as app:
        job = await run(app)
    assert (job.state, job.attempt, job.failures) == (State.COMPLETED, 3, 2)
    records = await lives.jobs.attempts(job.key)
    assert [record.outcome for record in records] == ["failed", "failed", "completed"]
    assert records[0].failure is not None
    assert records[0].failure.code == "upstream_unavailable"
    log = await lives.log(job.key)
    assert [event.type for event in log][:3] == ["start", "attempt", "attempt"]
    assert [body["reason"] for body in bodies(log, "attempt")] == ["upstream", "upstream"]
    assert bodies(log, "complete")[0]["attempts"] == 3
    assert len(simulator.ledger) == 3


async def test_when_its_attempts_are_spent_a_job_fails_with_the_last_reason(
    opened: Opener, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(status=503)
    async with opened() as app:
        job = await run(app, attempts=2)
    assert (job.state, job.attempt, job.failures) == (State.FAILED, 2, 2)
    assert job.failure is not None
    assert (job.failure.code, job.failure.retryable) == ("upstream_unavailable", True)


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Behaviour(status=401), "upstream_unauthorized"),
        (Behaviour(status=422), "upstream_refused"),
        (Behaviour(zero_allowance=True), "zero_allowance"),
    ],
    ids=["401", "422", "zero allowance"],
)
async def test_what_is_not_worth_retrying_fails_at_once(
    opened: Opener, lives: Lives, simulator: Simulator, behaviour: Behaviour, code: str
) -> None:
    simulator.behaviour = behaviour
    async with opened() as app:
        job = await run(app)
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.failure is not None
    assert (job.failure.code, job.failure.retryable) == (code, False)
    assert await lives.types(job.key) == ["start", "error"]
    assert (await lives.last_body(job.key))["code"] == code
    assert len(simulator.ledger) == 1


async def test_a_429_counts_as_no_failure_and_waits_as_long_as_mistral_asks(
    opened: Opener, simulator: Simulator
) -> None:
    simulator.script(Behaviour(status=429, retry_after=30))
    before = utc_now()
    async with opened() as app:
        key = await submit(app)

        async def waits() -> bool:
            return (await app.jobs.get(key)).refusals == 1

        await until(waits)
        job = await app.jobs.get(key)
        assert [record.outcome for record in await app.jobs.attempts(key)] == ["handover"]
    assert (job.state, job.failures) == (State.QUEUED, 0)
    assert timedelta(seconds=30) <= job.run_at - before <= timedelta(seconds=30 * 1.3 + 10)


async def test_a_429_that_has_become_a_habit_counts_as_a_failure(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(status=429)
    async with opened(limit_window=0.06) as app:
        key = await submit(app, attempts=1)
        await lives.pool.execute("UPDATE jobs SET refusals = 18")
        job = await ended(app, key)
    assert (job.state, job.attempt, job.failures, job.refusals) == (State.FAILED, 3, 1, 20)
    assert job.failure is not None
    assert job.failure.code == "rate_limited"


async def test_an_attempt_that_was_refused_has_used_no_tokens_and_one_that_ended_has_used_what_it_reported(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.script(Behaviour(status=429))
    async with opened(limit_window=0.06) as app:
        job = await run(app)
    rows = await lives.pool.fetch("SELECT account, model, tokens FROM job_attempts ORDER BY attempt")
    used = msgspec.json.decode(job.usage or "")["total_tokens"]
    assert [tuple(row) for row in rows] == [("*", job.model, 0), ("*", job.model, used)]


async def test_what_mistral_never_allows_is_asked_once_a_window_and_fails_at_once_in_between(
    opened: Opener, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(zero_allowance=True)
    async with opened() as app:
        jobs = [await run(app) for _ in range(4)]
    async with opened() as another:
        jobs.append(await run(another))
    assert {(job.failure and job.failure.code, job.attempt) for job in jobs} == {("zero_allowance", 1)}
    assert len(simulator.ledger) == 1


async def test_what_mistral_comes_to_allow_is_allowed_from_the_next_probe_on(
    opened: Opener, simulator: Simulator
) -> None:
    simulator.script(Behaviour(zero_allowance=True))
    async with opened(limit_window=0.3) as app:
        assert (await run(app)).state == State.FAILED

        async def allowed() -> bool:
            return (await run(app)).state == State.COMPLETED

        await until(allowed)
        assert (await run(app)).state == State.COMPLETED


def a_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


async def test_what_a_tenants_own_key_is_answered_is_learned_of_its_limits(opened: Opener, lives: Lives) -> None:
    key = a_key()
    await lives.tenant(id="acme", mistral_key=Vault([key]).seal("of-acme"))

    async def learned() -> bool:
        rows = await lives.pool.fetch("SELECT account FROM buckets WHERE observed_at IS NOT NULL")
        return [row["account"] for row in rows] == ["acme"]

    async with opened(encryption_keys=(key,)) as app:
        job = await run(app, tenant="acme")
        await until(learned)
    assert job.state == State.COMPLETED


async def test_a_worker_that_cannot_read_a_tenants_key_hands_its_job_to_one_that_can(
    opened: Opener, lives: Lives, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    key = a_key()

    async def handed_back() -> bool:
        return [one.outcome for one in await lives.jobs.attempts(asked)] == ["handover"]

    async with opened() as app:
        await lives.tenant(id="acme", mistral_key=Vault([key]).seal("of-acme"))
        await app.operations.check()
        asked = await submit(app, tenant="acme")
        await until(handed_back)
        with pytest.raises(NotReady, match="TRAMONTANE_ENCRYPTION_KEY"):
            await app.operations.check()
    waiting = await lives.jobs.get(asked)
    assert (waiting.state, waiting.failures, waiting.refusals) == (State.QUEUED, 0, 0)
    assert waiting.run_at > utc_now() - timedelta(seconds=10)
    assert "worker.secrets_locked" in caplog.text

    await lives.pool.execute("UPDATE jobs SET run_at = created_at")
    async with opened(encryption_keys=(key,)) as app:
        job = await ended(app, asked)
        await app.operations.check()
    assert (job.state, job.attempt, job.failures) == (State.COMPLETED, 2, 0)
    result = msgspec.json.decode((await lives.jobs.contents(asked)).result or b"")
    assert "unreportedAttempts" not in result, "the first one asked Mistral nothing"
    assert len(simulator.ledger) == 1
    assert await lives.types(asked) == ["start", "attempt", "chunk", "complete"]


@pytest.mark.parametrize("worker", [True, False])
async def test_without_the_key_that_others_have_no_process_starts(
    database_url: str, lives: Lives, worker: bool
) -> None:
    key = a_key()
    for keys in ((), (key,)):
        async with open_app(Settings(database_url=database_url, encryption_keys=keys), worker=False):
            pass
    with pytest.raises(SecretsLocked, match="TRAMONTANE_ENCRYPTION_KEY"):
        async with open_app(Settings(database_url=database_url), worker=worker):
            pass
    async with open_app(Settings(database_url=database_url, encryption_keys=(a_key(), key)), worker=False):
        pass


async def test_jobs_that_nobody_can_ask_for_come_back_less_and_less_often(opened: Opener, lives: Lives) -> None:
    async def wait_after(attempt: int) -> float:
        await lives.pool.execute("UPDATE jobs SET attempt = $1, run_at = created_at", attempt - 1)

        async def handed_back() -> bool:
            return (await lives.jobs.get(asked)).run_at > began

        began = utc_now()
        await until(handed_back)
        return ((await lives.jobs.get(asked)).run_at - began).total_seconds()

    async with opened(poll=0.05) as app:
        await lives.tenant(id="acme", mistral_key=Vault([a_key()]).seal("of-acme"))
        asked = await submit(app, tenant="acme", run_at=utc_now() + timedelta(hours=1))
        assert 1 <= await wait_after(1) < 1.3 + 8
        assert 30 <= await wait_after(50) < 1.3 * 32 + 8


async def test_an_attempt_over_its_time_is_cut_and_keeps_its_text(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    async with opened() as app:
        job = await run(app, "Say: one two three four five six", timeout_seconds=0.3, attempts=1)
        await simulator.wait_for_ends(1, "disconnected")
    assert job.failure is not None
    assert (job.failure.code, job.failure.retryable) == ("timeout", True)
    log = await lives.log(job.key)
    text = "".join(body["content"] for body in bodies(log, "chunk"))
    assert text.startswith("one two")
    [error] = bodies(log, "error")
    assert (error["len"], error["partial"]) == (len(text), True)


async def test_a_short_stream_without_a_finish_reason_is_started_again(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.script(Behaviour(end_after=3))
    async with opened() as app:
        job = await run(app, "Say: the whole answer of many words")
    log = await lives.log(job.key)
    assert bodies(log, "attempt") == [{"mode": "restart", "keep": 0, "reason": "truncated"}]
    at = [event.type for event in log].index("attempt")
    assert "".join(body["content"] for body in bodies(log[at:], "chunk")) == "the whole answer of many words"
    assert bodies(log[at:], "chunk")[0]["off"] == 0


async def test_a_fault_of_ours_ends_the_attempt_and_not_the_worker(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Runner._read

    async def broken(*_: object) -> Any:
        raise ZeroDivisionError

    async with opened() as app:
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "_read", broken)
            job = await run(app, attempts=2)
        assert job.failure is not None
        assert (job.failure.code, job.attempt) == ("internal", 2)
        assert Runner._read is read
        assert (await run(app)).state == State.COMPLETED


# What it costs


PRICES = '[[price]]\nmodel = "*"\nfrom = 2026-01-01\ninput = 1\noutput = 1\ncurrency = "EUR"\n'


async def test_a_job_has_cost_what_all_its_attempts_have_those_included_that_failed(
    opened: Opener, lives: Lives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.toml").write_text(PRICES)
    usage = '{"prompt_tokens":300,"completion_tokens":100,"total_tokens":400}'
    attempts, answer = iter([Failed(Truncated("half an answer"), 0, own_usage=usage)]), Runner.run

    async def run_(self: Runner, attempt: Attempt) -> Ending | Failed:
        return next(attempts, None) or await answer(self, attempt)

    monkeypatch.setattr(Runner, "run", run_)
    async with opened(prices=str(tmp_path / "prices.toml")) as app:
        job = await run(app)
    last = msgspec.json.decode((await lives.jobs.attempts(job.key))[1].usage or "")["total_tokens"]
    assert (job.state, job.attempt, job.currency) == (State.COMPLETED, 2, "EUR")
    assert Decimal(job.cost or 0) == Decimal(400 + last).scaleb(-6)
    assert await lives.pool.fetchval("SELECT sum(cost) FROM spendings") == Decimal(400 + last).scaleb(-6)


@pytest.mark.parametrize(
    ("prices", "budget", "told"),
    [("", "1", 1), (PRICES.replace("*", "another"), "1", 1), (PRICES, "1", 0), ("", None, 0)],
    ids=["no prices", "of other models", "with a price", "no budget"],
)
async def test_a_budget_of_money_that_counts_nothing_is_told_once(
    opened: Opener,
    lives: Lives,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prices: str,
    budget: str | None,
    told: int,
) -> None:
    (tmp_path / "prices.toml").write_text(prices)
    await lives.tenant(daily_cost=budget and Decimal(budget))
    async with opened(prices=str(tmp_path / "prices.toml") if prices else "") as app:
        for _ in range(3):
            assert (await run(app)).state == State.COMPLETED
    lines = [record for record in caplog.records if record.message == "budget.no_price"]
    assert len(lines) == told


# Lost, cancelled, handed over


async def test_a_cancel_closes_the_call_to_mistral_at_once(opened: Opener, lives: Lives, simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    async with opened() as app:
        key = await submit(app)
        await simulator.wait_for_chunks(1, 4)
        job = await app.jobs.cancel(key)
        assert job.state == State.CANCELLED
        await simulator.wait_for_ends(1, "disconnected", timeout=1)
    assert (await lives.types(key))[-1] == "error"
    assert (await lives.jobs.get(key)) == job


async def test_a_lost_attempt_closes_its_call_and_writes_nothing(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=50, tokens=5000)
    async with opened() as app:
        key = await submit(app, attempts=1)
        await simulator.wait_for_chunks(1, 5)
        [(entry_id, _, _)] = await lives.entries()
        # Another worker takes the entry over; with one attempt allowed that ends the job.
        [lost] = await lives.jobs.start([Entry(entry_id, key)], worker_id=new_id(), now=utc_now())
        assert isinstance(lost, Job)
        head = (await lives.jobs.get(key)).head
        await simulator.wait_for_ends(1, "disconnected", timeout=2)
    job = await lives.jobs.get(key)
    assert (job.state, job.head) == (State.FAILED, head)
    assert (await lives.types(key))[-1] == "error"
    assert job.failure is not None
    assert job.failure.code == "interrupted"


async def test_a_job_that_ends_because_its_worker_was_lost_is_counted_by_whoever_clears_it_away(
    opened: Opener, lives: Lives
) -> None:
    now = utc_now()
    await lives.worker(heartbeat=5.0, now=now)
    once, again = [await lives.running(now=now, run_at=now, attempts=attempts) for attempts in (1, 2)]
    async with opened() as app:
        await ended(app, once.job.key)
        await ended(app, again.job.key)

        async def counted() -> bool:
            page = app.operations.metrics.page(None, utc_now()).decode()
            return all(
                f"tramontane_jobs_ended_total{{{labels}}} 1.0" in page
                for labels in ('code="interrupted",state="failed"', 'code="",state="completed"')
            )

        await until(counted)


async def test_a_stop_hands_running_jobs_over_and_counts_no_failure(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(silence_after=4)
    async with opened(grace=0.01) as app:
        key = await submit(app)
        await simulator.wait_for_chunks(1, 4)
    await simulator.wait_for_ends(1, "disconnected")
    job = await lives.jobs.get(key)
    assert (job.state, job.failures, job.attempt) == (State.QUEUED, 0, 1)
    assert [record.outcome for record in await lives.jobs.attempts(key)] == ["handover"]
    simulator.behaviour = Behaviour()
    async with opened() as app:
        job = await ended(app, key)
    assert (job.state, job.failures, job.attempt) == (State.COMPLETED, 0, 2)
    assert bodies(await lives.log(key), "attempt")[0]["reason"] == "handover"


async def test_a_stop_lets_running_jobs_end_within_their_grace(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=100, tokens=30)
    async with opened(grace=8.0) as app:
        key = await submit(app)
        await simulator.wait_for_chunks(1, 2)
    assert (await lives.jobs.get(key)).state == State.COMPLETED


async def test_a_job_that_was_just_being_started_at_a_stop_is_handed_over_too(
    opened: Opener, lives: Lives, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.behaviour = Behaviour(silence_after=1)
    starting, grace_is_over = asyncio.Event(), asyncio.Event()
    start = JobStore.start

    async def slow(self: JobStore, entries: Sequence[Entry], **fields: Any) -> Any:
        starting.set()
        await grace_is_over.wait()
        return await start(self, entries, **fields)

    monkeypatch.setattr(JobStore, "start", slow)
    async with asyncio.timeout(10), opened(grace=0.01) as app:
        key = await submit(app)
        await starting.wait()
        assert app.worker is not None
        app.worker.stop()
        await asyncio.sleep(0.1)  # the grace itself
        grace_is_over.set()
    assert (await lives.jobs.get(key)).state == State.QUEUED
    assert [record.outcome for record in await lives.jobs.attempts(key)] == ["handover"]


# Writing the end


async def test_jobs_outlive_the_loss_of_every_connection_to_the_database(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    simulator.behaviour = Behaviour(tokens_per_second=60, tokens=90)
    async with opened() as app:
        keys = [await submit(app) for _ in range(3)]
        for number in (1, 2, 3):
            await simulator.wait_for_chunks(number, 20)
        await lives.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

        async def all_ended() -> bool:
            return all([(await lives.jobs.get(key)).state.final for key in keys])

        await until(all_ended, 15)
    for job in [await lives.jobs.get(key) for key in keys]:
        assert (job.state, job.attempt, job.failures) == (State.COMPLETED, 1, 0)
        log = await lives.log(job.key)
        assert [event.seq for event in log] == list(range(1, job.head + 1))
        text = "".join(body["content"] for body in bodies(log, "chunk"))
        assert bodies(log, "complete")[0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


async def test_an_ending_whose_commit_is_unknown_is_written_once(
    opened: Opener, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = JobStore.end
    broken: list[Sequence[Ending]] = []

    async def breaks_after_the_commit(self: JobStore, endings: Sequence[Ending]) -> Any:
        outcomes = await end(self, endings)
        if not broken:
            broken.append(endings)
            raise ConnectionError("no answer, all written")
        return outcomes

    monkeypatch.setattr(JobStore, "end", breaks_after_the_commit)
    told: list[Job] = []
    async with opened() as app:
        assert app.worker is not None
        app.worker.on("completed", told.append)
        job = await run(app)
        await until(lambda: has(told))
    assert job.state == State.COMPLETED
    assert [one.key for one in told] == [job.key]
    assert (await lives.types(job.key)).count("complete") == 1


async def has(told: list[Job]) -> bool:
    return bool(told)


async def test_an_ending_that_is_lost_is_given_up_at_once(
    opened: Opener, lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end, start = JobStore.end, lives.jobs.start

    async def too_late(self: JobStore, endings: Sequence[Ending]) -> Any:
        for ending in endings:
            entry = Entry(ending.entry_id, ending.key)
            await start([entry], worker_id=new_id(), now=utc_now())
        outcomes = await end(self, endings)
        assert all(isinstance(outcome, AttemptLost) for outcome in outcomes)
        return outcomes

    monkeypatch.setattr(JobStore, "end", too_late)
    caplog.set_level(logging.INFO, "tramontane")
    told: list[Job] = []
    async with opened() as app:
        assert app.worker is not None
        app.worker.on("completed", told.append)
        job = await run(app, attempts=1)

        async def is_given_up() -> bool:
            return "attempt.lost" in caplog.text

        await until(is_given_up)
    assert (job.state, told) == (State.FAILED, [])
    assert "ending.failed" not in caplog.text


# Hooks


async def test_hooks_are_told_of_completed_and_failed_jobs_after_the_commit(
    opened: Opener, lives: Lives, simulator: Simulator
) -> None:
    completed: asyncio.Queue[Job] = asyncio.Queue()
    failed: asyncio.Queue[Job] = asyncio.Queue()

    async def on_completed(job: Job) -> None:
        assert (await lives.jobs.get(job.key)).state == State.COMPLETED
        completed.put_nowait(job)

    async with opened() as app:
        assert app.worker is not None
        app.worker.on("completed", on_completed)
        app.worker.on("failed", failed.put_nowait)
        good = await run(app)
        simulator.behaviour = Behaviour(status=401)
        bad = await run(app)
        async with asyncio.timeout(5):
            assert await completed.get() == good
            assert await failed.get() == bad
    assert completed.empty()
    assert failed.empty()


async def test_a_hook_that_fails_changes_nothing_for_the_others(opened: Opener) -> None:
    told: asyncio.Queue[Job] = asyncio.Queue()

    def fails(_: Job) -> None:
        raise ZeroDivisionError

    async def fails_later(_: Job) -> None:
        raise KeyError

    async with opened() as app:
        assert app.worker is not None
        for hook in (fails, fails_later, told.put_nowait):
            app.worker.on("completed", hook)
        jobs = [await run(app), await run(app)]
        async with asyncio.timeout(5):
            assert [await told.get() for _ in jobs] == jobs
    assert all(job.state == State.COMPLETED for job in jobs)


async def test_an_unknown_hook_is_refused(opened: Opener) -> None:
    async with opened() as app:
        assert app.worker is not None
        with pytest.raises(ConfigurationError, match="use 'completed' or 'failed'"):
            app.worker.on("cancelled", print)  # type: ignore[arg-type]


# Beside the jobs


async def test_a_worker_is_known_while_it_runs_and_stopped_afterwards(opened: Opener, lives: Lives) -> None:
    async with opened(concurrency=3) as app:

        async def known() -> bool:
            return bool(await lives.pool.fetchval("SELECT count(*) FROM workers WHERE stopped_at IS NULL"))

        await until(known)
        assert app.worker is not None
    row = await lives.pool.fetchrow("SELECT concurrency, stopped_at, seen_at FROM workers")
    assert row is not None
    assert row["concurrency"] == 3
    assert isinstance(row["stopped_at"], datetime)


async def test_a_second_worker_with_another_heartbeat_does_not_start(opened: Opener, lives: Lives) -> None:
    async with opened() as app:

        async def known() -> bool:
            return bool(await lives.pool.fetchval("SELECT count(*) FROM workers"))

        await until(known)
        with pytest.raises(ConfigurationError, match="one heartbeat for the whole fleet"):
            async with opened(heartbeat=1.0):
                await asyncio.Event().wait()
        assert (await run(app)).state == State.COMPLETED

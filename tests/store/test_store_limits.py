"""Mistral's limits on the store: kept by counting what happened, shared between tenants, and learned from answers."""

import dataclasses
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pytest
from lives import T0, WINDOW, Lives, at, ending, new_job, requeue

from tramontane.database import Database
from tramontane.ids import new_id
from tramontane.limits import Heard
from tramontane.models import Attempt, Failure, Job, JobKey, State
from tramontane.queue import Entry
from tramontane.simulator.windows import Window
from tramontane.store.rounds import SQL

LIMITED = Failure(code="rate_limited", message="Mistral answered 429", retryable=True)
OTHER = "mistral-large-latest"


@pytest.fixture
def lives(any_database: Database) -> Lives:
    return Lives(any_database)


def usage(tokens: int) -> str:
    return json.dumps({"prompt_tokens": 10, "completion_tokens": tokens - 10, "total_tokens": tokens})


async def admit(lives: Lives, seconds: float = 0) -> list[JobKey]:
    return list((await lives.limits.admit(at(seconds))).admitted)


async def next_at(lives: Lives, seconds: float) -> datetime | None:
    return (await lives.limits.admit(at(seconds))).next_at


async def waiting(lives: Lives, count: int, **fields: Any) -> list[Job]:
    """Jobs that wait, since no worker was there when they came."""
    return await lives.submit(*(new_job(**fields) for _ in range(count)))


async def limited(lives: Lives, requests: int = 1000, tokens: int | None = None, **head: Any) -> None:
    """A worker, and an answer that names the limits, of which nothing was used."""
    await lives.worker(heartbeat=1000)
    rest: dict[str, Any] = {"limit_tokens": tokens, "remaining_tokens": tokens} if tokens else {}
    await lives.answered(limit_requests=requests, remaining_requests=requests, **rest, **head)


# Requests


async def test_no_window_sees_more_starts_than_the_limit_and_each_leaves_room_when_it_leaves(lives: Lives) -> None:
    await waiting(lives, 12)
    await limited(lives, 4)
    assert len(await lives.round(T0)) == 4
    assert await lives.round(at(60)) == [], "the call came to Mistral later than its start was written down"
    assert await next_at(lives, 60) == at(61.5)
    assert len(await lives.round(at(61.5))) == 4


async def test_what_was_let_through_and_has_not_started_keeps_its_place(lives: Lives) -> None:
    await waiting(lives, 12)
    await limited(lives, 4)
    assert len(await admit(lives)) == 4
    assert await admit(lives, 300) == []


async def test_each_key_and_each_model_has_a_limit_of_its_own(lives: Lives) -> None:
    await limited(lives, 2)
    await lives.answered(OTHER)
    await lives.answered(account="acme", limit_requests=3, remaining_requests=3)
    await waiting(lives, 5)
    await waiting(lives, 5, model=OTHER)
    keys = await waiting(lives, 5, tenant="acme")
    await lives.pool.execute("UPDATE jobs SET account = 'acme', admitted_at = NULL WHERE tenant_id = 'acme'")
    await lives.pool.execute("UPDATE jobs SET admitted_at = NULL")
    admitted = await admit(lives)
    assert sum(key.tenant == "acme" for key in admitted) == 3
    assert len(admitted) == 2 + 5 + 3
    assert len(keys) == 5


async def test_a_bucket_that_has_never_answered_gets_two_calls_until_it_has(lives: Lives) -> None:
    await lives.worker(heartbeat=1000)
    jobs = await waiting(lives, 6, model=OTHER)
    let_through = [key for _, _, key in await lives.entries()]
    assert let_through == [jobs[0].key, jobs[1].key]
    for key in let_through:
        await lives.start(key)
    assert await admit(lives, 50) == []
    await lives.answered(OTHER, now=at(50), limit_requests=100, remaining_requests=98)
    assert len(await admit(lives, 50)) == 4


async def test_what_others_use_of_the_workspace_is_left_to_them(lives: Lives) -> None:
    await waiting(lives, 60)
    await lives.worker(heartbeat=1000)
    await lives.answered(limit_requests=60, remaining_requests=10)
    assert len(await lives.round(T0)) == 10
    assert len(await lives.round(at(30))) == 25


async def test_facts_are_what_is_counted_so_a_lost_worker_leaves_no_trace_of_its_own(lives: Lives) -> None:
    await waiting(lives, 9)
    await limited(lives, 1000, 2000)
    [first, *_] = await admit(lives)
    attempt = await lives.start(first)
    reserved = await lives.pool.fetchval("SELECT reserved FROM jobs WHERE id = $1", first.id)
    await lives.take_over(attempt, now=at(5))
    [record] = await lives.pool.fetch("SELECT outcome, tokens FROM job_attempts")
    assert tuple(record) == ("lost", reserved)


# Tokens


async def test_a_reservation_becomes_what_was_really_used(lives: Lives) -> None:
    await limited(lives, 1000, 1800)
    [job] = await lives.submit(new_job(prompt_tokens=600, max_tokens=400))
    await waiting(lives, 1, prompt_tokens=600, max_tokens=400)
    assert await admit(lives) == [], "1,000 are set aside, so 1,000 do not fit"
    attempt = await lives.start(job.key)
    await lives.jobs.end([ending(attempt, at=at(5), own_usage=usage(300))])
    assert len(await admit(lives, 5)) == 1


async def test_tokens_leave_the_window_a_minute_after_their_attempt_has_ended(lives: Lives) -> None:
    await limited(lives, 1000, 900)
    [job] = await lives.submit(new_job(prompt_tokens=10, max_tokens=10))
    attempt = await lives.start(job.key)
    await lives.jobs.end([ending(attempt, at=at(9), own_usage=usage(900))])
    await waiting(lives, 1, prompt_tokens=100, max_tokens=100)
    assert await next_at(lives, 20) == at(69)
    assert await admit(lives, 68.9) == []
    assert len(await admit(lives, 69)) == 1


async def test_small_jobs_do_not_starve_a_large_one(lives: Lives) -> None:
    await limited(lives, 1000, 1000)
    [small] = await lives.submit(new_job(prompt_tokens=300, max_tokens=1))
    attempt = await lives.start(small.key)
    [large] = await lives.submit(new_job(prompt_tokens=900, max_tokens=1))
    await waiting(lives, 5, prompt_tokens=10, max_tokens=1)
    assert await admit(lives, 1) == []
    await lives.jobs.end([ending(attempt, at=at(2), own_usage=usage(300))])
    assert await admit(lives, 3) == []
    assert (await admit(lives, 62))[0] == large.key


async def test_a_job_that_is_larger_than_the_limit_goes_alone(lives: Lives) -> None:
    await waiting(lives, 2, prompt_tokens=5000, max_tokens=1)
    await limited(lives, 1000, 1000)
    [first] = await admit(lives)
    attempt = await lives.start(first)
    assert await admit(lives, 100) == []
    await lives.jobs.end([ending(attempt, at=at(101), own_usage=usage(5001))])
    assert await admit(lives, 102) == []
    assert len(await admit(lives, 161)) == 1


async def test_the_average_of_answers_is_what_is_set_aside_for_those_to_come(lives: Lives) -> None:
    await lives.worker(heartbeat=1000)
    await lives.buckets.learn(("*", "mistral-small-latest"), [], [100] * 40, T0, WINDOW)
    [job] = await lives.submit(new_job(prompt_tokens=50))
    assert await lives.pool.fetchval("SELECT reserved FROM jobs WHERE id = $1", job.key.id) == 150


# Refusals


async def test_a_429_pauses_its_bucket_and_no_other(lives: Lives) -> None:
    await limited(lives, 60)
    await lives.answered(OTHER)
    await lives.answered(status=429, retry_after=20, limit_requests=60, remaining_requests=0)
    await waiting(lives, 3)
    [other] = await waiting(lives, 1, model=OTHER)
    assert [key for _, _, key in await lives.entries()] == [other.key]
    assert await next_at(lives, 1) == at(20)
    assert len(await admit(lives, 20)) == 2, "two ask first"


async def test_a_job_that_was_sent_away_has_not_failed_and_goes_first_again(lives: Lives) -> None:
    attempt = await _running(lives)
    given_back = requeue(attempt, at(1), LIMITED)
    job = await lives.jobs.requeue(_refused(given_back), T0)
    assert (job.failures, job.refusals, job.state) == (0, 1, State.QUEUED)
    [record] = await lives.jobs.attempts(job.key)
    assert (record.outcome, record.failure) == ("handover", LIMITED)


async def test_refusals_count_in_a_row_and_a_hand_over_does_not_end_the_row(lives: Lives) -> None:
    attempt = await _running(lives)
    counts = []
    for given_back in (_refused, _refused, _handed_over, _refused, lambda one: one):
        job = await lives.jobs.requeue(given_back(requeue(attempt, T0, LIMITED)), T0)
        counts.append(job.refusals)
        await admit(lives)
        attempt = await lives.start(job.key)
    assert counts == [1, 2, 2, 3, 0]


async def test_of_all_who_ask_whether_never_still_holds_one_a_window_may(lives: Lives) -> None:
    key = "*", "mistral-small-latest"
    assert not await lives.buckets.refuses(key, T0, WINDOW)
    await lives.buckets.learn(key, [Heard(at=T0, status=429, never=True)], [], T0, WINDOW)
    asked = [await lives.buckets.refuses(key, at(second), WINDOW) for second in (1, 59, 60, 61, 119, 120)]
    assert asked == [True, True, False, True, True, False]


# Who may


async def test_what_is_paused_waits_and_the_rest_goes(lives: Lives) -> None:
    await lives.worker(heartbeat=1000)
    for tenant, kind, model in (("a", "*", "*"), ("*", "*", OTHER)):
        await lives.pool.execute(
            "INSERT INTO pauses (tenant_id, id, kind, model, paused_at) VALUES ($1, $2, $3, $4, $5)",
            tenant, new_id(), kind, model, T0,
        )  # fmt: skip
    await waiting(lives, 2, tenant="a")
    await waiting(lives, 2, tenant="b", model=OTHER)
    [free] = await waiting(lives, 1, tenant="b")
    assert [key for _, _, key in await lives.entries()] == [free.key]
    await lives.pool.execute("DELETE FROM pauses")
    assert len(await admit(lives)) == 4


async def test_a_tenant_runs_as_many_at_a_time_as_it_may(lives: Lives) -> None:
    await lives.pool.execute(
        "INSERT INTO tenants (id, concurrency, created_at, updated_at) VALUES ('a', 2, $1, $1)", T0
    )
    await waiting(lives, 5, tenant="a")
    await waiting(lives, 3, tenant="b")
    await lives.worker(heartbeat=1000)
    first = await lives.round(T0)
    assert Counter(key.tenant for key in first) == {"a": 2, "b": 3}
    assert await admit(lives) == []
    await lives.jobs.cancel(next(key for key in first if key.tenant == "a"), T0)
    assert len(await admit(lives)) == 1


@pytest.mark.parametrize("budget", ["daily_tokens", "daily_cost"])
async def test_a_tenant_whose_budget_is_spent_waits_until_midnight(lives: Lives, budget: str) -> None:
    await lives.pool.execute(
        f"INSERT INTO tenants (id, {budget}, created_at, updated_at) VALUES ('a', 100, $1, $1)",
        T0,
    )
    await lives.pool.execute(
        "INSERT INTO spendings (tenant_id, day, model, prompt_tokens, completion_tokens, cost)"
        " VALUES ('a', $1, 'm', 60, 40, 100)",
        T0.date(),
    )
    await waiting(lives, 1, tenant="a")
    await lives.worker(heartbeat=1000)
    assert await admit(lives) == []
    midnight = 17 * 3600 + 14 * 60
    await lives.limits.beat(lives.worker_id, at(midnight))
    assert await admit(lives, midnight - 1) == []
    assert len(await admit(lives, midnight)) == 1


async def test_a_tenant_of_twice_the_weight_gets_twice_as_much(lives: Lives) -> None:
    await lives.pool.execute("INSERT INTO tenants (id, weight, created_at, updated_at) VALUES ('a', 2, $1, $1)", T0)
    await waiting(lives, 40, tenant="a")
    await waiting(lives, 40, tenant="b")
    await limited(lives, 30)
    had = Counter(key.tenant for key in await lives.round(T0))
    assert had == {"a": 20, "b": 10}


async def test_a_weight_that_nobody_may_set_leaves_no_share_that_cannot_be(lives: Lives) -> None:
    await lives.tenant(id="a", weight=5e-324)
    await waiting(lives, 2, tenant="a")
    await waiting(lives, 2, tenant="b")
    await limited(lives, 60)
    for key in await admit(lives):
        attempt = await lives.start(key)
        await lives.jobs.end([ending(attempt, own_usage='{"total_tokens": 40000}')])
    rows = await lives.pool.fetch("SELECT virtual_time FROM shares")
    assert len(rows) >= 3
    assert all(0 <= row["virtual_time"] < 10_000 for row in rows)


async def test_shares_are_remembered_from_round_to_round(lives: Lives) -> None:
    await waiting(lives, 40, tenant="a")
    await waiting(lives, 10, tenant="b")
    await waiting(lives, 10, tenant="c")
    await lives.worker(slots=1, heartbeat=1000)
    order = []
    for _ in range(30):
        [key] = await admit(lives)
        order.append(key.tenant)
        await lives.jobs.cancel(key, T0)
    assert Counter(order) == {"a": 10, "b": 10, "c": 10}
    assert all(len(set(order[start : start + 3])) == 3 for start in range(0, 30, 3))


# Cost


async def test_a_backlog_costs_a_few_probes_however_long_it_is_and_whenever_the_plan_was_made(lives: Lives) -> None:
    """A plan is made for the empty table, and must be as good for the full one."""
    async with lives.pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE first_ones (timestamptz, integer) AS {SQL.candidates}")
        await connection.execute(f"EXECUTE first_ones ('{T0.isoformat()}', 10)")
        await connection.execute(
            "INSERT INTO jobs (tenant_id, id, kind, state, request_id, model, attempts, backoff_kind, backoff_seconds,"
            " timeout_seconds, priority, run_at, due, created_at)"
            " SELECT 't' || n % 3, gen_random_uuid(), 'chat', 'queued', '', 'm', 3, 'fixed', 1, 1, n % 7, $1, true, $1"
            " FROM generate_series(1, 20000) AS n",
            T0,
        )
        told = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE first_ones ('{T0.isoformat()}', 10)"
        )
        await connection.execute("RESET plan_cache_mode")
    plan = json.loads(told)[0]["Plan"]
    assert plan["Actual Rows"] == 30
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 250


# The whole, against Mistral's own way of counting


class Story:
    """A fleet whose clock stands still but for what happens: rounds, calls that arrive, answers that end."""

    LATENCY, ANSWER = 0.05, 2.0

    def __init__(self, lives: Lives, window: Window, tokens: dict[str, int]) -> None:
        self.lives, self.window, self.tokens = lives, window, tokens
        self.refused = 0
        self._answers: list[int] = []
        self.calls: list[tuple[float, str]] = []
        self._ends: list[tuple[float, int, Attempt]] = []

    async def run(self, until: float) -> None:
        now = 0.0
        while now < until:
            await self._end(now)
            admission = await self.lives.limits.admit(at(now))
            await self._start(admission.admitted, now)
            times = [admission.next_at, at(self._ends[0][0]) if self._ends else None]
            now = min(max(now + 0.01, (time - T0).total_seconds()) for time in times if time)

    async def _start(self, keys: Iterable[JobKey], now: float) -> None:
        entries = {key: Entry(entry_id, key) for entry_id, _, key in await self.lives.entries()}
        wanted = [entries[key] for key in keys]
        attempts = await self.lives.jobs.start(wanted, worker_id=self.lives.worker_id, now=at(now)) if wanted else []
        for attempt in attempts:
            assert isinstance(attempt, Attempt)
            self.refused += self.window.admit(now + self.LATENCY) is not None
            self.calls.append((now, attempt.job.key.tenant))
            heapq.heappush(self._ends, (now + self.ANSWER, len(self.calls), attempt))
        if attempts:
            await self.hear(now + self.LATENCY)

    async def _end(self, now: float) -> None:
        ended = []
        while self._ends and self._ends[0][0] <= now:
            time, _, attempt = heapq.heappop(self._ends)
            tokens = self.tokens[attempt.job.key.tenant]
            self.window.debit(time, tokens)
            self._answers.append(tokens - 10)
            ended.append(ending(attempt, at=at(time), own_usage=usage(tokens)))
        if ended:
            await self.lives.jobs.end(ended)

    async def hear(self, now: float) -> None:
        told = {name.removeprefix("x-ratelimit-"): int(value) for name, value in self.window.headers(now).items()}
        heard = Heard(
            at=at(now),
            limit_requests=told["limit-req-minute"],
            remaining_requests=told["remaining-req-minute"],
            limit_tokens=told["limit-tokens-minute"],
            remaining_tokens=told["remaining-tokens-minute"],
        )
        answers, self._answers = self._answers, []
        await self.lives.buckets.learn(("*", "mistral-small-latest"), [heard], answers, at(now), WINDOW)


@pytest.mark.parametrize(
    ("tokens", "bound"),
    [({"a": 50, "b": 50, "c": 50}, "requests"), ({"a": 1000, "b": 1000, "c": 1000}, "tokens"),
     ({"a": 500, "b": 1000, "c": 2000}, "tokens")],
    ids=["requests", "tokens", "unequal tokens"],
)  # fmt: skip
async def test_the_limits_are_used_and_never_passed_and_everybody_has_a_fair_share(
    database: Database, tokens: dict[str, int], bound: str
) -> None:
    lives = Lives(database)
    for tenant, count in (("a", 300), ("b", 160), ("c", 100)):
        most = tokens[tenant] - 10
        await waiting(lives, count, tenant=tenant, prompt_tokens=10, max_tokens=most)
    await lives.worker(slots=100, heartbeat=1000)
    await lives.pool.execute("DELETE FROM buckets")  # nothing is known yet
    story = Story(lives, Window(60, 50_000), tokens)
    await story.run(WINDOW.total_seconds() * 4)

    assert story.refused == 0
    calls = Counter(tenant for _, tenant in story.calls)
    used = calls.total() if bound == "requests" else sum(calls[tenant] * tokens[tenant] for tenant in tokens)
    assert used >= 0.95 * 4 * (60 if bound == "requests" else 50_000)
    had = {tenant: calls[tenant] * max(1 / 60, tokens[tenant] / 50_000) for tenant in tokens}
    for tenant in tokens:
        assert had[tenant] == pytest.approx(sum(had.values()) / 3, rel=0.1), had


async def _running(lives: Lives) -> Attempt:
    await lives.worker(heartbeat=1000)
    return await lives.running()


def _refused(one: Any) -> Any:
    return dataclasses.replace(one, refused=True)


def _handed_over(one: Any) -> Any:
    return dataclasses.replace(one, failure=None)

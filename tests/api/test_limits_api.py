"""What callers are told of the limits, and of when their jobs may start."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from faces import Answer, Face, facing
from keyring import bearer, make_key
from lives import Lives, new_job, until

from tramontane.ids import new_id, show_id, utc_now
from tramontane.limits import Heard
from tramontane.models import Job, Scope
from tramontane.simulator import Simulator

MODEL = "mistral-small-latest"
WINDOW = timedelta(seconds=60)


@pytest_asyncio.fixture
async def face(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, worker=False) as face:
        yield face


@pytest.fixture
def lives(face: Face) -> Lives:
    return Lives(face.app.database)


async def wait(lives: Lives, count: int = 1, **fields: Any) -> list[Job]:
    now = utc_now()
    return await lives.submit(*(new_job(**({"run_at": now} | fields)) for _ in range(count)), now=now)


async def told(face: Face, job: Job) -> tuple[str | None, int, datetime | None]:
    """What it waits for, how many are before it, and when it may start."""
    answer = await face.ask("GET", f"/api/limits?jobId={show_id('job', job.key.id)}")
    shown = answer.json["job"]
    at = shown["expectedStartAt"]
    return shown["waitsFor"], shown["ahead"], at and datetime.fromisoformat(at)


async def learned(lives: Lives, **head: Any) -> None:
    await lives.buckets.learn(("*", MODEL), [Heard(at=utc_now(), **head)], [], utc_now(), WINDOW)


def soon(moment: datetime | None, seconds: float) -> bool:
    """About so many seconds from now."""
    return moment is not None and abs((moment - utc_now()).total_seconds() - seconds) < 5


async def test_after_the_first_answer_the_limits_are_known_and_what_is_free_of_them(database_url: str) -> None:
    async with Simulator(request_limit=60, token_limit=50_000) as limited, facing(limited, database_url) as face:
        before = (await face.ask("GET", "/api/limits")).json
        job = await face.job((await face.submit())["jobId"], wait=10)
        after: dict[str, Any] = {}

        async def known() -> bool:
            after.update((await face.ask("GET", "/api/limits")).json)
            return bool(after["buckets"]) and after["buckets"][0]["requests"]["limit"] is not None

        await until(known)

    fleet, [bucket] = after["fleet"], after["buckets"]
    assert before["buckets"] == []
    assert (fleet["workers"], fleet["slots"], fleet["freeSlots"], fleet["windowSeconds"]) == (1, 5, 5, 60)
    used = job["usage"]["total_tokens"]
    assert bucket["requests"] == {"limit": 60, "free": 59, "used": 1, "others": 0}
    assert bucket["tokens"] == {"limit": 50_000, "free": 50_000 - used, "used": used, "reserved": 0, "others": 0}
    assert (bucket["account"], bucket["model"], bucket["caution"]) == ("server", MODEL, 1.0)
    assert (bucket["waiting"], bucket["inFlight"], bucket["blockedUntil"]) == ({"count": 0, "more": False}, 0, None)


async def test_a_pause_that_mistral_asked_for_is_shown(face: Face, lives: Lives) -> None:
    await learned(lives, status=429, retry_after=40, limit_requests=60, remaining_requests=0)
    [bucket] = (await face.ask("GET", "/api/limits")).json["buckets"]
    assert soon(datetime.fromisoformat(bucket["blockedUntil"]), 40)
    assert (bucket["requests"]["free"], bucket["caution"]) == (0, 0.5)


# One job


async def test_without_a_worker_nobody_can_say_when_a_job_starts(face: Face, lives: Lives) -> None:
    [job] = await wait(lives)
    assert await told(face, job) == ("slot", 0, None)


async def test_a_job_for_later_waits_for_its_time(face: Face, lives: Lives) -> None:
    later = utc_now().replace(microsecond=0) + timedelta(hours=1)
    [job] = await wait(lives, run_at=later)
    assert await told(face, job) == ("time", 0, later)


async def test_a_job_behind_others_waits_for_as_long_as_they_take_of_the_limit(face: Face, lives: Lives) -> None:
    jobs = await wait(lives, 61)
    await lives.worker(now=utc_now())
    await learned(lives, limit_requests=60, remaining_requests=30)
    waits_for, ahead, at = await told(face, jobs[0])
    assert (waits_for, ahead) == (None, 0)
    assert soon(at, 0)
    waits_for, ahead, at = await told(face, jobs[60])
    assert (waits_for, ahead) == ("requests", 60)
    assert soon(at, 31), at


async def test_of_another_tenants_jobs_those_come_before_ours_that_share_with_us(face: Face, lives: Lives) -> None:
    await wait(lives, 50, tenant="acme")
    await wait(lives, 3, tenant="globex", priority=5)
    jobs = await wait(lives, 5)
    _, ahead, _ = await told(face, jobs[4])
    assert ahead == 4 + 5 + 3


async def test_tokens_slots_rate_and_blocks_are_told_apart(face: Face, lives: Lives) -> None:
    [job] = await wait(lives, prompt_tokens=3000)
    await lives.worker(slots=1, now=utc_now())
    await learned(lives, limit_requests=60, remaining_requests=60, limit_tokens=4000, remaining_tokens=1000)
    assert (await told(face, job))[0] == "tokens"
    await learned(lives, limit_tokens=4000, remaining_tokens=4000)
    await lives.pool.execute("UPDATE limits SET rate = 0.01 WHERE name = 'starts'")
    [other] = await lives.submit(new_job(model="other", run_at=utc_now()), now=utc_now())
    await lives.pool.execute("UPDATE jobs SET admitted_at = NULL")
    await lives.pool.execute("UPDATE jobs SET admitted_at = now() WHERE id = $1", other.key.id)
    assert (await told(face, job))[0] in ("slot", "rate")
    await lives.pool.execute("UPDATE jobs SET admitted_at = NULL")
    await learned(lives, status=429, retry_after=20, limit_requests=60, remaining_requests=0)
    waits_for, _, at = await told(face, job)
    assert waits_for == "blocked"
    assert soon(at, 20)


async def test_what_is_paused_over_its_budget_or_its_concurrency_says_so(face: Face, lives: Lives) -> None:
    [job] = await wait(lives)
    now = utc_now()
    await lives.pool.execute(
        "INSERT INTO tenants (id, concurrency, daily_tokens, created_at, updated_at) VALUES ('default', 0, 0, $1, $1)",
        now,
    )
    await lives.pool.execute(
        "INSERT INTO pauses (tenant_id, id, kind, model, paused_at) VALUES ('*', $1, 'chat', '*', $2)", new_id(), now
    )
    assert await told(face, job) == ("paused", 0, None)
    await lives.pool.execute("DELETE FROM pauses")
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert await told(face, job) == ("budget", 0, midnight)
    await lives.pool.execute("UPDATE tenants SET daily_tokens = NULL")
    assert await told(face, job) == ("concurrency", 0, None)


async def test_a_job_that_has_ended_waits_for_nothing(face: Face, lives: Lives) -> None:
    [job] = await wait(lives)
    await lives.jobs.cancel(job.key, utc_now())
    assert await told(face, job) == (None, 0, None)


# Who is told what


async def test_a_tenant_sees_its_own_jobs_alone_and_an_operator_all(face: Face, lives: Lives) -> None:
    await wait(lives, 2, tenant="acme")
    await wait(lives, 3, tenant="globex")
    await lives.buckets.learn(("globex", MODEL), [Heard(at=utc_now(), limit_requests=7)], [], utc_now(), WINDOW)
    acme, operator = await make_key(face.app, "acme"), await make_key(face.app, "ops", frozenset({Scope.OPERATOR}))

    async def ask(key: str) -> Answer:
        return await face.ask("GET", "/api/limits", **bearer(key))

    async with asyncio.timeout(8):
        while (await face.ask("GET", "/api/limits")).status != 401:
            pass
    own, whole = (await ask(acme)).json["buckets"], (await ask(operator)).json["buckets"]
    assert [(one["account"], one["waiting"]["count"]) for one in own] == [("server", 2)]
    assert "tenants" not in own[0]
    assert [(one["account"], one["waiting"]["count"]) for one in whole] == [("server", 5), ("globex", 0)]
    assert whole[0]["tenants"] == {"acme": {"count": 2, "more": False}, "globex": {"count": 3, "more": False}}


async def test_what_others_ask_with_their_own_key_for_is_no_rival(face: Face, lives: Lives) -> None:
    await lives.tenant(id="acme", mistral_key=b"sealed")
    await wait(lives, 50, tenant="acme")
    jobs = await wait(lives, 3)
    assert (await told(face, jobs[2]))[1] == 2


async def test_behind_a_job_that_does_not_fit_nobody_is_about_to_start(face: Face, lives: Lives) -> None:
    await lives.worker(now=utc_now())
    await lives.running(now=utc_now())
    await learned(lives, limit_tokens=60_000, remaining_tokens=50_000)
    await wait(lives, prompt_tokens=80_000, priority=1)
    [job] = await wait(lives)
    waits_for, ahead, at = await told(face, job)
    assert (waits_for, ahead) == ("tokens", 1)
    assert soon(at, 30), at


async def test_many_buckets_are_cut_and_it_says_so(face: Face, lives: Lives) -> None:
    now = utc_now()
    few = (await face.ask("GET", "/api/limits")).json
    await lives.submit(*(new_job(model=f"model-{number}", run_at=now) for number in range(501)), now=now)
    many = (await face.ask("GET", "/api/limits")).json
    assert (len(few["buckets"]), few["more"]) == (0, False)
    assert (len(many["buckets"]), many["more"]) == (500, True)


async def test_the_name_of_a_fine_tuned_model_is_for_those_who_use_it(face: Face, lives: Lives) -> None:
    for model in ("ft:small:theirs", "ft:small:ours", MODEL):
        await lives.buckets.learn(("*", model), [Heard(at=utc_now())], [], utc_now(), WINDOW)
    await lives.pool.execute(
        "INSERT INTO spendings (tenant_id, day, model) VALUES ('acme', $1, 'ft:small:ours')", utc_now().date()
    )
    key = await make_key(face.app, "acme")
    async with asyncio.timeout(8):
        while (await face.ask("GET", "/api/limits")).status != 401:
            pass
    shown = (await face.ask("GET", "/api/limits", **bearer(key))).json["buckets"]
    assert [one["model"] for one in shown] == ["ft:small:ours", MODEL]


async def test_a_job_is_told_of_to_its_own_tenant_and_is_not_found_by_any_other(face: Face, lives: Lives) -> None:
    [own], [theirs] = await wait(lives, tenant="acme"), await wait(lives)
    acme = bearer(await make_key(face.app, "acme"))
    found = await face.ask("GET", f"/api/limits?jobId={show_id('job', own.key.id)}", **acme)
    missed = await face.ask("GET", f"/api/limits?jobId={show_id('job', theirs.key.id)}", **acme)
    assert (found.status, found.json["job"]["jobId"]) == (200, show_id("job", own.key.id))
    assert (missed.status, missed.json["code"]) == (404, "not_found")


async def test_a_parameter_that_is_none_is_refused(face: Face) -> None:
    answer = await face.ask("GET", "/api/limits?job=1")
    assert (answer.status, answer.json["field"]) == (422, "job")

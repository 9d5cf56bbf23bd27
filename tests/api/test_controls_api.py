"""Job controls over HTTP: deadlines, costs, pauses, many at once, schedules, and being sent away."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from clients import QUESTION
from faces import Face, facing

from tramontane.ids import read_id, utc_now
from tramontane.simulator import Behaviour, Simulator

JSONL = {"content-type": "application/x-ndjson"}
ENCRYPTION_KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
Number = msgspec.Raw
LONG = {"kind": "chat", "request": {"messages": QUESTION}}


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url) as face:
        yield face


@pytest_asyncio.fixture
async def idle(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    """An API without a worker: what is queued stays so."""
    async with facing(simulator, database_url, worker=False) as face:
        yield face


async def told(face: Face, method: str, path: str, status: int, **request: Any) -> Any:
    answer = await face.ask(method, path, **request)
    assert answer.status == status, answer.body
    return answer.json if answer.body else None


async def count(face: Face, condition: str = "true") -> int:
    return int(await face.app.database.pool.fetchval(f"SELECT count(*) FROM jobs WHERE {condition}"))


# Deadlines


async def test_a_job_that_cannot_start_in_time_fails_within_a_second_of_its_deadline(
    simulator: Simulator, database_url: str
) -> None:
    simulator.behaviour = Behaviour(latency=20)
    async with facing(simulator, database_url, concurrency=1) as api:
        running = await api.submit()
        async with api.events(running["jobId"]) as events:
            await events.content.readuntil(b"start")  # or the other one, which is in a hurry, might take the only slot
        late = await told(api, "POST", "/api/jobs", 202, json=LONG | {"deadline": "1.5s"})
        job = await api.job(late["jobId"], wait=5)
        await told(api, "POST", running["cancelUrl"], 200)

    ended, deadline = (datetime.fromisoformat(job[name]) for name in ("completedAt", "deadline"))
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "deadline_exceeded", 0)
    assert 0 <= (ended - deadline).total_seconds() <= 1
    assert len(simulator.ledger) == 1


async def test_a_deadline_that_is_over_is_refused(idle: Face) -> None:
    told_off = await told(idle, "POST", "/api/jobs", 422, json=LONG | {"deadline": "2020-01-01T00:00:00Z"})
    assert told_off["field"] == "deadline"


# Costs


async def test_a_job_shows_what_it_has_cost(simulator: Simulator, database_url: str, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(
        '[[price]]\nmodel = "mistral-*"\nfrom = 2026-01-01\ninput = 0.1\noutput = 1000\ncurrency = "EUR"\n'
    )
    async with facing(simulator, database_url, prices=str(prices)) as api:
        accepted = await api.submit()
        job = await api.job(accepted["jobId"], wait=10)
        [listed] = (await told(api, "GET", "/api/jobs", 200))["jobs"]
        spent = await api.app.database.pool.fetchrow("SELECT * FROM spendings")
    usage = job["usage"]
    assert job["cost"]["currency"] == "EUR"
    assert float(job["cost"]["amount"]) == pytest.approx(
        usage["prompt_tokens"] * 1e-7 + usage["completion_tokens"] * 1e-3
    )
    assert listed["cost"] == job["cost"]
    assert spent is not None
    assert (spent["prompt_tokens"], str(spent["cost"])) == (usage["prompt_tokens"], job["cost"]["amount"])


async def test_without_prices_there_is_no_cost(api: Face) -> None:
    accepted = await api.submit()
    assert (await api.job(accepted["jobId"], wait=10))["cost"] is None


# Pauses


async def test_what_is_paused_waits_and_is_let_go_at_once(api: Face) -> None:
    paused = await told(api, "POST", "/api/pauses", 201, json={"model": "mistral-small-latest", "reason": "a test"})
    accepted = await api.submit()
    large = {"messages": QUESTION, "model": "mistral-large-latest"}
    other = await told(api, "POST", "/api/jobs", 202, json=large)
    await api.job(other["jobId"], wait=10)
    assert (await api.job(accepted["jobId"]))["status"] == "queued"
    assert (await told(api, "GET", "/api/pauses", 200))["pauses"] == [paused]
    assert (paused["kind"], paused["model"], paused["reason"]) == (None, "mistral-small-latest", "a test")

    await told(api, "DELETE", f"/api/pauses/{paused['pauseId']}", 204)
    assert (await api.job(accepted["jobId"], wait=10))["status"] == "completed"
    await told(api, "DELETE", f"/api/pauses/{paused['pauseId']}", 404)


async def test_everything_is_paused_without_a_name_and_a_wrong_tenant_is_refused(idle: Face) -> None:
    assert (await told(idle, "POST", "/api/pauses", 201))["model"] is None
    assert (await told(idle, "POST", "/api/pauses", 201, json={"tenant": "*"}))["tenant"] == "*"
    assert (await told(idle, "POST", "/api/pauses", 422, json={"tenant": "other"}))["field"] == "tenant"


# Many at once


def lines(*bodies: Any) -> bytes:
    return b"".join((body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n" for body in bodies)


async def test_an_array_is_taken_and_each_element_answered_in_its_place(idle: Face) -> None:
    bodies = [{"messages": QUESTION, "requestId": "one"}, {"messages": []}, LONG | {"priority": 3}]
    answer = await told(idle, "POST", "/api/jobs/bulk", 207, json=bodies)
    assert (answer["accepted"], answer["replayed"], answer["refused"]) == (2, 0, 1)
    first, second, third = answer["jobs"]
    assert (first["index"], first["requestId"]) == (0, "one")
    assert (second["index"], second["error"]["code"], second["error"]["field"]) == (1, "invalid_request", "messages")
    assert (await idle.job(third["jobId"]))["priority"] == 3


async def test_lines_are_taken_and_answered_by_lines_with_the_counts_last(idle: Face) -> None:
    body = lines({"messages": QUESTION}, b"nonsense", b"", LONG)
    answer = await idle.ask("POST", "/api/jobs/bulk", data=body, headers=JSONL)
    *jobs, counts = [json.loads(line) for line in answer.body.splitlines()]
    assert (answer.status, answer.headers["content-type"]) == (207, "application/x-ndjson")
    assert counts == {"accepted": 2, "replayed": 0, "refused": 1}
    assert [job["index"] for job in jobs] == [0, 1, 2]
    assert jobs[1]["error"]["code"] == "invalid_json"
    assert await count(idle) == 2


async def test_a_repeat_after_a_cut_connection_submits_nothing_twice(idle: Face) -> None:
    bodies = [{"messages": QUESTION, "requestId": f"r{number}"} for number in range(1200)]
    headers = JSONL | {"idempotency-key": "load"}

    async def cut() -> AsyncIterator[bytes]:
        for start in range(0, 1100, 100):
            yield lines(*bodies[start : start + 100])
        while await count(idle) < 1000:  # noqa: ASYNC110 - only the database can tell
            await asyncio.sleep(0.01)
        raise ConnectionAbortedError

    with suppress(aiohttp.ClientError, ConnectionError):
        await idle.ask("POST", "/api/jobs/bulk", data=cut(), headers=headers)
    assert await count(idle) == 1000

    answer = await idle.ask("POST", "/api/jobs/bulk", data=lines(*bodies), headers=headers)
    *jobs, counts = [json.loads(line) for line in answer.body.splitlines()]
    assert (answer.status, counts) == (200, {"accepted": 200, "replayed": 1000, "refused": 0})
    assert [job["requestId"] for job in jobs] == [body["requestId"] for body in bodies]
    assert await count(idle) == 1200

    other = [{"messages": QUESTION, "requestId": "changed"}]
    [refused, _] = [
        json.loads(line)
        for line in (await idle.ask("POST", "/api/jobs/bulk", data=lines(*other), headers=headers)).body.splitlines()
    ]
    assert refused["error"]["code"] == "idempotency_mismatch"


async def test_the_limit_of_a_body_is_that_of_each_line(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, body_limit=1000) as idle:
        large = {"messages": [{"role": "user", "content": "x" * 2000}]}
        bodies = [{"messages": QUESTION}] * 50 + [large] + [{"messages": QUESTION}]
        answer = await told(idle, "POST", "/api/jobs/bulk", 207, json=bodies)
        assert (answer["accepted"], answer["jobs"][50]["error"]["code"]) == (51, "body_too_large")


@pytest.mark.parametrize("headers", [JSONL, {}])
async def test_a_number_that_nothing_can_hold_is_refused_in_its_place(idle: Face, headers: dict[str, str]) -> None:
    bad = b'{"kind":"chat","request":{"messages":[{"role":"user","content":"x"}],"new":1e400}}'
    good = json.dumps(LONG).encode()
    body = b"\n".join([good, bad, good]) if headers else b"[" + b",".join([good, bad, good]) + b"]"
    answer = await idle.ask("POST", "/api/jobs/bulk", data=body, headers=headers)
    errors = [json.loads(line).get("error") for line in answer.body.splitlines()] if headers else None
    if errors is None:
        errors = [job.get("error") for job in answer.json["jobs"]]
    assert [error and error["field"] for error in errors[:3]] == [None, "request.new", None]


@pytest.mark.parametrize("body", [b"", b"{}", b'"x"'])
async def test_what_is_no_array_is_refused_as_a_whole(idle: Face, body: bytes) -> None:
    answer = await told(idle, "POST", "/api/jobs/bulk", 400, data=body, headers={"content-type": "application/json"})
    assert answer["code"] == "invalid_json"


# Tried again


async def test_failed_jobs_are_retried_by_what_they_have_in_common(api: Face) -> None:
    api.simulator.script(*[Behaviour(status=400)] * 3)
    failed = [(await api.submit())["jobId"] for _ in range(3)]
    for job_id in failed:
        assert (await api.job(job_id, wait=10))["status"] == "failed"
    wanted = {"status": "failed", "error": "upstream_refused", "limit": 2}

    first = await told(api, "POST", "/api/jobs/retry", 200, json=wanted)
    second = await told(api, "POST", "/api/jobs/retry", 200, json=wanted | {"cursor": first["next"]})
    third = await told(api, "POST", "/api/jobs/retry", 200, json=wanted)

    assert [job["retryOf"] for job in first["jobs"] + second["jobs"]] == failed[::-1]
    assert third == {"retried": 0, "jobs": [], "next": None}
    for job in first["jobs"] + second["jobs"]:
        assert (await api.job(job["jobId"], wait=10))["status"] == "completed"
    refused = await told(api, "POST", "/api/jobs/retry", 422, json={"status": "running"})
    assert refused["field"] == "status"


# Schedules


async def test_a_schedule_is_made_shown_changed_paused_run_and_forgotten(api: Face) -> None:
    body = {"name": "daily", "cron": "0 6 * * *", "timezone": "Europe/Paris", "job": LONG | {"deadline": "1h"}}
    made = await told(api, "POST", "/api/schedules", 201, json=body)
    path = f"/api/schedules/{made['scheduleId']}"
    assert (made["job"], made["catchUp"], made["status"], made["lastAt"]) == (body["job"], "one", "active", None)
    assert datetime.fromisoformat(made["nextAt"]) > utc_now()
    assert await told(api, "GET", path, 200) == made
    assert (await told(api, "GET", "/api/schedules", 200))["schedules"] == [made]
    assert (await told(api, "POST", "/api/schedules", 409, json=body))["code"] == "conflict"

    run = await told(api, "POST", f"{path}/run", 202)
    job = await api.job(run["jobId"], wait=10)
    assert (job["status"], job["scheduleId"]) == ("completed", made["scheduleId"])

    paused = await told(api, "PATCH", path, 200, json={"status": "paused", "cron": "0 7 * * *"})
    assert (paused["status"], paused["nextAt"], paused["cron"]) == ("paused", None, "0 7 * * *")
    await told(api, "DELETE", path, 204)
    await told(api, "GET", path, 404)


async def test_a_worker_fires_what_is_due(api: Face) -> None:
    body = {"name": "a", "cron": "* * * * *", "job": {"messages": QUESTION}}
    made = await told(api, "POST", "/api/schedules", 201, json=body)
    due = "UPDATE schedules SET next_at = now() - interval '1 second' WHERE id = $1"
    await api.app.database.pool.execute(due, read_id("sch", made["scheduleId"]))
    async with asyncio.timeout(8):
        while not (last := (await told(api, "GET", "/api/schedules", 200))["schedules"][0]["lastJobId"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await api.job(last, wait=10))["status"] == "completed"


async def test_a_schedule_that_finds_no_place_says_so(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, queue_limit=1) as api:
        await told(api, "POST", "/api/pauses", 201)
        await api.submit()
        body = {"name": "a", "cron": "* * * * *", "job": {"messages": QUESTION}}
        made = await told(api, "POST", "/api/schedules", 201, json=body)
        due = "UPDATE schedules SET next_at = now() - interval '1 second' WHERE id = $1"
        await api.app.database.pool.execute(due, read_id("sch", made["scheduleId"]))
        async with asyncio.timeout(8):
            while not (shown := (await told(api, "GET", "/api/schedules", 200))["schedules"][0])["reason"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (shown["status"], "overloaded" in shown["reason"]) == ("active", True)
        assert await count(api) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"job": {"messages": []}}, "job.messages"),
        ({"job": {"messages": QUESTION, "tools": [{"n": Number("1e400")}]}}, "job.tools.0.n"),
        ({"job": {"kind": "chat", "request": {"messages": QUESTION, "new": Number("-1e999")}}}, "job.request.new"),
        ({"job": LONG | {"runAt": "2030-01-01T00:00:00Z"}}, "job.runAt"),
        ({"job": LONG | {"deadline": "2030-01-01T00:00:00Z"}}, "job.deadline"),
        ({"job": 7}, "job"),
        ({"catchUp": "some"}, "catchUp"),
        ({"name": ""}, "name"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_a_wrong_schedule_is_refused_by_field(idle: Face, changes: dict[str, Any], field: str) -> None:
    body = {"name": "a", "cron": "0 6 * * *", "job": {"messages": QUESTION}} | changes
    assert (await told(idle, "POST", "/api/schedules", 422, data=msgspec.json.encode(body)))["field"] == field
    made = await told(idle, "POST", "/api/schedules", 201, json={"name": "b", "cron": "0 6 * * *", "job": LONG})
    path, change = f"/api/schedules/{made['scheduleId']}", msgspec.json.encode(changes)
    assert (await told(idle, "PATCH", path, 422, data=change))["field"] == field


async def test_the_secret_of_a_scheduled_callback_is_sealed_and_never_shown(
    simulator: Simulator, database_url: str
) -> None:
    async with facing(simulator, database_url, worker=False, encryption_keys=(ENCRYPTION_KEY,)) as idle:
        await keep_the_secret(idle)


async def keep_the_secret(idle: Face) -> None:
    callback = {"url": "https://example.com/hook", "secret": "whsec_" + "QUJD" * 8, "headers": {"X-Key": "hidden-word"}}
    body = {"name": "a", "cron": "0 6 * * *", "job": {"messages": QUESTION, "callback": callback}}
    made = await told(idle, "POST", "/api/schedules", 201, json=body)
    assert made["job"]["callback"] == {"url": callback["url"]}
    row = await idle.app.database.pool.fetchrow("SELECT job, template FROM schedules")
    assert "hidden-word" not in str(row)
    assert "QUJDQUJD" not in str(row)
    run = await told(idle, "POST", f"/api/schedules/{made['scheduleId']}/run", 202)
    assert await idle.app.database.pool.fetchval("SELECT secret IS NOT NULL FROM callbacks")
    assert run["jobId"].startswith("job_")


# Too much


async def test_a_full_queue_sends_its_tenant_away_with_the_time_to_come_back(idle: Face) -> None:
    await idle.app.database.pool.execute(
        "INSERT INTO tenants (id, queue_limit, created_at, updated_at) VALUES ('default', 3, now(), now())"
    )
    bodies = [{"messages": QUESTION}] * 5
    answer = await idle.ask("POST", "/api/jobs/bulk", json=bodies)
    alone = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})
    assert [job.get("error", {}).get("code") for job in answer.json["jobs"]] == [None] * 3 + ["queue_full"] * 2
    assert int(answer.headers["Retry-After"]) >= 1
    assert (alone.status, alone.json["code"]) == (429, "queue_full")
    assert int(alone.headers["Retry-After"]) >= 1
    assert await count(idle) == 3

    await idle.app.database.pool.execute("UPDATE jobs SET state = 'cancelled' WHERE state = 'queued'")
    async with asyncio.timeout(5):
        while (await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})).status != 202:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("set_for_tenant", "settings", "code"),
    [
        ("queue_limit = 3", {}, "queue_full"),
        ("queue_limit = NULL", {"queue_limit": 3}, "overloaded"),
        ("daily_tokens = 0, on_budget = 'fail'", {}, "budget_exhausted"),
    ],
)
async def test_what_is_there_already_is_replayed_where_nothing_more_is_taken(
    idle: Face, simulator: Simulator, database_url: str, set_for_tenant: str, settings: dict[str, Any], code: str
) -> None:
    once, load = {"Idempotency-Key": "once"}, {"Idempotency-Key": "load"}
    body, bodies = {"messages": QUESTION}, [{"messages": QUESTION, "requestId": f"r{number}"} for number in range(4)]
    first = await told(idle, "POST", "/api/jobs", 202, json=body, headers=once)
    some = await told(idle, "POST", "/api/jobs/bulk", 200, json=bodies[:2], headers=load)
    pool = idle.app.database.pool
    await pool.execute("INSERT INTO tenants (id, created_at, updated_at) VALUES ('default', now(), now())")
    await pool.execute(f"UPDATE tenants SET {set_for_tenant}")

    async with facing(simulator, database_url, worker=False, **settings) as full:
        again = await full.ask("POST", "/api/jobs", json=body, headers=once)
        other = await full.ask("POST", "/api/jobs", json=body | {"requestId": "other"}, headers=once)
        anew = await full.ask("POST", "/api/jobs", json=body, headers={"Idempotency-Key": "new"})
        all_of_them = await told(full, "POST", "/api/jobs/bulk", 207, json=bodies, headers=load)

    assert (again.status, again.json, again.headers["Idempotency-Replayed"]) == (202, first, "true")
    assert (other.json["code"], anew.json["code"]) == ("idempotency_mismatch", code)
    assert [job.get("jobId") for job in all_of_them["jobs"]] == [*(job["jobId"] for job in some["jobs"]), None, None]
    assert [job.get("error", {}).get("code") for job in all_of_them["jobs"]] == [None, None, code, code]
    assert (all_of_them["replayed"], await count(idle)) == (2, 3)


async def test_places_are_for_new_jobs_alone_when_a_load_is_repeated(idle: Face) -> None:
    await idle.app.database.pool.execute(
        "INSERT INTO tenants (id, queue_limit, created_at, updated_at) VALUES ('default', 7, now(), now())"
    )
    bodies = [{"messages": QUESTION, "requestId": f"r{number}"} for number in range(7)]
    headers = {"Idempotency-Key": "load"}
    await told(idle, "POST", "/api/jobs/bulk", 200, json=bodies[:4], headers=headers)
    answer = await told(idle, "POST", "/api/jobs/bulk", 200, json=bodies, headers=headers)
    assert (answer["accepted"], answer["replayed"]) == (3, 4)


async def test_a_replay_keeps_no_place_for_itself(idle: Face) -> None:
    await idle.app.database.pool.execute(
        "INSERT INTO tenants (id, queue_limit, created_at, updated_at) VALUES ('default', 3, now(), now())"
    )
    for _ in range(3):
        await told(idle, "POST", "/api/jobs", 202, json={"messages": QUESTION}, headers={"Idempotency-Key": "once"})
    for _ in range(2):
        await told(idle, "POST", "/api/jobs", 202, json={"messages": QUESTION})


async def test_a_replay_is_not_held_to_a_priority_that_was_lowered_since(idle: Face) -> None:
    body, once = LONG | {"priority": 5}, {"Idempotency-Key": "once"}
    first = await told(idle, "POST", "/api/jobs", 202, json=body, headers=once)
    await idle.app.database.pool.execute(
        "INSERT INTO tenants (id, top_priority, created_at, updated_at) VALUES ('default', 0, now(), now())"
    )
    assert await told(idle, "POST", "/api/jobs", 202, json=body, headers=once) == first
    await told(idle, "POST", "/api/jobs", 422, json=body)


async def test_a_page_of_retries_keeps_no_places_that_it_does_not_need(idle: Face) -> None:
    await idle.app.database.pool.execute(
        "INSERT INTO tenants (id, queue_limit, created_at, updated_at) VALUES ('default', 3, now(), now())"
    )
    for _ in range(3):
        page = await told(idle, "POST", "/api/jobs/retry", 200, json={"status": "failed", "limit": 500})
        assert page["retried"] == 0
    for _ in range(3):
        await told(idle, "POST", "/api/jobs", 202, json={"messages": QUESTION})


async def test_an_overloaded_fleet_says_503(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, queue_limit=2) as idle:
        for _ in range(2):
            await idle.submit()
        answer = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("on_budget", "status"), [("fail", 429), ("queue", 202)])
async def test_beyond_a_budget_submits_are_refused_until_midnight_or_wait(
    idle: Face, on_budget: str, status: int
) -> None:
    pool = idle.app.database.pool
    await pool.execute(
        "INSERT INTO tenants (id, daily_tokens, on_budget, created_at, updated_at)"
        " VALUES ('default', 100, $1, now(), now())",
        on_budget,
    )
    await pool.execute(
        "INSERT INTO spendings (tenant_id, day, model, prompt_tokens)"
        " VALUES ('default', (now() AT TIME ZONE 'UTC')::date, 'm', 100)"
    )
    answer = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})
    assert answer.status == status
    if status == 429:
        assert answer.json["code"] == "budget_exhausted"
        assert 0 < int(answer.headers["Retry-After"]) <= 86400


@pytest.mark.parametrize(("tokens", "header"), [(79, None), (80, "0.8")])
async def test_a_budget_that_is_nearly_spent_is_told(idle: Face, tokens: int, header: str | None) -> None:
    pool = idle.app.database.pool
    await pool.execute(
        "INSERT INTO tenants (id, daily_tokens, created_at, updated_at) VALUES ('default', 100, now(), now())"
    )
    await pool.execute(
        "INSERT INTO spendings (tenant_id, day, model, prompt_tokens)"
        " VALUES ('default', (now() AT TIME ZONE 'UTC')::date, 'm', $1)",
        tokens,
    )
    answer = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})
    assert answer.headers.get("X-Budget-Used") == header


async def test_cancelling_does_not_get_around_a_budget(simulator: Simulator, database_url: str, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "*"\nfrom = 2026-01-01\ninput = 1\noutput = 1\ncurrency = "EUR"\n')
    simulator.behaviour = Behaviour(silence_after=61)
    async with facing(simulator, database_url, prices=str(prices)) as api:
        pool = api.app.database.pool
        await pool.execute(
            "INSERT INTO tenants (id, daily_tokens, on_budget, created_at, updated_at)"
            " VALUES ('default', 170, 'fail', now(), now())"
        )
        accepted = await api.submit()
        await simulator.wait_for_chunks(1, 61)
        await told(api, "POST", accepted["cancelUrl"], 200)
        [attempt] = (await api.job(accepted["jobId"]))["attempts"]
        spent = await pool.fetchrow("SELECT prompt_tokens + completion_tokens AS tokens, cost FROM spendings")
        tokens = await pool.fetchval("SELECT tokens FROM job_attempts")
        api.app.standings._tenants.clear()  # what it knows is good for a second
        refused = await told(api, "POST", "/api/jobs", 429, json={"messages": QUESTION})

    assert (attempt["outcome"], attempt["unreported"], attempt["usage"]) == ("cancelled", True, None)
    assert spent is not None
    assert spent["tokens"] == tokens >= 170
    assert spent["cost"] == Decimal(tokens).scaleb(-6)
    assert refused["code"] == "budget_exhausted"


async def test_jobs_are_listed_by_their_error(idle: Face) -> None:
    await idle.submit()
    assert (await told(idle, "GET", "/api/jobs?error=deadline_exceeded", 200))["jobs"] == []

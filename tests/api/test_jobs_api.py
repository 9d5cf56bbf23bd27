"""Jobs over HTTP: what is acknowledged, shown, listed, cancelled, tried again and erased."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from clients import QUESTION, Frames, Reader
from faces import Answer, Face, facing

from tramontane.simulator import Behaviour, Simulator

ID = re.compile(r"job_[0-9A-HJKMNP-TV-Z]{26}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'jobs'::regclass"
FOR_EVER = Behaviour(tokens=3000, tokens_per_second=100)


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url) as face:
        yield face


@pytest_asyncio.fixture
async def idle(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    """An API without a worker: what is queued stays so."""
    async with facing(simulator, database_url, worker=False) as face:
        yield face


@pytest_asyncio.fixture
async def onlooker(database_url: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection to the same database that is none of the app's."""
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "tramontane"})
    yield connection
    await connection.close()


async def started(api: Face, **options: Any) -> dict[str, Any]:
    """A job whose answer is on its way and will be for a long time."""
    api.simulator.script(FOR_EVER)
    count = len(api.simulator.ledger)
    accepted = await api.submit(**options)
    await api.simulator.wait_for_chunks(count + 1, 3)
    return accepted


# Submitting


@pytest.mark.parametrize(
    "body",
    [
        {"messages": QUESTION},
        {"messages": QUESTION, "model": "mistral-large-latest", "requestId": "req-123", "temperature": 0.2},
        {"kind": "chat", "request": {"messages": QUESTION, "prompt_cache_key": "k"}},
        {"request": {"messages": QUESTION}, "requestId": "req-123", "priority": 3, "metadata": {"who": "Zoë"}},
    ],
)
@pytest.mark.parametrize("path", ["/api/jobs", "/api/chat/stream"])
async def test_both_bodies_are_taken_by_both_posts(api: Face, path: str, body: dict[str, Any]) -> None:
    answer = await api.ask("POST", path, json=body)

    job_id = answer.headers["X-Job-Id"] if path == "/api/chat/stream" else answer.json["jobId"]
    job = await api.job(job_id, wait=10)
    assert answer.status == (200 if path == "/api/chat/stream" else 202)
    assert job["status"] == "completed"
    if "requestId" in body:
        assert job["requestId"] == "req-123"
    asked = body.get("request", body)
    sent = api.simulator.ledger[0].request
    given = {name: value for name, value in asked.items() if name != "requestId"}
    assert {name: sent[name] for name in given} == given
    assert sent["model"] == asked.get("model", "mistral-small-latest")


@pytest.mark.parametrize("number", ["1.7e308", "-1E+308", "1e-400", "18446744073709551616", "9" * 400])
@pytest.mark.parametrize("fault", [None, Behaviour(cut_after=20)])
async def test_the_largest_numbers_that_are_taken_run_to_the_end(
    api: Face, number: str, fault: Behaviour | None
) -> None:
    """Whatever reads the request on its way, the second attempt's look at the first one's text included."""
    if fault is not None:
        api.simulator.script(fault)
    hello = '{"role":"user","content":"Hello!"}'
    body = f'{{"request":{{"messages":[{hello}],"metadata":{{"x":[{number}]}},"max_tokens":400}}}}'
    accepted = await api.ask("POST", "/api/jobs", data=body)
    job = await api.job(accepted.json["jobId"], wait=10)
    assert (job["status"], job["error"]) == ("completed", None)
    row = await api.app.database.pool.fetchval("SELECT request::text FROM job_contents")
    assert f'"metadata":{{"x":[{number}]}}' in row
    assert len(api.simulator.ledger) == (1 if fault is None else 2)


async def test_a_submit_answers_with_the_jobs_urls(idle: Face) -> None:
    answer = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION})

    body = answer.json
    assert answer.status == 202
    assert answer.headers["Content-Type"] == "application/json"
    assert ID.fullmatch(body["jobId"])
    assert re.fullmatch(r"req_[0-9A-HJKMNP-TV-Z]{26}", body.pop("requestId"))
    url = f"/api/jobs/{body['jobId']}"
    assert answer.headers["Location"] == url
    assert body == {
        "jobId": body["jobId"],
        "status": "queued",
        "statusUrl": url,
        "eventsUrl": f"{url}/events",
        "cancelUrl": f"{url}/cancel",
    }


async def test_a_202_is_not_sent_before_the_job_is_committed(idle: Face, onlooker: "asyncpg.Connection[Any]") -> None:
    async with asyncio.TaskGroup() as tasks:
        async with onlooker.transaction():
            await onlooker.execute("LOCK TABLE jobs IN SHARE MODE")
            submit = tasks.create_task(idle.submit())
            while not await onlooker.fetchval(WAITING):  # noqa: ASYNC110 - nobody sets an event for us
                await asyncio.sleep(0)
            assert not submit.done()
        accepted = await submit
        # At this very moment anybody can read it.
        row = await onlooker.fetchrow("SELECT state, request_id FROM jobs")

    assert row is not None
    assert (row["state"], row["request_id"]) == ("queued", accepted["requestId"])


async def test_the_two_bodies_mixed_are_refused(idle: Face) -> None:
    answer = await idle.ask("POST", "/api/jobs", json={"kind": "chat", "messages": QUESTION, "request": {}})

    assert (answer.status, answer.json["code"], answer.json["field"]) == (422, "invalid_request", "messages")


# The job as JSON


async def test_a_completed_job_shows_its_result_and_its_times(api: Face) -> None:
    accepted = await api.submit("Say: Bonjour, Zoë 🌬!", requestId="req-1", metadata={"who": "Zoë"}, priority=2)
    job = await api.job(accepted["jobId"], wait=10)

    result, url = job.pop("result"), accepted["statusUrl"]
    times = [job.pop(name) for name in ("createdAt", "startedAt", "completedAt")]
    (attempt,) = job.pop("attempts")
    usage = job.pop("usage")
    assert job == {
        "jobId": accepted["jobId"],
        "kind": "chat",
        "status": "completed",
        "attempt": 1,
        "failures": 0,
        "maxAttempts": 3,
        "requestId": "req-1",
        "model": "mistral-small-latest",
        "priority": 2,
        "metadata": {"who": "Zoë"},
        "error": None,
        "cost": None,
        "head": job["head"],
        "runAt": job["runAt"],
        "deadline": None,
        "retryOf": None,
        "scheduleId": None,
        "statusUrl": url,
        "eventsUrl": f"{url}/events",
        "cancelUrl": f"{url}/cancel",
    }
    assert all(TIME.fullmatch(time) for time in times)
    assert times == sorted(times)
    assert attempt["outcome"] == "completed"
    assert result["content"] == "Bonjour, Zoë 🌬!"
    assert (result["jobId"], result["requestId"]) == (accepted["jobId"], "req-1")
    assert result["finishReason"] == "stop"
    assert TIME.fullmatch(result["completedAt"])
    assert result["usage"] == usage == result["completion"]["usage"]
    assert usage["completion_tokens"] == api.simulator.totals().completion_tokens
    assert result["completion"]["choices"][0]["message"]["content"] == result["content"]


async def test_a_failed_job_says_why(api: Face) -> None:
    api.simulator.script(Behaviour(status=503), Behaviour(status=503))
    accepted = await api.submit(attempts=2)
    job = await api.job(accepted["jobId"], wait=10)

    assert (job["status"], job["attempt"], job["failures"], job["result"]) == ("failed", 2, 2, None)
    assert set(job["error"]) == {"code", "message", "retryable"}
    assert (job["error"]["code"], job["error"]["retryable"]) == ("upstream_unavailable", True)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["failed", "failed"]


async def test_a_scheduled_job_is_queued_until_its_time(api: Face) -> None:
    accepted = await api.submit(runAt="2126-01-01T00:00:00+01:00")
    await api.job((await api.submit())["jobId"], wait=10)
    job = await api.job(accepted["jobId"])

    assert (job["status"], job["runAt"], job["attempt"]) == ("queued", "2125-12-31T23:00:00.000Z", 0)


# Waiting


async def test_a_long_poll_answers_as_soon_as_the_job_ends(api: Face) -> None:
    api.simulator.script(Behaviour(tokens=30, tokens_per_second=100))
    accepted = await api.submit()
    answer = await api.ask("GET", accepted["statusUrl"], headers={"Prefer": "respond-async, wait=20"})
    now = await api.job(accepted["jobId"])

    assert answer.json["status"] == "completed"
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert answer.json == now


async def test_a_long_poll_answers_with_what_there_is_when_its_time_is_up(idle: Face) -> None:
    accepted = await idle.submit()
    began = time.monotonic()
    answer = await idle.ask("GET", accepted["statusUrl"], headers={"Prefer": "wait=1"})

    assert 1.0 <= time.monotonic() - began < 3.0
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("queued", "wait=1")


async def test_a_long_poll_is_capped_at_a_minute_and_says_so(api: Face) -> None:
    accepted = await api.submit()
    answer = await api.ask("GET", accepted["statusUrl"], headers={"Prefer": "wait=86400"})

    assert answer.headers["Preference-Applied"] == "wait=60"


# Listing


async def test_a_listing_has_no_gap_and_no_duplicate_while_new_jobs_arrive(idle: Face) -> None:
    async with asyncio.TaskGroup() as tasks:
        submits = [tasks.create_task(idle.submit()) for _ in range(120)]
    there = {submit.result()["jobId"] for submit in submits}

    pages: list[list[str]] = []
    more = ""
    while True:
        page = (await idle.ask("GET", f"/api/jobs?limit=7{more}")).json
        pages.append([job["jobId"] for job in page["jobs"]])
        await idle.submit()
        if page["next"] is None:
            break
        more = f"&cursor={page['next']}"

    seen = [job_id for page in pages for job_id in page]
    assert set(seen) == there
    assert seen == sorted(there, reverse=True)
    assert [len(page) for page in pages] == [7] * 17 + [1]


async def test_a_listing_shows_ledger_rows_without_contents(api: Face) -> None:
    accepted = await api.submit("a secret question")
    await api.job(accepted["jobId"], wait=10)
    answer = await api.ask("GET", "/api/jobs")

    assert set(answer.json) == {"jobs", "next"}
    assert "result" not in answer.json["jobs"][0]
    assert b"secret" not in answer.body


async def test_a_listing_is_filtered_by_every_field(idle: Face) -> None:
    one = await idle.submit(requestId="req-1", metadata={"wind": "mistral", "knots": "50"})
    other = await idle.ask("POST", "/api/jobs", json={"messages": QUESTION, "model": "mistral-large-latest"})
    await idle.cancel(other.json["jobId"])
    created = (await idle.job(other.json["jobId"]))["createdAt"]

    async def found(query: str) -> list[str]:
        return [job["jobId"] for job in (await idle.ask("GET", f"/api/jobs?{query}")).json["jobs"]]

    first, second = one["jobId"], other.json["jobId"]
    assert await found("status=queued") == [first]
    assert await found("status=cancelled&kind=chat") == [second]
    assert await found("kind=ocr") == []
    assert await found("model=mistral-large-latest") == [second]
    assert await found("requestId=req-1") == [first]
    assert await found("metadata.wind=mistral") == [first]
    assert await found("metadata.wind=mistral&metadata.knots=5") == []
    assert await found(f"createdAfter={created}") == [second]
    assert await found(f"createdBefore={created}") == [first]
    assert await found("createdBefore=2020-01-01T00:00:00%2B00:00") == []
    assert await found("") == [second, first]


# Cancelling


async def test_a_cancel_ends_a_queued_job_for_good(idle: Face) -> None:
    accepted = await idle.submit()
    job = await idle.cancel(accepted["jobId"])
    again = await idle.cancel(accepted["jobId"])

    assert (job["status"], job["attempt"], job["error"]["code"]) == ("cancelled", 0, "cancelled")
    assert again == job


async def test_a_cancel_closes_the_call_to_mistral_within_100_ms(api: Face) -> None:
    took = []
    for number in range(1, 6):
        accepted = await started(api)
        asked = time.monotonic()
        job = await api.cancel(accepted["jobId"])
        (*_, call) = await api.simulator.wait_for_ends(number, "disconnected")
        assert call.ended is not None
        took.append(call.ended - asked)
        assert job["status"] == "cancelled"

    # The median, since other programs have the processor too.
    assert sorted(took)[2] < 0.1, took
    job = await api.job(accepted["jobId"])
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["cancelled"]
    assert (job["status"], job["failures"], job["result"]) == ("cancelled", 0, None)


async def test_a_cancel_changes_nothing_about_an_ended_job(api: Face) -> None:
    accepted = await api.submit()
    before = await api.job(accepted["jobId"], wait=10)
    after = await api.cancel(accepted["jobId"])

    assert after == before
    assert after["status"] == "completed"


# Trying again


async def test_a_retry_is_a_new_job_that_asks_the_same(api: Face) -> None:
    api.simulator.script(Behaviour(status=401))
    accepted = await api.submit("Say: twice", requestId="req-1", priority=5, metadata={"a": "b"}, timeout="2h")
    failed = await api.job(accepted["jobId"], wait=10)
    answer = await api.ask("POST", f"{accepted['statusUrl']}/retry")
    job = await api.job(answer.json["jobId"], wait=10)

    assert failed["status"] == "failed"
    assert answer.status == 202
    assert answer.headers["Location"] == answer.json["statusUrl"] != accepted["statusUrl"]
    assert (job["retryOf"], job["requestId"], job["status"]) == (accepted["jobId"], "req-1", "completed")
    assert (job["priority"], job["metadata"], job["attempt"]) == (5, {"a": "b"}, 1)
    assert job["result"]["content"] == "twice"
    assert await api.job(accepted["jobId"]) == failed


async def test_a_job_that_runs_is_not_retried(api: Face) -> None:
    accepted = await started(api)
    answer = await api.ask("POST", f"{accepted['statusUrl']}/retry")

    assert (answer.status, answer.json["code"]) == (409, "job_not_ended")


# Erasing


async def test_an_erased_job_is_gone_with_all_it_said(api: Face, onlooker: "asyncpg.Connection[Any]") -> None:
    accepted = await api.submit(key="a-key", metadata={"who": "Zoë"})
    await api.job(accepted["jobId"], wait=10)
    url = accepted["statusUrl"]
    answer = await api.ask("DELETE", url)
    routes = [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")]
    after = [(await api.ask(method, url + path)).status for method, path in routes]
    left = await onlooker.fetchrow(
        "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM job_contents), metadata, idempotency_key FROM jobs"
    )

    assert (answer.status, answer.body) == (204, b"")
    assert after == [404] * 5
    assert left is not None
    assert tuple(left) == (0, 0, None, None)
    assert (await api.ask("GET", "/api/jobs")).json == {"jobs": [], "next": None}
    # Its key is free again.
    assert (await api.submit(key="a-key"))["jobId"] != accepted["jobId"]


async def test_a_running_job_is_not_erased(api: Face) -> None:
    accepted = await started(api)
    answer = await api.ask("DELETE", accepted["statusUrl"])

    assert (answer.status, answer.json["code"]) == (409, "job_not_ended")
    assert (await api.job(accepted["jobId"]))["status"] == "running"


# The same key, the same job


async def submit_under(api: Face, key: str, body: Any, path: str = "/api/jobs") -> Answer:
    return await api.ask("POST", path, json=body, headers={"Idempotency-Key": key})


async def test_fifty_submits_under_one_key_are_one_job(api: Face) -> None:
    async with asyncio.TaskGroup() as tasks:
        submits = [tasks.create_task(submit_under(api, "a-key", {"messages": QUESTION})) for _ in range(50)]
    answers = [submit.result() for submit in submits]
    await api.job(answers[0].json["jobId"], wait=10)

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["jobId"] for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotency-Replayed", "") for answer in answers) == [""] + ["true"] * 49
    assert len({answer.body for answer in answers}) == 1
    assert api.simulator.totals().calls == 1


async def test_the_same_body_in_another_spelling_is_the_same(idle: Face) -> None:
    first = await idle.ask(
        "POST", "/api/jobs", data=b'{"messages":[{"role":"user","content":"x"}]}', headers={"Idempotency-Key": "k"}
    )
    second = await idle.ask(
        "POST",
        "/api/jobs",
        data=b'{"messages": [{"content": "\\u0078", "role": "user"}]}',
        headers={"Idempotency-Key": "k"},
    )

    assert second.json == first.json
    assert second.headers["Idempotency-Replayed"] == "true"


async def test_another_body_under_a_used_key_is_refused(idle: Face) -> None:
    first = await submit_under(idle, "a-key", {"messages": QUESTION})
    second = await submit_under(idle, "a-key", {"messages": QUESTION, "temperature": 1})

    assert first.status == 202
    assert (second.status, second.json["code"]) == (422, "idempotency_mismatch")
    assert len((await idle.ask("GET", "/api/jobs")).json["jobs"]) == 1


def text_of(answer: Answer) -> str:
    reader = Reader()
    for frame in Frames().feed(answer.body):
        reader.take(frame)
    assert reader.final is not None
    return reader.text


async def test_the_same_key_gives_the_same_stream_and_one_call(api: Face) -> None:
    api.simulator.behaviour = Behaviour(tokens=20, tokens_per_second=200)
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(submit_under(api, "a-key", {"messages": QUESTION}, "/api/chat/stream")) for _ in range(10)
        ]
    answers = [task.result() for task in asked]
    late = await submit_under(api, "a-key", {"messages": QUESTION}, "/api/chat/stream")

    assert {answer.status for answer in (*answers, late)} == {200}
    assert len({answer.headers["X-Job-Id"] for answer in (*answers, late)}) == 1
    assert len({text_of(answer) for answer in (*answers, late)}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers].count(None) == 1
    assert late.headers["Idempotency-Replayed"] == "true"
    assert api.simulator.totals().calls == 1


# Describing itself


async def test_openapi_is_3_1_names_every_route_and_refers_to_nothing_that_is_not_there(idle: Face) -> None:
    document = (await idle.ask("GET", "/openapi.json")).json
    paths = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    assert document["openapi"].startswith("3.1")
    assert paths == {
        ("POST", "/api/jobs"),
        ("GET", "/api/jobs"),
        ("GET", "/api/jobs/{job_id}"),
        ("DELETE", "/api/jobs/{job_id}"),
        ("GET", "/api/jobs/{job_id}/events"),
        ("POST", "/api/jobs/{job_id}/cancel"),
        ("POST", "/api/jobs/{job_id}/ticket"),
        ("POST", "/api/jobs/{job_id}/retry"),
        ("POST", "/api/jobs/bulk"),
        ("POST", "/api/jobs/retry"),
        ("POST", "/api/chat/stream"),
        *((method, path) for path in ("/api/pauses", "/api/schedules") for method in ("GET", "POST")),
        ("DELETE", "/api/pauses/{pause_id}"),
        *((method, "/api/schedules/{schedule_id}") for method in ("GET", "PATCH", "DELETE")),
        ("POST", "/api/schedules/{schedule_id}/run"),
        ("GET", "/api/limits"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    } | {(method, path) for method, path in paths if path.startswith("/api/webhooks/")}
    assert ("POST", "/api/webhooks/endpoints/{endpoint_id}/recover") in paths
    for reference in references(document):
        place = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in place, f"{reference} leads nowhere"
            place = place[name]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


async def test_health_and_readiness_are_told_apart(api: Face) -> None:
    assert (await api.ask("GET", "/healthz")).json == {"status": "ok"}
    assert (await api.ask("GET", "/readyz")).json == {"status": "ready", "worker": True}

"""What bad input gets: the right status, a problem document with a code and the field, and never its own words back."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from clients import QUESTION
from faces import Answer, Face, facing
from gate import Gate

from tramontane.simulator import Simulator

SECRET = "hunter2-is-my-password"
M = f'"messages":[{{"role":"user","content":"{SECRET}"}}]'
DEEP = "[" * 100_000 + "]" * 100_000
DEEP_HUGE = "[" * 5000 + "1e400" + "]" * 5000
INVALID, NOT_JSON = (422, "invalid_request"), (400, "invalid_json")


#: A fresh Idempotency-Key for each test, since they share one database.
KEYS = (f"key-{number}" for number in itertools.count())

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idle(module_database_url: str) -> AsyncIterator[Face]:
    async with (
        Simulator(seed=1) as simulator,
        facing(simulator, module_database_url, worker=False, body_limit=300_000) as face,
    ):
        yield face


def check_problem(answer: Answer, status: int, code: str, field: str | None = None) -> None:
    """What every refusal has in common."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.body
    problem = answer.json
    assert set(problem) <= {"type", "title", "status", "code", "detail", "field", "rule", "hint"}
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field), problem
    assert problem["title"]
    assert problem["detail"]
    assert SECRET.encode() not in answer.body


def long(rest: str) -> str:
    return f'{{"kind":"chat","request":{{{M}}},{rest}}}'


@pytest.mark.parametrize("path", ["/api/jobs", "/api/chat/stream"])
@pytest.mark.parametrize(
    ("body", "refusal", "field"),
    [
        # What is not JSON
        ("", NOT_JSON, None),
        ("{", NOT_JSON, None),
        (f"{{{M}", NOT_JSON, None),
        (f"{{{M}}} x", NOT_JSON, None),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', NOT_JSON, None),
        (f"\ufeff{{{M}}}", NOT_JSON, None),
        ('{"messages":[{"role":"user","content":"a\0b"}]}', NOT_JSON, None),
        (f'{{{M},"temperature":NaN}}', NOT_JSON, None),
        # Half of a surrogate pair is no character
        ('{"messages":[{"role":"user","content":"\\ud800"}]}', NOT_JSON, None),
        ('{"messages":[{"role":"user","content":"x","more":"\\udfff"}]}', NOT_JSON, None),
        (long('"metadata":{"a":"\\ud800"}'), NOT_JSON, None),
        # Deep, huge
        (f'{{"messages":{DEEP}}}', NOT_JSON, None),
        (f'{{"kind":"chat","request":{{{M},"x":{DEEP}}}}}', NOT_JSON, None),
        (f'{{{M},"max_tokens":{"9" * 5000}}}', INVALID, "max_tokens"),
        (long('"priority":99999999999999999999'), INVALID, "priority"),
        (long('"timeout":1e400'), INVALID, "timeout"),
        (long('"timeout":"8d"'), INVALID, "timeout"),
        (long('"timeout":0'), INVALID, "timeout"),
        (long('"runAt":"9999-12-31T23:59:59-14:00"'), INVALID, "runAt"),
        # What is JSON but no job
        ("null", INVALID, None),
        ("[]", INVALID, None),
        ('"text"', INVALID, None),
        ("{}", INVALID, "messages"),
        ('{"messages":[]}', INVALID, "messages"),
        ('{"messages":null}', INVALID, "messages"),
        (f'{{"messages":"{SECRET}"}}', INVALID, "messages"),
        (f'{{"messages":["{SECRET}"]}}', INVALID, "messages.0"),
        (f'{{"messages":[{{"content":"{SECRET}"}}]}}', INVALID, "messages.0.role"),
        (f'{{"messages":[{{"role":"{SECRET}","content":"x"}}]}}', INVALID, "messages.0.role"),
        ('{"messages":[{"role":"user","content":5}]}', INVALID, "messages.0.content"),
        (f'{{"messages":[{{"role":"user","content":["{SECRET}"]}}]}}', INVALID, "messages.0.content"),
        # Wrong types and values of fields
        (f'{{{M},"model":5}}', INVALID, "model"),
        (f'{{{M},"model":""}}', INVALID, "model"),
        (f'{{{M},"model":null}}', INVALID, "model"),
        (f'{{{M},"model":"a\\u0000"}}', INVALID, "model"),
        (f'{{{M},"temperature":"{SECRET}"}}', INVALID, "temperature"),
        (f'{{{M},"max_tokens":1.5}}', INVALID, "max_tokens"),
        (f'{{{M},"stop":5}}', INVALID, "stop"),
        (f'{{{M},"tools":{{}}}}', INVALID, "tools"),
        (f'{{{M},"safe_prompt":"yes"}}', INVALID, "safe_prompt"),
        (f'{{{M},"requestId":""}}', INVALID, "requestId"),
        (f'{{{M},"requestId":5}}', INVALID, "requestId"),
        (f'{{{M},"requestId":"{"x" * 257}"}}', INVALID, "requestId"),
        (f'{{{M},"requestId":"a\\u0000b"}}', INVALID, "requestId"),
        (f'{{{M},"requestId":"a\\nb"}}', INVALID, "requestId"),
        (f'{{{M},"requestId":"\\u001b[31m"}}', INVALID, "requestId"),
        (long('"attempts":0'), INVALID, "attempts"),
        (long('"attempts":"3"'), INVALID, "attempts"),
        (long('"attempts":true'), INVALID, "attempts"),
        (long('"backoff":{"type":"random"}'), INVALID, "backoff.type"),
        (long('"backoff":{"delay":-1}'), INVALID, "backoff.delay"),
        (long('"backoff":{"factor":2}'), INVALID, "backoff.factor"),
        (long('"timeout":"soon"'), INVALID, "timeout"),
        (long('"timeout":true'), INVALID, "timeout"),
        (long('"runAt":"tomorrow"'), INVALID, "runAt"),
        (long('"runAt":"2126-01-01T00:00:00"'), INVALID, "runAt"),
        (long('"runAt":0'), INVALID, "runAt"),
        (long('"metadata":[]'), INVALID, "metadata"),
        (long('"metadata":{"a":1}'), INVALID, "metadata.a"),
        (long('"metadata":{"a":"b\\u0000"}'), INVALID, "metadata.a"),
        # Numbers that no reader of ours could hold, and what is no number of JSON's
        (f'{{{M},"temperature":1e400}}', INVALID, "temperature"),
        (f'{{{M},"metadata":{{"a":{"9" * 5000}}}}}', INVALID, "metadata.a"),
        (f'{{{M},"temperature":1e400,"temperature":1}}', INVALID, "temperature"),
        (f'{{"kind":"chat","request":{{{M},"next_year":[1,{{"x":-1E+0400}}]}}}}', INVALID, "request.next_year.1.x"),
        (f'{{"kind":"chat","request":{{{M},"metadata":{{"{SECRET} ":1e999}}}}}}', INVALID, "request.metadata"),
        (f'{{{M},"metadata":{{"a":{DEEP_HUGE}}}}}', NOT_JSON, None),
        (f'{{{M},"metadata":{{"a":NaN}}}}', NOT_JSON, None),
        (f'{{{M},"temperature":-Infinity}}', NOT_JSON, None),
        # Unknown fields and kinds, and the two forms mixed
        (f'{{{M},"mesages":[]}}', INVALID, "mesages"),
        (f'{{{M},"priority":1}}', INVALID, "priority"),
        (long('"temperature":1'), INVALID, "temperature"),
        (long('"colour":"blue"'), INVALID, "colour"),
        (f'{{"kind":"ocr","request":{{{M}}}}}', INVALID, "kind"),
        (f'{{"kind":null,"request":{{{M}}}}}', INVALID, "kind"),
        ('{"kind":"chat"}', INVALID, "request"),
        ('{"kind":"chat","request":null}', INVALID, "request"),
        (f'{{"kind":"chat",{M}}}', INVALID, "messages"),
        # Known, and not built yet
        (f'{{{M},"callback":"https://example.org"}}', (422, "invalid_request"), "callback.secret"),
        (f'{{{M},"callback":7}}', (422, "invalid_request"), "callback"),
        (f'{{{M},"callback":"http://10.0.0.1/hook"}}', (422, "callback_blocked"), "callback.url"),
        (long('"callback":{"url":"https://example.org"}'), (422, "invalid_request"), "callback.secret"),
        (long('"callback":{"url":"https://e.example","secret":"short"}'), (422, "invalid_request"), "callback.secret"),
        (long('"callback":{"url":"https://127.0.0.1","secret":"12345678"}'), (422, "callback_blocked"), "callback.url"),
        (
            long('"callback":{"url":"https://e.example","secret":"12345678","events":["chat.sent"]}'),
            (422, "invalid_request"),
            "callback.events",
        ),
        (
            long('"callback":{"url":"https://e.example","secret":"12345678","headers":{"webhook-id":"1"}}'),
            (422, "callback_blocked"),
            "callback.headers.webhook-id",
        ),
        (long('"callback":{"url":"https://e.example","token":"x"}'), (422, "invalid_request"), "callback.token"),
        (long('"deadline":"soon"'), (422, "invalid_request"), "deadline"),
        (long('"lane":"batch"'), (422, "not_supported"), "lane"),
    ],
)
async def test_a_bad_body_is_refused_by_its_field(
    idle: Face, path: str, body: str | bytes, refusal: tuple[int, str], field: str | None
) -> None:
    raw, key = body if isinstance(body, bytes) else body.encode(), {"Idempotency-Key": next(KEYS)}
    before = (await idle.ask("GET", "/api/jobs?limit=1")).json["jobs"]
    for headers in ({}, key):
        check_problem(await idle.ask("POST", path, data=raw, headers=headers), *refusal, field)

    assert (await idle.ask("GET", "/api/jobs?limit=1")).json["jobs"] == before
    # And the server has not lost its temper.
    assert (await idle.ask("POST", "/api/jobs", data=f"{{{M}}}", headers=key)).status == 202


@pytest.mark.parametrize(
    "body",
    [
        '{"messages":[{"role":"user","content":"a\\u0000b"}]}',
        '{"messages":[{"role":"user","content":"\\ud83c\\udf2c"}]}',
        '{"messages":[{"role":"user","content":""}]}',
        f'{{{M},"temperature":1e308,"random_seed":{10**400}}}',
        f"{{{M},{M}}}",
        f'{{"kind":"chat","request":{{{M},"next_year":[1e-400,-1.7e308]}}}}',
    ],
)
async def test_what_only_mistral_can_judge_is_taken_as_it_is(idle: Face, body: str) -> None:
    key = {"Idempotency-Key": next(KEYS)}
    for headers in ({}, key, key):
        assert (await idle.ask("POST", "/api/jobs", data=body, headers=headers)).status == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "a\x85b"])
async def test_an_unfit_idempotency_key_is_refused(idle: Face, key: str) -> None:
    answer = await idle.ask("POST", "/api/jobs", data=f"{{{M}}}", headers={"Idempotency-Key": key})

    check_problem(answer, 422, "invalid_request", "Idempotency-Key")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nope=1", "nope"),
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("createdAfter=yesterday", "createdAfter"),
        ("createdAfter=2026-01-01T00:00:00", "createdAfter"),
        ("createdAfter=0001-01-01T00:00:00%2B14:00", "createdAfter"),
        ("createdBefore=9999-12-31T23:59:59-14:00", "createdBefore"),
    ],
)
async def test_a_listing_refuses_what_it_does_not_know(idle: Face, query: str, field: str) -> None:
    check_problem(await idle.ask("GET", f"/api/jobs?{query}"), 422, "invalid_request", field)


async def test_every_route_refuses_a_parameter_that_it_does_not_take(idle: Face) -> None:
    document = (await idle.ask("GET", "/openapi.json")).json
    routes = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert ("POST", "/api/jobs") in routes
    assert len(routes) > 40
    for method, path in (*routes, ("GET", "/playground")):
        answer = await idle.ask(method, f"{path.replace('{', '').replace('}', '')}?nope=1")
        check_problem(answer, 422, "invalid_request", "nope")


async def test_a_refused_parameter_is_told_which_there_are(idle: Face) -> None:
    for method, path, there_are in (
        ("GET", "/api/limits", "there are jobId"),
        ("GET", "/api/jobs", "requestId, status, metadata.NAME"),
        ("POST", "/api/jobs", "there are none here"),
    ):
        assert there_are in (await idle.ask(method, f"{path}?metadat.a=1")).json["detail"]


@pytest.mark.parametrize(
    "job_id", ["x", "job_", "job_" + "Z" * 26, "job_%00", "%E2%80%AE", "msg_" + "0" * 26, "job_" + "0" * 26]
)
async def test_an_unknown_job_is_not_found_whatever_it_is_asked(idle: Face, job_id: str) -> None:
    url = f"/api/jobs/{job_id}"
    routes = [
        ("GET", url),
        ("DELETE", url),
        ("GET", f"{url}/events"),
        ("POST", f"{url}/cancel"),
        ("POST", f"{url}/retry"),
    ]
    for method, path in routes:
        check_problem(await idle.ask(method, path), 404, "not_found")


@pytest.mark.parametrize("query", ["requestId=%00", "model=a%00b", "kind=%00", "metadata.wind=%00", "metadata.%00=x"])
async def test_a_filter_that_nothing_can_match_finds_nothing(idle: Face, query: str) -> None:
    await idle.submit()
    answer = await idle.ask("GET", f"/api/jobs?{query}")

    assert (answer.status, answer.json) == (200, {"jobs": [], "next": None})


async def test_an_unknown_cursor_of_a_listing_is_not_found(idle: Face) -> None:
    check_problem(await idle.ask("GET", "/api/jobs?cursor=job_x"), 404, "not_found")


async def test_unknown_routes_and_methods_are_problems_too(idle: Face) -> None:
    check_problem(await idle.ask("GET", "/api/nope"), 404, "not_found")
    check_problem(await idle.ask("PUT", "/api/jobs"), 405, "method_not_allowed")
    check_problem(await idle.ask("GET", "/api/chat/stream"), 405, "method_not_allowed")


# Bodies over the limit


async def test_a_body_that_says_it_is_too_large_is_not_read(idle: Face) -> None:
    host, port = idle.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    # Ten gigabytes are announced, and not one byte is sent.
    writer.write(f"POST /api/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10000000000\r\n\r\n".encode())
    status = await reader.readline()
    body = await reader.readuntil(b"}")
    writer.close()
    await writer.wait_closed()

    assert status.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in body


async def test_a_body_that_grows_too_large_is_refused(idle: Face) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100_000):
            sent += 65536
            yield b" " * 65536

    try:
        answer = await idle.ask("POST", "/api/jobs", data=endless())
    except ConnectionError:
        pass  # it hung up while we still spoke
    else:
        check_problem(answer, 413, "body_too_large")
    assert sent < 100 * 2**20


async def test_a_body_of_exactly_the_limit_is_read(idle: Face) -> None:
    body = f"{{{M}}}".encode()
    fits = await idle.ask("POST", "/api/jobs", data=body.ljust(300_000))
    over = await idle.ask("POST", "/api/jobs", data=body.ljust(300_001))

    assert fits.status == 202
    check_problem(over, 413, "body_too_large")


# What is wrong elsewhere


@pytest.mark.asyncio(loop_scope="function")
async def test_a_wrong_key_of_mistral_fails_the_job_at_once_and_the_server_stays_up(database_url: str) -> None:
    async with Simulator(api_keys=["another-key"]) as simulator, facing(simulator, database_url, backoff=60.0) as face:
        for calls in (1, 2):
            accepted = await face.submit(SECRET)
            job = await face.job(accepted["jobId"], wait=10)
            assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 1, "upstream_unauthorized")
            assert not job["error"]["retryable"]
            assert "a-key" not in job["error"]["message"]
            assert simulator.totals().calls == calls
        assert (await face.ask("GET", "/readyz")).status == 200


@pytest.mark.asyncio(loop_scope="function")
async def test_a_database_that_is_away_is_a_503_and_all_is_well_when_it_is_back(
    simulator: Simulator, database_url: str
) -> None:
    async with Gate.to(database_url) as gate, facing(simulator, gate.url) as face:
        accepted = await face.submit()
        job = await face.job(accepted["jobId"], wait=10)
        await gate.close()
        url = accepted["statusUrl"]
        away = [
            await face.ask(method, path, **more)
            for method, path, more in [
                ("POST", "/api/jobs", {"json": {"messages": QUESTION}}),
                ("POST", "/api/chat/stream", {"json": {"messages": QUESTION}}),
                ("GET", "/api/jobs", {}),
                ("GET", url, {}),
                ("GET", f"{url}/events", {}),
                ("POST", f"{url}/cancel", {}),
                ("GET", "/readyz", {}),
            ]
        ]
        alive = await face.ask("GET", "/healthz")
        await gate.open()

        for answer in away:
            check_problem(answer, 503, "database")
            assert int(answer.headers["Retry-After"]) > 0
        assert alive.status == 200
        assert await face.job(accepted["jobId"]) == job
        later: dict[str, Any] = await face.submit()
        assert (await face.job(later["jobId"], wait=15))["status"] == "completed"

"""Webhooks over HTTP: registered, tried, rotated, told again, explained, listened to; and what bad input gets."""

import asyncio
import base64
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import trustme
from aiohttp import web
from clients import QUESTION
from faces import Answer, Face, facing

from tramontane.ids import utc_now
from tramontane.simulator import Simulator
from tramontane.webhooks.records import EndpointChange
from tramontane.webhooks.signatures import verify

ROOT = "/api/webhooks"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
PASSWORD = "hunter2-is-my-password"
LOOPBACK = (ip_network("127.0.0.0/8"),)
A_URL = "https://127.0.0.1:9443/told"
UNKNOWN = "0" * 26


class Receiver:
    """A receiver on loopback that keeps what comes and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def take(self, request: web.BaseRequest) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.calls.append((headers, await request.read()))
        return web.Response(status=self.status, text="thanks\N{HEAVY BLACK HEART}", headers={"x-theirs": "yes"})


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = web.Server(receiver.take)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/told"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, webhook_allow_cidrs=LOOPBACK, encryption_keys=(KEY,)) as face:
        yield face


@pytest_asyncio.fixture
async def idle(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    """An API without a worker: nothing is sent."""
    given = {"webhook_allow_cidrs": LOOPBACK, "encryption_keys": (KEY,), "body_limit": 100_000}
    async with facing(simulator, database_url, worker=False, **given) as face:
        yield face


async def call(api: Face, method: str, path: str, json: Any = None, **more: Any) -> Answer:
    return await api.ask(method, ROOT + path, **({"json": json} if json is not None else {}), **more)


async def done(api: Face, method: str, path: str, json: Any = None, **more: Any) -> Any:
    """What a call that succeeds answers."""
    answer = await call(api, method, path, json, **more)
    assert answer.status < 300, answer.body
    return answer.json if answer.body else None


async def add(api: Face, url: str = A_URL, **fields: Any) -> dict[str, Any]:
    endpoint: dict[str, Any] = await done(api, "POST", "/endpoints", {"url": url, **fields})
    return endpoint


async def told(api: Face, path: str, seconds: float = 8.0) -> dict[str, Any]:
    """Ask until a recovery no longer runs."""
    async with asyncio.timeout(seconds):
        while True:
            found = await done(api, "GET", path)
            if found["status"] != "running":
                return dict(found)
            await asyncio.sleep(0.02)


def check_problem(answer: Answer, status: int, code: str, field: str | None = None) -> None:
    """What every refusal has in common."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.body
    problem = answer.json
    assert set(problem) <= {"type", "title", "status", "code", "detail", "field", "rule", "hint"}
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field), problem
    assert PASSWORD.encode() not in answer.body


# The registry


async def test_a_new_endpoint_is_shown_whole_and_its_secret_once(idle: Face) -> None:
    answer = await call(idle, "POST", "/endpoints", {"url": "https://127.0.0.1:9443/told?x=ü"})
    endpoint = answer.json
    secret, path = endpoint.pop("secret"), f"{ROOT}/endpoints/{endpoint['endpointId']}"

    assert (answer.status, answer.headers["Location"]) == (201, path)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    assert re.fullmatch(r"sec_[0-9A-HJKMNP-TV-Z]{26}", endpoint["secrets"][0].pop("secretId"))
    assert TIME.fullmatch(endpoint["createdAt"])
    assert endpoint == {
        "endpointId": endpoint["endpointId"],
        "url": "https://127.0.0.1:9443/told?x=%C3%BC",
        "description": "",
        "events": ["*.completed", "*.failed", "*.cancelled"],
        "format": "default",
        "ordering": "none",
        "headerNames": [],
        "timeout": None,
        "status": "active",
        "disabledReason": None,
        "health": {"breaker": "closed", "window": 4, "blockedUntil": None, "failingSince": None, "trips": 0},
        "secrets": [{"primary": True, "notAfter": None}],
        "backlog": {"waiting": 0, "dispatched": 0},
        "createdAt": endpoint["createdAt"],
        "updatedAt": endpoint["createdAt"],
    }
    for again in (await idle.ask("GET", path), await call(idle, "GET", "/endpoints")):
        assert again.status == 200
        assert secret.encode() not in again.body
        assert b'"secret"' not in again.body


async def test_all_that_can_be_said_of_an_endpoint_is_kept(idle: Face) -> None:
    endpoint = await add(
        idle,
        events=["chat.*", "chat.*", "endpoint.degraded"],
        description="ours",
        headers={"X-Team": "blue"},
        auth={"type": "basic", "username": "zoë", "password": PASSWORD},
        format="thin",
        ordering="job",
        timeout="5s",
        secret="a-secret-of-ours",
    )
    assert endpoint["secret"] == "a-secret-of-ours"
    read = await done(idle, "GET", f"/endpoints/{endpoint['endpointId']}")
    assert (read["events"], read["description"]) == (["chat.*", "endpoint.degraded"], "ours")
    assert (read["format"], read["ordering"], read["timeout"]) == ("thin", "job", 5.0)
    assert read["headerNames"] == ["X-Team", "Authorization"]


async def test_a_patch_changes_what_it_names_and_nothing_else(idle: Face) -> None:
    endpoint = await add(idle, headers={"X-Team": "blue"}, auth={"type": "bearer", "token": PASSWORD}, timeout=5)
    path = f"/endpoints/{endpoint['endpointId']}"

    async def patched(**fields: Any) -> dict[str, Any]:
        return dict(await done(idle, "PATCH", path, fields))

    before = await done(idle, "GET", path)
    assert (await patched())["headerNames"] == ["X-Team", "Authorization"]
    after = await patched(description="ours", events=["*"])
    changed = {"description": "ours", "events": ["*"]}
    assert {**after, "updatedAt": ""} == {**before, **changed, "updatedAt": ""}
    assert after["updatedAt"] > before["updatedAt"]
    assert (await patched(auth=None))["headerNames"] == ["X-Team"]
    assert (await patched(auth={"type": "bearer", "token": "t"}))["headerNames"] == ["X-Team", "Authorization"]
    assert (await patched(headers={"X-Other": "1"}))["headerNames"] == ["X-Other"]
    assert (await patched(headers=None))["headerNames"] == []
    assert (await patched(timeout=None))["timeout"] is None
    assert (await patched(url="https://127.0.0.2:9443/"))["url"] == "https://127.0.0.2:9443/"
    assert "secret" not in await patched()


async def test_endpoints_are_listed_page_by_page(idle: Face) -> None:
    made = [(await add(idle))["endpointId"] for _ in range(5)]
    first = await done(idle, "GET", "/endpoints?limit=3")
    rest = await done(idle, "GET", f"/endpoints?limit=3&cursor={first['next']}")

    assert [one["endpointId"] for one in first["endpoints"] + rest["endpoints"]] == made[::-1]
    assert rest["next"] is None
    assert "backlog" not in first["endpoints"][0]


async def test_no_secret_and_no_header_value_is_shown_logged_or_stored_in_the_open(
    idle: Face, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = await add(idle, secret=PASSWORD, headers={"X-Key": PASSWORD}, auth={"type": "bearer", "token": PASSWORD})
    path = f"/endpoints/{endpoint['endpointId']}"
    await done(idle, "POST", f"{path}/rotate", {"secret": PASSWORD + "2"})
    answers = [
        await call(idle, "GET", path),
        await call(idle, "GET", "/endpoints"),
        await call(idle, "PATCH", path, {"description": "x"}),
        await call(idle, "POST", f"{path}/pause"),
        await call(idle, "PATCH", path, {"auth": {"type": "bearer", "token": PASSWORD, "x": 1}}),
        await call(idle, "PATCH", path, {"headers": {"Host": PASSWORD}}),
        await call(idle, "POST", f"{path}/rotate", {"secret": f"whsec_{PASSWORD}"}),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 422, 422, 422]
    assert not any(PASSWORD.encode() in answer.body for answer in answers)
    assert PASSWORD not in caplog.text
    tenant, service = "default", idle.app.endpoints
    [shown] = await service.find(tenant, before=None, limit=9)
    assert PASSWORD not in repr(shown)
    assert PASSWORD not in repr(EndpointChange(headers={"X-Key": PASSWORD}, authorization=PASSWORD))
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "tramontane"})
    rows = await connection.fetch("SELECT e::text FROM endpoints e UNION ALL SELECT s::text FROM endpoint_secrets s")
    await connection.close()
    assert len(rows) == 3
    assert not any(PASSWORD in row[0] or PASSWORD.encode().hex() in row[0] for row in rows)


async def test_a_removed_endpoint_is_gone_and_its_log_is_not(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url)
    path = f"/endpoints/{endpoint['endpointId']}"
    await done(api, "POST", f"{path}/test", headers={"Prefer": "wait=8"})
    answer = await call(api, "DELETE", path)

    assert (answer.status, answer.body) == (204, b"")
    for method, after in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/enable")):
        check_problem(await call(api, method, path + after), 404, "not_found")
    [delivery] = (await done(api, "GET", f"/deliveries?endpoint={endpoint['endpointId']}"))["deliveries"]
    assert (delivery["endpointId"], delivery["url"], delivery["status"]) == (endpoint["endpointId"], None, "succeeded")
    assert len((await done(api, "GET", "/attempts"))["attempts"]) == 1


async def test_an_endpoint_is_paused_disabled_and_enabled(idle: Face) -> None:
    path = f"/endpoints/{(await add(idle))['endpointId']}"
    steps = [
        ("pause", "paused", None),
        ("disable", "disabled", "manual"),
        ("disable", "disabled", "manual"),
        ("enable", "active", None),
    ]
    for verb, status, reason in steps:
        endpoint = await done(idle, "POST", f"{path}/{verb}")
        assert (endpoint["status"], endpoint["disabledReason"]) == (status, reason)
        assert endpoint == await done(idle, "GET", path)


# Trying it


async def test_a_test_arrives_signed_and_the_answer_waits_for_it(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url, headers={"X-Team": "blue"}, auth={"type": "bearer", "token": "t0k3n"})
    answer = await call(api, "POST", f"/endpoints/{endpoint['endpointId']}/test", headers={"Prefer": "wait=8"})
    delivery = answer.json

    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "wait=8")
    assert (delivery["status"], delivery["event"], delivery["origin"]) == ("succeeded", "webhook.test", "test")
    [(headers, body)] = receiver.calls
    verified = verify(body, headers, endpoint["secret"])
    assert (verified.event, verified.id) == ("webhook.test", delivery["messageId"])
    assert verified.data["endpointId"] == endpoint["endpointId"]
    assert (headers["x-team"], headers["authorization"]) == ("blue", "Bearer t0k3n")
    assert headers["x-webhook-delivery"] == delivery["deliveryId"]


async def test_a_test_that_fails_says_so_after_its_first_try(api: Face, receiver: Receiver) -> None:
    receiver.status = 500
    endpoint = await add(api, receiver.url)
    delivery = await done(api, "POST", f"/endpoints/{endpoint['endpointId']}/test", headers={"Prefer": "wait=8"})

    assert (delivery["status"], delivery["tries"], delivery["attempts"]) == ("waiting", 1, 1)
    assert (delivery["lastStatus"], delivery["errorClass"], delivery["endedAt"]) == (500, "http_5xx", None)
    assert delivery["hint"] == "500: the receiver failed: see its log"
    [attempt] = (await done(api, "GET", f"/deliveries/{delivery['deliveryId']}"))["attemptLog"]
    timings = attempt.pop("timings")
    assert timings["totalMs"] > 0
    assert set(timings) == {"dnsMs", "connectMs", "tlsMs", "firstByteMs", "totalMs"}
    response = attempt.pop("response")
    assert response["headers"]["x-theirs"] == "yes"
    assert (response["body"], response["truncated"]) == ("thanks\N{HEAVY BLACK HEART}", False)
    assert TIME.fullmatch(attempt.pop("startedAt"))
    assert attempt == {
        "deliveryId": delivery["deliveryId"],
        "attempt": 1,
        "counted": True,
        "endpointId": endpoint["endpointId"],
        "event": "webhook.test",
        "status": 500,
        "errorClass": "http_5xx",
        "detail": "answered 500",
        "hint": "500: the receiver failed: see its log",
        "remoteIp": "127.0.0.1",
    }


async def test_a_test_answers_at_once_when_nobody_waits_and_when_the_time_is_up(idle: Face) -> None:
    path = f"/endpoints/{(await add(idle))['endpointId']}/test"
    assert (await done(idle, "POST", path))["status"] == "waiting"
    began = time.monotonic()
    answer = await call(idle, "POST", path, headers={"Prefer": "wait=1"})
    assert 1.0 <= time.monotonic() - began < 3.0
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("waiting", "wait=1")


async def test_only_an_active_endpoint_is_tested(idle: Face) -> None:
    path = f"/endpoints/{(await add(idle))['endpointId']}"
    for verb in ("pause", "disable"):
        await done(idle, "POST", f"{path}/{verb}")
        check_problem(await call(idle, "POST", f"{path}/test"), 409, "conflict")


# Secrets


async def test_both_secrets_verify_during_the_overlap(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url)
    path = f"/endpoints/{endpoint['endpointId']}"
    rotated = await done(api, "POST", f"{path}/rotate", {"overlap": "1h"})
    await done(api, "POST", f"{path}/test", headers={"Prefer": "wait=8"})

    assert rotated["secret"] != endpoint["secret"]
    assert [(one["primary"], one["notAfter"] is None) for one in rotated["secrets"]] == [(True, True), (False, False)]
    [(headers, body)] = receiver.calls
    for secret in (rotated["secret"], endpoint["secret"]):
        assert verify(body, headers, secret).event == "webhook.test"


async def test_a_rotation_takes_no_body_its_own_secret_or_waits_with_the_promotion(idle: Face) -> None:
    path = f"/endpoints/{(await add(idle))['endpointId']}"
    before = utc_now()
    first = await done(idle, "POST", f"{path}/rotate")
    later = await done(idle, "POST", f"{path}/rotate", {"promote": "end", "overlap": 60, "secret": "ours-to-choose"})

    end = datetime.fromisoformat(first["secrets"][1]["notAfter"])
    assert abs(end - before - timedelta(hours=24)) < timedelta(minutes=1)
    assert later["secret"] == "ours-to-choose"
    assert [one["primary"] for one in later["secrets"]] == [True, False, False]
    assert later["secrets"][0]["secretId"] == first["secrets"][0]["secretId"]
    at_once = await done(idle, "POST", f"{path}/rotate", {"overlap": 0})
    assert len(at_once["secrets"]) == 1
    for _ in range(4):
        await done(idle, "POST", f"{path}/rotate")
    check_problem(await call(idle, "POST", f"{path}/rotate"), 409, "conflict")


# What was told


async def complete(api: Face, count: int = 1) -> list[str]:
    """Jobs that completed, one after the other."""
    ids = []
    for _ in range(count):
        ids.append((await api.submit())["jobId"])
        assert (await api.job(ids[-1], wait=10))["status"] == "completed"
    return ids


async def all_told(api: Face, query: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(8):
        while True:
            found = (await done(api, "GET", f"/deliveries?{query}"))["deliveries"]
            if len(found) >= count and all(one["endedAt"] for one in found):
                return list(found)
            await asyncio.sleep(0.02)


async def test_messages_deliveries_and_attempts_are_shown_and_found(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url, events=["chat.completed"])
    job, other = await complete(api, 2)
    [_, delivery] = await all_told(api, f"endpoint={endpoint['endpointId']}", 2)
    message = await done(api, "GET", f"/messages/{delivery['messageId']}")
    bodies = {headers["webhook-id"]: body for headers, body in receiver.calls}

    assert set(delivery) == {
        *("deliveryId", "messageId", "endpointId", "callback", "url", "event", "jobId", "seq", "status", "attempts"),
        *("tries", "origin", "dueAt", "lastStatus", "errorClass", "hint", "createdAt", "endedAt"),
    }
    assert (delivery["jobId"], delivery["endpointId"], delivery["url"]) == (job, endpoint["endpointId"], receiver.url)
    assert (delivery["status"], delivery["tries"], delivery["lastStatus"]) == ("succeeded", 1, 200)
    assert (delivery["hint"], delivery["errorClass"], delivery["callback"]) == (None, None, False)
    assert message["body"].encode() == bodies[message["messageId"]]
    assert [one["deliveryId"] for one in message["deliveries"]] == [delivery["deliveryId"]]
    [listed, _] = (await done(api, "GET", f"/messages?jobId={job}"))["messages"]
    assert set(listed) == {"messageId", "event", "timestamp", "jobId", "seq"}
    assert {name: message[name] for name in listed} == listed
    assert listed["seq"] == delivery["seq"] > 1

    async def jobs(path: str) -> list[str]:
        answer = await done(api, "GET", path)
        return [one.get("jobId") or one["deliveryId"] for one in answer[path[1:].partition("?")[0]]]

    since = (await done(api, "GET", f"/messages?jobId={other}"))["messages"][0]["timestamp"]
    assert await jobs(f"/messages?since={since}") == [other]
    assert await jobs(f"/messages?until={since}&event=chat.completed") == [job]
    assert await jobs("/messages?event=chat.failed") == []
    assert await jobs(f"/deliveries?jobId={job}&status=succeeded&event=chat.completed") == [job]
    assert await jobs(f"/deliveries?messageId={message['messageId']}") == [job]
    assert await jobs("/deliveries?status=failed") == await jobs("/deliveries?errorClass=dns") == []
    assert await jobs(f"/attempts?deliveryId={delivery['deliveryId']}&outcome=succeeded") == [delivery["deliveryId"]]
    assert await jobs("/attempts?outcome=failed") == await jobs("/attempts?errorClass=dns") == []


async def test_listings_are_paged_without_gap_or_duplicate(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url)
    for _ in range(5):
        await done(api, "POST", f"/endpoints/{endpoint['endpointId']}/test", headers={"Prefer": "wait=8"})
    for things in ("messages", "deliveries", "attempts"):
        whole = (await done(api, "GET", f"/{things}"))[things]
        pages: list[Any] = []
        more = ""
        while True:
            page = await done(api, "GET", f"/{things}?limit=2{more}")
            pages += page[things]
            if page["next"] is None:
                break
            more = f"&cursor={page['next']}"
        assert pages == whole
        assert len(whole) == 5


async def test_a_callbacks_delivery_names_no_endpoint(api: Face, receiver: Receiver) -> None:
    callback = {"url": receiver.url, "secret": "a-secret-of-ours"}
    accepted = await api.ask("POST", "/api/jobs", json={"messages": QUESTION, "callback": callback})
    [delivery] = await all_told(api, f"jobId={accepted.json['jobId']}", 1)
    assert (delivery["endpointId"], delivery["callback"], delivery["url"]) == (None, True, receiver.url)
    [attempt] = (await done(api, "GET", "/attempts"))["attempts"]
    assert attempt["endpointId"] is None
    again = await done(api, "POST", f"/deliveries/{delivery['deliveryId']}/replay")
    assert again["callback"]
    assert (await done(api, "GET", "/endpoints"))["endpoints"] == []


async def test_a_delivery_can_be_waited_for(api: Face, receiver: Receiver) -> None:
    endpoint = await add(api, receiver.url)
    delivery = await done(api, "POST", f"/endpoints/{endpoint['endpointId']}/test")
    answer = await call(api, "GET", f"/deliveries/{delivery['deliveryId']}", headers={"Prefer": "wait=99"})
    assert (answer.json["status"], answer.headers["Preference-Applied"]) == ("succeeded", "wait=60")


async def test_a_replay_sends_the_same_bytes_under_the_same_id(api: Face, receiver: Receiver) -> None:
    await add(api, receiver.url)
    [job] = await complete(api)
    [first] = await all_told(api, f"jobId={job}", 1)
    answer = await call(api, "POST", f"/deliveries/{first['deliveryId']}/replay")
    replay = await done(api, "GET", f"/deliveries/{answer.json['deliveryId']}", headers={"Prefer": "wait=8"})

    assert answer.status == 202
    assert answer.headers["Location"] == f"{ROOT}/deliveries/{replay['deliveryId']}"
    assert (replay["status"], replay["origin"], replay["messageId"]) == ("succeeded", "replay", first["messageId"])
    (headers, body), (again, same) = receiver.calls
    assert (body, headers["webhook-id"]) == (same, again["webhook-id"])
    assert again["x-webhook-delivery"] == replay["deliveryId"]


async def test_what_was_erased_is_not_replayed(api: Face, receiver: Receiver) -> None:
    await add(api, receiver.url)
    [job] = await complete(api)
    [first] = await all_told(api, f"jobId={job}", 1)
    assert (await api.ask("DELETE", f"/api/jobs/{job}")).status == 204
    check_problem(await call(api, "POST", f"/deliveries/{first['deliveryId']}/replay"), 409, "conflict")
    message = await done(api, "GET", f"/messages/{first['messageId']}")
    assert message["body"] is None


# Told again


async def test_a_range_of_time_is_told_again_to_its_end(api: Face, receiver: Receiver) -> None:
    failing = await add(api, receiver.url, events=["chat.completed"])
    receiver.status = 410
    began = utc_now().isoformat()
    [job] = await complete(api)
    await all_told(api, f"jobId={job}", 1)
    path = f"/endpoints/{failing['endpointId']}"
    gone = await done(api, "GET", path)
    assert (gone["status"], gone["disabledReason"]) == ("disabled", "gone")
    check_problem(await call(api, "POST", f"{path}/recover", {"since": began}), 409, "conflict")
    receiver.status = 204
    await done(api, "POST", f"{path}/enable")
    answer = await call(api, "POST", f"{path}/recover", {"since": began})
    started = answer.json
    ended = await told(api, f"/recoveries/{started['recoveryId']}")

    assert answer.status == 202
    assert answer.headers["Location"] == f"{ROOT}/recoveries/{started['recoveryId']}"
    assert set(started) == {
        *("recoveryId", "endpointId", "since", "until", "only", "event", "status", "total", "done", "succeeded"),
        *("failed", "waiting", "createdAt", "endedAt"),
    }
    assert (started["status"], started["only"], started["event"], started["total"]) == ("running", "failed", None, 1)
    assert (ended["status"], ended["done"], ended["succeeded"], ended["waiting"]) == ("completed", 1, 1, 0)
    assert TIME.fullmatch(ended["endedAt"])
    assert receiver.calls[0][1] == receiver.calls[1][1]
    # A new endpoint is told all that it missed, and the range ends now at the latest.
    new = await add(api, receiver.url)
    fields = {"since": began, "until": "2126-01-01T00:00:00Z", "only": "missing", "event": "*.completed"}
    later = await done(api, "POST", f"/endpoints/{new['endpointId']}/recover", fields)
    assert later["until"] < "2126"
    assert (await told(api, f"/recoveries/{later['recoveryId']}"))["succeeded"] == 1
    listed = await done(api, "GET", "/recoveries")
    assert [one["recoveryId"] for one in listed["recoveries"]] == [later["recoveryId"], started["recoveryId"]]
    only = await done(api, "GET", f"/recoveries?endpoint={new['endpointId']}&limit=1")
    assert [one["recoveryId"] for one in only["recoveries"]] == [later["recoveryId"]]


async def test_a_recovery_is_paused_resumed_and_cancelled(idle: Face) -> None:
    endpoint = await add(idle)
    fields = {"since": "2026-01-01T00:00:00Z", "only": "all"}
    recovery = await done(idle, "POST", f"/endpoints/{endpoint['endpointId']}/recover", fields)
    path = f"/recoveries/{recovery['recoveryId']}"
    for verb, status in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled"), ("cancel", "cancelled")):
        assert (await done(idle, "POST", f"{path}/{verb}"))["status"] == status
    assert (await done(idle, "GET", path))["endedAt"]
    check_problem(await call(idle, "POST", f"{path}/resume"), 409, "conflict")


# The policy


async def test_a_forbidden_address_is_refused_with_its_rule_and_the_remedy(idle: Face) -> None:
    answer = await call(idle, "POST", "/endpoints", {"url": "https://10.0.0.1/"})
    check_problem(answer, 422, "callback_blocked", "url")
    assert answer.json["rule"] == "private"
    assert answer.json["hint"] == "set TRAMONTANE_WEBHOOK_ALLOW_CIDRS=10.0.0.1/32"
    endpoint = await add(idle)
    path = f"/endpoints/{endpoint['endpointId']}"
    check_problem(await call(idle, "PATCH", path, {"url": "https://10.0.0.1/"}), 422, "callback_blocked", "url")
    assert (await done(idle, "GET", path))["url"] == endpoint["url"]


async def resolving(face: Face, *addresses: str) -> None:
    async def resolve(host: str) -> tuple[str, ...]:
        if not addresses:
            raise OSError(host)
        return addresses

    face.app.endpoints._resolve = resolve


async def test_a_name_is_refused_when_any_of_its_addresses_is_and_not_when_it_has_none(idle: Face) -> None:
    await resolving(idle, "93.184.216.34", "10.0.0.1")
    answer = await call(idle, "POST", "/endpoints", {"url": "https://receiver.example/"})
    check_problem(answer, 422, "callback_blocked", "url")
    assert answer.json["rule"] == "private"
    await resolving(idle, "93.184.216.34")
    await add(idle, "https://receiver.example/")
    await resolving(idle)
    await add(idle, "https://receiver.example/")


async def test_explain_judges_each_rule_and_each_address(idle: Face) -> None:
    async def explained(url: str) -> dict[str, Any]:
        answer: dict[str, Any] = await done(idle, "POST", "/explain", {"url": url})
        assert set(answer) == {"url", "allowed", "rules", "addresses", "tls"}
        return answer

    blocked = await explained("https://10.0.0.1/hook")
    assert (blocked["allowed"], blocked["addresses"], blocked["tls"]) == (False, [], None)
    [rule] = [rule for rule in blocked["rules"] if not rule["allowed"]]
    assert rule == {
        "rule": "private",
        "allowed": False,
        "detail": "10.0.0.1 is an address of a private network",
        "hint": "set TRAMONTANE_WEBHOOK_ALLOW_CIDRS=10.0.0.1/32",
    }
    await resolving(idle, "127.0.0.1", "10.0.0.1")
    mixed = await explained("https://receiver.example/")
    assert (mixed["allowed"], mixed["tls"]) == (False, None)
    assert [(one["address"], one["allowed"]) for one in mixed["addresses"]] == [
        ("127.0.0.1", True),
        ("10.0.0.1", False),
    ]
    await resolving(idle)
    nowhere = await explained("https://receiver.example/")
    assert (nowhere["allowed"], nowhere["rules"][-1]["rule"]) == (False, "dns")
    assert not (await explained("ftp://receiver.example/"))["allowed"]
    assert not (await explained("nonsense"))["allowed"]


async def test_explain_sends_nothing_and_calls_only_for_a_certificate(idle: Face, receiver: Receiver) -> None:
    plain = await done(idle, "POST", "/explain", {"url": receiver.url})
    assert (plain["allowed"], plain["tls"]) == (True, None)
    no_tls = await done(idle, "POST", "/explain", {"url": receiver.url.replace("http:", "https:")})
    assert (no_tls["allowed"], no_tls["tls"]) == (True, None)
    assert receiver.calls == []


async def test_explain_tells_how_long_the_certificate_lasts(idle: Face) -> None:
    ends = utc_now().replace(microsecond=0) + timedelta(days=30, hours=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("receiver.example", not_after=ends).configure_cert(context)
    said: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said.append(await reader.read())
        except OSError:
            said.append(b"")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
    await resolving(idle, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    answer = await done(idle, "POST", "/explain", {"url": f"https://receiver.example:{port}/"})
    server.close()
    await server.wait_closed()
    assert answer["allowed"]
    assert answer["tls"] == {"notAfter": ends.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "daysLeft": 30}
    assert said in ([], [b""])


# Listening


async def test_a_terminal_hears_at_once_what_a_job_tells(api: Face) -> None:
    listener = await done(api, "POST", "/listeners", {"events": ["chat.completed"]})
    path = f"/listeners/{listener['listenerId']}"
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(done(api, "POST", f"{path}/next", {"wait": 20}))
        [job] = await complete(api)
    answer = waiting.result()
    [heard] = answer["deliveries"]

    verified = verify(heard["body"].encode(), heard["headers"], listener["secret"])
    assert (verified.event, verified.data["jobId"], verified.id) == ("chat.completed", job, heard["messageId"])
    assert (heard["event"], heard["attempt"]) == ("chat.completed", 1)
    assert heard["headers"]["X-Webhook-Delivery"] == heard["deliveryId"]
    assert answer["expiresAt"] > listener["expiresAt"]
    results = [{"deliveryId": heard["deliveryId"], "status": 503, "totalMs": 12.5}]
    assert (await done(api, "POST", f"{path}/next", {"results": results, "wait": 0}))["deliveries"] == []
    delivery = await done(api, "GET", f"/deliveries/{heard['deliveryId']}")
    assert (delivery["status"], delivery["lastStatus"], delivery["errorClass"]) == ("failed", 503, "http_5xx")
    [attempt] = delivery["attemptLog"]
    assert (attempt["timings"]["totalMs"], attempt["hint"]) == (
        12.5,
        "503: the receiver is overloaded or in maintenance",
    )
    assert (await done(api, "GET", "/endpoints"))["endpoints"] == []


async def test_what_a_terminal_says_ends_a_delivery(idle: Face) -> None:
    path = f"/listeners/{(await done(idle, 'POST', '/listeners'))['listenerId']}/next"
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"status": 200}, "succeeded", None),
        ({"status": 299}, "succeeded", None),
        ({"status": None}, "succeeded", None),
        ({"status": None, "errorClass": "connect_refused", "detail": "nobody there"}, "failed", "connect_refused"),
        ({"status": 200, "errorClass": "timeout_body"}, "failed", "timeout_body"),
        ({"status": 302}, "failed", "redirect"),
        ({"status": 404}, "failed", "http_4xx"),
    ]
    for result, status, error_class in cases:
        await idle.cancel((await idle.submit())["jobId"])
        [heard] = (await done(idle, "POST", path))["deliveries"]
        await done(idle, "POST", path, {"results": [{"deliveryId": heard["deliveryId"], **result}], "wait": 0})
        delivery = await done(idle, "GET", f"/deliveries/{heard['deliveryId']}")
        assert (delivery["status"], delivery["errorClass"], delivery["tries"]) == (status, error_class, 1)


async def test_a_terminal_that_waits_in_vain_gets_an_empty_answer(idle: Face) -> None:
    listener = await done(idle, "POST", "/listeners")
    began = time.monotonic()
    answer = await done(idle, "POST", f"/listeners/{listener['listenerId']}/next", {"wait": "300ms"})
    assert 0.3 <= time.monotonic() - began < 3.0
    assert answer["deliveries"] == []


async def test_a_listener_that_left_is_not_found(idle: Face) -> None:
    path = f"/listeners/{(await done(idle, 'POST', '/listeners'))['listenerId']}"
    assert (await call(idle, "DELETE", path)).status == 204
    check_problem(await call(idle, "DELETE", path), 404, "not_found")
    check_problem(await call(idle, "POST", f"{path}/next", {}), 404, "not_found")


async def test_terminals_that_wait_are_answered_when_the_server_ends(idle: Face) -> None:
    path = f"/listeners/{(await done(idle, 'POST', '/listeners'))['listenerId']}"
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(done(idle, "POST", f"{path}/next", {"wait": 50}))
        while not idle.app.listeners._waiting:  # noqa: ASYNC110 - nobody sets an event for us
            await asyncio.sleep(0.005)
        idle.app.listeners.drain()
    assert waiting.result()["deliveries"] == []


# What bad input gets

INVALID, NOT_JSON, BLOCKED = (422, "invalid_request"), (400, "invalid_json"), (422, "callback_blocked")


BAD_ENDPOINTS: list[tuple[str | bytes, tuple[int, str], str | None]] = [
    ("", NOT_JSON, None),
    ("{", NOT_JSON, None),
    (b'{"url":"\xff"}', NOT_JSON, None),
    ('{"url":"\\ud800"}', NOT_JSON, None),
    ("[" * 10_000, NOT_JSON, None),
    ("[]", INVALID, None),
    ("null", INVALID, None),
    ("{}", INVALID, "url"),
    ('{"url":null}', INVALID, "url"),
    ('{"url":5}', INVALID, "url"),
    ('{"url":""}', BLOCKED, "url"),
    ('{"url":"https://127.0.0.1:9443/\\u0000"}', BLOCKED, "url"),
    (f'{{"url":"https://me:{PASSWORD}@127.0.0.1/"}}', BLOCKED, "url"),
    ('{"url":"https://localhost/"}', BLOCKED, "url"),
    ('{"url":"file:///etc/passwd"}', BLOCKED, "url"),
    ('{"url":"U","uri":"x"}', INVALID, "uri"),
    ('{"url":"U","events":[]}', INVALID, "events"),
    ('{"url":"U","events":"*"}', INVALID, "events"),
    ('{"url":"U","events":null}', INVALID, "events"),
    ('{"url":"U","events":["chat.said"]}', INVALID, "events"),
    ('{"url":"U","events":["webhook.test"]}', INVALID, "events"),
    ('{"url":"U","format":"xml"}', INVALID, "format"),
    ('{"url":"U","ordering":"global"}', INVALID, "ordering"),
    ('{"url":"U","timeout":0.5}', INVALID, "timeout"),
    ('{"url":"U","timeout":"31s"}', INVALID, "timeout"),
    ('{"url":"U","timeout":true}', INVALID, "timeout"),
    ('{"url":"U","description":"a\\nb"}', INVALID, "description"),
    ('{"url":"U","secret":"short"}', INVALID, "secret"),
    (f'{{"url":"U","secret":"whsec_{PASSWORD}"}}', INVALID, "secret"),
    ('{"url":"U","headers":[]}', INVALID, "headers"),
    ('{"url":"U","headers":{"X-A":1}}', INVALID, "headers.X-A"),
    (f'{{"url":"U","headers":{{"X-A":"{PASSWORD}\\r\\nX-B: 1"}}}}', BLOCKED, "headers.X-A"),
    (f'{{"url":"U","headers":{{"webhook-id":"{PASSWORD}"}}}}', BLOCKED, "headers.webhook-id"),
    ('{"url":"U","headers":{"Host":"x"}}', BLOCKED, "headers.Host"),
    ('{"url":"U","auth":{"type":"digest"}}', INVALID, "auth"),
    ('{"url":"U","auth":{"type":"basic","username":"x"}}', INVALID, "auth.password"),
    (f'{{"url":"U","auth":{{"type":"basic","username":"a:b","password":"{PASSWORD}"}}}}', INVALID, "auth.username"),
    (f'{{"url":"U","auth":{{"type":"bearer","token":"{PASSWORD}\\n"}}}}', INVALID, "auth.token"),
    ('{"url":"U","auth":{"type":"bearer","token":"x"},"headers":{"authorization":"y"}}', INVALID, "auth"),
]


async def test_a_bad_endpoint_is_refused_by_its_field(idle: Face) -> None:
    for body, refusal, field in BAD_ENDPOINTS:
        raw = body if isinstance(body, bytes) else body.replace('"U"', f'"{A_URL}"').encode()
        check_problem(await call(idle, "POST", "/endpoints", data=raw), *refusal, field)
    assert (await done(idle, "GET", "/endpoints"))["endpoints"] == []


async def test_bad_bodies_of_the_other_verbs_are_refused_by_their_field(idle: Face) -> None:
    path = f"/endpoints/{(await add(idle))['endpointId']}"
    listener = f"/listeners/{(await done(idle, 'POST', '/listeners'))['listenerId']}"
    a_result = {"deliveryId": f"dlv_{UNKNOWN}", "status": 200}
    cases: list[tuple[str, str, Any, str]] = [
        ("PATCH", path, {"secret": "a-secret-of-ours"}, "secret"),
        ("PATCH", path, {"status": "paused"}, "status"),
        ("PATCH", path, {"url": None}, "url"),
        ("PATCH", path, {"ordering": None}, "ordering"),
        ("PATCH", path, [], ""),
        ("POST", f"{path}/rotate", {"overlap": "8d"}, "overlap"),
        ("POST", f"{path}/rotate", {"overlap": -1}, "overlap"),
        ("POST", f"{path}/rotate", {"promote": "soon"}, "promote"),
        ("POST", f"{path}/rotate", {"secret": ""}, "secret"),
        ("POST", f"{path}/recover", {}, "since"),
        ("POST", f"{path}/recover", {"since": "yesterday"}, "since"),
        ("POST", f"{path}/recover", {"since": "2026-01-01T00:00:00"}, "since"),
        ("POST", f"{path}/recover", {"since": "9999-12-31T23:59:59-14:00"}, "since"),
        ("POST", f"{path}/recover", {"since": "2126-01-01T00:00:00Z"}, "since"),
        ("POST", f"{path}/recover", {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ("POST", f"{path}/recover", {"since": "2026-01-01T00:00:00Z", "only": "some"}, "only"),
        ("POST", f"{path}/recover", {"since": "2026-01-01T00:00:00Z", "event": "chat"}, "event"),
        ("POST", f"{path}/recover", {"since": "2026-01-01T00:00:00Z", "rate": 5}, "rate"),
        ("POST", "/explain", {}, "url"),
        ("POST", "/explain", {"url": "x", "y": 1}, "y"),
        ("POST", "/listeners", {"events": []}, "events"),
        ("POST", "/listeners", {"events": ["chat.said"]}, "events"),
        ("POST", "/listeners", {"url": "x"}, "url"),
        ("POST", f"{listener}/next", {"wait": "soon"}, "wait"),
        ("POST", f"{listener}/next", {"results": [{"deliveryId": "x"}]}, "results.0.status"),
        ("POST", f"{listener}/next", {"results": [a_result | {"status": 99}]}, "results.0.status"),
        ("POST", f"{listener}/next", {"results": [a_result | {"errorClass": "tired"}]}, "results.0.errorClass"),
        ("POST", f"{listener}/next", {"results": [a_result | {"detail": "a\u0000"}]}, "results.0.detail"),
        ("POST", f"{listener}/next", {"results": [a_result | {"totalMs": -1}]}, "results.0.totalMs"),
    ]
    for method, where, body, field in cases:
        check_problem(await call(idle, method, where, body), 422, "invalid_request", field or None)


async def test_a_listing_refuses_what_it_does_not_know(idle: Face) -> None:
    for query, field in [
        ("endpoints?status=active", "status"),
        ("endpoints?limit=0", "limit"),
        ("recoveries?status=running", "status"),
        ("messages?status=failed", "status"),
        ("messages?since=2026-01-01T00:00:00", "since"),
        ("messages?until=yesterday", "until"),
        ("deliveries?status=done", "status"),
        ("deliveries?limit=201", "limit"),
        ("deliveries?since=0001-01-01T00:00:00%2B14:00", "since"),
        ("attempts?outcome=maybe", "outcome"),
        ("attempts?jobId=x", "jobId"),
    ]:
        check_problem(await call(idle, "GET", f"/{query}"), 422, "invalid_request", field)


async def test_an_unknown_thing_is_not_found_whatever_it_is_asked(idle: Face) -> None:
    since = {"since": "2026-01-01T00:00:00Z"}
    for text in ("x", "ep_", f"ep_{UNKNOWN}", "ep_%00", f"job_{UNKNOWN}"):
        here = f"/endpoints/{text}"
        for method, path, body in [
            ("GET", here, None),
            ("PATCH", here, {}),
            ("DELETE", here, None),
            ("POST", f"{here}/test", None),
            ("POST", f"{here}/rotate", None),
            ("POST", f"{here}/enable", None),
            ("POST", f"{here}/pause", None),
            ("POST", f"{here}/disable", None),
            ("POST", f"{here}/recover", since),
            ("POST", f"/listeners/{text}/next", {}),
            ("DELETE", f"/listeners/{text}", None),
            ("GET", f"/deliveries?endpoint={text}x", None),
            ("GET", f"/endpoints?cursor={text}x", None),
        ]:
            check_problem(await call(idle, method, path, body), 404, "not_found")
    for path in ("messages/msg_", "deliveries/dlv_", "recoveries/rec_"):
        check_problem(await call(idle, "GET", f"/{path}{UNKNOWN}"), 404, "not_found")
    check_problem(await call(idle, "POST", f"/deliveries/dlv_{UNKNOWN}/replay"), 404, "not_found")
    check_problem(await call(idle, "POST", f"/recoveries/rec_{UNKNOWN}/cancel"), 404, "not_found")
    for cursor in ("x", f"dlv_{UNKNOWN}", f"dlv_{UNKNOWN}.x", f"dlv_{UNKNOWN}.-1", f"dlv_{UNKNOWN}.99999999999"):
        check_problem(await call(idle, "GET", f"/attempts?cursor={cursor}"), 404, "not_found")


async def test_a_filter_that_nothing_can_match_finds_nothing(idle: Face) -> None:
    await done(idle, "POST", f"/endpoints/{(await add(idle))['endpointId']}/test")
    for things in ("messages", "deliveries", "attempts"):
        assert await done(idle, "GET", f"/{things}?event=%00") == {things: [], "next": None}


async def test_a_body_over_the_limit_is_refused(idle: Face) -> None:
    check_problem(await call(idle, "POST", "/endpoints", data=b" " * 100_001), 413, "body_too_large")


async def test_without_a_key_nothing_is_registered_and_the_answer_says_what_to_set(
    simulator: Simulator, database_url: str
) -> None:
    async with facing(simulator, database_url, worker=False, webhook_allow_cidrs=LOOPBACK) as face:
        answer = await call(face, "POST", "/endpoints", {"url": A_URL})
    check_problem(answer, 503, "secrets_locked")
    assert "TRAMONTANE_ENCRYPTION_KEY" in answer.json["detail"]
    assert "Retry-After" not in answer.headers

"""Tenants see nothing of each other. Every route that the API has is walked, so that a new one cannot be forgotten."""

import re
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio
from faces import Face, facing
from keyring import bearer, make_key

from tramontane.api import create_api
from tramontane.api.authentication import PUBLIC
from tramontane.ids import new_id, show_id
from tramontane.models import Scope
from tramontane.simulator import Simulator

#: What nobody but acme may ever read.
SECRET = "acme-secret"
ENCRYPTION_KEY = "A" * 43 + "="
TENANTS_OWN = frozenset({Scope.SUBMIT, Scope.READ, Scope.ADMIN})
LONG_AGO = "2020-01-01T00:00:00Z"
CHAT = {"messages": [{"role": "user", "content": f"Say: {SECRET}"}], "model": "mistral-small-latest"}

#: Prefix of the ids that a parameter of a path takes. A new parameter is to be named here.
PREFIXES = {
    "job_id": "job",
    "endpoint_id": "ep",
    "listener_id": "ep",
    "message_id": "msg",
    "delivery_id": "dlv",
    "recovery_id": "rec",
    "schedule_id": "sch",
    "pause_id": "pau",
}
#: What a route needs to be sent, to get as far as looking for what it names.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/webhooks/endpoints/{endpoint_id}/recover"): {"since": LONG_AGO},
    ("POST", "/api/webhooks/listeners/{listener_id}/next"): {"wait": 0},
    ("PATCH", "/api/schedules/{schedule_id}"): {"name": "another"},
}
#: Filters and cursors, with the names of acme's ids.
FILTERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("/api/jobs", {"cursor": "job_id", "metadata.note": SECRET}),
    ("/api/webhooks/messages", {"jobId": "job_id", "cursor": "message_id"}),
    ("/api/webhooks/deliveries", {"endpoint": "endpoint_id", "jobId": "job_id", "messageId": "message_id"}),
    ("/api/webhooks/deliveries", {"cursor": "delivery_id"}),
    ("/api/webhooks/attempts", {"endpoint": "endpoint_id", "deliveryId": "delivery_id"}),
    ("/api/webhooks/recoveries", {"endpoint": "endpoint_id", "cursor": "recovery_id"}),
    ("/api/webhooks/endpoints", {"cursor": "endpoint_id"}),
)
#: Parameters that name one thing, which is there for its tenant alone.
NAMED: tuple[tuple[str, str, str], ...] = (("/api/limits", "jobId", "job_id"),)
#: Open to everybody: signs of life, the description, and a page whose calls bring the key.
OPEN = {
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/playground",
    "/playground/{name}",
    "/playground/client/{name}",
}


def walk(routes: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from walk(included.routes)
        else:
            yield from ((method, route.path) for method in sorted(route.methods))


def routes_of(face: Face) -> list[tuple[str, str]]:
    routes = list(walk(create_api(face.app).routes))
    assert ("GET", "/api/jobs") in routes
    assert len(routes) > 40
    return routes


def closed_routes(face: Face) -> list[tuple[str, str]]:
    return [(method, path) for method, path in routes_of(face) if path not in OPEN]


def filled(path: str, ids: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda match: ids[match[1]], path)


def strangers() -> dict[str, str]:
    """Ids of nothing."""
    return {name: show_id(prefix, new_id()) for name, prefix in PREFIXES.items()}


def needed(method: str, path: str) -> Scope:
    """The scope that a route asks for."""
    if path == "/metrics":
        return Scope.OPERATOR
    if method in ("GET", "HEAD") or path.startswith("/api/webhooks/listeners"):
        return Scope.READ
    submits = path.startswith(("/api/jobs", "/api/chat/stream")) or path == "/api/schedules/{schedule_id}/run"
    return Scope.SUBMIT if submits else Scope.ADMIN


@pytest_asyncio.fixture
async def face(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, worker=False, encryption_keys=(ENCRYPTION_KEY,)) as face:
        yield face


class Acme:
    """A tenant that has one of everything."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.ids: dict[str, str] = {}

    async def move_in(self, face: Face) -> None:
        async def made(path: str, json: dict[str, Any], **headers: str) -> dict[str, Any]:
            answer = await face.ask("POST", path, json=json, **bearer(self.key, **headers))
            assert answer.status < 300, answer.body
            return dict(answer.json)

        hook = {"url": f"http://127.0.0.1:9/{SECRET}", "events": ["*"], "description": SECRET}
        endpoint = (await made("/api/webhooks/endpoints", hook))["endpointId"]
        job = (await made("/api/jobs", {"request": CHAT, "metadata": {"note": SECRET}}))["jobId"]
        ended = await face.ask("GET", f"/api/jobs/{job}", **bearer(self.key, Prefer="wait=10"))
        assert ended.json["result"]["content"] == SECRET
        tried = await made(f"/api/webhooks/endpoints/{endpoint}/test", {}, Prefer="wait=10")
        self.ids = {
            "job_id": job,
            "endpoint_id": endpoint,
            "message_id": tried["messageId"],
            "delivery_id": tried["deliveryId"],
            "listener_id": (await made("/api/webhooks/listeners", {}))["listenerId"],
            "recovery_id": (await made(f"/api/webhooks/endpoints/{endpoint}/recover", {"since": LONG_AGO}))[
                "recoveryId"
            ],
            "schedule_id": (await made("/api/schedules", {"name": SECRET, "cron": "0 0 1 1 *", "job": CHAT}))[
                "scheduleId"
            ],
            "pause_id": (await made("/api/pauses", {"model": SECRET, "reason": SECRET}))["pauseId"],
        }

    async def everything(self, face: Face) -> dict[str, bytes]:
        """All that acme can read."""
        paths = {filled(path, self.ids) for method, path in closed_routes(face) if method == "GET"} - {"/metrics"}
        found = {path: await face.ask("GET", path, **bearer(self.key)) for path in sorted(paths)}
        assert {answer.status for answer in found.values()} == {200}
        return {path: answer.body for path, answer in found.items()}


@pytest_asyncio.fixture
async def acme(simulator: Simulator, database_url: str) -> Acme:
    """Moved in with the help of a worker, which has gone by now, so that nothing changes by itself."""
    async with facing(
        simulator,
        database_url,
        encryption_keys=(ENCRYPTION_KEY,),
        webhook_allow_cidrs=(ip_network("127.0.0.0/8"),),
        webhook_allowed_ports=((9, 9),),
    ) as face:
        acme = Acme(await make_key(face.app, "acme", TENANTS_OWN))
        await acme.move_in(face)
    return acme


async def test_no_route_shows_or_changes_what_is_another_tenants(acme: Acme, face: Face) -> None:
    globex = await make_key(face.app, "globex", TENANTS_OWN)
    before = await acme.everything(face)
    assert sum(SECRET.encode() in body for body in before.values()) >= 8
    own = {SECRET, *acme.ids.values()}

    for method, path in closed_routes(face):
        body = BODIES.get((method, path), {})
        answer = await face.ask(method, filled(path, acme.ids), json=body, **bearer(globex))
        if "{" in path:
            assert answer.status == 404, (method, path, answer.body)
        else:
            assert answer.status < 500
            assert not [word for word in own if word.encode() in answer.body], (method, path)

    assert await acme.everything(face) == before


async def test_no_filter_and_no_cursor_reaches_what_is_another_tenants(acme: Acme, face: Face) -> None:
    globex = await make_key(face.app, "globex", TENANTS_OWN)
    for path, filters in FILTERS:
        for name, value in filters.items():
            answer = await face.ask("GET", path, params={name: acme.ids.get(value, value)}, **bearer(globex))
            assert answer.status == 200, answer.body
            assert [found for found in answer.json.values() if found] == [], (path, name)


async def test_what_a_parameter_names_is_found_by_its_own_tenant_alone(acme: Acme, face: Face) -> None:
    globex = await make_key(face.app, "globex", TENANTS_OWN)
    for path, name, value in NAMED:
        params = {name: acme.ids[value]}
        mine, theirs = [await face.ask("GET", path, params=params, **bearer(key)) for key in (acme.key, globex)]
        assert (mine.status, theirs.status) == (200, 404), path
        assert SECRET.encode() not in theirs.body


async def test_every_route_needs_a_key_but_those_that_are_meant_to_be_open(face: Face) -> None:
    await make_key(face.app)
    ids = strangers() | {"name": "index.html"}
    for method, path in routes_of(face):
        answer = await face.ask(method, filled(path, ids), json={})
        if path in OPEN:
            assert answer.status in (200, 404), (method, path)
        else:
            assert answer.status == 401, (method, path)
            assert method == "HEAD" or answer.json["code"] == "unauthorized"
    assert (await face.ask("GET", "/of-tomorrow")).status == 401  # a route that forgets to ask, too
    assert {path for path in OPEN if "{" not in path} == PUBLIC - {"/favicon.ico"}


@pytest.mark.parametrize("scope", [*Scope, None])
async def test_every_route_asks_for_its_scope_before_anything_else(face: Face, scope: Scope | None) -> None:
    key = await make_key(face.app, "acme", frozenset({scope} if scope else ()))
    ids = strangers()
    for method, path in closed_routes(face):
        answer = await face.ask(method, filled(path, ids), json={}, **bearer(key))
        may = scope in (Scope.OPERATOR, needed(method, path))
        assert (answer.status != 403) == may, (method, path, answer.body)
        assert answer.status not in (401, 500), (method, path, answer.body)

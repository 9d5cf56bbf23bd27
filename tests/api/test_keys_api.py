"""Who may ask: with which key, for whom, and what becomes of a key that is changed, lost or guessed at."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from faces import Answer, Face, facing
from gate import Gate
from keyring import bearer, make_key, make_known_key

from tramontane import Tramontane
from tramontane.api import create_api, serving
from tramontane.api.operations_routes import create_operations_api
from tramontane.app import App, open_app
from tramontane.authentication import KEPT, TRIES, Authentication
from tramontane.errors import ConfigurationError, DatabaseError, KeyRefused, ScopeMissing, TooManyTries
from tramontane.ids import new_id, utc_now
from tramontane.keys import ApiKey, hash_of, new_key
from tramontane.models import Scope
from tramontane.ports import listen_on, url_of
from tramontane.settings import Settings
from tramontane.simulator import Simulator
from tramontane.store import KeyStore, TenantStore

SECRET = "A" * 43 + "="
HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}
OPERATOR = frozenset({Scope.OPERATOR})


@pytest_asyncio.fixture
async def face(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, worker=False, encryption_keys=(SECRET,)) as face:
        yield face


async def until(status: int, face: Face, method: str, path: str, **request: Any) -> Answer:
    """Ask until the answer is that; at once, or after what a notification takes."""
    async with asyncio.timeout(KEPT.total_seconds() / 2):
        while (answer := await face.ask(method, path, **request)).status != status:
            pass
    return answer


# With which key


async def test_without_any_key_the_loopback_is_open_and_from_the_first_one_on_it_is_not(face: Face) -> None:
    assert (await face.ask("GET", "/api/jobs")).status == 200

    key = await make_key(face.app)

    refused = await until(401, face, "GET", "/api/jobs")
    assert (refused.json["code"], refused.headers["WWW-Authenticate"]) == ("unauthorized", "Bearer")
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert (await face.ask("GET", "/api/jobs", **bearer(key))).status == 200


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}"])
async def test_a_key_comes_as_a_bearer_token(face: Face, form: str) -> None:
    key = await make_key(face.app)
    assert (await face.ask("GET", "/api/jobs", headers={"Authorization": form.format(key)})).status == 200


async def test_a_key_may_come_in_a_header_of_its_own_beside_what_a_proxy_asks_for(face: Face) -> None:
    key = await make_key(face.app)
    headers = {"X-API-Key": key, "Authorization": "Basic c29tZTpib2R5"}
    assert (await face.ask("GET", "/api/jobs", headers=headers)).status == 200
    assert (await face.ask("GET", f"/api/jobs?key={key}")).status == 401


@pytest.mark.parametrize("kind", ["unknown", "malformed", "empty", "expired", "revoked"])
async def test_a_key_that_opens_nothing_is_a_401(face: Face, kind: str) -> None:
    good, known = await make_known_key(face.app)
    key = {"unknown": new_key(), "malformed": "tm_x", "empty": ""}.get(kind, good)
    if kind == "expired":
        key = await make_key(face.app, expires_at=utc_now())
    if kind == "revoked":
        await KeyStore(face.app.database.pool).revoke(known.id, utc_now())
    for method, path in (("GET", "/api/jobs"), ("POST", "/api/jobs"), ("GET", "/nothing"), ("GET", "/metrics")):
        answer = await face.ask(method, path, **bearer(key))
        assert (answer.status, answer.json["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_key_that_is_revoked_is_worthless_at_once_in_every_process(
    face: Face, simulator: Simulator, database_url: str
) -> None:
    key, known = await make_known_key(face.app)
    async with facing(simulator, database_url, worker=False, encryption_keys=(SECRET,)) as other:
        for each in (face, other):
            assert (await each.ask("GET", "/api/jobs", **bearer(key))).status == 200
        await KeyStore(other.app.database.pool).revoke(known.id, utc_now())
        for each in (face, other):
            await until(401, each, "GET", "/api/jobs", **bearer(key))


async def test_a_change_whose_hint_was_lost_is_seen_after_ten_seconds(face: Face) -> None:
    store = KeyStore(face.app.database.pool)
    unwatched, now = Authentication(store), utc_now()
    key, known = await make_known_key(face.app)
    await unwatched.caller(key, tenant=None, address="", now=now)
    await store.revoke(known.id, now)

    await unwatched.caller(key, tenant=None, address="", now=now + KEPT - timedelta(seconds=1))
    with pytest.raises(KeyRefused, match="revoked"):
        await unwatched.caller(key, tenant=None, address="", now=now + KEPT)
    with pytest.raises(KeyRefused, match="revoked"):  # nor does a clock that was set back keep it alive
        await unwatched.caller(key, tenant=None, address="", now=now - KEPT)


async def test_a_key_expires_while_it_is_remembered(face: Face) -> None:
    now = utc_now()
    key = await make_key(face.app, expires_at=now + timedelta(seconds=5))
    ask = face.app.authentication.caller
    await ask(key, tenant=None, address="", now=now + timedelta(seconds=4))
    with pytest.raises(KeyRefused, match="expired"):
        await ask(key, tenant=None, address="", now=now + timedelta(seconds=5))


async def test_what_was_read_before_a_change_is_not_remembered_after_it(face: Face) -> None:
    key, known = await make_known_key(face.app)
    store = KeyStore(face.app.database.pool)
    reading, changed = asyncio.Event(), asyncio.Event()

    class Slow(KeyStore):
        async def use(self, *how: Any) -> ApiKey | None:
            found = await super().use(*how)
            reading.set()
            await changed.wait()
            return found

    slow, now = Authentication(Slow(face.app.database.pool)), utc_now()
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(slow.caller(key, tenant=None, address="", now=now))
        await reading.wait()
        await store.revoke(known.id, now)
        slow._doubt("")
        changed.set()
    assert asked.result().tenant == "acme"
    with pytest.raises(KeyRefused, match="revoked"):
        await slow.caller(key, tenant=None, address="", now=now)


async def test_without_the_database_nobody_new_is_let_in(simulator: Simulator, database_url: str) -> None:
    async with Gate.to(database_url) as gate, facing(simulator, gate.url, worker=False) as face:
        known, other = await make_key(face.app), await make_key(face.app)
        async with asyncio.timeout(8):
            while face.app.authentication._changes < 2:  # noqa: ASYNC110 - or a late hint would cast doubt on them
                await asyncio.sleep(0.01)
        ask, now = face.app.authentication.caller, utc_now()
        await ask(known, tenant=None, address="", now=now)
        await gate.close()

        assert (await ask(known, tenant=None, address="", now=now)).tenant == "acme"
        for key, later in ((other, timedelta(0)), (known, KEPT), (new_key(), timedelta(0))):
            with pytest.raises(DatabaseError):
                await ask(key, tenant=None, address="", now=now + later)
        answer = await face.ask("GET", "/api/jobs", **bearer(other))
        assert (answer.status, answer.json["code"]) == (503, "database")


async def test_without_the_database_an_open_server_does_not_stay_open(simulator: Simulator, database_url: str) -> None:
    async with Gate.to(database_url) as gate, facing(simulator, gate.url, worker=False) as face:
        ask, now = face.app.authentication.caller, utc_now()
        await ask(None, tenant=None, address="", now=now)
        await gate.close()
        with pytest.raises(DatabaseError):
            await ask(None, tenant=None, address="", now=now + KEPT)


async def test_who_tries_many_keys_is_asked_to_wait_and_who_has_one_is_not(face: Face) -> None:
    key = await make_key(face.app)
    ask = face.app.authentication.caller
    assert (await face.ask("GET", "/api/jobs", **bearer(key))).status == 200
    wrong = new_key()
    for _ in range(2 * TRIES):  # the same wrong one is looked up once
        assert (await face.ask("GET", "/api/jobs", **bearer(wrong))).status == 401
    for _ in range(TRIES - 1):
        assert (await face.ask("GET", "/api/jobs", **bearer(new_key()))).status == 401

    answer = await face.ask("GET", "/api/jobs", **bearer(new_key()))
    assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (429, "too_many_tries", "60")
    assert (await face.ask("GET", "/api/jobs", **bearer(key))).status == 200
    for address, later in (("10.0.0.9", timedelta(0)), ("127.0.0.1", timedelta(minutes=2))):
        with pytest.raises(KeyRefused):
            await ask(new_key(), tenant=None, address=address, now=utc_now() + later)


async def guess(authentication: Authentication, address: str, now: datetime, *, times: int = TRIES + 1) -> None:
    """Try so many keys that nobody has."""
    for _ in range(times):
        with pytest.raises((KeyRefused, TooManyTries)):
            await authentication.caller(new_key(), tenant=None, address=address, now=now)


async def test_a_key_named_by_its_id_is_active_until_it_expires_or_is_revoked(face: Face) -> None:
    store, now = KeyStore(face.app.database.pool), utc_now()
    unwatched = Authentication(store)
    _, short = await make_known_key(face.app, expires_at=now + timedelta(seconds=5))
    _, known = await make_known_key(face.app)
    for key_id, later, active in ((known.id, 0, True), (short.id, 4, True), (short.id, 5, False), (new_id(), 0, False)):
        assert await unwatched.active(key_id, now + timedelta(seconds=later)) is active
    await store.revoke(known.id, now)
    assert await unwatched.active(known.id, now + KEPT - timedelta(seconds=1))  # whose hint was lost
    assert not await unwatched.active(known.id, now + KEPT)


async def test_a_neighbour_who_guesses_shuts_out_nobody_whose_key_was_good_before(face: Face) -> None:
    (key, known), address, now = await make_known_key(face.app), "10.0.0.9", utc_now()
    store = KeyStore(face.app.database.pool)
    authentication = Authentication(store)
    await authentication.caller(key, tenant=None, address=address, now=now)
    for later in (timedelta(0), KEPT, 2 * KEPT):
        await guess(authentication, address, now + later)
        caller = await authentication.caller(key, tenant=None, address=address, now=now + later)
        assert caller.tenant == "acme"
    authentication._doubt("")  # nor does a change of any key make it one that was never seen
    assert (await authentication.caller(key, tenant=None, address=address, now=now + KEPT)).tenant == "acme"
    await store.revoke(known.id, now)
    with pytest.raises(KeyRefused, match="revoked"):
        await authentication.caller(key, tenant=None, address=address, now=now + 3 * KEPT)


async def test_a_neighbour_who_guesses_shuts_out_no_key_that_was_never_seen(face: Face) -> None:
    key, address, now = await make_key(face.app), "10.0.0.9", utc_now()
    authentication = Authentication(KeyStore(face.app.database.pool))
    await guess(authentication, address, now, times=3 * TRIES)

    assert (await authentication.caller(key, tenant=None, address=address, now=now)).tenant == "acme"
    with pytest.raises(TooManyTries):
        await authentication.caller(new_key(), tenant=None, address=address, now=now)


async def test_whoever_guesses_much_is_looked_up_one_at_a_time_and_waits_for_a_while_only(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Queue[asyncio.Event]()

    class Slow(KeyStore):
        async def use(self, *how: Any) -> ApiKey | None:
            asked.put_nowait(go_on := asyncio.Event())
            await go_on.wait()
            return await super().use(*how)

    key, address, now = await make_key(face.app), "10.0.0.9", utc_now()
    pool = face.app.database.pool
    authentication = Authentication(KeyStore(pool))
    await guess(authentication, address, now)
    authentication._store = Slow(pool)
    ask = authentication.caller
    async with asyncio.TaskGroup() as tasks:
        wrong = tasks.create_task(guess(authentication, address, now, times=1))
        first = await asked.get()
        right = tasks.create_task(ask(key, tenant=None, address=address, now=now))
        other = tasks.create_task(ask(key, tenant=None, address="10.0.0.10", now=now))
        (await asked.get()).set()  # of another address, which waits for nobody
        assert (await other).tenant == "acme"
        assert asked.empty()
        assert not right.done()
        monkeypatch.setattr("tramontane.authentication._PATIENCE", 0)
        with pytest.raises(TooManyTries):
            await ask(new_key(), tenant=None, address=address, now=now)
        first.set()
        (await asked.get()).set()
        assert (await right).tenant == "acme"
        await wrong


async def test_good_keys_are_not_pushed_out_of_memory_by_wrong_ones(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tramontane.authentication._MOST_KNOWN", 3)
    keys, now = [await make_key(face.app) for _ in range(4)], utc_now()
    authentication = Authentication(KeyStore(face.app.database.pool))
    await guess(authentication, "10.0.0.9", now, times=10)
    for key in (*keys[:3], keys[0], keys[3]):
        await authentication.caller(key, tenant=None, address="10.0.0.9", now=now)
    await guess(authentication, "10.0.0.9", now, times=10)
    digests = [hash_of(keys[number]) for number in (2, 0, 3)]  # the one that came longest ago has gone
    assert list(authentication._good) == digests
    assert len(authentication._wrong) == 3


async def test_the_use_of_a_key_is_noted(face: Face) -> None:
    key = await make_key(face.app)
    await face.ask("GET", "/api/jobs", **bearer(key))
    [known] = await KeyStore(face.app.database.pool).list()
    assert known.used_at is not None


# For whom


async def test_an_operator_acts_for_whom_it_names_and_nobody_else_does(face: Face) -> None:
    operator, usual = await make_key(face.app, "default", OPERATOR), await make_key(face.app)
    job = (await face.ask("POST", "/api/jobs", json=HELLO, **bearer(usual))).json
    path = f"/api/jobs/{job['jobId']}"

    assert (await face.ask("GET", path, **bearer(operator))).status == 404
    assert (await face.ask("GET", path, **bearer(operator, X_Tramontane_Tenant="acme"))).status == 200
    assert (await face.ask("GET", path, **bearer(operator, X_Tramontane_Tenant="globex"))).status == 404
    assert (await face.ask("GET", path, **bearer(usual, X_Tramontane_Tenant="acme"))).status == 200
    refused = await face.ask("GET", path, **bearer(usual, X_Tramontane_Tenant="default"))
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    wrong = await face.ask("GET", path, **bearer(operator, X_Tramontane_Tenant="A b"))
    assert (wrong.status, wrong.json["field"]) == (422, "X-Tramontane-Tenant")


async def test_the_same_idempotency_key_is_another_for_another_tenant(face: Face) -> None:
    mine, yours = await make_key(face.app), await make_key(face.app, "globex")
    jobs = [
        (await face.ask("POST", "/api/jobs", json=HELLO, **bearer(key, Idempotency_Key="once"))).json["jobId"]
        for key in (mine, yours, mine, yours)
    ]
    assert jobs[0] != jobs[1]
    assert jobs[2:] == jobs[:2]


async def test_a_tenant_may_not_ask_for_more_priority_than_it_has(face: Face) -> None:
    key = await make_key(face.app)
    tenants = TenantStore(face.app.database.pool)
    await tenants.change("acme", lambda tenant: replace(tenant, top_priority=5), utc_now())
    body = {"request": HELLO, "priority": 6}
    refused = await face.ask("POST", "/api/jobs", json=body, **bearer(key))
    assert (refused.status, refused.json["field"]) == (422, "priority")
    assert "5 at most" in refused.json["detail"]
    assert (await face.ask("POST", "/api/jobs", json=body | {"priority": 5}, **bearer(key))).status == 202


async def test_a_schedule_over_its_tenants_priority_is_refused_and_one_from_before_runs_with_less(face: Face) -> None:
    key, tenants = await make_key(face.app, scopes=frozenset(Scope)), TenantStore(face.app.database.pool)
    await tenants.change("acme", lambda tenant: replace(tenant, top_priority=5), utc_now())
    acme = bearer(key, X_Tramontane_Tenant="acme")
    job = {"request": HELLO, "priority": 5}
    schedule = {"name": "a", "cron": "0 6 * * *", "job": job}

    refused = await face.ask("POST", "/api/schedules", json=schedule | {"job": job | {"priority": 6}}, **acme)
    made = await face.ask("POST", "/api/schedules", json=schedule, **acme)
    path = f"/api/schedules/{made.json['scheduleId']}"
    changed = await face.ask("PATCH", path, json={"job": job | {"priority": 6}}, **acme)
    await tenants.change("acme", lambda tenant: replace(tenant, top_priority=1), utc_now())
    run = await face.ask("POST", f"{path}/run", **acme)

    for answer in (refused, changed):
        assert (answer.status, answer.json["field"]) == (422, "job.priority")
        assert "5 at most" in answer.json["detail"]
    shown = await face.ask("GET", run.json["statusUrl"], **acme)
    assert (run.status, shown.json["priority"]) == (202, 1)


async def test_a_ticket_needs_no_key_and_opens_what_its_tenant_has(face: Face) -> None:
    mine, yours = await make_key(face.app), await make_key(face.app, "globex")
    job = (await face.ask("POST", "/api/jobs", json=HELLO, **bearer(mine))).json
    assert (await face.ask("POST", f"{job['statusUrl']}/ticket", **bearer(yours))).status == 404
    ticket = (await face.ask("POST", f"{job['statusUrl']}/ticket", **bearer(mine))).json

    assert (await face.ask("HEAD", ticket["url"])).status == 200
    assert (await face.ask("HEAD", ticket["url"], **bearer(new_key()))).status == 401
    forged = ticket["url"].replace("_acme_", "_globex_")
    assert (await face.ask("GET", forged)).json["code"] == "invalid_ticket"
    for method, path in (
        ("GET", f"{job['statusUrl']}?ticket={ticket['ticket']}"),
        ("POST", f"{job['cancelUrl']}?ticket={ticket['ticket']}"),
        ("DELETE", f"{job['statusUrl']}?ticket={ticket['ticket']}"),
        ("GET", f"{job['eventsUrl']}?notticket={ticket['ticket']}"),
        ("GET", f"/of-tomorrow?ticket={ticket['ticket']}"),
        ("GET", job["eventsUrl"]),
    ):
        assert (await face.ask(method, path)).json["code"] == "unauthorized", (method, path)


# Where


async def test_an_address_that_others_reach_is_served_only_once_there_is_a_key(
    simulator: Simulator, database_url: str
) -> None:
    settings = Settings(database_url=database_url, mistral_server_url=simulator.url, host="0.0.0.0", rate_limit=0.0)
    async with open_app(settings, worker=False) as app:
        with listen_on("0.0.0.0", 0) as bound, pytest.raises(ConfigurationError, match="tramontane keys create"):
            async with serving(app, bound):
                raise AssertionError("it was served")

        key = await make_key(app)
        with listen_on("0.0.0.0", 0) as bound:
            async with serving(app, bound), Face.to(f"http://127.0.0.1:{bound.getsockname()[1]}") as face:
                named = {"Host": "jobs.example:8787"}
                assert (await face.ask("GET", "/api/jobs", headers=named)).status == 401
                with_key = bearer(key)["headers"] | named
                assert (await face.ask("GET", "/api/jobs", headers=with_key)).status == 200
                for origin, status in (("http://jobs.example:8787", 200), ("https://evil.example", 403)):
                    headers = with_key | {"Origin": origin}
                    assert (await face.ask("GET", "/api/jobs", headers=headers)).status == status


async def test_behind_a_proxy_the_loopback_too_is_served_only_once_there_is_a_key(
    simulator: Simulator, database_url: str
) -> None:
    named = {"Host": "jobs.example"}
    settings = Settings(database_url=database_url, mistral_server_url=simulator.url, allowed_hosts=("jobs.example",))
    async with open_app(settings, worker=False) as app:
        with listen_on("127.0.0.1", 0) as bound, pytest.raises(ConfigurationError, match="TRAMONTANE_ALLOWED_HOSTS"):
            async with serving(app, bound):
                raise AssertionError("it was served")

        key = await make_key(app)
        with listen_on("127.0.0.1", 0) as bound:
            async with serving(app, bound), Face.to(url_of(bound)) as face:
                assert (await face.ask("GET", "/api/jobs", headers=named)).status == 401
                with_key = bearer(key)["headers"]
                assert (await face.ask("GET", "/api/jobs", headers=with_key | named)).status == 200
                elsewhere = with_key | {"Host": "evil.example"}
                assert (await face.ask("GET", "/api/jobs", headers=elsewhere)).status == 403


@pytest.mark.parametrize("create", [create_api, create_operations_api])
async def test_behind_a_proxy_no_face_is_open_even_before_it_has_looked(
    simulator: Simulator, database_url: str, create: Callable[[App], object]
) -> None:
    settings = Settings(database_url=database_url, mistral_server_url=simulator.url, allowed_hosts=("jobs.example",))
    async with open_app(settings, worker=False) as app:
        create(app)
        with pytest.raises(KeyRefused):
            await app.authentication.caller(None, tenant=None, address="", now=utc_now())


async def test_names_of_the_loopback_itself_leave_it_open(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False, allowed_hosts=("localhost",)) as face:
        assert (await face.ask("GET", "/api/jobs")).status == 200


async def test_such_an_address_is_never_open_even_before_it_has_looked(simulator: Simulator, database_url: str) -> None:
    settings = Settings(database_url=database_url, mistral_server_url=simulator.url, host="192.168.1.4")
    async with open_app(settings, worker=False) as app:
        create_api(app)
        with pytest.raises(KeyRefused):
            await app.authentication.caller(None, tenant=None, address="", now=utc_now())


async def test_the_open_loopback_is_still_guarded_against_pages_and_names(face: Face) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = await face.ask("POST", "/api/jobs", json=HELLO, headers=headers)
        assert (answer.status, answer.json["code"]) == (403, "not_allowed")


async def test_a_page_of_an_allowed_origin_may_send_a_key_and_reads_why_it_is_refused(
    simulator: Simulator, database_url: str
) -> None:
    page = {"Origin": "https://pages.example"}
    async with facing(simulator, database_url, worker=False, cors_origins=("https://pages.example",)) as face:
        key = await make_key(face.app)
        asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,x-api-key"}
        allowed = await face.ask("OPTIONS", "/api/jobs", headers=page | asks)
        refused = await face.ask("GET", "/api/jobs", headers=page | bearer(new_key())["headers"])
        answered = await face.ask("GET", "/api/jobs", headers=page | bearer(key)["headers"])
    assert [allowed.status, refused.status, answered.status] == [200, 401, 200]
    for answer in (allowed, refused, answered):
        assert answer.headers["Access-Control-Allow-Origin"] == "https://pages.example"


async def test_a_page_of_an_allowed_origin_may_read_the_headers_of_our_own(
    simulator: Simulator, database_url: str
) -> None:
    page = {"Origin": "https://pages.example"}
    async with facing(simulator, database_url, worker=False, cors_origins=("https://pages.example",)) as face:
        answer = await face.ask("POST", "/api/jobs", json=HELLO, headers=page)
    exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed >= {"Idempotency-Replayed", "Location", "Preference-Applied", "Retry-After", "X-Budget-Used"}


async def test_an_engine_of_this_process_needs_no_key_of_its_own_database(
    simulator: Simulator, database_url: str, face: Face
) -> None:
    key = await make_key(face.app)
    named: dict[str, Any] = {"database_url": database_url, "mistral_server_url": simulator.url, "rate_limit": 0.0}
    async with Tramontane(**named, encryption_keys=(SECRET,), mistral_api_key="key", heartbeat=1.0, poll=0.2) as t:
        result = await (await t.submit("Say: aye"))
    assert result.content == "aye"
    async with Tramontane(face.url, api_key=key) as t:
        assert (await t.job((await t.submit("Say: aye")).id).details())["status"] == "queued"
    async with Tramontane(face.url) as t:
        with pytest.raises(KeyRefused):
            await t.submit("Say: aye")
    only_reads = await make_key(face.app, "acme", frozenset({Scope.READ}))
    async with Tramontane(face.url, api_key=only_reads) as t:
        with pytest.raises(ScopeMissing, match="submit"):
            await t.submit("Say: aye")


async def test_a_key_of_this_process_opens_no_other_process(
    face: Face, simulator: Simulator, database_url: str
) -> None:
    await make_key(face.app)
    own = face.app.authentication.own_key()
    async with facing(simulator, database_url, worker=False, encryption_keys=(SECRET,)) as other:
        assert (await face.ask("GET", "/api/jobs", **bearer(own))).status == 200
        assert (await other.ask("GET", "/api/jobs", **bearer(own))).status == 401


# Nowhere


async def test_no_log_and_no_answer_holds_a_key(
    simulator: Simulator,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = []
    async with Gate.to(database_url) as gate, facing(simulator, gate.url, worker=False) as face:
        good, wrong = await make_key(face.app), new_key()
        for key in (good, wrong):
            for method, path in (
                ("GET", "/api/jobs"),
                ("PUT", "/api/jobs"),
                ("POST", "/api/jobs"),
                ("GET", f"/api/jobs/{key}"),
                ("GET", f"/api/jobs?key={key}"),
                ("GET", f"/{key}"),
                ("GET", "/metrics"),
            ):
                answers.append(await face.ask(method, path, **bearer(key)))
        with monkeypatch.context() as broken:
            broken.setattr(face.app.jobs, "find", None)
            answers.append(await face.ask("GET", "/api/jobs", **bearer(good)))
        await gate.close()
        answers.append(await face.ask("GET", "/api/jobs", **bearer(new_key())))
        digest = hash_of(good)
        assert digest is not None

    assert {answer.status for answer in answers} >= {200, 401, 403, 404, 405, 422, 500, 503}
    told = capfd.readouterr()
    everything = caplog.text + told.out + told.err + repr([vars(record) for record in caplog.records])
    for secret in (good, wrong, digest.hex(), repr(digest)):
        assert secret not in everything
    # What a caller puts into the address is quoted back to the same caller, and to nobody else.
    asked_for = [answer for answer in answers if answer.status not in (404, 405, 422)]
    assert not any(secret.encode() in answer.body for answer in asked_for for secret in (good, wrong))

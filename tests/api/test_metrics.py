"""The routes of those who operate the fleet, and what they never tell."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from io import StringIO
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.fernet import Fernet
from faces import Face, facing
from gate import Gate
from lives import until
from prometheus_client.parser import text_string_to_metric_families

from tramontane import telemetry
from tramontane.errors import RequestRefused, Truncated, UpstreamUnavailable
from tramontane.ids import new_id
from tramontane.metrics import Metrics
from tramontane.simulator import Behaviour, Simulator


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url) as face:
        yield face


async def figures(api: Face) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, in the order of their names."""
    api.app.operations._stale_at = 0.0
    answer = await api.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, *map(str, sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


# Figures


async def test_calls_tokens_and_jobs_are_counted_under_the_names_that_dashboards_expect(api: Face) -> None:
    accepted = await api.submit()
    job = await api.job(accepted["jobId"], wait=10)
    found, model = await figures(api), job["model"]
    assert found["mistral_requests_total", model, "200"] == 1
    assert found["mistral_request_duration_seconds_count", model] == 1
    assert found["mistral_time_to_first_token_seconds_count", model] == 1
    assert found["mistral_tokens_total", "input", model] == job["usage"]["prompt_tokens"]
    assert found["mistral_tokens_total", "output", model] == job["usage"]["completion_tokens"]
    assert found["tramontane_jobs_ended_total", "", "completed"] == 1
    assert found["tramontane_admission_wait_seconds_count",] == 1
    assert found["tramontane_commit_group_size_count", "submit"] == 1
    assert found["tramontane_workers",] == 1
    assert found["tramontane_database_connections",] >= 1
    assert ("tramontane_loop_lag_seconds",) in found


async def test_a_refused_call_counts_as_an_error_with_its_status_and_code(api: Face) -> None:
    api.simulator.script(Behaviour(), Behaviour(status=503))
    for _ in range(2):
        await api.job((await api.submit(attempts=2))["jobId"], wait=10)
    found = await figures(api)
    model = "mistral-small-latest"
    assert found["mistral_errors_total", "upstream_unavailable", model, "503"] == 1
    assert (found["mistral_requests_total", model, "503"], found["mistral_requests_total", model, "200"]) == (1, 2)


async def test_a_cancel_is_counted_once_by_the_process_that_was_asked(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False) as idle:
        for accepted in [await idle.submit() for _ in range(2)]:
            for _ in range(3):
                await idle.cancel(accepted["jobId"])
        assert (await figures(idle))["tramontane_jobs_ended_total", "cancelled", "cancelled"] == 2


async def test_jobs_that_end_as_they_wait_are_counted_with_what_they_have_cost_by_the_leader(api: Face) -> None:
    pool = api.app.database.pool
    await pool.execute(
        "INSERT INTO pauses (tenant_id, id, kind, model, paused_at) VALUES ('*', $1, '*', '*', now())", new_id()
    )
    late, broke = await api.submit(deadline="0.2s"), await api.submit()
    await pool.execute("UPDATE jobs SET cost = 0.25, currency = 'EUR'")
    await pool.execute(
        "INSERT INTO tenants (id, daily_tokens, on_budget, created_at, updated_at)"
        " VALUES ('default', 0, 'fail', now(), now())"
    )
    for accepted in (late, broke):
        await api.job(accepted["jobId"], wait=10)

    async def counted() -> bool:
        found = await figures(api)
        ended = [found.get(("tramontane_jobs_ended_total", code, "failed")) for code in codes]
        return ended == [1, 1] and found["mistral_cost_total", "EUR", "mistral-small-latest"] == 0.5

    codes = ("deadline_exceeded", "budget_exhausted")
    await until(counted)


async def test_a_backlog_shows_its_depth_and_its_age(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False) as idle:
        for _ in range(3):
            await idle.submit()
        found = await figures(idle)
        assert found["tramontane_jobs", "waiting"] == 3
        assert 0 < found["tramontane_oldest_waiting_seconds",] < 10
        assert ("tramontane_leader",) not in found, "who has no worker never leads"


async def test_open_streams_are_counted(api: Face) -> None:
    api.simulator.behaviour = Behaviour(tokens=3000, tokens_per_second=100)
    accepted = await api.submit()
    async with api.events(accepted["jobId"]) as stream:
        await stream.content.readany()
        assert (await figures(api))["tramontane_stream_readers",] == 1
    await api.cancel(accepted["jobId"])


async def test_several_who_scrape_share_one_census(api: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    store = api.app.operations._census_store
    take = store.take

    async def counted(now: Any) -> Any:
        nonlocal taken
        taken += 1
        return await take(now)

    monkeypatch.setattr(store, "take", counted)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(api.ask("GET", "/metrics"))
    assert taken == 1


async def test_figures_are_told_in_an_outage_too(simulator: Simulator, database_url: str) -> None:
    async with Gate.to(database_url) as gate, facing(simulator, gate.url) as api:
        await api.job((await api.submit())["jobId"], wait=10)
        await gate.close()
        assert (await figures(api))["tramontane_jobs_ended_total", "", "completed"] == 1
        await gate.open()


def test_of_models_the_first_hundred_have_a_name() -> None:
    metrics = Metrics()
    for number in range(150):
        with metrics.call(f"model-{number}", lambda: 0.0):
            pass
    page = metrics.page(None, None).decode()  # type: ignore[arg-type]
    assert 'model="model-99"' in page
    assert 'model="model-100"' not in page
    assert 'mistral_requests_total{model="other",status="200"} 50.0' in page


def test_a_name_that_mistral_has_not_answered_takes_no_place_from_one_that_it_has() -> None:
    metrics = Metrics()
    for number in range(150):
        with suppress(RequestRefused), metrics.call(f"junk-{number}", lambda: 0.0):
            raise RequestRefused("no such model", status=400)
    with suppress(Truncated), metrics.call("cut-off", lambda: 0.0) as call:
        call.answered()
        raise Truncated("half an answer")
    with metrics.call("real", lambda: 0.0):
        pass
    with suppress(UpstreamUnavailable), metrics.call("real", lambda: 0.0):
        raise UpstreamUnavailable("Mistral answered 503", status=503)
    page = metrics.page(None, None).decode()  # type: ignore[arg-type]
    assert "junk" not in page
    assert 'mistral_requests_total{model="other",status="400"} 150.0' in page
    assert 'mistral_requests_total{model="real",status="200"} 1.0' in page
    assert 'mistral_requests_total{model="real",status="503"} 1.0' in page
    assert 'mistral_requests_total{model="cut-off",status="none"} 1.0' in page


async def test_an_answer_that_breaks_off_is_counted_under_its_models_name(api: Face) -> None:
    api.simulator.script(Behaviour(cut_after=3))
    await api.job((await api.submit(attempts=1))["jobId"], wait=10)
    found = await figures(api)
    [failed] = [labels for labels in found if labels[0] == "mistral_errors_total"]
    assert "mistral-small-latest" in failed


# Readiness


async def test_a_process_that_works_is_alive_and_ready(api: Face) -> None:
    assert (await api.ask("GET", "/healthz")).json == {"status": "ok"}
    assert (await api.ask("GET", "/readyz")).json == {"status": "ready", "worker": True}


async def test_a_process_that_drains_is_alive_and_not_ready(api: Face) -> None:
    api.app.operations.draining = True
    answer = await api.ask("GET", "/readyz")
    assert (answer.status, answer.json["code"]) == (503, "not_ready")
    assert (await api.ask("GET", "/healthz")).status == 200


async def test_without_its_database_a_process_is_not_ready_and_says_so_within_two_seconds(
    simulator: Simulator, database_url: str
) -> None:
    async with Gate.to(database_url) as gate, facing(simulator, gate.url, worker=False) as api:
        assert (await api.ask("GET", "/readyz")).status == 200
        await gate.close()
        async with asyncio.timeout(2):
            answer = await api.ask("GET", "/readyz")
        assert (answer.status, answer.json["code"]) == (503, "database")
        await gate.open()


@pytest.mark.parametrize(("steps", "status"), [(1, 200), (2, 503)])
async def test_a_version_is_ready_beside_the_next_one_and_not_beside_the_one_after(
    api: Face, steps: int, status: int
) -> None:
    await api.app.database.pool.execute(
        "INSERT INTO migrations (number, name, checksum)"
        " SELECT (SELECT max(number) FROM migrations) + n, 'later', '' FROM generate_series(1, $1) AS n",
        steps,
    )
    assert (await api.ask("GET", "/readyz")).status == status


# What is never told


@asynccontextmanager
async def echoing() -> AsyncIterator[str]:
    """A server that answers everything with what it was sent: a receiver of webhooks, and a Mistral that refuses."""

    async def echo(request: web.Request) -> web.Response:
        sent = await request.text()
        if "chat/completions" not in request.path:
            return web.Response(text=sent, headers={"x-echo": request.headers.get("X-Team", "")})
        words = {"object": "error", "message": sent, "type": "invalid_request_error", "param": None, "code": sent}
        return web.json_response(words, status=400)

    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", echo)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def log() -> Iterator[StringIO]:
    """Everything that is logged, from `debug` up."""
    lines, root = StringIO(), logging.getLogger()
    before, level = list(root.handlers), root.level
    telemetry.configure("debug", lines, json=True)
    yield lines
    root.handlers = before
    root.setLevel(level)
    logging.getLogger("tramontane").setLevel(logging.NOTSET)


async def test_no_log_line_and_no_figure_holds_a_word_of_prompts_answers_keys_or_secrets(
    simulator: Simulator, database_url: str, log: StringIO
) -> None:
    word, page = "Zanzibar-4711", ""
    given: dict[str, Any] = {
        "mistral_api_key": f"key-{word}",
        "webhook_secret": f"default-{word}",
        "encryption_keys": (Fernet.generate_key().decode(),),
        "webhook_allow_cidrs": (ip_network("127.0.0.0/8"),),
    }
    async with echoing() as echo:
        for mistral in (simulator.url, echo):
            async with facing(simulator, database_url, mistral_server_url=mistral, **given) as api:
                await everything(api, word, echo)
                page += (await api.ask("GET", "/metrics")).body.decode()
    written = log.getvalue()
    for event in ("job.completed", "job.failed", "job.retries"):
        assert event in written
    assert [line for line in written.splitlines() if word in line] == []
    assert [line for line in page.splitlines() if word in line or "tenant" in line] == []


async def everything(api: Face, word: str, echo: str) -> None:
    """Jobs that end in every way, and requests that are wrong in every way, with a word wherever one fits."""
    callback = {"url": f"{echo}/told", "secret": f"secret-{word}", "headers": {"X-Team": word}}
    request = {"messages": [{"role": "user", "content": word}], "temperature": 0.5}
    body = {"kind": "chat", "request": request, "metadata": {"note": word}, "callback": callback, "attempts": 2}
    for behaviour in (Behaviour(), Behaviour(status=503), Behaviour(cut_after=2), Behaviour(status=401)):
        api.simulator.script(behaviour)
        answer = await api.ask("POST", "/api/jobs", json=body)
        assert answer.status == 202, answer.body
        await api.job(answer.json["jobId"], wait=10)
        await api.ask("DELETE", f"/api/jobs/{answer.json['jobId']}")
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/jobs", {"json": {"messages": word}}),
        ("POST", "/api/jobs", {"data": f'{{"messages": "{word}'}),
        ("POST", "/api/jobs", {"headers": {"Authorization": f"Bearer {word}"}, "json": {"kind": word}}),
        ("POST", "/api/jobs", {"headers": {"Idempotency-Key": word * 50}, "json": body}),
        ("POST", "/api/chat/stream", {"json": {"messages": [{"role": word, "content": word}]}}),
        ("GET", f"/api/jobs/{word}", {}),
        ("GET", f"/api/jobs?metadata.note={word}&cursor={word}", {}),
        ("GET", f"/{word}", {}),
    ]
    for method, path, options in wrong:
        await api.ask(method, path, **options)

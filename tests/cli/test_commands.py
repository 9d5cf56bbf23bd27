"""The short commands: through a running server and without one, for people and for scripts, and their exit codes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from terminal import Ended, Running, Terminal

from tramontane.client import ApiClient
from tramontane.database import open_database
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


@pytest.fixture
def terminal(short_dir: Path) -> Terminal:
    return Terminal(short_dir / "data")


@pytest_asyncio.fixture
async def served(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> AsyncIterator[tuple[Terminal, Running, "Simulator"]]:
    """A server on a simulator of this process, and a terminal that finds it by its data directory."""
    terminal = Terminal(
        short_dir / "data",
        DATABASE_URL=database_url,
        MISTRAL_SERVER_URL=simulator.url,
        MISTRAL_API_KEY="key",
        TRAMONTANE_GRACE="0.2s",
    )
    with terminal.serve() as server:
        yield terminal, server, simulator
        ended = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert ended.code == 0, ended.err


async def test_a_job_is_submitted_listed_shown_followed_retried_and_erased(
    served: tuple[Terminal, Running, "Simulator"],
) -> None:
    terminal, _, _ = served

    async def run(*words: str) -> Ended:
        return await asyncio.to_thread(terminal.run, *words)

    submitted = await run("submit", "Say: aye aye", "--metadata", "ship=Argo", "--request-id", "r-1", "--json")
    job_id = _object(submitted)["jobId"]
    followed = await run("jobs", "follow", job_id)
    events = await run("jobs", "follow", job_id, "--json")
    listed = await run("jobs", "list", "--metadata", "ship=Argo", "--status", "completed", "--json")
    table = await run("jobs", "list")
    shown = await run("jobs", "show", job_id)
    retried = await run("jobs", "retry", job_id)
    cancelled = await run("jobs", "cancel", job_id)
    erased = await run("jobs", "delete", job_id)

    assert followed.out == "aye aye\n"
    assert [event["type"] for event in events.json_lines][-1] == "chat:complete"
    assert [job["jobId"] for job in _object(listed)["jobs"]] == [job_id]
    assert job_id in table.out
    assert "ship=Argo" in shown.out
    assert shown.out.endswith("\n\naye aye\n")
    assert retried.out.startswith("job_")
    assert cancelled.out == f"{job_id} completed\n"
    assert erased.out == f"{job_id} erased\n"
    every = (submitted, followed, events, listed, table, shown, retried, cancelled, erased)
    assert {(each.code, each.err) for each in every} == {(0, "")}


async def test_exit_codes_tell_what_kind_of_error_it_was(served: tuple[Terminal, Running, "Simulator"]) -> None:
    terminal, _, simulator = served
    from tramontane.simulator import Behaviour

    simulator.behaviour = Behaviour(latency=20)
    running = _object(await asyncio.to_thread(terminal.run, "submit", "Hello", "--json"))["jobId"]
    await simulator.wait_for_calls(1)

    async def run(*words: str) -> Ended:
        return await asyncio.to_thread(terminal.run, *words)

    unknown = await run("jobs", "show", "job_00000000000000000000000000")
    conflict = await run("jobs", "delete", running)
    usage = await run("submit", "Hello", "--timeout", "soon")
    other_body = [await run("submit", text, "--idempotency-key", "k") for text in ("one", "two")][1]
    cancelled = await run("jobs", "cancel", running)
    simulator.behaviour = Behaviour(status=401)
    failed = await run("submit", "Hello", "--wait")

    assert [each.code for each in (unknown, conflict, usage, other_body, cancelled, failed)] == [3, 4, 2, 4, 0, 1]
    for each in (unknown, conflict, usage, other_body, failed):
        assert each.err.startswith("error: ")
        assert each.err.count("\n") == 1
        assert each.out == ""


async def test_a_chat_goes_through_the_running_server_as_a_job(
    served: tuple[Terminal, Running, "Simulator"],
) -> None:
    terminal, server, _ = served

    said = await asyncio.to_thread(terminal.run, "chat", "Say: fair winds", "--system", "Be kind.")
    told = await asyncio.to_thread(terminal.run, "chat", "-", "--json", stdin="Say: ahoy")
    async with ApiClient(server.url) as client:
        jobs = (await client.list())["jobs"]

    assert (said.code, said.out, said.err) == (0, "fair winds\n", "")
    assert told.code == 0
    assert [told.json_lines[0]["type"], told.json_lines[-1]["type"]] == ["chat:start", "chat:complete"]
    assert len(jobs) == 2


async def test_ctrl_c_while_an_answer_comes_cancels_its_job(served: tuple[Terminal, Running, "Simulator"]) -> None:
    terminal, server, simulator = served
    from tramontane.simulator import Behaviour

    simulator.behaviour = Behaviour(tokens=50, silence_after=4)
    with terminal.start("chat", "Hello", "--json", until="chat:start") as chat:
        await simulator.wait_for_chunks(1, 4)
        ended = await asyncio.to_thread(chat.end, signal.SIGINT)
    async with ApiClient(server.url) as client:
        jobs = (await client.list())["jobs"]

    assert ended.code == 130
    assert ended.err == ""
    assert [job["status"] for job in jobs] == ["cancelled"]
    await simulator.wait_for_ends(1, "disconnected")


async def test_a_batch_with_a_job_that_fails_shows_it_and_ends_with_1(
    served: tuple[Terminal, Running, "Simulator"], tmp_path: Path
) -> None:
    terminal, _, simulator = served
    from tramontane.simulator import Behaviour

    simulator.script(Behaviour(status=401))
    (tmp_path / "two.txt").write_text("Say: one\nSay: two\n")

    batch = await asyncio.to_thread(
        terminal.run, "batch", str(tmp_path / "two.txt"), "--output", str(tmp_path / "out.jsonl"), "--json"
    )
    written = Ended(0, (tmp_path / "out.jsonl").read_text(), "").json_lines

    assert batch.code == 1
    assert sorted(job["status"] for job in _object(batch)["jobs"]) == ["completed", "failed"]
    assert [(row["line"], row["prompt"]) for row in written] == [(1, "Say: one"), (2, "Say: two")]


async def test_bad_lines_are_listed_and_nothing_is_submitted_unless_they_are_to_be_skipped(
    served: tuple[Terminal, Running, "Simulator"], tmp_path: Path
) -> None:
    terminal, server, _ = served
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Say: good"}\n{"prompt": ""}\nnonsense\n')

    refused = await asyncio.to_thread(terminal.run, "batch", str(file))
    async with ApiClient(server.url) as client:
        jobs = (await client.list())["jobs"]
    skipped = await asyncio.to_thread(terminal.run, "batch", str(file), "--skip-bad-lines", "--json")

    assert refused.code == 2
    lines = refused.err.splitlines()
    assert lines[0].startswith(f"{file}:2: prompt: must be")
    assert lines[1].startswith(f"{file}:3: is not JSON")
    assert lines[2].startswith("error: ")
    assert len(lines) == 3
    assert jobs == []
    assert skipped.code == 0
    assert [job["result"]["content"] for job in _object(skipped)["jobs"]] == ["good"]
    assert skipped.err.count("\n") == 2


def test_without_a_server_a_job_is_stored_and_runs_when_one_does(terminal: Terminal) -> None:
    submitted = terminal.run("submit", "Hello", "--json")
    listed = terminal.run("jobs", "list", "--json")
    postgres_in_between = terminal.postgres_runs()
    with terminal.serve("--simulator") as server:
        followed = terminal.run("jobs", "follow", _object(submitted)["jobId"])
        server.end(signal.SIGTERM)

    assert [job["status"] for job in _object(listed)["jobs"]] == ["queued"]
    assert not postgres_in_between
    assert (followed.code, followed.err) == (0, "")
    assert len(followed.out) > 100


def test_a_chat_needs_neither_server_nor_database(terminal: Terminal) -> None:
    chat = terminal.run("chat", "Say: fair winds", "--simulator")
    told = terminal.run("chat", "Say: fair winds", "--simulator", "--json")

    assert (chat.code, chat.out, chat.err) == (0, "fair winds\n", "")
    assert told.json_lines[0]["type"] == "chat:start"
    assert told.json_lines[-1]["fullResponse"] == "fair winds"
    assert not terminal.data_dir.exists()


@pytest.mark.parametrize("words", [("chat", "Hello"), ("submit", "Hello", "--wait")])
def test_without_key_and_server_one_line_says_what_to_do(terminal: Terminal, words: tuple[str, ...]) -> None:
    refused = terminal.run(*words)

    assert refused.code == 2
    assert refused.err.startswith("error: MISTRAL_API_KEY is not set")
    assert refused.err.count("\n") == 1


def test_a_server_that_was_named_and_is_not_there_is_one_line(short_dir: Path) -> None:
    terminal = Terminal(short_dir / "data", TRAMONTANE_URL="http://127.0.0.1:9")

    for words in (("chat", "Hello"), ("jobs", "list"), ("submit", "Hello")):
        refused = terminal.run(*words)
        assert refused.code == 2
        assert refused.err.startswith("error: no Tramontane server answers at http://127.0.0.1:9: ")
        assert refused.err.count("\n") == 1


def test_a_reader_that_leaves_ends_a_chat_without_complaint(terminal: Terminal) -> None:
    with terminal.start("chat", "Hello", "--simulator", until="") as chat:
        chat.out.close()
        code = chat.process.join(20)
        complaint = chat.complaint

    assert (code, complaint) == (1, "")


def test_an_answer_cannot_steer_the_terminal(terminal: Terminal) -> None:
    code, drawn = terminal.run_in_terminal("chat", "Say: a\x1b[2Jb\x07c", "--simulator")
    piped = terminal.run("chat", "Say: a\x1b[2Jb", "--simulator")

    assert code == 0
    assert "\x1b[2J" not in drawn
    assert "a\ufffd[2Jb\ufffdc" in drawn
    assert piped.out == "a\x1b[2Jb\n", "a program gets what was said"


async def test_migrate_says_what_it_has_applied(short_dir: Path, empty_database_url: str) -> None:
    terminal = Terminal(short_dir / "data", DATABASE_URL=empty_database_url)

    first = terminal.run("db", "migrate", "--json")
    second = terminal.run("db", "migrate")

    assert _object(first)["applied"][0] == "0001_core"
    assert "nothing to apply" in second.out
    assert (first.code, second.code) == (0, 0)


async def test_doctor_finds_all_well_or_says_what_is_not(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> None:
    secret = "a-key-that-nobody-may-see"
    well = Terminal(
        short_dir / "data", DATABASE_URL=database_url, MISTRAL_SERVER_URL=simulator.url, MISTRAL_API_KEY=secret
    )
    ill = Terminal(
        short_dir / "data", DATABASE_URL="postgresql://a:b@127.0.0.1:9/c", TRAMONTANE_URL="http://127.0.0.1:9"
    )

    good = await asyncio.to_thread(well.run, "doctor", "--json")
    table = await asyncio.to_thread(well.run, "doctor")
    bad = await asyncio.to_thread(ill.run, "doctor", "--simulator", "--json")

    assert (good.code, table.code, bad.code) == (0, 0, 1)
    assert {check["name"]: check["status"] for check in _object(good)["checks"]} == dict.fromkeys(
        ("python", "data directory", "disk", "database", "migrations", "clock", "prices", "key", "mistral", "server"),
        "ok",
    )
    assert secret not in good.out + table.out
    failed = {check["name"] for check in _object(bad)["checks"] if check["status"] == "fail"}
    assert failed == {"database", "server"}
    assert all(check["fix"] for check in _object(bad)["checks"] if check["status"] == "fail")


async def test_doctor_says_when_a_budget_of_money_counts_nothing(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> None:
    plain = {"DATABASE_URL": database_url, "MISTRAL_SERVER_URL": simulator.url, "MISTRAL_API_KEY": "a-key"}
    table = short_dir / "prices.toml"
    table.write_text(
        '[[price]]\nmodel = "mistral-small-*"\nfrom = 2026-01-01\ninput = 1\noutput = 1\ncurrency = "EUR"\n'
    )
    bare, priced = (Terminal(short_dir / "data", **plain, **more) for more in ({}, {"TRAMONTANE_PRICES": str(table)}))

    async def found(terminal: Terminal) -> dict[str, str]:
        looked = await asyncio.to_thread(terminal.run, "doctor", "--json")
        return next(check for check in _object(looked)["checks"] if check["name"] == "prices")

    async with open_database(Settings(database_url=database_url)) as database:
        assert (await found(bare))["status"] == "ok"
        await database.pool.execute(
            "INSERT INTO tenants (id, daily_cost, created_at, updated_at) VALUES ('acme', 5, now(), now())"
        )
        without = await found(bare)
        assert (without["status"], "TRAMONTANE_PRICES" in without["fix"]) == ("warn", True)
        assert (await found(priced))["status"] == "ok"
        await database.pool.execute(
            "INSERT INTO spendings (tenant_id, day, model) SELECT tenant, (now() AT TIME ZONE 'UTC')::date, model"
            " FROM (VALUES ('acme', 'mistral-small-latest'), ('acme', 'mistral-large-latest'), ('other', 'x')) AS g"
            " (tenant, model)"
        )
        missing = await found(priced)
    assert (missing["status"], missing["found"]) == ("warn", "no price for mistral-large-latest")

    table.write_text("nonsense")
    assert (await found(priced))["status"] == "fail"


def test_help_tells_the_exit_codes_and_loads_nothing_heavy(terminal: Terminal) -> None:
    shown = terminal.run("--help")
    version = terminal.run("--version")

    assert (shown.code, version.code, version.out) == (0, 0, "tramontane 0.1.0\n")
    for line in ("2    the command, a setting", "3    no such job", "130  interrupted"):
        assert line in shown.out
    for command in ("serve", "api", "worker", "simulator", "chat", "submit", "jobs", "batch", "db", "doctor"):
        assert f"\n  {command} " in shown.out


def test_what_is_heavy_is_not_loaded_by_the_tree_of_commands() -> None:
    import subprocess
    import sys

    code = "import sys, tramontane.cli.program as p; p.run(['version']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"aiohttp", "fastapi", "pydantic", "asyncpg", "pgqueuer", "rich"} & set(loaded)


def _object(ended: Ended) -> dict[str, Any]:
    assert isinstance(ended.json, dict), ended.err
    return ended.json

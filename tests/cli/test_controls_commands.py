"""Commands that steer many jobs: bulk, retry by filter, pauses, schedules."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from terminal import Ended, Terminal

if TYPE_CHECKING:
    from tramontane.simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

Run = Callable[..., Awaitable[Ended]]


@pytest_asyncio.fixture
async def run(short_dir: Path, database_url: str, simulator: "Simulator") -> AsyncIterator[Run]:
    """Commands of a terminal that finds a server by its data directory."""
    terminal = Terminal(
        short_dir / "data",
        DATABASE_URL=database_url,
        MISTRAL_SERVER_URL=simulator.url,
        MISTRAL_API_KEY="key",
        TRAMONTANE_ENCRYPTION_KEY="A" * 43 + "=",
        TRAMONTANE_GRACE="0.2s",
    )

    async def one(*words: str) -> Ended:
        return await asyncio.to_thread(terminal.run, *words)

    with terminal.serve() as server:
        yield one
        ended = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert ended.code == 0, ended.err


async def test_many_jobs_are_submitted_from_a_file_and_those_that_failed_are_retried(
    run: Run, simulator: "Simulator", tmp_path: Path
) -> None:
    from tramontane.simulator import Behaviour

    file = tmp_path / "jobs.jsonl"
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    file.write_text(f"{body}\n\n{body}\n")
    simulator.script(Behaviour(status=400), Behaviour(status=400))

    submitted = await run("jobs", "bulk", str(file), "--idempotency-key", "load")
    repeated = await run("jobs", "bulk", str(file), "--idempotency-key", "load")
    ids = submitted.out.split()
    for job_id in ids:
        assert (await run("jobs", "follow", job_id)).code == 1
    listed = await run("jobs", "list", "--status", "failed", "--error", "upstream_refused", "--json")
    retried = await run("jobs", "retry", "--failed", "--error", "upstream_refused")
    again = await run("jobs", "retry", "--failed")

    assert (submitted.code, len(ids), repeated.out) == (0, 2, submitted.out)
    assert [job["jobId"] for job in json.loads(listed.out)["jobs"]] == ids[::-1]
    assert [line.split()[-1] for line in retried.out.splitlines()] == [*ids[::-1], "retried"]
    assert again.out == "0 jobs retried\n"
    assert (await run("jobs", "retry")).code == 2
    assert (await run("jobs", "retry", ids[0], "--model", "m")).code == 2

    file.write_text(f'{body}\n{{"messages": []}}\n')
    refused = await run("jobs", "bulk", str(file))
    assert (refused.code, len(refused.out.split())) == (1, 1)
    assert refused.err.startswith("error: line 2: messages: ")
    file.write_text("{}\nnonsense\n")
    assert (await run("jobs", "bulk", str(file))).err.startswith("error: FILE: line 2 is not JSON")
    assert (await run("jobs", "bulk", str(tmp_path / "none"))).code == 2


async def test_a_model_is_paused_listed_and_resumed(run: Run) -> None:
    paused = await run("pause", "--model", "mistral-small-latest", "--reason", "a deploy")
    listed = await run("pauses")
    submitted = await run("submit", "Hello", "--deadline", "1s", "--json")
    job_id = json.loads(submitted.out)["jobId"]
    followed = await run("jobs", "follow", job_id)
    shown = await run("jobs", "show", job_id)
    wrong = await run("resume", "--model", "mistral-large-latest")
    resumed = await run("resume", "--model", "mistral-small-latest")

    assert paused.out.endswith(" model mistral-small-latest paused\n")
    assert "a deploy" in listed.out
    assert (followed.code, "deadline_exceeded" in shown.out) == (1, True)
    assert wrong.code == 3
    assert resumed.out == "model mistral-small-latest resumed\n"
    assert (await run("pauses")).out == "nothing is paused\n"


async def test_a_schedule_is_added_listed_run_paused_and_removed(run: Run) -> None:
    added = await run("schedules", "add", "daily", "0 6 * * mon-fri", "Say: aye", "--timezone", "Europe/Paris")
    listed = await run("schedules", "list")
    ran = await run("schedules", "run", "daily", "--json")
    followed = await run("jobs", "follow", json.loads(ran.out)["jobId"])
    paused = await run("schedules", "pause", "daily")
    resumed = await run("schedules", "resume", "daily")
    removed = await run("schedules", "remove", "daily")
    wrong = await run("schedules", "add", "x", "61 * * * *", "Hello")

    assert added.out.startswith("daily: next at 20")
    assert "0 6 * * mon-fri" in listed.out
    assert followed.out == "aye\n"
    assert paused.out == "daily paused\n"
    assert resumed.out.startswith("daily active: next at ")
    assert removed.out == "daily removed\n"
    assert (await run("schedules", "list")).out == "no schedules\n"
    assert (wrong.code, "minute" in wrong.err) == (2, True)
    assert (await run("schedules", "run", "daily")).code == 3


async def test_a_schedule_takes_the_options_of_a_submit_and_what_is_given_is_changed(run: Run) -> None:
    words = ("--priority", "-3", "--attempts", "5", "--timeout", "90s", "--deadline", "2h", "--model", "m-1")
    more = ("--request-id", "mine", "--metadata", "team=blue", "--system", "Be brief", "--json")
    added = json.loads((await run("schedules", "add", "daily", "0 6 * * *", "Say: aye", *words, *more)).out)
    changed = json.loads((await run("schedules", "change", "daily", "--priority", "2", "--model", "m-2", "--json")).out)
    moved = await run("schedules", "change", "daily", "--name", "weekly", "--cron", "@weekly", "--catch-up", "skip")
    asked = await run("schedules", "change", "weekly", "--prompt", "Say: no", "--json")

    options = {"attempts": 5, "timeout": "90s", "deadline": "2h", "requestId": "mine", "metadata": {"team": "blue"}}
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Say: aye"}]
    request = {"model": "m-1", "messages": messages}
    assert added["job"] == {"kind": "chat", "request": request, "priority": -3, **options}
    assert changed["job"] == {"kind": "chat", "request": request | {"model": "m-2"}, "priority": 2, **options}
    assert (changed["name"], changed["cron"]) == ("daily", "0 6 * * *")
    assert moved.out.startswith("weekly active: next at ")
    shown = json.loads(asked.out)
    assert (shown["cron"], shown["catchUp"], shown["job"]["priority"]) == ("@weekly", "skip", 2)
    assert shown["job"]["request"]["messages"] == [{"role": "user", "content": "Say: no"}]


async def test_a_change_that_says_nothing_or_would_lose_something_is_refused(run: Run) -> None:
    hook = ("--callback", "https://example.com/hook", "--callback-secret", "12345678")
    added = await run("schedules", "add", "told", "0 6 * * *", "Hello", *hook)
    nothing = await run("schedules", "change", "told")
    alone = await run("schedules", "change", "told", "--system", "Be brief")
    lost = await run("schedules", "change", "told", "--priority", "1")
    wrong = await run("schedules", "change", "told", "--priority", "high")
    timed = await run("schedules", "change", "told", "--cron", "0 7 * * *")
    again = await run("schedules", "change", "told", "--priority", "1", *hook)

    assert [one.code for one in (added, nothing, alone, lost, wrong, timed, again)] == [0, 2, 2, 2, 2, 0, 0]
    assert ("--cron" in nothing.err, "--prompt" in alone.err, "--callback" in lost.err) == (True, True, True)
    assert wrong.err.startswith("error: --priority")
    assert (await run("schedules", "change", "nobody", "--cron", "@daily")).code == 3


async def test_a_schedule_made_in_the_short_form_is_changed_too() -> None:
    from tramontane.cli.schedules import _changed

    short = {"messages": [], "model": "m", "requestId": "mine"}
    assert _changed(short, {"model": "n"}, {"priority": 1}) == {
        "kind": "chat",
        "request": {"messages": [], "model": "n"},
        "requestId": "mine",
        "priority": 1,
    }

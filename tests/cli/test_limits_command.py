"""`tramontane limits`: what is known, for people and for scripts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from terminal import Ended, Terminal

from tramontane.simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


async def test_the_limits_are_shown_once_mistral_has_answered_and_a_waiting_job_says_what_it_waits_for(
    short_dir: Path, database_url: str
) -> None:
    async with Simulator(request_limit=60, token_limit=50_000) as simulator:
        terminal = Terminal(
            short_dir / "data", DATABASE_URL=database_url, MISTRAL_SERVER_URL=simulator.url, MISTRAL_API_KEY="key"
        )

        async def run(*words: str) -> Ended:
            return await asyncio.to_thread(terminal.run, *words)

        with terminal.serve():
            before = await run("limits")
            asked = await run("submit", "Say: aye", "--wait")
            after = await run("limits", "--json")
            shown = await run("limits")
            later: Any = (await run("submit", "Say: aye", "--run-at", "2099-01-01T00:00:00Z", "--json")).json
            job = await run("limits", later["jobId"])

    assert "Mistral has not been asked yet" in before.out
    assert asked.code == 0, asked.err
    found: Any = after.json
    assert found["buckets"][0]["requests"]["limit"] == 60
    assert "59 of 60 free" in shown.out
    assert "10 starts per second" in shown.out
    assert f"{later['jobId']} waits for its time, 0 before it: about 2099-01-01T00:00:00" in job.out


async def test_a_simulator_is_given_limits_and_a_shorter_minute(short_dir: Path) -> None:
    ended = await asyncio.to_thread(Terminal(short_dir / "data").run, "simulator", "--window", "soon")
    assert (ended.code, "--window" in ended.err) == (2, True)

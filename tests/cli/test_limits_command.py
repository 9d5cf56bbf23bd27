"""`tramontane limits`: what is known, for people and for scripts."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from terminal import Ended, Terminal

from tramontane.cli import screen
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
    assert "59 of 60" in shown.out
    assert "10 starts per second" in shown.out
    assert f"{later['jobId']} waits for its time, 0 before it: about 2099-01-01T00:00:00" in job.out


@pytest.mark.parametrize("columns", [80, 120])
async def test_the_model_is_shown_on_a_narrow_screen_beside_large_limits(
    short_dir: Path, database_url: str, columns: int
) -> None:
    async with Simulator(request_limit=1_250_000_000, token_limit=2_100_000_000) as simulator:
        terminal = Terminal(
            short_dir / "data", DATABASE_URL=database_url, MISTRAL_SERVER_URL=simulator.url, MISTRAL_API_KEY="key"
        )
        with terminal.serve():
            await asyncio.to_thread(terminal.run, "submit", "Say: aye", "--wait")
            code, drawn = await asyncio.to_thread(terminal.run_in_terminal, "limits", columns=columns)

    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "").split("\n")
    [row] = [line.split() for line in lines if "server" in line]
    assert code == 0
    assert max(map(len, lines)) <= columns
    assert row == ["mistral-small-latest", "server", "1.2B", "of", "1.2B", "2.1B", "of", "2.1B", "0", "0"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (9999, "9999"), (10_000, "10k"), (999_999, "999k"), (1_250_000, "1.2M"), (2**53, "9007T")],
)
def test_a_number_is_shown_in_few_characters_and_never_as_more_than_it_is(number: int, shown: str) -> None:
    assert screen.short(number) == shown


@pytest.mark.parametrize(("longest", "shown"), [(20, "mistral-small-latest"), (12, "mistra…atest"), (3, "m…t")])
def test_a_long_name_loses_its_middle(longest: int, shown: str) -> None:
    assert screen.shorten("mistral-small-latest", longest) == shown


async def test_a_simulator_is_given_limits_and_a_shorter_minute(short_dir: Path) -> None:
    ended = await asyncio.to_thread(Terminal(short_dir / "data").run, "simulator", "--window", "soon")
    assert (ended.code, "--window" in ended.err) == (2, True)

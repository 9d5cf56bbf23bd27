"""What a stranger meets first: `make demo`, on a pipe and on a terminal."""

import re
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import msgspec
import pytest
from terminal import Terminal

from tramontane.cli.receiver import receiving
from tramontane.ids import utc_now
from tramontane.webhooks.signatures import new_secret, signed_headers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts.txt"


@pytest.fixture
def terminal(short_dir: Path) -> Terminal:
    return Terminal(short_dir / "data")


def test_the_demo_works_the_first_time_and_the_second_and_leaves_nothing_running(terminal: Terminal) -> None:
    words = ("batch", str(PROMPTS), "--live", "--simulator", "--receive", "--data-dir", str(terminal.data_dir))

    first = terminal.run(*words)
    began = monotonic()
    second = terminal.run(*words)
    took = monotonic() - began

    for demo in (first, second):
        assert (demo.code, demo.err) == (0, "")
        assert demo.out.startswith("What is the tramontane, and where does it blow?\n\n")
        assert "8 jobs: 8 completed;" in demo.out
        assert demo.out.count("completed\n") == 8
        told = r"8 webhooks: chat\.completed, signature ✓, arrived \d+ ms after the end"
        assert re.fullmatch(told, demo.out.splitlines()[-1])
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", demo.out), "a pipe gets no control characters"
        assert max(map(len, demo.out.splitlines()[-11:])) <= 80
    assert took < 20, "under 10 s on a quiet machine"
    assert not terminal.postgres_runs()
    assert not (terminal.data_dir / "server.json").exists()


def test_what_an_operator_denies_the_demo_does_not_call_and_fails(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Say: one\n")
    terminal.environment["TRAMONTANE_WEBHOOK_DENY_CIDRS"] = "127.0.0.1/32"

    demo = terminal.run("batch", str(tmp_path / "one.txt"), "--simulator", "--receive")
    without_server = terminal.run("batch", str(tmp_path / "one.txt"), "--receive")

    for refused in (demo, without_server):
        assert refused.code == 2
        assert refused.err.startswith("error: ")
        assert refused.err.count("\n") == 1
        assert "signature" not in refused.out


async def test_the_receiver_takes_what_is_genuine_and_counts_what_is_missing() -> None:
    def request(job_id: str, secret: str) -> dict[str, Any]:
        data = {"jobId": job_id, "completedAt": "2026-11-22T06:46:00.123Z"}
        body = msgspec.json.encode({"id": "msg_1", "event": "chat.completed", "data": data})
        headers = signed_headers(
            body=body, message_id="msg_1", timestamp="2026-11-22T06:46:00.123Z", attempted_at=utc_now(),
            secrets=[secret], event="chat.completed", delivery_id="dlv_1", attempt=1,
        )  # fmt: skip
        return {"data": body, "headers": dict(headers)}

    async with receiving() as receiver, aiohttp.ClientSession() as session:
        genuine = [(await session.post(receiver.url, **request("job_1", receiver.secret))).status for _ in range(2)]
        forged = (await session.post(receiver.url, **request("job_2", new_secret()))).status

        assert (genuine, forged) == ([204, 204], 400)
        assert list(receiver.arrived) == ["job_1"]
        assert await receiver.wait(["job_1"], seconds=5) == 0
        assert await receiver.wait(["job_1", "job_2"], seconds=0) == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_a_batch_draws_a_bar_and_fits(terminal: Terminal, tmp_path: Path, columns: int) -> None:
    (tmp_path / "two.txt").write_text(f"Say: {'fair winds and ' * 10}\nSay: {'following seas ' * 10}\n")

    code, drawn = terminal.run_in_terminal("batch", str(tmp_path / "two.txt"), "--live", "--simulator", columns=columns)

    assert code == 0
    assert "\x1b[" in drawn
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n")
    assert "jobs ━" in visible
    assert "2 jobs: 2 completed;" in visible
    assert max(map(len, visible.split("\n"))) <= columns
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor is back"


def test_a_first_answer_longer_than_the_screen_is_all_there(terminal: Terminal, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(250)]
    (tmp_path / "long.txt").write_text(f"Say: {' '.join(words)}\nHello\n")
    # At this pace the bar is drawn many times over; nothing of the text may be drawn over.
    code, drawn = terminal.run_in_terminal("batch", str(tmp_path / "long.txt"), "--live", "--simulator", lines=12)

    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert code == 0
    last = -1
    for word in words:
        assert (last := visible.find(word, last + 1)) >= 0, word

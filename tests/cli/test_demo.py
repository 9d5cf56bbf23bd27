"""What a stranger meets first: `make demo`, on a pipe and on a terminal."""

import re
from pathlib import Path
from time import monotonic

import pytest
from terminal import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts.txt"


@pytest.fixture
def terminal(short_dir: Path) -> Terminal:
    return Terminal(short_dir / "data")


def test_the_demo_works_the_first_time_and_the_second_and_leaves_nothing_running(terminal: Terminal) -> None:
    words = ("batch", str(PROMPTS), "--live", "--simulator", "--data-dir", str(terminal.data_dir))

    first = terminal.run(*words)
    began = monotonic()
    second = terminal.run(*words)
    took = monotonic() - began

    for demo in (first, second):
        assert (demo.code, demo.err) == (0, "")
        assert demo.out.startswith("What is the tramontane, and where does it blow?\n\n")
        assert "8 jobs: 8 completed;" in demo.out
        assert demo.out.count("completed\n") == 8
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", demo.out), "a pipe gets no control characters"
        assert max(map(len, demo.out.splitlines()[-11:])) <= 80
    assert took < 20, "under 10 s on a quiet machine"
    assert not terminal.postgres_runs()
    assert not (terminal.data_dir / "server.json").exists()


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

"""What the nursery starts ends as a process of Python's own would."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from nursery import Child, spawn

ENVIRONMENT = {"PATH": os.defpath, "SHIP": "Argo"}


def born(directory: Path, program: str, stdout: int | None = None) -> tuple[Child, Path]:
    """A process that runs that program, and where it complains."""
    (directory / "program.py").write_text(program)
    words = [str(directory / "program.py"), "one", "two"]
    with open(os.devnull, "r+") as nothing, (directory / "complaint").open("w") as complaint:
        null = nothing.fileno()
        out = null if stdout is None else stdout
        child = spawn(words, ENVIRONMENT, stdin=null, stdout=out, stderr=complaint.fileno())
    return child, directory / "complaint"


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('no wind')", 1, "no wind\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import atexit, os; atexit.register(os._exit, 9)", 9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("import os; os.close(1); print('lost')", 120, "Bad file descriptor"),
        ("import warnings; warnings.simplefilter('always'); kept = open(__file__)", 0, "unclosed file"),
    ],
)
def test_its_exit_code_and_its_last_words_are_those_of_the_interpreter(
    tmp_path: Path, program: str, code: int, said: str
) -> None:
    child, complaint = born(tmp_path, program)

    assert child.join(20) == code
    assert said in complaint.read_text()
    assert bool(said) == bool(complaint.read_text())


def test_it_has_its_own_arguments_environment_and_output(tmp_path: Path) -> None:
    with tempfile.TemporaryFile("w+") as out:
        child, _ = born(tmp_path, "import os, sys; print(sys.argv[1:], dict(os.environ))", out.fileno())
        assert child.join(20) == 0
        out.seek(0)
        assert out.read() == f"{['one', 'two']} {ENVIRONMENT}\n"


def test_it_is_killed_alone_and_waited_for(tmp_path: Path) -> None:
    child, _ = born(tmp_path, "import signal; signal.pause()")
    other, _ = born(tmp_path, "import signal; signal.pause()")

    with pytest.raises(TimeoutError):
        child.join(0)
    child.send_signal(signal.SIGKILL)

    assert child.join(20) == -9
    assert other.returncode is None
    other.send_signal(signal.SIGKILL)
    assert other.join(20) == -9

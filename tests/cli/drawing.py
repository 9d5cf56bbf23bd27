"""A command that stays, on a terminal: what it draws, and how it takes Ctrl-C there."""

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from terminal import PATIENCE, Terminal


class Drawing:
    """A running command; it and we share a terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", ours: int) -> None:
        self._process = process
        self._ours = ours
        #: Everything so far, control characters included.
        self.drawn = ""

    @property
    def visible(self) -> str:
        """The text of it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)

    def until(self, text: str) -> None:
        """Wait until that is visible."""
        deadline = monotonic() + PATIENCE
        while text not in self.visible:
            if monotonic() > deadline or not self._read():
                raise AssertionError(f"no {text!r} in {self.visible!r}")

    def interrupt(self) -> int:
        """Ctrl-C, as the terminal sends it; the exit code."""
        os.write(self._ours, b"\x03")
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], PATIENCE)[0]:
            return False
        try:
            self.drawn += os.read(self._ours, 65536).decode()
        except OSError:  # Linux says so when the other side is closed
            return False
        return True


@contextmanager
def drawing(terminal: Terminal, *words: str) -> Iterator[Drawing]:
    """A command on a terminal of its own. It is gone after the block."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_TERMINAL, *words],
        env={**terminal.environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Drawing(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


# Ctrl-C reaches the processes whose controlling terminal it is typed at; the first one that a session opens becomes it.
_WITH_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "tramontane"
runpy.run_module("tramontane", run_name="__main__", alter_sys=False)
"""

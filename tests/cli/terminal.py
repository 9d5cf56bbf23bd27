"""Commands as a user starts them: real processes, with nothing of this machine's settings in their environment."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

#: Seconds that a command gets, on a busy machine.
PATIENCE = 25.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """Standard output, which is one JSON document."""
        return msgspec.json.decode(self.out)

    @property
    def json_lines(self) -> list[dict[str, object]]:
        """Standard output, which is a JSON object per line."""
        return [msgspec.json.decode(line, type=dict[str, object]) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Running:
    """A server that has said that it is ready."""

    process: "subprocess.Popen[str]"
    greeting: str

    @property
    def url(self) -> str:
        return self.greeting.splitlines()[0].split(": ", 1)[1]

    def end(self, number: signal.Signals) -> Ended:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return Ended(self.process.returncode, self.greeting + out, err)


class Terminal:
    """Runs commands on one data directory. Settings go in by their variables: `Terminal(dir, DATABASE_URL=…)`."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TRAMONTANE_DATA_DIR": str(data_dir), **settings}

    def run(self, *words: str, stdin: str = "") -> Ended:
        """A command from start to end, its output into pipes."""
        done = subprocess.run(
            self._argv(words),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(self, *words: str, until: str = "") -> Iterator[Running]:
        """A command that stays, once it has printed a line with `until` in it. It is gone after the block."""
        with subprocess.Popen(
            self._argv(words), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            said = ""
            try:
                for line in process.stdout:
                    said += line
                    if until in line:
                        break
                else:
                    raise AssertionError(f"it ended: {process.stderr.read() if process.stderr else ''}")
                yield Running(process, said)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.communicate()

    def serve(self, *words: str) -> AbstractContextManager[Running]:
        """`tramontane serve` on a free port, ready."""
        return self.start("serve", "--port", "0", *words, until="  try")

    def run_in_terminal(self, *words: str, columns: int = 80, lines: int = 40) -> tuple[int, str]:
        """A command on a terminal of that width: its exit code, and what it drew, control characters included."""
        ours, theirs = pty.openpty()
        environment = {**self.environment, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        with subprocess.Popen(
            self._argv(words), env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            drawn = b"".join(_blocks(ours))
        os.close(ours)
        return process.returncode, drawn.decode()

    def postgres_runs(self) -> bool:
        """Whether a process still works in the data directory."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    command = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.data_dir).encode() in command and b"postgres" in command.split(b"\0")[0]:
                    return True
        return False

    def _argv(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "tramontane", *words]


def _blocks(terminal: int) -> Iterator[bytes]:
    while select.select([terminal], [], [], PATIENCE)[0]:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            return
        if not block:
            return
        yield block

"""Commands as a user starts them: real processes, with nothing of this machine's settings in their environment."""

import os
import pty
import select
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
from nursery import Child, spawn

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
    """A command that has said that it is ready, or what it says first."""

    process: Child
    greeting: str
    #: What it says after its greeting.
    out: IO[str]
    err: IO[str]

    @property
    def url(self) -> str:
        return self.greeting.splitlines()[0].split(": ", 1)[1]

    @property
    def complaint(self) -> str:
        """What it has said on standard error, once it has ended: until then it writes where we would read."""
        return _all(self.err)

    def end(self, number: signal.Signals) -> Ended:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        code = self.process.join(PATIENCE)
        return Ended(code, self.greeting + self.out.read(), self.complaint)


class Terminal:
    """Runs commands on one data directory. Settings go in by their variables: `Terminal(dir, DATABASE_URL=…)`."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TRAMONTANE_DATA_DIR": str(data_dir), **settings}

    def run(self, *words: str, stdin: str = "") -> Ended:
        """A command from start to end, its output into files."""
        with _file() as given, _file() as out, _file() as err:
            given.write(stdin)
            given.seek(0)
            child = self._spawn(words, given.fileno(), out.fileno(), err.fileno())
            try:
                return Ended(child.join(PATIENCE), _all(out), _all(err))
            finally:
                child.send_signal(signal.SIGKILL)

    @contextmanager
    def start(self, *words: str, until: str = "") -> Iterator[Running]:
        """A command that stays, once it has printed a line with `until` in it. It is gone after the block."""
        ours, theirs = os.pipe()
        with open(ours) as out, _file() as nothing, _file() as err:
            child = self._spawn(words, nothing.fileno(), theirs, err.fileno())
            os.close(theirs)
            said = ""
            try:
                for line in out:
                    said += line
                    if until in line:
                        break
                else:
                    raise AssertionError(f"it ended: {_all(err)}")
                yield Running(child, said, out, err)
            finally:
                child.send_signal(signal.SIGKILL)
                child.join()

    def serve(self, *words: str) -> AbstractContextManager[Running]:
        """`tramontane serve` on a free port, ready."""
        return self.start("serve", "--port", "0", *words, until="  try")

    def run_in_terminal(self, *words: str, columns: int = 80, lines: int = 40) -> tuple[int, str]:
        """A command on a terminal of that width: its exit code, and what it drew, control characters included."""
        ours, theirs = pty.openpty()
        screen = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        child = self._spawn(words, theirs, theirs, theirs, **screen)
        os.close(theirs)
        drawn = b"".join(_blocks(ours))
        os.close(ours)
        return child.join(PATIENCE), drawn.decode()

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

    def _spawn(self, words: Sequence[str], stdin: int, stdout: int, stderr: int, **more: str) -> Child:
        command = ["-m", "tramontane", *words]
        return spawn(command, self.environment | more, stdin=stdin, stdout=stdout, stderr=stderr)


def _file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", newline="")


def _all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _blocks(terminal: int) -> Iterator[bytes]:
    while select.select([terminal], [], [], PATIENCE)[0]:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed
            return
        if not block:
            return
        yield block

"""Python processes that are born with everything imported: `spawn(["-m", "tramontane", …], environment)`.

Importing a server takes Python most of a second, and the tests start hundreds. Here a process that has done so once
forks each of them. They are as real as any other: their own pid, environment and files, killed and waited for alone.
What is claimed of the start itself, such as what a command imports, is tested with `sys.executable` instead.
"""

import asyncio
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, reduction
from typing import Any

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "tramontane.app",
        "tramontane.api",
        "tramontane.simulator",
        "tramontane.client",
        "tramontane.webhook_client",
        "tramontane.cli.program",
        "tramontane.cli.receiver",
        "rich.live",
        "rich.progress",
        "rich.table",
    ]
)


class Child:
    """A process that was started here."""

    def __init__(self, process: Any) -> None:
        self.pid: int = process.pid
        self._process = process
        self._asking = threading.Lock()

    @property
    def returncode(self) -> int | None:
        """As `subprocess` has it: negative for a signal, None while the process lives."""
        with self._asking:
            code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing happens to one that has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        return await asyncio.to_thread(self.join)

    def join(self, seconds: float | None = None) -> int:
        """The same for who has no loop. Raises TimeoutError."""
        # Not its own `join`, which takes the exit code away from whoever else asks at that time.
        if not connection.wait([self._process.sentinel], seconds):
            raise TimeoutError
        code = self.returncode
        assert code is not None
        return code


def spawn(words: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int) -> Child:
    """`python` with those words, which begin with `-m` and a module or are a script's path.

    The descriptors stay open on our side.
    """
    given = (list(words), dict(environment), [_Descriptor(number) for number in (stdin, stdout, stderr)])
    process = _FORKING.Process(target=_be, args=given)
    process.start()
    return Child(process)


class _Descriptor:
    """A file descriptor on its way into a process that is being started."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._number),)


def _received(descriptor: Any) -> int:
    number: int = descriptor.detach()
    return number


def _be(words: list[str], environment: dict[str, str], descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()  # noqa: TID251 - the child's
    os.environ.update(environment)  # noqa: TID251
    # Not by returning: whoever forked us would leave without a last look at what was not closed or cannot be flushed.
    ctypes.pythonapi.Py_Exit(_code_of(words))


def _code_of(words: list[str]) -> int:
    try:
        _run(words)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter shows it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words[:]
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")

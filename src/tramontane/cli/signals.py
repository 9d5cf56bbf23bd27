"""Running a command on an event loop: Ctrl-C and SIGTERM end it cleanly, a second one ends it at once."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tramontane.cli.exits import INTERRUPTED

_T = TypeVar("_T")


class Stopped(Exception):
    """A signal has ended the command."""


class Signals:
    """What the running command knows of signals. The first one cancels its task, wherever that waits."""

    def __init__(self, task: "asyncio.Task[object]") -> None:
        self._task = task
        self._received = False

    def receive(self) -> None:
        """Take a signal."""
        if self._received:
            # The user insists. What is durable stays so; a Postgres of ours is found running by the next command.
            os._exit(INTERRUPTED)
        self._received = True
        self._task.cancel()

    async def wait(self) -> None:
        """Wait for the first signal, as the wish to end well: the blocks around this are left in peace."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not self._received:
                raise
            self._task.uncancel()

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received


def run(work: Callable[[Signals], Awaitable[_T]], *, server: bool = False) -> _T:
    """Run a command to its end. `server`: on uvloop, where there is one.

    Raises Stopped when a signal has cancelled it.
    """
    with asyncio.Runner(loop_factory=_fast_loop() if server else None) as runner:
        return runner.run(_signalled(work))


async def _signalled(work: Callable[[Signals], Awaitable[_T]]) -> _T:
    task = asyncio.current_task()
    assert task is not None
    signals = Signals(task)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.receive)
    try:
        return await work(signals)
    except asyncio.CancelledError:
        if signals.received:
            raise Stopped from None
        raise


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

"""What a batch shows: the first answer as it comes, how many have ended, and in the end the table."""

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tramontane.cli import exits, screen

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID

    from tramontane.cli.receiver import Arrival

_INDENT: Final = "  "


class View:
    """Shows nothing: for JSON, and what the others begin with."""

    def text(self, piece: str) -> None:
        """A piece of the first answer."""

    def text_ends(self) -> None:
        """The first answer is complete."""

    def advance(self) -> None:
        """One more job has ended."""

    def close(self) -> None:
        """Leave the screen in order."""


class _Pipe(View):
    """No terminal: the first answer as it comes, without a single control character."""

    def __init__(self, first: str | None) -> None:
        self._line_open = False
        if first is not None:
            screen.say(f"{screen.cut(first)}\n")

    def text(self, piece: str) -> None:
        screen.stream(piece)
        self._line_open = not piece.endswith("\n")

    def text_ends(self) -> None:
        screen.say("\n" if self._line_open else "")


class _Terminal(View):
    """A bar below and, above it, the lines of the first answer; only the last line and the bar are drawn again."""

    def __init__(self, live: "Live", bar: "Progress", task: "TaskID", first: str | None) -> None:
        self._live, self._bar, self._task = live, bar, task
        self._line = ""
        if first is not None:
            from rich.text import Text

            live.console.print(Text(screen.cut(first, live.console.width - 1) + "\n", style="bold"))

    def text(self, piece: str) -> None:
        *whole, self._line = self._wrapped(self._line + screen.plain(piece))
        for line in whole:
            self._print(line)
        self._draw()

    def text_ends(self) -> None:
        if self._line:
            self._print(self._line)
        self._line = ""
        self._print("")
        self._draw()

    def advance(self) -> None:
        self._bar.advance(self._task)
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def _wrapped(self, text: str) -> list[str]:
        """Lines that fit. The last one may still grow."""
        width = max(20, self._live.console.width - len(_INDENT) - 1)
        lines: list[str] = []
        for paragraph in text.expandtabs(4).split("\n"):
            lines += textwrap.wrap(paragraph, width, drop_whitespace=True) or [""]
        trailing = len(text) - len(text.rstrip(" "))
        lines[-1] += " " * trailing if lines[-1] else ""
        return lines

    def _print(self, line: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(f"{_INDENT}{line}"))

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        shown = [Text(f"{_INDENT}{self._line}")] if self._line else []
        self._live.update(Group(*shown, Text(), self._bar))


@contextmanager
def open_view(total: int, *, first: str | None, quiet: bool) -> Iterator[View]:
    """What fits where standard output goes. `first`: the prompt whose answer will be shown."""
    if quiet:
        yield View()
        return
    if not sys.stdout.isatty():
        yield _Pipe(first)
        return
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = screen.console()
    bar = Progress(TextColumn("jobs"), BarColumn(bar_width=40), MofNCompleteColumn(), TimeElapsedColumn(), console=out)
    task = bar.add_task("jobs", total=total)
    with Live(bar, console=out, refresh_per_second=20, transient=True) as live:
        yield _Terminal(live, bar, task, first)


def show_results(rows: Sequence[Mapping[str, Any]], wall: float) -> None:
    """The table of all jobs, and the line below it."""
    shown = screen.table(
        "#", "prompt", "answer", "in/out", "wait", "run", "try", "status",
        right=("#", "in/out", "wait", "run", "try"), wide=("prompt", "answer"),
    )  # fmt: skip
    for number, row in enumerate(rows, 1):
        usage = row["usage"] or {}
        shown.add_row(
            str(number),
            screen.cut(row["prompt"]),
            screen.cut(_answer(row)),
            f"{usage.get('prompt_tokens', '-')}/{usage.get('completion_tokens', '-')}",
            _seconds(row["createdAt"], row["startedAt"]),
            _seconds(row["startedAt"], row["completedAt"]),
            str(row["attempt"]),
            screen.word(row["status"]),
        )
    screen.show(shown)
    screen.say(_totals(rows, wall))


def show_webhooks(came: Sequence["Arrival"], missing: int) -> None:
    """The line about what came to the receiver of this process, and one about what did not."""
    if came:
        events = ", ".join(sorted({arrival.webhook.event for arrival in came}))
        after = median(arrival.seconds_after_end for arrival in came)
        screen.say(
            f"{screen.count(len(came), 'webhook')}: {events}, signature ✓, arrived {after * 1000:.0f} ms after the end"
        )
    if missing:
        exits.report(f"{screen.count(missing, 'webhook')} did not arrive")


def _answer(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return f"{row['error']['code']}: {row['error']['message']}"
    return str((row["result"] or {}).get("content", ""))


def _seconds(start: str | None, end: str | None) -> str:
    seconds = screen.between(start, end)
    return "-" if seconds is None else f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.0f}s"


def _totals(rows: Sequence[Mapping[str, Any]], wall: float) -> str:
    states: dict[str, int] = {}
    for row in rows:
        states[row["status"]] = states.get(row["status"], 0) + 1
    told, heard = (
        sum((row["usage"] or {}).get(name, 0) for row in rows) for name in ("prompt_tokens", "completion_tokens")
    )
    ended = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"{screen.count(len(rows), 'job')}: {ended}; {told} tokens in, {heard} out; {screen.span(wall)}"

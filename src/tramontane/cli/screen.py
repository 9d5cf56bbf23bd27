"""What the terminal shows: tables, times, text without control characters. Rich is loaded by what needs it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tramontane.ids import utc_now

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: What a model or a server says may not steer the terminal: C0 and C1 controls but tab and line feed.
_CONTROLS: Final = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")

#: Of large numbers.
_UNITS: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))

_COLOURS: Final = {
    "completed": "green",
    "succeeded": "green",
    "active": "green",
    "failed": "red",
    "disabled": "red",
    "cancelled": "yellow",
    "superseded": "yellow",
    "paused": "yellow",
    "running": "cyan",
    "dispatched": "cyan",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}


def plain(text: str) -> str:
    """Text that is fit for a terminal, whoever wrote it."""
    return text.translate(_CONTROLS)


def say(text: str = "") -> None:
    """A line on standard output."""
    print(plain(text), flush=True)


def stream(text: str) -> None:
    """A piece of an answer on standard output, now. A program that reads it gets it untouched."""
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line beside the output: on standard error, and only for people who watch."""
    if sys.stderr.isatty():
        print(f"\033[2m{plain(text)}\033[0m", file=sys.stderr)


def warn(text: str) -> None:
    """A line on standard error about what was done all the same, for scripts too."""
    print(f"warning: {plain(text)}", file=sys.stderr)


def show_json(value: object) -> None:
    """A JSON document on a line of its own."""
    print(msgspec.json.encode(value).decode(), flush=True)


def console() -> "Console":
    """Standard output; without colours and control characters when it is no terminal."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def table(*columns: str, right: tuple[str, ...] = (), wide: tuple[str, ...] = ()) -> "Table":
    """An empty table. Columns in `right` hold numbers; those in `wide` share what room there is."""
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold",
        expand=bool(wide),
    )  # fmt: skip
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            ratio=1 if name in wide else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    return made


def show(rendered: object) -> None:
    """Something of Rich's on standard output; where that is no terminal, without blanks at the ends of lines."""
    out = console()
    if out.is_terminal:
        out.print(rendered)
        return
    with out.capture() as captured:
        out.print(rendered)
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="")


def word(state: str) -> Any:
    """A state in its colour."""
    from rich.text import Text

    return Text(state, style=_COLOURS.get(state, ""))


def cut(text: str, longest: int = 200) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(plain(text[: longest * 4]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def shorten(text: str, longest: int) -> str:
    """A name on one line, which may lose its middle: names are told apart by their ends, too."""
    line = cut(text)
    if len(line) <= longest:
        return line
    end = (longest - 1) // 2
    return f"{line[: longest - 1 - end]}…{line[len(line) - end :]}"


def short(number: int) -> str:
    """`9999`, `38k`, `1.2M`, `2.5B`: never more than there is."""
    if number < 10_000:
        return str(number)
    size, unit = next(one for one in _UNITS if number >= one[0])
    return f"{number // size}{unit}" if number >= 10 * size else f"{number * 10 // size / 10:g}{unit}"


def span(seconds: float | None) -> str:
    """`0.04 s`, `12.3 s`, `4 min`, `3 h`, `2 d`; a dash for None."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / (60 if unit == 'min' else size):.0f} {unit}"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def age(seconds: float) -> str:
    """The same, in whole units."""
    return f"{seconds:.0f} s" if seconds < 120 else span(seconds)


def clock(moment: datetime) -> str:
    """`13:12:49`, as the clock on the wall has it; with its day when that is not today's."""
    here, today = moment.astimezone(), utc_now().astimezone().date()
    return here.strftime("%H:%M:%S" if here.date() == today else "%m-%d %H:%M:%S")


def between(start: str | None, end: str | None) -> float | None:
    """Seconds between two times of our JSON, None while one is missing."""
    if start is None or end is None:
        return None
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal that something takes a while."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False).status(text, spinner="dots"):
        yield

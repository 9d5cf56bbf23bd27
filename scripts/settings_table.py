"""Write docs/settings.md from the settings themselves: `python scripts/settings_table.py`."""

import dataclasses
import re
import typing
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

from tramontane.cli.program import program
from tramontane.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

_HEAD = """\
# Settings

A flag wins over its environment variable, and that over the default. An empty variable counts as none. Durations are
seconds, or say their unit: `250ms`, `30s`, `5m`, `2h`, `1d`. A wrong value ends the command with one line that names
the flag or the variable; the value of a secret is never shown.

This page is made from `src/tramontane/settings.py` by `scripts/settings_table.py`.

| variable | flag | default | what it sets |
| -------- | ---- | ------- | ------------ |
"""


def render() -> str:
    """The page."""
    flags = _flags()
    return _HEAD + "".join(_row(setting, flags) for setting in dataclasses.fields(Settings))


def _row(setting: "dataclasses.Field[typing.Any]", flags: dict[str, str]) -> str:
    variable, about = setting.metadata["env"], setting.metadata["help"]
    secret = " (secret)" if setting.metadata["secret"] else ""
    return f"| `{variable}` | {flags.get(variable, '')} | {_shown(setting.default)} | {about}{secret} |\n"


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    number = f"{default:.10g}" if isinstance(default, float) else str(default)
    return f"`{number}`" if number else ""


def _flags() -> dict[str, str]:
    """The flag of each variable that has one, as the help of the commands has it: `about [VARIABLE; default]`."""
    found: dict[str, str] = {}
    group = typing.cast("TyperGroup", get_command(program()))
    for command in group.commands.values():
        for option in command.params:
            if named := re.search(r"\[([A-Z_]+)", getattr(option, "help", "") or ""):
                found.setdefault(named[1], f"`{option.opts[0]}`")
    return found


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")

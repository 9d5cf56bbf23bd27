"""`python -m bench [NAME …]`: all figures, or those of some modules. Benches run alone, one after the other."""

import importlib
import platform
import sys
from datetime import UTC, datetime

import uvloop

_MODULES = ("upstream", "relay", "engine", "streams", "process", "webhooks", "fleet")


def main() -> None:
    """Run what is asked for and print a table."""
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    )
    for name in sys.argv[1:] or _MODULES:
        figures: dict[str, float] = uvloop.run(importlib.import_module(f"bench.{name}").run())
        print(f"\n{name}")
        for figure, value in figures.items():
            print(f"  {figure:52} {value:10.2f}")


main()

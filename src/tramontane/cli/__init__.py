"""The command line: `tramontane`.

One module per family of commands. A command reads its options, calls one thing, shows what came, and returns its exit
code; errors of ours end it in one line. What is heavy is imported by the commands that need it, so that the others
start at once.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    from tramontane.cli.program import run

    sys.exit(run(arguments))

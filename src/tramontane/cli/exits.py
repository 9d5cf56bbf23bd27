"""How a command ends: its exit code, and what it says on standard error when something is wrong."""

import sys
from typing import Final

from tramontane.cli.screen import plain
from tramontane.errors import ConfigurationError, Conflict, InvalidInput, NotFound, TramontaneError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
INTERRUPTED: Final = 130

#: For the help of the whole program.
TABLE: Final = """\b
Exit codes:
  0    done
  1    the work failed: a job, Mistral, a webhook, a check of `doctor`
  2    the command, a setting or a file is wrong, or no server answers
  3    no such job, endpoint or delivery
  4    its present state forbids it
  130  interrupted"""

_CODES: Final = ((NotFound, NOT_FOUND), (Conflict, CONFLICT), (InvalidInput, USAGE), (ConfigurationError, USAGE))


def code_of(error: TramontaneError) -> int:
    """The exit code of an error of ours."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def report(message: str) -> None:
    """Say in one line what is wrong."""
    print(f"error: {' '.join(plain(message).split())}", file=sys.stderr)


def find_ours(error: BaseException) -> TramontaneError | None:
    """The error of ours that was raised, also when it came in a group with others."""
    if isinstance(error, TramontaneError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((ours for each in error.exceptions if (ours := find_ours(each))), None)
    return None

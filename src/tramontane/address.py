"""Where a running server is: `server.json` in its data directory, written by `serve` and read by the commands."""

import json
import os
from pathlib import Path

_NAME = "server.json"


def write_address(directory: Path, url: str) -> bool:
    """Tell the commands of this machine where the server is. False when a living process is already named there."""
    owner = _read(directory)
    if owner is not None and owner[1] != os.getpid() and _lives(owner[1]):
        return False
    temporary = directory / f"{_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
    temporary.replace(directory / _NAME)
    return True


def read_address(directory: Path) -> str | None:
    """The URL of the server that runs on this directory, if one does."""
    owner = _read(directory)
    return owner[0] if owner is not None and _lives(owner[1]) else None


def remove_address(directory: Path) -> None:
    """Take our own address back."""
    owner = _read(directory)
    if owner is not None and owner[1] == os.getpid():
        (directory / _NAME).unlink(missing_ok=True)


def _read(directory: Path) -> tuple[str, int] | None:
    try:
        found = json.loads((directory / _NAME).read_text())
        return str(found["url"]), int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

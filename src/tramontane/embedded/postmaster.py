"""What `postmaster.pid` says, and whether it is true.

A pid outlives its process: in a container small numbers come back at once. So a number counts only for a process
that is a living Postgres on the very directory, and no other process ever gets a signal of ours.
"""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tramontane.telemetry import log

_LOGGER = logging.getLogger("tramontane.embedded")


def find_postmaster(cluster: Path) -> int | None:
    """The pid of the Postgres that runs on `cluster`, None when none does."""
    pid = _written(cluster / "postmaster.pid")
    return pid if pid is not None and is_postmaster(pid, cluster) else None


def is_postmaster(pid: int, cluster: Path) -> bool:
    """Whether `pid` is a living Postgres on `cluster`: no zombie, and no pid used again."""
    if not sys.platform.startswith("linux"):
        ps = ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)]
        shown = subprocess.run(ps, capture_output=True, check=False).stdout  # noqa: S603 - no shell
        return os.fsencode(f"-D {cluster}") in shown
    process = Path(f"/proc/{pid}")
    argv = [b""]
    try:
        argv = (process / "cmdline").read_bytes().split(b"\0")  # empty for a zombie
        return argv[0].endswith(b"/postgres") and os.path.samefile(process / "cwd", cluster)
    except PermissionError:  # root in a container has no CAP_SYS_PTRACE
        return os.fsencode(cluster) in argv
    except OSError:
        return False


def says_ready(cluster: Path) -> bool:
    """Whether Postgres has noted that it takes connections."""
    with suppress(FileNotFoundError):
        return b"\nready" in (cluster / "postmaster.pid").read_bytes()
    return False


def forget_foreign_pid(file: Path, cluster: Path) -> None:
    """Remove a pid file, of the cluster or of the socket, whose number belongs to another process by now.

    Postgres would take that one for a Postgres and refuse to start; it does so for a zombie, too. The number of a dead
    process stays, since Postgres finds its orphans by it.
    """
    pid = _written(file)
    if pid is None or is_postmaster(pid, cluster):
        return
    with suppress(PermissionError):  # somebody else's process lives, too
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
    file.unlink(missing_ok=True)
    log(_LOGGER, logging.INFO, "postgres.foreign_pid", pid=pid, file=file)


def _written(file: Path) -> int | None:
    try:
        pid = int(file.read_bytes().split(b"\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return pid if pid > 0 else None

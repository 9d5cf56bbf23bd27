"""Where an embedded Postgres lives: the directory asked for or, for root, one that Postgres's account can reach."""

import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tramontane.embedded.account import Account, account_for, name_of, succeeds
from tramontane.errors import ConfigurationError
from tramontane.telemetry import log

PORT = 5432  # part of the socket's name; nothing listens on TCP
# Where root keeps what the account of Postgres could not reach otherwise. Both outlive a reboot.
SHELVES = (Path("/var/lib/tramontane"), Path("/var/tmp/tramontane"))  # noqa: S108 - ownership is checked
_LONGEST_SOCKET = 100  # bytes; the kernel takes 103 on macOS, 107 on Linux
_LOGGER = logging.getLogger("tramontane.embedded")


@dataclass(frozen=True)
class Home:
    """The directory of one server."""

    path: Path
    #: Whom Postgres runs as; None: as ourselves.
    account: Account | None

    @property
    def cluster(self) -> Path:
        """Postgres's own data directory."""
        return self.path / "cluster"

    @property
    def log(self) -> Path:
        """What Postgres says."""
        return self.path / "server.log"

    @property
    def sockets(self) -> Path:
        """The directory of the socket: `path` itself, unless that is longer than a socket's may be."""
        fits = len(os.fsencode(self.path / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET
        if fits and "," not in str(self.path):  # in a URL that parts two hosts
            return self.path
        # Not TMPDIR, which two users of one directory may have set differently.
        return Path("/tmp") / f"tramontane-{_key(self.path)}"  # noqa: S108 - ownership is checked

    def open_lock(self, name: str) -> int:
        """A file descriptor to lock by; no child inherits it."""
        lock = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if self.account:
            os.fchown(lock, self.account.uid, self.account.gid)
        return lock


def find_home(data_dir: Path) -> Home:
    """The home that belongs to `data_dir`, made when there is none, closed to everybody else.

    Root gets one elsewhere when Postgres's account cannot reach `data_dir`: no mode of a parent is ever changed.
    Raises ConfigurationError for a directory that is somebody else's or holds something else.
    """
    data_dir = data_dir.resolve()
    if os.geteuid() != 0:
        return _settle(Home(data_dir, None))
    for shelf in SHELVES:
        elsewhere = shelf / _key(data_dir)
        if _is_ours(shelf) and elsewhere.is_dir():
            return _settle(Home(elsewhere, account_for(elsewhere)))
    account = account_for(data_dir)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if succeeds(["/bin/sh", "-c", 'cd "$0"', str(data_dir.parent)], account):
        return _settle(Home(data_dir, account))
    if (data_dir / "cluster").exists():
        raise ConfigurationError(f"{data_dir} belongs to {account.name}, who can no longer reach it: open its parents")
    return _settle_elsewhere(data_dir, account)


def find_shelf() -> Path:
    """A directory of root's that everybody can look into."""
    for shelf in SHELVES:
        with suppress(OSError):
            shelf.mkdir(mode=0o755)
            shelf.chmod(0o755)  # whatever the umask
        if _is_ours(shelf):
            return shelf
    raise ConfigurationError(
        f"no directory of root's alone can be made as {' or '.join(map(str, SHELVES))}: use a data directory that "
        "other accounts can reach, run as another user, or set DATABASE_URL"
    )


def _settle_elsewhere(data_dir: Path, account: Account) -> Home:
    home = _settle(Home(find_shelf() / _key(data_dir), account))
    data_dir.mkdir(mode=0o700, exist_ok=True)
    (data_dir / "where-is-it.txt").write_text(
        f"Postgres does not run as root, and {account.name} cannot reach this directory.\nThe data is in {home.path}\n"
    )
    log(_LOGGER, logging.INFO, "postgres.elsewhere", data_dir=data_dir, home=home.path, account=account.name)
    return home


def check_path(path: Path) -> None:
    """Raise ConfigurationError for the characters that pg_ctl would hand to a shell unquoted."""
    if set(str(path)) & set('"$`\\\n'):
        raise ConfigurationError(f'{str(path)!r} has one of " $ ` \\ in it, which Postgres cannot start from')


def _settle(home: Home) -> Home:
    check_path(home.path)
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(home.path, home.account)
    if any(home.path.iterdir()) and not (home.path / "start.lock").exists():
        raise ConfigurationError(f"{home.path} is not empty and holds no Postgres of ours: choose another directory")
    _close_to_others(home.path, home.account)
    if home.sockets != home.path:
        home.sockets.mkdir(mode=0o700, exist_ok=True)
        _check_owner(home.sockets, home.account)
        _close_to_others(home.sockets, home.account)
    return home


def _check_owner(path: Path, account: Account | None) -> None:
    found = path.lstat()
    allowed = {os.geteuid(), account.uid if account else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in allowed:
        owner = name_of(found.st_uid)
        raise ConfigurationError(
            f"{path} belongs to {owner}: run as {owner}, as root if that is how it was started, or choose another "
            "directory by TRAMONTANE_DATA_DIR"
        )


def _close_to_others(path: Path, account: Account | None) -> None:
    if account:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    path.chmod(0o700)


def _is_ours(shelf: Path) -> bool:
    """Whether nobody but ourselves can have put anything there."""
    try:
        found = shelf.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]

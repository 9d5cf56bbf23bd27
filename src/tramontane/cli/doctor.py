"""`tramontane doctor`: what could keep Tramontane from working here, and how to mend it."""

import asyncio
import dataclasses
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from tramontane import telemetry
from tramontane.address import read_address
from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, Simulate, settings_from
from tramontane.cli.reach import simulated
from tramontane.cli.signals import run
from tramontane.errors import ConfigurationError, MistralError, TramontaneError, Unauthorized
from tramontane.ids import utc_now
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.database import Database

#: Free disk space in bytes: a warning below, and what a small cluster needs at the least.
_ROOMY: Final = 2 * 2**30
_TIGHT: Final = 200 * 2**20
#: Seconds between our clock and the database's: heartbeats and start times are compared across the two.
_SKEW: Final = 2.0
#: How far back models are looked for that have no price, and how many of them are named.
_RECENTLY: Final = timedelta(days=7)
_FEW: Final = 3
#: Seconds that Mistral and a server get to answer.
_ANSWER: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def doctor(data_dir: DataDir = None, simulator: Simulate = False, json: Json = False) -> int:
    """Check everything that has to be right here."""
    telemetry.configure("error")
    settings = settings_from(data_dir=data_dir)
    with screen.waiting("looking"):
        checks = run(lambda _: _examine(settings, simulator=simulator))
    if json:
        screen.show_json({"checks": [dataclasses.asdict(check) for check in checks]})
    else:
        _show(checks)
    return exits.FAILED if any(check.status == "fail" for check in checks) else exits.OK


async def _examine(settings: Settings, *, simulator: bool) -> list[Check]:
    checks = [_python(), _directory(settings.data_dir), _space(settings.data_dir)]
    checks += await _database(settings)
    if simulator:
        async with simulated(settings) as pretended:
            checks.append(await _mistral(pretended))
    else:
        checks += [_key(settings), await _mistral(settings)]
    checks.append(await _server(settings))
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "win32":
        return Check("python", "warn", found, "the embedded Postgres does not run on Windows: set DATABASE_URL")
    return Check("python", "ok", found)


def _directory(path: Path) -> Check:
    place = _existing(path)
    where = str(path.absolute())
    if not place.is_dir():
        return Check("data directory", "fail", f"{place} is no directory", "choose another by TRAMONTANE_DATA_DIR")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("data directory", "fail", f"{where} is not writable", "choose another by TRAMONTANE_DATA_DIR")
    return Check("data directory", "ok", where if path.exists() else f"{where} (will be made)")


def _space(path: Path) -> Check:
    free = shutil.disk_usage(_existing(path)).free
    found = f"{free / 2**30:.1f} GiB free"
    if free >= _ROOMY:
        return Check("disk", "ok", found)
    return Check("disk", "warn" if free >= _TIGHT else "fail", found, "make room, or move the data directory")


async def _database(settings: Settings) -> list[Check]:
    if not settings.database_url and not (settings.data_dir / "postgres").exists():
        return [Check("database", "ok", "embedded Postgres, made by the first start")]
    from tramontane.database import open_database, status

    try:
        async with open_database(settings, connections=2) as database:
            version = str(await database.pool.fetchval("SHOW server_version"))
            reached = Check("database", "ok", f"Postgres {version.split(maxsplit=1)[0]}, {database.describe}")
            skew = await _skew(database.pool)
            _, pending = await status(database)
            money = [] if pending else [await _prices(settings, database)]
    except TramontaneError as error:
        return [Check("database", "fail", error.message, "see the message")]
    return [reached, _migrations(pending), skew, *money]


async def _prices(settings: Settings, database: "Database") -> Check:
    """Budgets of money: they count what has a price, and nothing else."""
    from tramontane.app import price_table
    from tramontane.store import TenantStore

    now, tenants = utc_now(), TenantStore(database.pool)
    try:
        table = price_table(settings)
    except ConfigurationError as error:
        return Check("prices", "fail", error.message, "correct the file, or TRAMONTANE_PRICES")
    budgets = sum(bool(tenant.daily_cost) for tenant in await tenants.list())
    if budgets and not settings.prices:
        found = f"none, and {screen.count(budgets, 'tenant')} with a daily cost, which counts nothing without them"
        return Check("prices", "warn", found, "set TRAMONTANE_PRICES for every process")
    used = await tenants.models_for_money((now - _RECENTLY).date()) if budgets else []
    if missing := [model for model in used if not table.knows(model, now)]:
        more = f" and {len(missing) - _FEW} more" if len(missing) > _FEW else ""
        found = f"no price for {', '.join(missing[:_FEW])}{more}"
        return Check("prices", "warn", found, "add it to the table: daily costs do not count it")
    return Check("prices", "ok", settings.prices or "none; no tenant has a daily cost")


def _migrations(pending: list[str]) -> Check:
    if pending:
        return Check("migrations", "warn", f"{len(pending)} to apply", "tramontane db migrate, or just start")
    return Check("migrations", "ok", "current")


async def _skew(pool: Any) -> Check:
    before = utc_now()
    theirs = await pool.fetchval("SELECT clock_timestamp()")
    after = utc_now()
    skew = (theirs - before - (after - before) / 2).total_seconds()
    found = f"{skew:+.3f} s to the database"
    if abs(skew) <= _SKEW:
        return Check("clock", "ok", found)
    return Check("clock", "fail", found, "set both clocks by NTP: start times and heartbeats depend on them")


def _key(settings: Settings) -> Check:
    if settings.mistral_api_key:
        return Check("key", "ok", "MISTRAL_API_KEY is set")
    return Check("key", "warn", "MISTRAL_API_KEY is not set", "export it; --simulator does without")


async def _mistral(settings: Settings) -> Check:
    from tramontane.mistral import MistralClient

    began = monotonic()
    try:
        async with asyncio.timeout(_ANSWER), MistralClient.from_settings(settings) as client:
            await client.models()
    except TimeoutError:
        return _unreachable(settings, f"does not answer within {_ANSWER:g} s")
    except Unauthorized:
        if settings.mistral_api_key:
            return Check("mistral", "fail", f"{settings.mistral_server_url} refuses the key", "use a key that is valid")
    except MistralError as error:
        return _unreachable(settings, error.message)
    except TramontaneError as error:
        return Check("mistral", "fail", error.message, "correct MISTRAL_API_KEY or MISTRAL_SERVER_URL")
    return Check("mistral", "ok", f"{settings.mistral_server_url} answers in {screen.span(monotonic() - began)}")


def _unreachable(settings: Settings, reason: str) -> Check:
    # Without a key nobody means to use it.
    status: Literal["warn", "fail"] = "fail" if settings.mistral_api_key else "warn"
    return Check(
        "mistral", status, f"{settings.mistral_server_url}: {reason}", "check the network; --simulator does without"
    )


async def _server(settings: Settings) -> Check:
    url = settings.url or read_address(settings.data_dir)
    if url is None:
        return Check("server", "ok", "none runs; commands open the engine themselves")
    from tramontane.client import ApiClient

    async with ApiClient(url) as client:
        if await client.answers():
            return Check("server", "ok", url)
    if settings.url:
        return Check("server", "fail", f"{url} does not answer", "start it, or correct TRAMONTANE_URL")
    return Check("server", "warn", f"{url} does not answer", "restart it if it hangs")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _show(checks: list[Check]) -> None:
    shown = screen.table("check", "", "found", wide=("found",))
    shown.columns[2].no_wrap = False
    shown.columns[2].overflow = "fold"
    for check in checks:
        found = f"{check.found}\n→ {check.fix}" if check.fix else check.found
        shown.add_row(check.name, screen.word(check.status), screen.plain(found))
    screen.show(shown)

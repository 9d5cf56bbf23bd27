"""`tramontane tenants …`: what each tenant may use. They work on the database itself, as `tramontane keys` does."""

import dataclasses
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane.cli import exits, screen
from tramontane.cli.keys import with_database
from tramontane.cli.options import DataDir, Json, settings_from
from tramontane.errors import InvalidInput
from tramontane.ids import utc_now
from tramontane.keys import tenant_named
from tramontane.tenants import HEAVIEST, LIGHTEST, Tenant

if TYPE_CHECKING:
    from tramontane.database import Database

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="a tenant's name")]

_NONE: Final = "none"


def _limit(about: str, metavar: str = "N") -> Any:
    return typer.Option(metavar=metavar, help=f"{about}; `none`: no limit")


def show_all(data_dir: DataDir = None, json: Json = False) -> int:
    """List tenants: whoever has a key, a job, or something set."""
    tenants = with_database(data_dir, _list)
    if json:
        screen.show_json({"tenants": [shape_of(tenant) for tenant in tenants]})
        return exits.OK
    shown = screen.table(
        "tenant", "weight", "at a time", "priority", "waiting", "tokens/day", "cost/day", "Mistral key"
    )
    for one in tenants:
        most = (one.concurrency, one.top_priority, one.queue_limit, one.daily_tokens, one.daily_cost)
        limits = ["-" if limit is None else str(limit) for limit in most]
        shown.add_row(one.id, f"{one.weight:g}", *limits, "own" if one.mistral_key else "-")
    screen.show(shown)
    return exits.OK


def show(tenant: TenantId, data_dir: DataDir = None, json: Json = False) -> int:
    """Show what is set for a tenant."""
    name = tenant_named("TENANT", tenant)
    return _show(with_database(data_dir, lambda database: _get(database, name)), json)


def change(
    tenant: TenantId,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="for you")] = None,
    weight: Annotated[str | None, typer.Option(metavar="X", help="its part of the fleet, beside others'; 1")] = None,
    concurrency: Annotated[str | None, _limit("jobs of it that run at a time")] = None,
    top_priority: Annotated[str | None, _limit("highest priority that its jobs may ask for")] = None,
    queue_limit: Annotated[str | None, _limit("jobs of it that may wait")] = None,
    daily_tokens: Annotated[str | None, _limit("tokens a day (UTC)")] = None,
    daily_cost: Annotated[str | None, _limit("money a day (UTC), in the currency of the prices", "X")] = None,
    on_budget: Annotated[
        str | None, typer.Option(metavar="WORD", help="jobs beyond that wait for tomorrow (`queue`), or `fail`")
    ] = None,
    mistral_key: Annotated[
        str | None,
        typer.Option(metavar="-", help="its own key for Mistral, from standard input; `none`: the server's"),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Set what is given, and show the tenant as it is then."""
    name = tenant_named("TENANT", tenant)
    given = {
        "weight": _weight(weight),
        "concurrency": _whole("--concurrency", concurrency, 1),
        "top_priority": _whole("--top-priority", top_priority, 0),
        "queue_limit": _whole("--queue-limit", queue_limit, 0),
        "daily_tokens": _whole("--daily-tokens", daily_tokens, 0, most=2**53),
        "daily_cost": _money(daily_cost),
        "on_budget": _word(on_budget),
        "mistral_key": _key(mistral_key),
    }
    changes: dict[str, Any] = {
        field: None if value == _NONE else value for field, value in given.items() if value is not None
    }
    if description is not None:
        changes["description"] = description
    if not changes:
        raise InvalidInput("", "nothing to set: `tramontane tenants set --help` lists what there is")
    changed = with_database(data_dir, lambda database: _set(database, data_dir, name, changes))
    if changed.daily_cost and not settings_from(data_dir=data_dir).prices:
        screen.warn("--daily-cost: counts nothing without a table of prices: set TRAMONTANE_PRICES for every process")
    return _show(changed, json)


def shape_of(tenant: Tenant) -> dict[str, Any]:
    """A tenant as JSON shows it. Of a Mistral key of its own it says that there is one."""
    return {
        "tenant": tenant.id,
        "description": tenant.description,
        "weight": tenant.weight,
        "concurrency": tenant.concurrency,
        "topPriority": tenant.top_priority,
        "queueLimit": tenant.queue_limit,
        "dailyTokens": tenant.daily_tokens,
        "dailyCost": None if tenant.daily_cost is None else format(tenant.daily_cost, "f"),
        "onBudget": tenant.on_budget,
        "mistralKey": tenant.mistral_key is not None,
    }


def _show(tenant: Tenant, json: bool) -> int:
    if json:
        screen.show_json(shape_of(tenant))
        return exits.OK
    shown = screen.table("", "", wide=("",))
    for name, value in shape_of(tenant).items():
        known = {None: "-", True: "own", False: "the server's"}
        shown.add_row(name, known[value] if value is None or isinstance(value, bool) else str(value))
    screen.show(shown)
    return exits.OK


async def _list(database: "Database") -> list[Tenant]:
    from tramontane.store import TenantStore

    return await TenantStore(database.pool).list()


async def _get(database: "Database", name: str) -> Tenant:
    from tramontane.store import TenantStore

    return await TenantStore(database.pool).get(name)


async def _set(database: "Database", data_dir: str | None, name: str, changes: dict[str, Any]) -> Tenant:
    from tramontane.store import EncryptionStore, TenantStore

    if key := changes.get("mistral_key"):
        from tramontane.vault import open_vault

        vault = open_vault(settings_from(data_dir=data_dir))
        await EncryptionStore(database.pool).acquaint(vault.fingerprints)
        changes["mistral_key"] = vault.seal(key)
    return await TenantStore(database.pool).change(
        name, lambda tenant: dataclasses.replace(tenant, **changes), utc_now()
    )


def _whole(flag: str, text: str | None, least: int, *, most: int = 2**31 - 1) -> int | str | None:
    if text is None or text == _NONE:
        return text
    if not (text.isascii() and text.isdigit() and len(text) < 20) or not least <= int(text) <= most:
        raise InvalidInput(flag, f"must be a whole number from {least} on, or `none`, not {text!r}")
    return int(text)


def _weight(text: str | None) -> float | None:
    try:
        weight = None if text is None else float(text)
        if weight is None or LIGHTEST <= weight <= HEAVIEST:
            return weight
    except ValueError:
        pass
    raise InvalidInput("--weight", f"must be a number from {LIGHTEST:g} to {HEAVIEST:g}, not {text!r}")


def _money(text: str | None) -> Decimal | str | None:
    if text is None or text == _NONE:
        return text
    try:
        money = Decimal(text)
        if money.is_finite() and 0 <= money < 10**12:
            return money
    except InvalidOperation:
        pass
    raise InvalidInput("--daily-cost", f"must be an amount such as 12.50, or `none`, not {text!r}")


def _word(text: str | None) -> str | None:
    if text not in (None, "queue", "fail"):
        raise InvalidInput("--on-budget", f"must be queue or fail, not {text!r}")
    return text


def _key(text: str | None) -> str | None:
    """The Mistral key on standard input. It is never an argument: those are shown by `ps`, and kept by shells."""
    if text is None or text == _NONE:
        return text
    if text != "-":
        raise InvalidInput("--mistral-key", "takes `-`, and the key on standard input, where no history keeps it")
    key = typer.get_text_stream("stdin").read().strip()
    if not (key and key != _NONE and key.isascii() and key.isprintable()):
        raise InvalidInput("--mistral-key", "standard input holds no key")
    return key


COMMANDS: Final[dict[str, Callable[..., int]]] = {"list": show_all, "show": show, "set": change}

"""`tramontane keys …`: API keys. They work on the database itself: the first key cannot come over HTTP."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from tramontane import telemetry
from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, settings_from, words
from tramontane.cli.signals import run
from tramontane.errors import InvalidInput
from tramontane.ids import iso, new_id, read_id, show_id, utc_now
from tramontane.keys import USUAL_SCOPES, ApiKey, hash_of, new_key, tenant_named
from tramontane.models import DEFAULT_TENANT, Scope
from tramontane.settings import Settings, seconds

if TYPE_CHECKING:
    from tramontane.database import Database

T = TypeVar("T")

TenantName = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="whose")]


def create(
    name: Annotated[str, typer.Option(metavar="NAME", help="what you call it, to know it again")] = "",
    tenant: TenantName = None,
    scopes: Annotated[
        str | None, typer.Option(metavar="LIST", help="of submit, read and admin, by comma [submit,read]")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="DURATION", help='after that it opens nothing: "90d"')] = None,
    operator: Annotated[bool, typer.Option("--operator", help="may everything, for every tenant")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Make a key, and show it this once. From the first one on, servers ask for keys."""
    if operator and (tenant is not None or scopes is not None):
        raise InvalidInput("--operator", "may everything for every tenant: leave --tenant and --scopes out")
    now = utc_now()
    key = ApiKey(
        tenant=DEFAULT_TENANT if tenant is None else tenant_named("--tenant", tenant),
        id=new_id(),
        name=_name(name),
        scopes=frozenset({Scope.OPERATOR}) if operator else _scopes(scopes),
        created_at=now,
        expires_at=None if expires is None else now + _span(expires),
    )
    secret = new_key()
    with_database(data_dir, lambda database: _add(database, key, secret))
    if json:
        screen.show_json({**shape_of(key), "key": secret})
    else:
        screen.say(f"{show_id('key', key.id)}  {_described(key)}")
        screen.say(secret)
        screen.note("it is shown this once: what is kept of it cannot be turned back")
    return exits.OK


def show_all(tenant: TenantName = None, data_dir: DataDir = None, json: Json = False) -> int:
    """List keys, oldest first. What is shown opens nothing."""
    name = None if tenant is None else tenant_named("--tenant", tenant)
    keys = with_database(data_dir, lambda database: _list(database, name))
    if json:
        screen.show_json({"keys": [shape_of(key) for key in keys]})
        return exits.OK
    shown, now = screen.table("key", "tenant", "name", "scopes", "state", "used", wide=("name", "scopes")), utc_now()
    shown.columns[0].min_width = len(show_id("key", new_id()))  # by which it is revoked
    for key in keys:
        about = (show_id("key", key.id), key.tenant, screen.cut(key.name), ",".join(sorted(key.scopes)))
        shown.add_row(*about, screen.word(key.state(now)), screen.clock(key.used_at) if key.used_at else "-")
    screen.show(shown)
    return exits.OK


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="a key's id, `key_…`: not the key itself")],
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Make a key worthless, in every process and for good."""
    if key_id.startswith("tm_"):
        raise InvalidInput("ID", "is the key itself, which nobody should type: take its id from `tramontane keys list`")
    identity = read_id("key", key_id)
    key = with_database(data_dir, lambda database: _revoke(database, identity))
    if json:
        screen.show_json(shape_of(key))
    else:
        screen.say(f"{show_id('key', key.id)}  revoked: {_described(key)}")
    return exits.OK


def with_database(data_dir: str | None, ask: "Callable[[Database], Awaitable[T]]") -> T:
    """What comes of asking the database of the settings, brought to this version's tables first."""
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    return run(lambda _: _ask(settings, ask))


def shape_of(key: ApiKey) -> dict[str, Any]:
    """A key as JSON shows it."""
    times = {"expiresAt": key.expires_at, "revokedAt": key.revoked_at, "usedAt": key.used_at}
    return {
        "keyId": show_id("key", key.id),
        "tenant": key.tenant,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "status": key.state(utc_now()),
        "createdAt": iso(key.created_at),
        **{name: at and iso(at) for name, at in times.items()},
    }


async def _ask(settings: Settings, ask: "Callable[[Database], Awaitable[T]]") -> T:
    with screen.waiting("opening the database"):
        from tramontane.database import open_database
        from tramontane.store import prepare

        async with open_database(settings, connections=2) as database:
            await prepare(database)
            return await ask(database)


async def _add(database: "Database", key: ApiKey, secret: str) -> ApiKey:
    from tramontane.store import KeyStore

    digest = hash_of(secret)
    assert digest is not None
    return await KeyStore(database.pool).add(key, digest)


async def _list(database: "Database", tenant: str | None) -> list[ApiKey]:
    from tramontane.store import KeyStore

    return await KeyStore(database.pool).list(tenant)


async def _revoke(database: "Database", key_id: Any) -> ApiKey:
    from tramontane.store import KeyStore

    return await KeyStore(database.pool).revoke(key_id, utc_now())


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > 256:
        raise InvalidInput("--name", "must be up to 256 printable characters")
    return text


def _scopes(text: str | None) -> frozenset[Scope]:
    if text is None:
        return USUAL_SCOPES
    known = {str(scope): scope for scope in (Scope.SUBMIT, Scope.READ, Scope.ADMIN)}
    named = words(text) or []
    if not named or not known.keys() >= set(named):
        raise InvalidInput("--scopes", f"must be some of {', '.join(known)}, by comma, not {text!r}")
    return frozenset(known[name] for name in named)


def _span(text: str) -> timedelta:
    try:
        span = timedelta(seconds=seconds(text))
        if timedelta(0) < span <= timedelta(days=36500):
            return span
    except (ValueError, OverflowError):
        pass
    raise InvalidInput("--expires", f'must be a duration such as "12h" or "90d", not {text!r}')


def _described(key: ApiKey) -> str:
    name = f"{key.name}, " if key.name else ""
    may = "operator" if Scope.OPERATOR in key.scopes else f"tenant {key.tenant}: {', '.join(sorted(key.scopes))}"
    return f"{name}{may}, {f'until {iso(key.expires_at)}' if key.expires_at else 'never expires'}"


COMMANDS: Final[dict[str, Callable[..., int]]] = {"create": create, "list": show_all, "revoke": revoke}

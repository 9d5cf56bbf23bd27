"""`tramontane webhooks endpoints …` and `rotate`: where webhooks go."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, pairs, words
from tramontane.cli.reach import Reached, with_server
from tramontane.errors import InvalidInput
from tramontane.webhook_client import WebhookClient

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="an endpoint's id, `ep_…`")]
Events = Annotated[
    str | None, typer.Option(metavar="LIST", help="names by comma: chat.completed, chat.*, *.failed, * …")
]
_Description = Annotated[str | None, typer.Option(metavar="TEXT", help="your own words for it")]
_Headers = Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="sent along; repeatable")]
_Bearer = Annotated[str | None, typer.Option(metavar="TOKEN", help="credentials: Authorization: Bearer …")]
_Basic = Annotated[str | None, typer.Option(metavar="NAME:PASSWORD", help="credentials: Authorization: Basic …")]
_Format = Annotated[str | None, typer.Option(metavar="NAME", help="default; or thin: ids and a link, no content")]
_Ordering = Annotated[str | None, typer.Option(metavar="HOW", help="none; or job: a job's events strictly in order")]
_Timeout = Annotated[str | None, typer.Option(metavar="TIME", help='for one try, "1s" to "30s"')]


def endpoints(context: typer.Context, json: Json = False, data_dir: DataDir = None) -> int:
    """See where webhooks go, and change it."""
    if context.invoked_subcommand is None:
        return list_endpoints(json=json, data_dir=data_dir)
    if json or data_dir is not None:
        raise InvalidInput("", f"options come after the command: endpoints {context.invoked_subcommand} …")
    return exits.OK


def list_endpoints(json: Json = False, data_dir: DataDir = None) -> int:
    """List endpoints."""

    async def ask(reached: Reached) -> int:
        found = await WebhookClient(reached.client).find("endpoints", limit=200)
        if json:
            screen.show_json(found)
        elif found["endpoints"]:
            _show_list(found["endpoints"])
        else:
            screen.say("no endpoints")
            screen.note("tramontane webhooks endpoints add https://…")
        return exits.OK

    return with_server(data_dir, ask)


def add_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="where to POST")],
    events: Events = None,
    description: _Description = None,
    header: _Headers = None,
    bearer: _Bearer = None,
    basic: _Basic = None,
    format: _Format = None,  # noqa: A002 - the option's name
    ordering: _Ordering = None,
    timeout: _Timeout = None,
    secret: Annotated[str | None, typer.Option(metavar="SECRET", help="signs; made when not given")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Register a URL, and be shown its secret, this once."""
    fields = _fields(events, description, header, bearer, basic, format, ordering, timeout)
    fields |= {"url": url} | ({"secret": secret} if secret is not None else {})

    async def ask(reached: Reached) -> int:
        added = await WebhookClient(reached.client).add_endpoint(fields)
        _show_with_secret(added, json=json)
        screen.note(f"tramontane webhooks test {added['endpointId']}")
        return exits.OK

    return with_server(data_dir, ask)


def show_endpoint(endpoint_id: EndpointId, json: Json = False, data_dir: DataDir = None) -> int:
    """Show an endpoint: how it is, and what waits for it."""

    async def ask(reached: Reached) -> int:
        _show(await WebhookClient(reached.client).get("endpoints", endpoint_id), json=json)
        return exits.OK

    return with_server(data_dir, ask)


def update_endpoint(
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(metavar="URL", help="where to POST from now on")] = None,
    events: Events = None,
    description: _Description = None,
    header: _Headers = None,
    no_headers: Annotated[bool, typer.Option("--no-headers", help="remove headers and credentials")] = False,
    bearer: _Bearer = None,
    basic: _Basic = None,
    format: _Format = None,  # noqa: A002 - the option's name
    ordering: _Ordering = None,
    timeout: _Timeout = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Change an endpoint. Headers are replaced as a whole."""
    fields = _fields(events, description, header, bearer, basic, format, ordering, timeout)
    if url is not None:
        fields["url"] = url
    if no_headers:
        if header or bearer or basic:
            raise InvalidInput("--no-headers", "removes what the other options would set: choose one")
        fields |= {"headers": None, "auth": None}
    if not fields:
        raise InvalidInput("", "nothing to change was given")

    async def ask(reached: Reached) -> int:
        _show(await WebhookClient(reached.client).update_endpoint(endpoint_id, fields), json=json)
        return exits.OK

    return with_server(data_dir, ask)


def remove_endpoint(endpoint_id: EndpointId, data_dir: DataDir = None) -> int:
    """Remove an endpoint. What waits for it is cancelled; the log of it stays."""

    async def ask(reached: Reached) -> int:
        await WebhookClient(reached.client).remove_endpoint(endpoint_id)
        screen.say(f"{endpoint_id} removed")
        return exits.OK

    return with_server(data_dir, ask)


def enable_endpoint(endpoint_id: EndpointId, json: Json = False, data_dir: DataDir = None) -> int:
    """Send to it again, as to one that is well."""
    return _steer(endpoint_id, "enable", data_dir, json=json)


def disable_endpoint(endpoint_id: EndpointId, json: Json = False, data_dir: DataDir = None) -> int:
    """Send nothing to it, and make nothing for it; what waits is kept."""
    return _steer(endpoint_id, "disable", data_dir, json=json)


def pause_endpoint(endpoint_id: EndpointId, json: Json = False, data_dir: DataDir = None) -> int:
    """Let what is for it wait until it is enabled."""
    return _steer(endpoint_id, "pause", data_dir, json=json)


def rotate(
    endpoint_id: EndpointId,
    overlap: Annotated[str | None, typer.Option(metavar="TIME", help="how long the old secret signs too; 24h")] = None,
    promote: Annotated[
        str | None, typer.Option(metavar="WHEN", help="the new one comes first `now`, or at the `end` of the overlap")
    ] = None,
    secret: Annotated[str | None, typer.Option(metavar="SECRET", help="the new one; made when not given")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Give an endpoint a new secret. For a while both sign, so that no receiver refuses anything."""
    given = {"overlap": overlap, "promote": promote, "secret": secret}
    fields = {name: value for name, value in given.items() if value is not None}

    async def ask(reached: Reached) -> int:
        _show_with_secret(await WebhookClient(reached.client).rotate(endpoint_id, fields), json=json)
        return exits.OK

    return with_server(data_dir, ask)


COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "list": list_endpoints,
    "add": add_endpoint,
    "show": show_endpoint,
    "update": update_endpoint,
    "remove": remove_endpoint,
    "enable": enable_endpoint,
    "disable": disable_endpoint,
    "pause": pause_endpoint,
}


def _fields(
    events: str | None,
    description: str | None,
    headers: list[str] | None,
    bearer: str | None,
    basic: str | None,
    shape: str | None,
    ordering: str | None,
    timeout: str | None,
) -> dict[str, Any]:
    given = {
        "events": words(events),
        "description": description,
        "headers": pairs("--header", headers) or None,
        "auth": _credentials(bearer, basic),
        "format": shape,
        "ordering": ordering,
        "timeout": timeout,
    }
    return {name: value for name, value in given.items() if value is not None}


def _credentials(bearer: str | None, basic: str | None) -> dict[str, str] | None:
    if bearer is not None and basic is not None:
        raise InvalidInput("--basic", "and --bearer: one of them")
    if bearer is not None:
        return {"type": "bearer", "token": bearer}
    if basic is None:
        return None
    name, colon, password = basic.partition(":")
    if not name or not colon:
        raise InvalidInput("--basic", "must be NAME:PASSWORD")
    return {"type": "basic", "username": name, "password": password}


def _steer(endpoint_id: str, verb: Literal["enable", "disable", "pause"], data_dir: str | None, *, json: bool) -> int:
    async def ask(reached: Reached) -> int:
        endpoint = await WebhookClient(reached.client).steer_endpoint(endpoint_id, verb)
        screen.show_json(endpoint) if json else screen.say(f"{endpoint['endpointId']} {endpoint['status']}")
        return exits.OK

    return with_server(data_dir, ask)


def _show_list(endpoints: list[dict[str, Any]]) -> None:
    listed = screen.table("endpoint", "status", "health", "events", "url", wide=("events", "url"))
    for endpoint in endpoints:
        listed.add_row(
            endpoint["endpointId"],
            screen.word(endpoint["status"]),
            _health(endpoint["health"]),
            screen.cut(", ".join(endpoint["events"])),
            screen.cut(endpoint["url"]),
        )
    screen.show(listed)


def _show(endpoint: dict[str, Any], *, json: bool) -> None:
    if json:
        screen.show_json(endpoint)
        return
    lines = {
        "status": " ".join(filter(None, (endpoint["status"], _reason(endpoint)))),
        "health": f"{_health(endpoint['health'])}, {endpoint['health']['window']} at a time",
        "url": endpoint["url"],
        "events": ", ".join(endpoint["events"]),
        "headers": ", ".join(endpoint["headerNames"]),
        "format": endpoint["format"],
        "ordering": endpoint["ordering"],
        "about": endpoint["description"],
        "created": endpoint["createdAt"],
        "secrets": _secrets(endpoint["secrets"]),
    }
    if backlog := endpoint.get("backlog"):
        lines["backlog"] = f"{backlog['waiting']} waiting, {backlog['dispatched']} on the way"
    screen.say(endpoint["endpointId"])
    for name, value in lines.items():
        if value:
            screen.say(f"  {name:9} {value}")


def _show_with_secret(endpoint: dict[str, Any], *, json: bool) -> None:
    _show(endpoint, json=json)
    if not json:
        screen.say(f"  {'secret':9} {endpoint['secret']}")
        screen.note("keep it now: it is not shown again")


def _reason(endpoint: dict[str, Any]) -> str:
    return f"({endpoint['disabledReason']})" if endpoint["disabledReason"] else ""


def _health(health: dict[str, Any]) -> str:
    if health["breaker"] == "closed":
        return f"failing since {health['failingSince']}" if health["failingSince"] else "well"
    if health["breaker"] == "half_open":
        return "being tried"
    return f"ill, next try {health['blockedUntil']}"


def _secrets(secrets: list[dict[str, Any]]) -> str:
    ends = [secret["notAfter"] for secret in secrets if secret["notAfter"]]
    return str(len(secrets)) + (f", one until {' and one until '.join(ends)}" if ends else "")

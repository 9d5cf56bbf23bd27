"""`tramontane schedules …`: jobs that come again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane.cli import exits, screen
from tramontane.cli.chat import DEFAULT_MODEL
from tramontane.cli.options import (
    Callback,
    CallbackSecret,
    DataDir,
    Json,
    Model,
    Prompt,
    callback_from,
    messages_from,
    prompt_from,
)
from tramontane.cli.reach import Reached, with_server
from tramontane.errors import NotFound

if TYPE_CHECKING:
    from tramontane.client import ApiClient

_ROOT: Final = "/api/schedules"

Name = Annotated[str, typer.Argument(metavar="NAME", help="its name, or its id, `sch_…`")]


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="yours, to find it again")],
    cron: Annotated[str, typer.Argument(metavar="CRON", help='when, e.g. "0 6 * * mon-fri"')],
    prompt: Prompt,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="of the times, e.g. Europe/Paris")] = "UTC",
    catch_up: Annotated[
        str, typer.Option(metavar="HOW", help="missed times: skip; one: the last; all: each, up to 100")
    ] = "one",
    model: Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="instructions that come first")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help='each starts within this time, e.g. "2h"')
    ] = None,
    callback: Callback = None,
    callback_secret: CallbackSecret = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Have a job done again and again."""
    options = {"deadline": deadline, "callback": callback_from(callback, callback_secret)}
    request = {"model": model, "messages": messages_from(prompt_from(prompt), system)}
    job = {"kind": "chat", "request": request} | {key: value for key, value in options.items() if value is not None}
    body = {"name": name, "cron": cron, "timezone": timezone, "catchUp": catch_up, "job": job}

    async def ask(reached: Reached) -> int:
        made = await reached.client.ask("POST", _ROOT, json=body)
        screen.show_json(made) if json else screen.say(f"{made['name']}: next at {made['nextAt']}")
        return exits.OK

    return with_server(data_dir, ask)


def list_schedules(json: Json = False, data_dir: DataDir = None) -> int:
    """List schedules, by name."""

    async def ask(reached: Reached) -> int:
        found = await reached.client.ask("GET", _ROOT)
        if json:
            screen.show_json(found)
        elif found["schedules"]:
            _show(found["schedules"])
        else:
            screen.say("no schedules")
        return exits.OK

    return with_server(data_dir, ask)


def pause(name: Name, data_dir: DataDir = None) -> int:
    """Let a schedule rest."""
    return _change(name, {"status": "paused"}, data_dir)


def resume(name: Name, data_dir: DataDir = None) -> int:
    """Let a schedule go on, from its next time on."""
    return _change(name, {"status": "active"}, data_dir)


def remove(name: Name, data_dir: DataDir = None) -> int:
    """Forget a schedule. Its jobs stay."""

    async def ask(reached: Reached) -> int:
        await reached.client.ask("DELETE", await _path(reached.client, name))
        screen.say(f"{name} removed")
        return exits.OK

    return with_server(data_dir, ask)


def run_now(name: Name, json: Json = False, data_dir: DataDir = None) -> int:
    """Have a schedule's job done now, out of turn."""

    async def ask(reached: Reached) -> int:
        accepted = await reached.client.ask("POST", f"{await _path(reached.client, name)}/run")
        screen.show_json(accepted) if json else screen.say(f"{accepted['jobId']} {accepted['status']}")
        if not json:
            screen.note(f"tramontane jobs follow {accepted['jobId']}")
        return exits.OK

    return with_server(data_dir, ask)


COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "add": add,
    "list": list_schedules,
    "pause": pause,
    "resume": resume,
    "remove": remove,
    "run": run_now,
}


def _change(name: str, fields: dict[str, Any], data_dir: str | None) -> int:
    async def ask(reached: Reached) -> int:
        changed = await reached.client.ask("PATCH", await _path(reached.client, name), json=fields)
        screen.say(
            f"{changed['name']} {changed['status']}" + (f": next at {changed['nextAt']}" * bool(changed["nextAt"]))
        )
        return exits.OK

    return with_server(data_dir, ask)


async def _path(client: "ApiClient", name: str) -> str:
    """The route of a schedule. Raises NotFound."""
    for one in (await client.ask("GET", _ROOT))["schedules"]:
        if name in (one["name"], one["scheduleId"]):
            return f"{_ROOT}/{one['scheduleId']}"
    raise NotFound(f"no such schedule: {name!r}")


def _show(found: list[dict[str, Any]]) -> None:
    listed = screen.table("name", "status", "cron", "zone", "next", "last job", wide=("name",))
    for one in found:
        listed.add_row(
            screen.cut(one["name"]),
            screen.word(one["status"]),
            screen.cut(one["cron"]),
            screen.cut(one["timezone"]),
            one["nextAt"] or "-",
            one["lastJobId"] or "-",
        )
    screen.show(listed)
    for one in found:
        if one["reason"]:
            screen.note(f"{one['name']} {'is' if one['status'] == 'active' else 'was stopped:'} {one['reason']}")

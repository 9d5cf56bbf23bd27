"""`tramontane schedules …`: jobs that come again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane.cli import exits, screen
from tramontane.cli.chat import DEFAULT_MODEL
from tramontane.cli.options import (
    Attempts,
    Callback,
    CallbackSecret,
    DataDir,
    Json,
    Metadata,
    Model,
    Priority,
    Prompt,
    RequestId,
    System,
    Timeout,
    job_options,
    messages_from,
    prompt_from,
)
from tramontane.cli.reach import Reached, with_server
from tramontane.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from tramontane.client import ApiClient

_ROOT: Final = "/api/schedules"

_ZONE: Final = "of the times, e.g. Europe/Paris"
_HOW: Final = "missed times: skip; one: the last; all: each, up to 100"

Deadline = Annotated[
    str | None, typer.Option("--deadline", metavar="TIME", help='each starts within this time, e.g. "2h"')
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="its name, or its id, `sch_…`")]


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="yours, to find it again")],
    cron: Annotated[str, typer.Argument(metavar="CRON", help='when, e.g. "0 6 * * mon-fri"')],
    prompt: Prompt,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help=_ZONE)] = "UTC",
    catch_up: Annotated[str, typer.Option(metavar="HOW", help=_HOW)] = "one",
    model: Model = DEFAULT_MODEL,
    system: System = None,
    priority: Priority = None,
    deadline: Deadline = None,
    attempts: Attempts = None,
    timeout: Timeout = None,
    request_id: RequestId = None,
    metadata: Metadata = None,
    callback: Callback = None,
    callback_secret: CallbackSecret = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Have a job done again and again."""
    options = job_options(
        priority=priority,
        deadline=deadline,
        attempts=attempts,
        timeout=timeout,
        request_id=request_id,
        metadata=metadata,
        callback=callback,
        callback_secret=callback_secret,
    )
    request = {"model": model, "messages": messages_from(prompt_from(prompt), system)}
    job = {"kind": "chat", "request": request, **options}
    body = {"name": name, "cron": cron, "timezone": timezone, "catchUp": catch_up, "job": job}

    async def ask(reached: Reached) -> int:
        made = await reached.client.ask("POST", _ROOT, json=body)
        screen.show_json(made) if json else screen.say(f"{made['name']}: next at {made['nextAt']}")
        return exits.OK

    return with_server(data_dir, ask)


def change(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="another name")] = None,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help='when, e.g. "0 6 * * mon-fri"')] = None,
    timezone: Annotated[str | None, typer.Option(metavar="ZONE", help=_ZONE)] = None,
    catch_up: Annotated[str | None, typer.Option(metavar="HOW", help=_HOW)] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="what to ask; `-` reads standard input")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="model that answers")] = None,
    system: System = None,
    priority: Priority = None,
    deadline: Deadline = None,
    attempts: Attempts = None,
    timeout: Timeout = None,
    request_id: RequestId = None,
    metadata: Metadata = None,
    callback: Callback = None,
    callback_secret: CallbackSecret = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Change what is given of a schedule; the rest stays."""
    times = {"name": new_name, "cron": cron, "timezone": timezone, "catchUp": catch_up}
    fields: dict[str, Any] = {key: value for key, value in times.items() if value is not None}
    options = job_options(
        priority=priority,
        deadline=deadline,
        attempts=attempts,
        timeout=timeout,
        request_id=request_id,
        metadata=metadata,
        callback=callback,
        callback_secret=callback_secret,
    )
    request = _request(prompt, model, system)
    if not (fields or options or request):
        raise InvalidInput("NAME", "say what is to be changed, e.g. --cron")

    async def ask(reached: Reached) -> int:
        found = await _find(reached.client, name)
        if options or request:
            fields["job"] = _changed(found["job"], request, options)
        changed = await reached.client.ask("PATCH", f"{_ROOT}/{found['scheduleId']}", json=fields)
        screen.show_json(changed) if json else _say_next(changed)
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
    "change": change,
    "list": list_schedules,
    "pause": pause,
    "resume": resume,
    "remove": remove,
    "run": run_now,
}


def _request(prompt: str | None, model: str | None, system: str | None) -> dict[str, Any]:
    """What is new of Mistral's request. Raises InvalidInput naming the flag."""
    if prompt is None and system is not None:
        raise InvalidInput("--system", "goes with --prompt: what is asked is changed as a whole")
    asked = {} if prompt is None else {"messages": messages_from(prompt_from(prompt), system)}
    return asked | ({} if model is None else {"model": model})


def _changed(job: dict[str, Any], request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The whole job, as the server wants it, with what is new. Raises InvalidInput where it is not shown as a whole."""
    if "request" not in job:  # the short form
        ours: dict[str, Any] = {name: job[name] for name in ("requestId", "callback") if name in job}
        job = {"kind": "chat", "request": {name: job[name] for name in job if name not in ours}, **ours}
    if job.get("callback") is not None and "callback" not in options:
        raise InvalidInput(
            "--callback", "is needed again with another job: its secret is not shown, and cannot be kept"
        )
    return {**job, **options, "request": {**job["request"], **request}}


def _change(name: str, fields: dict[str, Any], data_dir: str | None) -> int:
    async def ask(reached: Reached) -> int:
        _say_next(await reached.client.ask("PATCH", await _path(reached.client, name), json=fields))
        return exits.OK

    return with_server(data_dir, ask)


def _say_next(changed: dict[str, Any]) -> None:
    following = f": next at {changed['nextAt']}" if changed["nextAt"] else ""
    screen.say(f"{changed['name']} {changed['status']}{following}")


async def _path(client: "ApiClient", name: str) -> str:
    """The route of a schedule. Raises NotFound."""
    return f"{_ROOT}/{(await _find(client, name))['scheduleId']}"


async def _find(client: "ApiClient", name: str) -> dict[str, Any]:
    """The schedule. Raises NotFound."""
    found: list[dict[str, Any]] = (await client.ask("GET", _ROOT))["schedules"]
    for one in found:
        if name in (one["name"], one["scheduleId"]):
            return one
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

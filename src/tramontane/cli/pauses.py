"""`tramontane pause | resume | pauses`: what is not let through for now."""

from typing import Annotated, Any

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json
from tramontane.cli.reach import Reached, with_server
from tramontane.errors import NotFound
from tramontane.ids import iso, utc_now

Kind = Annotated[str | None, typer.Option(metavar="NAME", help="jobs of this kind; all when not given")]
OneModel = Annotated[str | None, typer.Option("--model", metavar="NAME", help="jobs of this model; all when not given")]
Fleet = Annotated[bool, typer.Option("--fleet", help="of every tenant: for operators")]


def pause(
    kind: Kind = None,
    model: OneModel = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="shown to whoever asks why it waits")] = None,
    fleet: Fleet = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Let no further jobs start: of a kind, of a model, or none at all. What runs goes on."""
    fields = {"kind": kind, "model": model, "reason": reason, "tenant": "*" if fleet else None}

    async def ask(reached: Reached) -> int:
        given = {name: value for name, value in fields.items() if value is not None}
        made = await reached.client.ask("POST", "/api/pauses", json=given)
        screen.show_json(made) if json else screen.say(f"{made['pauseId']} {_what(made)} paused")
        return exits.OK

    return with_server(data_dir, ask)


def resume(kind: Kind = None, model: OneModel = None, fleet: Fleet = False, data_dir: DataDir = None) -> int:
    """Let jobs start again that `pause` with the same options has kept waiting."""

    async def ask(reached: Reached) -> int:
        found = await reached.client.ask("GET", "/api/pauses")
        for one in found["pauses"]:
            if (one["kind"], one["model"], one["tenant"] == "*") == (kind, model, fleet):
                await reached.client.ask("DELETE", f"/api/pauses/{one['pauseId']}")
                screen.say(f"{_what(one)} resumed")
                return exits.OK
        raise NotFound("that is not paused; `tramontane pauses` shows what is")

    return with_server(data_dir, ask)


def pauses(json: Json = False, data_dir: DataDir = None) -> int:
    """List what is paused."""

    async def ask(reached: Reached) -> int:
        found = await reached.client.ask("GET", "/api/pauses")
        if json:
            screen.show_json(found)
        elif found["pauses"]:
            _show(found["pauses"])
        else:
            screen.say("nothing is paused")
        return exits.OK

    return with_server(data_dir, ask)


def _what(one: dict[str, Any]) -> str:
    named = [f"{name} {one[name]}" for name in ("kind", "model") if one[name]]
    return (", ".join(named) or "everything") + (", of every tenant" if one["tenant"] == "*" else "")


def _show(found: list[dict[str, Any]]) -> None:
    listed, now = screen.table("paused", "reason", "for", right=("for",), wide=("reason",)), iso(utc_now())
    for one in found:
        listed.add_row(
            screen.cut(_what(one)),
            screen.cut(one["reason"] or "-"),
            screen.age(screen.between(one["pausedAt"], now) or 0.0),
        )
    screen.show(listed)

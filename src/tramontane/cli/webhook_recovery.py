"""`tramontane webhooks recover | recoveries`: what an endpoint missed, sent again."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, moment, settings_from
from tramontane.cli.reach import Reached, can_work, with_server
from tramontane.cli.webhook_deliveries import Until
from tramontane.cli.webhook_endpoints import EndpointId
from tramontane.errors import InvalidInput
from tramontane.webhook_client import WebhookClient

#: Seconds between two looks at a recovery.
_LOOK: Final = 0.3


def recover(
    endpoint_id: EndpointId,
    since: Annotated[str, typer.Option(metavar="TIME", help="from then on: `2h` ago, or 2026-11-22T06:00:00Z")],
    until: Until = None,
    only: Annotated[str | None, typer.Option(metavar="WHAT", help="failed; missing: never sent there; all")] = None,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="only this event, e.g. chat.completed")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="begin, and do not wait for the end")] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Send an endpoint what it missed in a range of time. It goes on by itself, whoever watches."""
    fields = {"since": moment("--since", since), "until": moment("--until", until), "only": only, "event": event}
    given = {name: value for name, value in fields.items() if value is not None}
    settings = settings_from(data_dir=data_dir)

    async def ask(reached: Reached) -> int:
        webhooks = WebhookClient(reached.client)
        recovery = await webhooks.recover(endpoint_id, given)
        if detach or (reached.own and not can_work(settings)):
            screen.show_json(recovery) if json else screen.say(f"{recovery['recoveryId']} {_found(recovery)}")
            if not json:
                screen.note(f"tramontane webhooks recoveries {recovery['recoveryId']}")
            return exits.OK
        return await _watch(webhooks, recovery, json=json)

    return with_server(data_dir, ask, works=not detach and can_work(settings))


def recoveries(
    recovery_id: Annotated[str | None, typer.Argument(metavar="[RECOVERY]", help="watch this one, `rec_…`")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="ID", help="only of this endpoint")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="let it rest")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="let it go on")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="end it; what has been sent is sent")] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """List recoveries, or watch or steer one."""
    verb = _verb(recovery_id, pause=pause, resume=resume, cancel=cancel)
    settings = settings_from(data_dir=data_dir)

    async def ask(reached: Reached) -> int:
        webhooks = WebhookClient(reached.client)
        if recovery_id is None:
            found = await webhooks.find("recoveries", endpoint=endpoint)
            screen.show_json(found) if json else _show_list(found["recoveries"])
            return exits.OK
        if verb is not None:
            recovery = await webhooks.steer_recovery(recovery_id, verb)
            screen.show_json(recovery) if json else screen.say(_ended(recovery))
            return exits.OK
        return await _watch(webhooks, await webhooks.get("recoveries", recovery_id), json=json)

    return with_server(data_dir, ask, works=recovery_id is not None and can_work(settings))


async def _watch(webhooks: WebhookClient, recovery: dict[str, Any], *, json: bool) -> int:
    """Show how it goes until all has arrived or failed for good, or somebody pauses or cancels it."""
    try:
        with _bar(recovery["total"], quiet=json) as show:
            show(recovery)
            while _goes_on(recovery):
                await asyncio.sleep(_LOOK)
                recovery = await webhooks.get("recoveries", recovery["recoveryId"])
                show(recovery)
    except asyncio.CancelledError:
        screen.note(f"it goes on; look again: tramontane webhooks recoveries {recovery['recoveryId']}")
        raise
    screen.show_json(recovery) if json else screen.say(_ended(recovery))
    return exits.FAILED if recovery["failed"] else exits.OK


def _goes_on(recovery: dict[str, Any]) -> bool:
    running, waiting = recovery["status"] == "running", recovery["status"] == "completed" and recovery["waiting"]
    return running or bool(waiting)


@contextmanager
def _bar(total: int, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stdout.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("sent again"), BarColumn(bar_width=30), MofNCompleteColumn())
    told = TextColumn("{task.fields[told]}")
    with Progress(*columns, told, TimeElapsedColumn(), console=screen.console(), transient=True) as bar:
        task = bar.add_task("", total=total, told="")
        yield lambda recovery: bar.update(
            task, completed=recovery["succeeded"] + recovery["failed"], told=_so(recovery)
        )


def _so(recovery: dict[str, Any]) -> str:
    return f"{recovery['failed']} failed" if recovery["failed"] else ""


def _found(recovery: dict[str, Any]) -> str:
    return f"{recovery['status']}: {screen.count(recovery['total'], 'message')} to send again"


def _ended(recovery: dict[str, Any]) -> str:
    counted = f"{recovery['succeeded']} arrived, {recovery['failed']} failed"
    if recovery["waiting"]:
        counted += f", {recovery['waiting']} waiting"
    return f"{recovery['recoveryId']} {_found(recovery)}; {counted}"


def _verb(
    recovery_id: str | None, *, pause: bool, resume: bool, cancel: bool
) -> Literal["pause", "resume", "cancel"] | None:
    asked: list[Literal["pause", "resume", "cancel"]] = []
    asked += ["pause"] if pause else []
    asked += ["resume"] if resume else []
    asked += ["cancel"] if cancel else []
    if len(asked) > 1:
        raise InvalidInput("", f"--{asked[0]} and --{asked[1]}: one of them")
    if asked and recovery_id is None:
        raise InvalidInput(f"--{asked[0]}", "which one? give its id")
    return asked[0] if asked else None


def _show_list(found: list[dict[str, Any]]) -> None:
    if not found:
        screen.say("no recoveries")
        return
    listed = screen.table(
        "recovery", "status", "total", "arrived", "failed", "since",
        right=("total", "arrived", "failed"), wide=("since",),
    )  # fmt: skip
    for recovery in found:
        listed.add_row(
            recovery["recoveryId"],
            screen.word(recovery["status"]),
            str(recovery["total"]),
            str(recovery["succeeded"]),
            str(recovery["failed"]),
            recovery["since"],
        )
    screen.show(listed)

"""`tramontane limits [JOB]`: what Mistral allows, what of it is free, and when a job may start."""

from typing import Annotated, Any, Final

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json
from tramontane.cli.reach import Reached, with_server

#: What a waiting job waits for, in words.
_REASONS: Final = {
    "time": "its time",
    "slot": "a free slot of a worker",
    "rate": "the fleet's starts per second",
    "requests": "Mistral's limit of requests",
    "tokens": "Mistral's limit of tokens",
    "blocked": "the end of a pause that Mistral asked for (429)",
    "paused": "somebody to resume what is paused",
    "concurrency": "a job of its tenant to end",
    "budget": "its tenant's budget of tomorrow",
}

_COLUMNS: Final = ("model", "key", "requests free", "tokens free", "under way", "waiting")
#: Characters that the name of a model keeps on the narrowest screen, and that the name of a key has at most.
_SHORTEST_MODEL, _LONGEST_KEY = 12, 12


def limits(
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="a waiting job: when it may start")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Show what Mistral allows, what of it is free, and who waits."""

    async def ask(reached: Reached) -> int:
        params = {} if job_id is None else {"jobId": job_id}
        found = await reached.client.ask("GET", "/api/limits", params=params)
        screen.show_json(found) if json else _show(found)
        return exits.OK

    return with_server(data_dir, ask)


def _show(found: dict[str, Any]) -> None:
    fleet = found["fleet"]
    rate = fleet["startsPerSecond"]
    starts = "no limit of starts" if rate is None else f"{rate:g} starts per second"
    workers = screen.count(fleet["workers"], "worker")
    screen.say(f"{workers}, {fleet['freeSlots']} of {fleet['slots']} slots free, {starts}")
    if found["buckets"]:
        _show_buckets(found["buckets"])
    else:
        screen.say("Mistral has not been asked yet: its limits are learned from its answers")
    if job := found.get("job"):
        screen.say(_told(job))


def _show_buckets(buckets: list[dict[str, Any]]) -> None:
    rows = [_row(one) for one in buckets]
    # Whatever else there is to say, of which model it is said has room.
    taken = sum(2 + max(map(len, column)) for column in zip(_COLUMNS[1:], *rows, strict=True))
    longest = max(_SHORTEST_MODEL, screen.console().width - taken)
    shown = screen.table(*_COLUMNS, right=_COLUMNS[2:])
    shown.columns[0].min_width = min(_SHORTEST_MODEL, max(len(one["model"]) for one in buckets))
    for one, row in zip(buckets, rows, strict=True):
        shown.add_row(screen.shorten(one["model"], longest), *row)
    screen.show(shown)
    for one in buckets:
        if state := _state(one):
            screen.say(f"{screen.cut(one['model'])} ({screen.cut(one['account'])}): {state}")


def _row(bucket: dict[str, Any]) -> tuple[str, ...]:
    """What stands beside the model."""
    waiting = bucket["waiting"]
    return (
        screen.shorten(bucket["account"], _LONGEST_KEY),
        _of(bucket["requests"]),
        _of(bucket["tokens"]),
        screen.short(bucket["inFlight"]),
        f"{screen.short(waiting['count'])}{'+' if waiting['more'] else ''}",
    )


def _of(pair: dict[str, Any]) -> str:
    """What is free of how much: `12 of 60`, by what is known."""
    return "none known" if pair["limit"] is None else f"{screen.short(pair['free'])} of {screen.short(pair['limit'])}"


def _state(bucket: dict[str, Any]) -> str:
    if bucket["requests"]["limit"] == 0:
        return "never allowed"
    if bucket["blockedUntil"]:
        return f"paused until {bucket['blockedUntil']}"
    if bucket["observedAt"] is None:
        return "not asked yet"
    return "" if bucket["caution"] == 1 else f"used to {bucket['caution']:.0%}"


def _told(job: dict[str, Any]) -> str:
    if job["status"] != "queued":
        return f"{job['jobId']} {job['status']}"
    if job["waitsFor"] is None:
        return f"{job['jobId']} is about to start"
    when = f"about {job['expectedStartAt']}" if job["expectedStartAt"] else "nobody can say when"
    return f"{job['jobId']} waits for {_REASONS[job['waitsFor']]}, {job['ahead']} before it: {when}"

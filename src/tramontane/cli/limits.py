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
    right = ("requests", "tokens", "reserved", "under way", "waiting")
    shown = screen.table("model", "key", *right, "", right=right, wide=("model",))
    for one in buckets:
        shown.add_row(
            screen.cut(one["model"]),
            screen.cut(one["account"]),
            _of(one["requests"]),
            _of(one["tokens"]),
            str(one["tokens"]["reserved"]),
            str(one["inFlight"]),
            f"{one['waiting']['count']}{'+' if one['waiting']['more'] else ''}",
            _state(one),
        )
    screen.show(shown)


def _of(pair: dict[str, Any]) -> str:
    """`12 of 60 free`, by what is known."""
    return "no limit known" if pair["limit"] is None else f"{pair['free']} of {pair['limit']} free"


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

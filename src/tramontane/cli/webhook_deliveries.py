"""`tramontane webhooks deliveries | attempts | test | replay`: what was sent, what came of it, and sending it again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, moment, settings_from
from tramontane.cli.reach import Reached, can_work, require_key, with_server
from tramontane.cli.webhook_endpoints import EndpointId
from tramontane.ids import iso, utc_now
from tramontane.webhook_client import WebhookClient

DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="a delivery's id, `dlv_…`")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="from then on: `2h` ago, or 2026-11-22T06:00:00Z")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="until then, given alike")]
_Endpoint = Annotated[str | None, typer.Option(metavar="ID", help="only of this endpoint")]
_Event = Annotated[str | None, typer.Option(metavar="NAME", help="only of this event, e.g. chat.completed")]
_ErrorClass = Annotated[str | None, typer.Option("--class", metavar="NAME", help="what went wrong, e.g. http_5xx")]
_Limit = Annotated[str, typer.Option(metavar="N", help="at most so many, up to 200")]
_Cursor = Annotated[str | None, typer.Option(metavar="CURSOR", help="only those before this one")]

#: Seconds that a first try may take: the longest timeout of an endpoint, and the way to it.
_FIRST_TRY: Final = 40
_PHASES: Final = (
    ("dns", "dnsMs"), ("connect", "connectMs"), ("tls", "tlsMs"), ("answer", "firstByteMs"), ("total", "totalMs")
)  # fmt: skip
_WITHOUT_KEY: Final = "tramontane serve --simulator, in another terminal"


def deliveries(
    delivery_id: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", help="all about this one")] = None,
    endpoint: _Endpoint = None,
    event: _Event = None,
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="waiting, succeeded, failed …")] = None,
    error_class: _ErrorClass = None,
    job: Annotated[str | None, typer.Option(metavar="ID", help="only what tells of this job")] = None,
    since: Since = None,
    until: Until = None,
    limit: _Limit = "20",
    cursor: _Cursor = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """List deliveries, newest first, or show one with its attempts."""
    filters = {"endpoint": endpoint, "event": event, "status": status, "errorClass": error_class, "jobId": job}
    filters |= {"since": moment("--since", since), "until": moment("--until", until), "cursor": cursor, "limit": limit}

    async def ask(reached: Reached) -> int:
        webhooks = WebhookClient(reached.client)
        if delivery_id is not None:
            delivery = await webhooks.get("deliveries", delivery_id)
            screen.show_json(delivery) if json else _show(delivery)
            return exits.OK
        found = await webhooks.find("deliveries", **filters)
        if json:
            screen.show_json(found)
        elif found["deliveries"]:
            _show_list(found)
        else:
            screen.say("no deliveries")
        return exits.OK

    return with_server(data_dir, ask)


def attempts(
    delivery_id: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", help="only of this delivery")] = None,
    endpoint: _Endpoint = None,
    event: _Event = None,
    error_class: _ErrorClass = None,
    outcome: Annotated[str | None, typer.Option(metavar="WORD", help="succeeded or failed")] = None,
    since: Since = None,
    until: Until = None,
    limit: _Limit = "20",
    cursor: _Cursor = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """List tries, newest first: the answer, the milliseconds of each phase, and what to change."""
    filters = {"endpoint": endpoint, "event": event, "errorClass": error_class, "outcome": outcome}
    filters |= {"since": moment("--since", since), "until": moment("--until", until), "cursor": cursor, "limit": limit}

    async def ask(reached: Reached) -> int:
        found = await WebhookClient(reached.client).find("attempts", deliveryId=delivery_id, **filters)
        if json:
            screen.show_json(found)
        elif found["attempts"]:
            _show_attempts(found["attempts"])
            _say_more(found)
        else:
            screen.say("no attempts")
        return exits.OK

    return with_server(data_dir, ask)


def send_test(endpoint_id: EndpointId, json: Json = False, data_dir: DataDir = None) -> int:
    """Send an endpoint a `webhook.test`, now; the exit code says whether it arrived."""
    settings = settings_from(data_dir=data_dir)

    async def ask(reached: Reached) -> int:
        if reached.own:
            require_key(settings, _WITHOUT_KEY)  # without one no worker is here
        webhooks = WebhookClient(reached.client)
        with screen.waiting("on the way"):
            delivery = await webhooks.test(endpoint_id, wait=_FIRST_TRY)
        return await _tell(webhooks, delivery["deliveryId"], json=json)

    return with_server(data_dir, ask, works=can_work(settings))


def replay(
    delivery_id: DeliveryId,
    wait: Annotated[bool, typer.Option("--wait", help="until it has arrived, or failed for good")] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Send a message again: the same id and the same bytes, signed anew. It has its own tries."""
    settings = settings_from(data_dir=data_dir)

    async def ask(reached: Reached) -> int:
        if wait and reached.own:
            require_key(settings, _WITHOUT_KEY)
        webhooks = WebhookClient(reached.client)
        delivery = await webhooks.replay(delivery_id)
        if wait:
            with screen.waiting("on the way"):
                while delivery["endedAt"] is None:
                    delivery = await webhooks.get("deliveries", delivery["deliveryId"], wait=30)
            return await _tell(webhooks, delivery["deliveryId"], json=json)
        screen.show_json(delivery) if json else screen.say(f"{delivery['deliveryId']} {delivery['status']}")
        if not json:
            screen.note(f"tramontane webhooks deliveries {delivery['deliveryId']}")
        return exits.OK

    return with_server(data_dir, ask, works=wait and can_work(settings))


async def _tell(webhooks: WebhookClient, delivery_id: str, *, json: bool) -> int:
    """Show a delivery that was tried; the exit code of whether it arrived."""
    delivery = await webhooks.get("deliveries", delivery_id)
    screen.show_json(delivery) if json else _show(delivery)
    return exits.OK if delivery["status"] == "succeeded" else exits.FAILED


def _show_list(found: Mapping[str, Any]) -> None:
    listed = screen.table("delivery", "event", "status", "try", "last", "age", right=("try", "age"), wide=("last",))
    now = iso(utc_now())
    for delivery in found["deliveries"]:
        listed.add_row(
            delivery["deliveryId"],
            delivery["event"],
            screen.word(delivery["status"]),
            str(delivery["tries"]),
            _answer(delivery["lastStatus"], delivery["errorClass"]),
            screen.age(screen.between(delivery["createdAt"], now) or 0.0),
        )
    screen.show(listed)
    _say_more(found)


def _say_more(found: Mapping[str, Any]) -> None:
    if found["next"]:
        screen.note(f"more: --cursor {found['next']}")


def _show(delivery: Mapping[str, Any]) -> None:
    lines = {
        "status": delivery["status"],
        "event": delivery["event"],
        "to": delivery["url"],
        "endpoint": delivery["endpointId"] or "the callback of its job",
        "job": delivery["jobId"],
        "message": delivery["messageId"],
        "origin": delivery["origin"],
        "created": delivery["createdAt"],
        "ended": delivery["endedAt"],
        "next try": delivery["dueAt"] if delivery["status"] == "waiting" else None,
        "hint": delivery["hint"],
    }
    screen.say(delivery["deliveryId"])
    for name, value in lines.items():
        if value:
            screen.say(f"  {name:9} {value}")
    if delivery["attemptLog"]:
        screen.say()
        _show_attempts(delivery["attemptLog"])


def _show_attempts(tried: Sequence[Mapping[str, Any]]) -> None:
    """The answer, milliseconds of the phases, and below a failure what to do about it."""
    phases = [name for name, _ in _PHASES]
    shown = screen.table("time", "event", "try", "came", *phases, right=("try", *phases), wide=("event", "came"))
    for column in (shown.columns[1], shown.columns[3]):
        column.no_wrap, column.overflow = False, "fold"
    for attempt in tried:
        shown.add_row(
            screen.clock(datetime.fromisoformat(attempt["startedAt"])),
            attempt["event"],
            str(attempt["attempt"]),
            _answer(attempt["status"], attempt["errorClass"]),
            *(_milliseconds(attempt["timings"][field]) for _, field in _PHASES),
        )
    screen.show(shown)
    for hint in dict.fromkeys(attempt["hint"] for attempt in tried if attempt["hint"]):
        screen.say(f"→ {hint}")


def _answer(status: int | None, error_class: str | None) -> Any:
    """`200`, `503`, `dns`: the status, else what kept it from coming."""
    from rich.text import Text

    said = str(status) if status is not None else error_class or "-"
    return Text(said, style="red" if error_class else "green" if status else "")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"

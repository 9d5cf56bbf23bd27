"""What is told of an event: the body of its message, made once as the bytes that are signed and sent."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Raw

from tramontane.errors import InvalidInput
from tramontane.ids import iso, new_id, show_id
from tramontane.models import Job
from tramontane.webhooks.models import NewMessage
from tramontane.wire import error_shape

#: Kinds of jobs, and what is told of each.
KINDS: Final = ("chat",)
VERBS: Final = ("started", "completed", "failed", "cancelled")
#: What a callback is told that asks for nothing: how its job ended.
ENDINGS: Final = ("*.completed", "*.failed", "*.cancelled")
TEST_EVENT: Final = "webhook.test"
EVENTS: Final = (
    *(f"{kind}.{verb}" for kind in KINDS for verb in VERBS),
    "endpoint.degraded",
    "endpoint.disabled",
    "endpoint.recovered",
)
#: Every filter that can match something.
FILTERS: Final = frozenset(
    {"*", *EVENTS, *(f"{name.split('.')[0]}.*" for name in EVENTS), *(f"*.{name.split('.')[1]}" for name in EVENTS)}
)
#: Names that others give to the same, understood on callbacks.
_ALIASES: Final = {"start": "*.started", "completed": "*.completed"}

#: A larger body gives way to the thin one.
LARGEST_BODY: Final = 256 * 1024


def check_filters(events: tuple[str, ...], field: str, *, aliases: bool = False) -> tuple[str, ...]:
    """The filters, each once. Raises InvalidInput for one that could never match, naming those that can."""
    if not events:
        raise InvalidInput(field, "names no event: leave it out, or name one")
    known = tuple(dict.fromkeys(_ALIASES.get(event, event) if aliases else event for event in events))
    for event in known:
        if event not in FILTERS:
            raise InvalidInput(field, f"{event[:64]!r} is no event; there are {', '.join(sorted(FILTERS))}")
    return known


def of_job(job: Job, verb: str, at: datetime, *, result: bytes | None = None, public_url: str = "") -> NewMessage:
    """What is told of a job that has just changed; its last event tells the same.

    result: JSON of the wire's result, of a completed job.
    """
    told: dict[str, Any] = {
        "jobId": show_id("job", job.key.id),
        "requestId": job.request_id,
        "kind": job.kind,
        "status": "running" if verb == "started" else job.state,
    }
    ended: dict[str, Any] = {"completedAt": iso(job.completed_at)} if job.completed_at else {}
    beside = {"seq": job.head, "metadata": Raw(job.metadata.encode() if job.metadata else b"null")}
    full: dict[str, Any] = {**told, **ended, **beside}
    if verb == "started":
        full |= {"model": job.model, "startedAt": iso(at)}
    elif result is not None:
        full |= msgspec.json.decode(result, type=dict[str, Raw])
    else:
        full |= {"error": error_shape(job.failure)}
    thin = {**told, **ended, **beside, "resultUrl": f"{public_url}/api/jobs/{told['jobId']}"}
    return new_message(
        f"{job.kind}.{verb}",
        at,
        tenant=job.key.tenant,
        data=full,
        thin=thin,
        job_id=job.key.id,
        seq=job.head,
        final=verb != "started",
    )


def new_message(
    event: str,
    at: datetime,
    *,
    tenant: str,
    data: Mapping[str, Any],
    thin: Mapping[str, Any] | None = None,
    job_id: UUID | None = None,
    seq: int | None = None,
    final: bool = False,
    about: UUID | None = None,
) -> NewMessage:
    """A message with both its bodies; without a thin one, that is the same."""
    id = new_id()  # noqa: A001 - it is one
    body = _body(id, event, at, data)
    return NewMessage(
        id=id,
        tenant=tenant,
        event=event,
        at=at,
        body=body,
        thin=body if thin is None else _body(id, event, at, thin),
        job_id=job_id,
        seq=seq,
        final=final,
        about=about,
    )


def _body(id: UUID, event: str, at: datetime, data: Mapping[str, Any]) -> bytes:  # noqa: A002
    return msgspec.json.encode(
        {"id": show_id("msg", id), "event": event, "type": event, "timestamp": iso(at), "data": data}
    )

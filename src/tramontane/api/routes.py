"""The routes under /api, each about twelve lines: parse, call one service, shape."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from msgspec import UNSET

from tramontane import sse, tracing
from tramontane.api.parameters import Pairs, Prefixed
from tramontane.api.requests import (
    app_of,
    caller_of,
    json_answer,
    read_body,
    read_time,
    read_wait,
    wait_applied,
)
from tramontane.api.responses import EventStreamResponse
from tramontane.api.schemas import BODY_SCHEMA, new_job, read_cursor, read_idempotency_key
from tramontane.api.ticket_schema import TICKET_SCHEMA, read_ttl
from tramontane.app import App
from tramontane.errors import InvalidCursor, InvalidTicket
from tramontane.ids import iso, read_id, show_id, utc_now
from tramontane.models import Job, JobFilter, JobKey, Scope, State, Submitted
from tramontane.places import Place
from tramontane.tickets import Ticket
from tramontane.wire import accepted_shape, encode, job_shape, job_urls

router = APIRouter()

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "the job's events", "content": {"text/event-stream": {}}, "x-events": ["start", "chunk", "tool", "attempt", "complete", "error"]}}  # fmt: skip # noqa: E501

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


@router.post("/api/jobs", status_code=202, openapi_extra=BODY_SCHEMA)
async def submit(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Take a job: it is on disk when this answers."""
    submitted = await _submit(request, idempotency_key)
    used = app_of(request).standings.budget_used(submitted.job.key.tenant)
    return _accepted(submitted, {} if used is None else {"x-budget-used": f"{used:.3g}"})


@router.post("/api/chat/stream", openapi_extra=BODY_SCHEMA, responses=_EVENTS)
async def chat_stream(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Take a job, and be the stream of its events from the first one."""
    with app_of(request).places.take(_address(request)) as place:
        submitted = await _submit(request, idempotency_key)
        headers = {
            "x-job-id": show_id("job", submitted.job.key.id),
            "content-location": job_urls(submitted.job)["events_url"],
            **_replayed(submitted),
        }
        return await _events(request, submitted.job.key, 0, place, headers, job=submitted.job)


@router.get("/api/jobs")
async def find_jobs(
    request: Request,
    metadata: Annotated[Pairs, Depends(Prefixed("metadata."))],
    status: State | None = None,
    kind: str | None = None,
    model: str | None = None,
    request_id: Annotated[str | None, Query(alias="requestId")] = None,
    error: str | None = None,
    created_after: Annotated[datetime | None, Query(alias="createdAfter")] = None,
    created_before: Annotated[datetime | None, Query(alias="createdBefore")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Jobs, newest first; `metadata.NAME=VALUE` filters too. `next` is the cursor of the next page, or null."""
    tenant = caller_of(request, Scope.READ).tenant
    wanted = JobFilter(
        state=status,
        kind=kind,
        model=model,
        request_id=request_id,
        error=error,
        created_after=read_time("createdAfter", created_after),
        created_before=read_time("createdBefore", created_before),
        metadata=metadata,
    )
    jobs = await app_of(request).jobs.find(tenant, wanted, before=read_cursor(cursor), limit=limit + 1)
    more = show_id("job", jobs[limit - 1].key.id) if len(jobs) > limit else None
    return json_answer({"jobs": [job_shape(job) for job in jobs[:limit]], "next": more})


@router.get("/api/jobs/{job_id}")
async def get_job(
    request: Request,
    job_id: str,
    prefer: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A job with its result, or the text so far. With `Prefer: wait=N` once it has ended, or after N seconds."""
    app, key, wait = app_of(request), _key(request, job_id, Scope.READ), read_wait(prefer)
    if wait:
        await app.streams.wait_for_end(key, wait)
    return await _job(request, await app.jobs.get(key), wait_applied(wait), known=if_none_match)


@dataclass(frozen=True)
class Reading:
    """How a reader wants its events."""

    after: Annotated[str | None, Query()] = None
    last_event_id: Annotated[str | None, Query(alias="lastEventId")] = None
    compact: Annotated[bool | None, Query()] = None
    ping: Annotated[Literal["comment", "event"], Query()] = "comment"
    ticket: Annotated[str | None, Query()] = None
    header: Annotated[str | None, Header(alias="Last-Event-ID")] = None


@router.head("/api/jobs/{job_id}/events", include_in_schema=False)
@router.get("/api/jobs/{job_id}/events", responses=_EVENTS)
async def job_events(request: Request, job_id: str, reading: Annotated[Reading, Depends()]) -> Response:
    """The job's events after a cursor: `Last-Event-ID`, else `?lastEventId=`, else `?after=`, else all of them."""
    app = app_of(request)
    if reading.ticket is not None:
        key = await _opened(app, reading.ticket, read_id("job", job_id), utc_now())
    else:
        key = _key(request, job_id, Scope.READ)
    # A browser comes back with the address it was given first: what it has seen since is stronger.
    given = (reading.header, reading.last_event_id, reading.after)
    cursor = next((one for one in given if one is not None), "")
    with app.places.take(_address(request)) as place:
        return await _events(request, key, _sequence(cursor), place, {}, reading=reading)


@router.post("/api/jobs/{job_id}/ticket", status_code=201, openapi_extra=TICKET_SCHEMA)
async def issue_ticket(request: Request, job_id: str) -> Response:
    """A ticket: for a while, whoever has it reads the job's events without any header, and does nothing else."""
    app, key, now = app_of(request), _key(request, job_id, Scope.SUBMIT), utc_now()
    made_with = caller_of(request, Scope.SUBMIT).key
    ttl = read_ttl(await read_body(request))
    job = await app.jobs.get(key)
    ticket, expires_at = app.tickets.issue(Ticket(job=job.key, made_with=made_with), ttl=ttl, now=now)
    url = f"{job_urls(job)['events_url']}?ticket={ticket}"
    return json_answer({"ticket": ticket, "url": url, "expiresAt": iso(expires_at)}, 201, {"cache-control": "no-store"})


@router.post("/api/jobs/{job_id}/cancel")
async def cancel_job(request: Request, job_id: str) -> Response:
    """Stop a job at once, and the call to Mistral with it. An ended job stays as it is."""
    return await _job(request, await app_of(request).jobs.cancel(_key(request, job_id, Scope.SUBMIT)), {})


@router.post("/api/jobs/{job_id}/retry", status_code=202)
async def retry_job(request: Request, job_id: str) -> Response:
    """A new job that asks the same as an ended one."""
    app, key = app_of(request), _key(request, job_id, Scope.SUBMIT)
    with app.tracing.request("submit", request.headers):
        return _accepted(await app.jobs.retry(key, trace_context=tracing.current()))


@router.delete("/api/jobs/{job_id}", status_code=204)
async def erase_job(request: Request, job_id: str) -> Response:
    """Erase an ended job: what it said and heard is deleted."""
    await app_of(request).jobs.erase(_key(request, job_id, Scope.SUBMIT))
    return Response(status_code=204)


async def _submit(request: Request, idempotency_key: str | None) -> Submitted:
    with app_of(request).tracing.request("submit", request.headers):
        return await _submitted(request, idempotency_key)


async def _submitted(request: Request, idempotency_key: str | None) -> Submitted:
    app, tenant = app_of(request), caller_of(request, Scope.SUBMIT).tenant
    body = await read_body(request)
    key = read_idempotency_key(idempotency_key)
    job = new_job(body, app.settings, tenant=tenant, idempotency_key=key, now=utc_now(), callbacks=app.callbacks)
    return await app.jobs.submit(dataclasses.replace(job, trace_context=tracing.current()))


async def _opened(app: App, ticket: str, job_id: UUID, now: datetime) -> JobKey:
    """The job that a ticket opens. Raises InvalidTicket, also when the API key that it was made with opens nothing."""
    said = app.tickets.open(ticket, job_id, now)
    if said.made_with is not None and not await app.authentication.active(said.made_with, now):
        raise InvalidTicket("the API key that this ticket was made with was revoked or has expired: ask for a new one")
    return said.job


async def _events(
    request: Request,
    key: JobKey,
    after: int | None,
    place: Place,
    headers: dict[str, str],
    *,
    reading: Reading | None = None,
    job: Job | None = None,
) -> Response:
    app = app_of(request)
    stream = await app.streams.open(key, after, compact=reading.compact if reading else None, job=job)
    stream.place = place
    if reading and reading.ping == "event":
        stream.heartbeat = sse.PING
    if stream.ended:
        stream.close()
        return Response(status_code=204)
    headers["x-stream-retention-seconds"] = str(round(app.settings.stream_retention))
    return EventStreamResponse(stream, app.streams, headers)


async def _job(request: Request, job: Job, headers: dict[str, str], *, known: str | None = None) -> Response:
    app = app_of(request)
    attempts = await app.jobs.attempts(job.key)
    # The text follows from the head, the result from the state: neither need be read to know that nothing is new.
    row = encode(job_shape(job, attempts=attempts)) + str(job.events_pruned_at).encode()
    tag = f'"{hashlib.sha256(row).hexdigest()[:32]}"'
    headers |= {"etag": tag, "cache-control": "private, no-cache"}
    if known is not None and tag in (one.strip().removeprefix("W/") for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    # The result may have come since the job was read, or its time may have passed.
    there = job.state.final and job.contents_pruned_at is None
    result = (await app.jobs.contents(job.key)).result if there else None
    text = await app.streams.text(job) if result is None else None
    shape = job_shape(job, result=result, text=UNSET if text is None else text, attempts=attempts)
    return json_answer(shape, headers=headers)


def _accepted(submitted: Submitted, headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    shape = accepted_shape(submitted)
    return json_answer(shape, 202, {"location": shape.status_url, **_replayed(submitted), **headers})


def _replayed(submitted: Submitted) -> dict[str, str]:
    return {"idempotency-replayed": "true"} if submitted.replayed else {}


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _key(request: Request, job_id: str, scope: Scope) -> JobKey:
    return JobKey(tenant=caller_of(request, scope).tenant, id=read_id("job", job_id))


def _sequence(text: str) -> int | None:
    """A cursor; None is the head, whatever that is."""
    if text == "now":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10) and text:
        raise InvalidCursor("is not the id of an event: a decimal number", past_head=False)
    return int(text or 0)

"""The routes under /api, each about twelve lines: parse, call one service, shape."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from tramontane.api.responses import EventStreamResponse
from tramontane.api.schemas import BODY_SCHEMA, new_job, read_cursor, read_idempotency_key
from tramontane.app import App
from tramontane.errors import BodyTooLarge, InvalidCursor, InvalidInput
from tramontane.ids import read_id, show_id, utc_now
from tramontane.models import DEFAULT_TENANT, Job, JobFilter, JobKey, State, Submitted
from tramontane.wire import accepted_shape, encode, job_shape, job_urls

router = APIRouter()

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})")
#: Longest long-poll; proxies cut silent requests after about a minute.
_LONGEST_WAIT = 60
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"description": "the job's events", "content": {"text/event-stream": {}}, "x-events": ["start", "chunk", "tool", "attempt", "complete", "error"]}}  # fmt: skip # noqa: E501

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


@router.post("/api/jobs", status_code=202, openapi_extra=BODY_SCHEMA)
async def submit(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Take a job: it is on disk when this answers."""
    submitted = await _submit(request, idempotency_key)
    return _accepted(submitted)


@router.post("/api/chat/stream", openapi_extra=BODY_SCHEMA, responses=_EVENTS)
async def chat_stream(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Take a job, and be the stream of its events from the first one."""
    submitted = await _submit(request, idempotency_key)
    urls = job_urls(submitted.job)
    headers = {
        "x-job-id": show_id("job", submitted.job.key.id),
        "content-location": urls["events_url"],
        **_replayed(submitted),
    }
    return await _events(_app(request), submitted.job.key, 0, headers, job=submitted.job)


@router.get("/api/jobs")
async def find_jobs(
    request: Request,
    status: State | None = None,
    kind: str | None = None,
    model: str | None = None,
    request_id: Annotated[str | None, Query(alias="requestId")] = None,
    created_after: Annotated[datetime | None, Query(alias="createdAfter")] = None,
    created_before: Annotated[datetime | None, Query(alias="createdBefore")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Jobs, newest first; `metadata.NAME=VALUE` filters too. `next` is the cursor of the next page, or null."""
    metadata = _metadata(request)
    _refuse_unknown(request, find_jobs_parameters | {f"metadata.{name}" for name, _ in metadata})
    wanted = JobFilter(
        state=status,
        kind=kind,
        model=model,
        request_id=request_id,
        created_after=_aware("createdAfter", created_after),
        created_before=_aware("createdBefore", created_before),
        metadata=metadata,
    )
    jobs = await _app(request).jobs.find(DEFAULT_TENANT, wanted, before=read_cursor(cursor), limit=limit + 1)
    more = show_id("job", jobs[limit - 1].key.id) if len(jobs) > limit else None
    return _json({"jobs": [job_shape(job) for job in jobs[:limit]], "next": more})


find_jobs_parameters = frozenset(
    {"status", "kind", "model", "requestId", "createdAfter", "createdBefore", "cursor", "limit"}
)


@router.get("/api/jobs/{job_id}")
async def get_job(request: Request, job_id: str, prefer: Annotated[str | None, Header()] = None) -> Response:
    """A job with its result. With `Prefer: wait=N` the answer comes when the job has ended, or after N seconds."""
    app, key = _app(request), _key(job_id)
    applied = {}
    if prefer is not None and (match := _WAIT.search(prefer)):
        wait = min(int(match[1]), _LONGEST_WAIT)
        await app.streams.wait_for_end(key, wait)
        applied = {"preference-applied": f"wait={wait}"}
    return await _job(app, await app.jobs.get(key), applied)


@router.get("/api/jobs/{job_id}/events", responses=_EVENTS)
async def job_events(
    request: Request,
    job_id: str,
    after: str | None = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """The job's events after a cursor: the `Last-Event-ID` header, else `?after=`, else all of them."""
    _refuse_unknown(request, {"after"})
    cursor = last_event_id if last_event_id is not None else after
    return await _events(_app(request), _key(job_id), _sequence(cursor), {})


@router.post("/api/jobs/{job_id}/cancel")
async def cancel_job(request: Request, job_id: str) -> Response:
    """Stop a job at once, and the call to Mistral with it. An ended job stays as it is."""
    app = _app(request)
    return await _job(app, await app.jobs.cancel(_key(job_id)), {})


@router.post("/api/jobs/{job_id}/retry", status_code=202)
async def retry_job(request: Request, job_id: str) -> Response:
    """A new job that asks the same as an ended one."""
    return _accepted(await _app(request).jobs.retry(_key(job_id)))


@router.delete("/api/jobs/{job_id}", status_code=204)
async def erase_job(request: Request, job_id: str) -> Response:
    """Erase an ended job: what it said and heard is deleted."""
    await _app(request).jobs.erase(_key(job_id))
    return Response(status_code=204)


@router.get("/healthz")
async def healthz() -> Response:
    """The process runs."""
    return _json({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """The process runs, and its database answers."""
    await _app(request).database.pool.fetchval("SELECT 1")
    return _json({"status": "ready", "worker": _app(request).worker is not None})


async def _submit(request: Request, idempotency_key: str | None) -> Submitted:
    app = _app(request)
    body = await _body(request, app.settings.body_limit)
    key = read_idempotency_key(idempotency_key)
    job = new_job(body, app.settings, tenant=DEFAULT_TENANT, idempotency_key=key, now=utc_now())
    return await app.jobs.submit(job)


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge("", f"the body is over {limit} bytes")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise BodyTooLarge("", f"the body is over {limit} bytes")
    return bytes(body)


async def _events(app: App, key: JobKey, after: int, headers: dict[str, str], *, job: Job | None = None) -> Response:
    stream = await app.streams.open(key, after, job=job)
    if stream.ended:
        stream.close()
        return Response(status_code=204)
    headers["x-stream-retention-seconds"] = str(round(app.settings.stream_retention))
    return EventStreamResponse(stream, app.streams, headers)


async def _job(app: App, job: Job, headers: dict[str, str]) -> Response:
    contents = await app.jobs.contents(job.key)
    shape = job_shape(job, result=contents.result, attempts=await app.jobs.attempts(job.key))
    return _json(shape, headers=headers)


def _accepted(submitted: Submitted) -> Response:
    shape = accepted_shape(submitted)
    return _json(shape, 202, {"location": shape.status_url, **_replayed(submitted)})


def _replayed(submitted: Submitted) -> dict[str, str]:
    return {"idempotency-replayed": "true"} if submitted.replayed else {}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


def _app(request: Request) -> App:
    app: App = request.app.state.app
    return app


def _key(job_id: str) -> JobKey:
    return JobKey(tenant=DEFAULT_TENANT, id=read_id("job", job_id))


def _sequence(text: str | None) -> int:
    if text is None or text == "":
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidCursor("is not the id of an event: a decimal number", past_head=False)
    return int(text)


def _metadata(request: Request) -> tuple[tuple[str, str], ...]:
    prefix = "metadata."
    pairs = request.query_params.multi_items()
    return tuple((name.removeprefix(prefix), value) for name, value in pairs if name.startswith(prefix))


def _refuse_unknown(request: Request, known: frozenset[str] | set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise InvalidInput(name, f"is not a known parameter; there are {', '.join(sorted(known))}")


def _aware(name: str, moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise InvalidInput(name, "needs a time zone: write 2026-11-22T06:46:00Z")
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(name, "is out of range") from None

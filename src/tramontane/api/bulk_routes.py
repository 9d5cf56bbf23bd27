"""Many jobs at once: submitted from one body, or tried again by what they have in common."""

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from tramontane import tracing
from tramontane.api.bulk_lines import Elements, Item, Lines
from tramontane.api.requests import Submitter, app_of, json_answer, read_body
from tramontane.api.schemas import PlainText, in_utc, new_job, parse, read_cursor, read_idempotency_key
from tramontane.app import App
from tramontane.bulk import CHUNK
from tramontane.errors import Busy, InvalidInput, TramontaneError
from tramontane.ids import show_id, utc_now
from tramontane.models import JobFilter, NewJob, State, Submitted
from tramontane.wire import accepted_shape, encode

router = APIRouter()

#: Jobs of one request: what it answers is kept until all of them are written.
MOST: Final = 100_000
_JSONL: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)
#: Bodies that are read between two looks at what else there is to do.
_BREATH: Final = 50
_ONE: Final = {"$ref": "#/components/schemas/LongForm"}
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "array", "items": _ONE}},
            "application/x-ndjson": {"schema": _ONE},
        },
    },
}


@router.post("/api/jobs/bulk", openapi_extra=_BODY, responses={207: {"description": "some were refused"}})
async def submit_bulk(
    request: Request, tenant: Submitter, idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None
) -> Response:
    """Take many jobs, written in transactions of 500 as they come; what became of each, in order."""
    app, key = app_of(request), read_idempotency_key(idempotency_key)
    if key is not None and len(key) > 240:
        raise InvalidInput("Idempotency-Key", "must be at most 240 characters here: each job gets its number behind it")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    by_line = content_type in _JSONL
    with app.tracing.request("submit", request.headers):
        intake = Intake(app, tenant, key)
        await intake.read(_items(request, by_line=by_line))
    counts = {"accepted": intake.accepted, "replayed": intake.replayed, "refused": intake.refused}
    headers = {} if intake.retry_after is None else {"retry-after": str(math.ceil(intake.retry_after))}
    status = 207 if intake.refused else 200
    if by_line:
        lines = b"\n".join((*intake.answers, encode(counts), b""))
        return Response(lines, status, headers, media_type=content_type)
    body = encode(counts)[:-1] + b',"jobs":[' + b",".join(intake.answers) + b"]}"
    return Response(body, status, headers, media_type="application/json")


class Intake:
    """Jobs of one body on their way into the database, and what became of each as JSON."""

    def __init__(self, app: App, tenant: str, key: str | None) -> None:
        self.answers: list[bytes] = []
        #: Written now; there already, under the same key; neither.
        self.accepted = self.replayed = self.refused = 0
        #: Seconds, when some were refused for want of room.
        self.retry_after: float | None = None
        self._app = app
        self._tenant = tenant
        self._key = key
        self._trace = tracing.current()
        self._waiting: list[NewJob | TramontaneError] = []

    async def read(self, items: AsyncIterator[Item]) -> None:
        """Write what comes, a chunk at a time. What was written stays, whatever becomes of the rest."""
        count = 0
        async for item in items:
            if count == MOST:
                self._waiting.append(InvalidInput("", f"a request holds {MOST} jobs at most: send the rest in another"))
                break
            self._waiting.append(self._job(item, count))
            count += 1
            if len(self._waiting) == CHUNK:
                await self._write()
            elif count % _BREATH == 0:
                await asyncio.sleep(0)
        await self._write()

    def _job(self, item: Item, index: int) -> NewJob | TramontaneError:
        if isinstance(item, InvalidInput):
            return item
        key, app = None if self._key is None else f"{self._key}#{index}", self._app
        try:
            job = new_job(
                item, app.settings, tenant=self._tenant, idempotency_key=key, now=utc_now(), callbacks=app.callbacks
            )
        except TramontaneError as error:
            return error
        return dataclasses.replace(job, trace_context=self._trace) if self._trace else job

    async def _write(self) -> None:
        jobs = [one for one in self._waiting if isinstance(one, NewJob)]
        outcomes = iter(await self._app.bulk.submit(jobs))
        for one in self._waiting:
            self._answer(next(outcomes) if isinstance(one, NewJob) else one)
        self._waiting.clear()

    def _answer(self, outcome: Submitted | TramontaneError) -> None:
        answer: dict[str, Any] = {"index": len(self.answers)}
        if isinstance(outcome, Submitted):
            shape = accepted_shape(outcome)
            answer |= {"jobId": shape.job_id, "requestId": shape.request_id, "statusUrl": shape.status_url}
            if outcome.replayed:
                answer |= {"replayed": True}
            self.replayed += outcome.replayed
            self.accepted += not outcome.replayed
        else:
            error = {"code": outcome.code, "message": outcome.message, "retryable": outcome.retryable}
            if isinstance(outcome, InvalidInput) and outcome.field:
                error |= {"field": outcome.field}
            if isinstance(outcome, Busy):
                self.retry_after = max(self.retry_after or 0, outcome.retry_after)
            answer |= {"error": error}
            self.refused += 1
        self.answers.append(encode(answer))


async def _items(request: Request, *, by_line: bool) -> AsyncIterator[Item]:
    largest = app_of(request).settings.body_limit
    reader = Lines(largest) if by_line else Elements(largest)
    async for block in request.stream():
        for item in reader.feed(block):
            yield item
    for item in reader.end():
        yield item


class RetryForm(BaseModel):
    """Which ended jobs are tried again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    status: Annotated[State, Field(strict=False)]
    kind: PlainText | None = None
    model: PlainText | None = None
    error: PlainText | None = None
    createdAfter: Annotated[AwareDatetime, AfterValidator(in_utc)] | None = None  # noqa: N815 - the wire's names
    createdBefore: Annotated[AwareDatetime, AfterValidator(in_utc)] | None = None  # noqa: N815
    metadata: dict[PlainText, PlainText] | None = None
    limit: Annotated[int, Field(ge=1, le=CHUNK)] = 100
    cursor: str | None = None


_FORM: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": RetryForm.model_json_schema()}}},
}


@router.post("/api/jobs/retry", openapi_extra=_FORM)
async def retry_jobs(request: Request, tenant: Submitter) -> Response:
    """New jobs for ended ones that match and have not been retried: a page of them, newest first."""
    app, form = app_of(request), parse(RetryForm, await read_body(request))
    if not form.status.final:
        raise InvalidInput("status", "must be completed, failed or cancelled: only an ended job is retried")
    before = read_cursor(form.cursor)
    with app.tracing.request("submit", request.headers):
        jobs = await app.bulk.retry(
            tenant, _filter(form), before=before, limit=form.limit, trace_context=tracing.current()
        )
    pairs = [{"jobId": show_id("job", job.key.id), "retryOf": _retried(job.retry_of)} for job in jobs]
    # A page that could not be filled may have been short of places: the next one tells.
    return json_answer({"retried": len(pairs), "jobs": pairs, "next": pairs[-1]["retryOf"] if pairs else None})


def _filter(form: RetryForm) -> JobFilter:
    return JobFilter(
        state=form.status,
        kind=form.kind,
        model=form.model,
        error=form.error,
        created_after=form.createdAfter,
        created_before=form.createdBefore,
        metadata=tuple((form.metadata or {}).items()),
    )


def _retried(job_id: Any) -> str:
    return show_id("job", job_id)

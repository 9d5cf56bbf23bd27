"""JSON shapes of our own envelope: camelCase outside, snake_case inside, by one rule.

What is Mistral's passes through as the bytes it came in. The wire says `status` where the code says state.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tramontane.ids import iso, show_id
from tramontane.models import AttemptRecord, Failure, Job, Submitted

_NULL: Final = Raw(b"null")


class ErrorShape(msgspec.Struct, rename="camel"):
    """`error` of a job."""

    code: str
    message: str
    retryable: bool


class CostShape(msgspec.Struct, rename="camel"):
    """Money. `amount` is a decimal number as text, so that nobody rounds it."""

    amount: str
    currency: str


class JobShape(msgspec.Struct, rename="camel"):
    """A job as JSON. A listing leaves `result` and `attempts` out."""

    job_id: str
    kind: str
    status: str
    attempt: int
    failures: int
    max_attempts: int
    request_id: str
    model: str
    priority: int
    metadata: Raw
    result: Raw | UnsetType
    #: What has been said so far, as long as that is all there is.
    text: str | UnsetType
    error: ErrorShape | None
    usage: Raw
    cost: CostShape | None
    head: int
    retry_of: str | None
    schedule_id: str | None
    created_at: str
    run_at: str
    deadline: str | None
    started_at: str | None
    completed_at: str | None
    status_url: str
    events_url: str
    cancel_url: str
    #: Since when there is no result any more, nor what was asked.
    result_expired_at: str | UnsetType = UNSET
    attempts: "list[AttemptShape] | UnsetType" = UNSET


class AttemptShape(msgspec.Struct, rename="camel"):
    """One line of a job's history."""

    attempt: int
    outcome: str
    started_at: str
    ended_at: str | None
    error: ErrorShape | None
    correlation_id: str | None
    usage: Raw
    unreported: bool


class AcceptedShape(msgspec.Struct, rename="camel"):
    """The answer to a submit."""

    job_id: str
    status: str
    status_url: str
    events_url: str
    cancel_url: str
    request_id: str


class ResultShape(msgspec.Struct, rename="camel"):
    """`result` of a completed chat. `completion` is Mistral's, with the whole text; `usage` is that of all attempts."""

    job_id: str
    request_id: str
    content: str
    usage: Raw
    completed_at: str
    finish_reason: str
    completion: Raw
    #: Attempts that Mistral may have billed without saying so; left out when there are none.
    unreported_attempts: int | UnsetType = UNSET


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def job_shape(
    job: Job,
    *,
    result: bytes | UnsetType | None = UNSET,
    text: str | UnsetType = UNSET,
    attempts: list[AttemptRecord] | UnsetType = UNSET,
) -> JobShape:
    """A job for the wire; `result` is JSON made at its end, or None while there is none, and then there is `text`."""
    urls = job_urls(job)
    return JobShape(
        job_id=show_id("job", job.key.id),
        kind=job.kind,
        status=job.state,
        attempt=job.attempt,
        failures=job.failures,
        max_attempts=job.attempts,
        request_id=job.request_id,
        model=job.model,
        priority=job.priority,
        metadata=_raw(job.metadata),
        result=_NULL if result is None else result if result is UNSET else Raw(result),
        text=text,
        error=error_shape(job.failure),
        usage=_raw(job.usage),
        cost=CostShape(job.cost, job.currency) if job.cost is not None and job.currency else None,
        head=job.head,
        retry_of=show_id("job", job.retry_of) if job.retry_of else None,
        schedule_id=show_id("sch", job.schedule) if job.schedule else None,
        created_at=iso(job.created_at),
        run_at=iso(job.run_at),
        deadline=iso(job.deadline) if job.deadline else None,
        started_at=iso(job.started_at) if job.started_at else None,
        completed_at=iso(job.completed_at) if job.completed_at else None,
        result_expired_at=iso(job.contents_pruned_at) if job.contents_pruned_at else UNSET,
        attempts=attempts if attempts is UNSET else [_attempt_shape(attempt) for attempt in attempts],
        **urls,
    )


def accepted_shape(submitted: Submitted) -> AcceptedShape:
    """The 202 of a submit. A replay says `queued` as the first answer did, whatever has become of the job."""
    job = submitted.job
    return AcceptedShape(job_id=show_id("job", job.key.id), status="queued", request_id=job.request_id, **job_urls(job))


def job_urls(job: Job) -> dict[str, str]:
    """The job's routes, relative."""
    url = f"/api/jobs/{show_id('job', job.key.id)}"
    return {"status_url": url, "events_url": f"{url}/events", "cancel_url": f"{url}/cancel"}


def error_shape(failure: Failure | None) -> ErrorShape | None:
    """`{code, message, retryable}`."""
    return ErrorShape(failure.code, failure.message, failure.retryable) if failure else None


def error_body(failure: Failure, *, length: int) -> bytes:
    """The log's fields of a final `error` event; there the seed makes `error` a string, with `code` beside it.

    length: of the text that readers have, in UTF-16 units.
    """
    return encode(
        {
            "error": failure.message,
            "code": failure.code,
            "retryable": failure.retryable,
            "partial": length > 0,
            "len": length,
            "final": True,
        }
    )


def utf16_length(text: str) -> int:
    """What a browser's `length` counts: code points, and one more for each above U+FFFF."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _attempt_shape(attempt: AttemptRecord) -> AttemptShape:
    return AttemptShape(
        attempt=attempt.attempt,
        outcome=attempt.outcome,
        started_at=iso(attempt.started_at),
        ended_at=iso(attempt.ended_at) if attempt.ended_at else None,
        error=error_shape(attempt.failure),
        correlation_id=attempt.correlation_id,
        usage=_raw(attempt.usage),
        unreported=attempt.unreported,
    )


def _raw(text: str | None) -> Raw:
    return _NULL if text is None else Raw(text.encode())

"""What a server says is wrong, as errors of our own tree: problem documents, and the errors of jobs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from tramontane.client.transport import Answer, Lost
from tramontane.errors import (
    BodyTooLarge,
    BudgetExhausted,
    Busy,
    CallbackBlocked,
    ConfigurationError,
    Conflict,
    DatabaseError,
    IdempotencyMismatch,
    InternalError,
    InvalidCursor,
    InvalidInput,
    InvalidJSON,
    JobError,
    JobNotEnded,
    KeyRefused,
    MistralError,
    NotAllowed,
    NotFound,
    NotSupported,
    Overloaded,
    QueueFull,
    ScopeMissing,
    SecretsLocked,
    StreamExpired,
    TramontaneError,
    UpstreamTimeout,
)
from tramontane.retry import LONGEST_RETRY_AFTER

_LONGEST_PROBLEM: Final = 64 * 1024

#: A server that is busy, draining, or behind a proxy that misses it: the same request may do later.
_PASSING: Final = frozenset({408, 429, 502, 503, 504})
_BY_FIELD: Final = {kind.code: kind for kind in (InvalidInput, InvalidJSON, NotSupported, BodyTooLarge)}
_BY_DETAIL: Final = {
    kind.code: kind
    for kind in (
        NotFound,
        NotAllowed,
        KeyRefused,
        ScopeMissing,
        Conflict,
        IdempotencyMismatch,
        JobNotEnded,
        DatabaseError,
        SecretsLocked,
        QueueFull,
        Overloaded,
        BudgetExhausted,
    )
}
_TIMEOUT: Final = re.compile(r": ([a-z ]+) took over ([0-9.e+]+) s$")


async def refuse(answer: Answer, where: str) -> None:
    """Raise what a status that is no success means: Lost for what may pass, else an error of ours."""
    if answer.status < 400:
        raise ConfigurationError(f"{where} answers from elsewhere: {answer.headers.get('location', 'it does not say')}")
    told = b""
    while len(told) < _LONGEST_PROBLEM and (block := await answer.block()):
        told += block
    try:
        problem = msgspec.json.decode(told, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    code, detail = str(problem.get("code", "")), str(problem.get("detail") or f"HTTP {answer.status}")
    error = _error(answer.status, code, detail, problem)
    if answer.status in _PASSING and code not in (SecretsLocked.code, BudgetExhausted.code):
        asked = answer.headers.get("retry-after", "")
        wait = min(float(asked), LONGEST_RETRY_AFTER) if asked.isdecimal() else 0.0
        raise Lost(detail, retry_after=wait, error=error if isinstance(error, Busy) else None)
    raise error


def of_line(error: Mapping[str, Any]) -> TramontaneError:
    """Why one job of many was refused, from the `error` of its line."""
    return _error(422, str(error.get("code", "")), str(error.get("message", "")), error)


def _error(status: int, code: str, detail: str, problem: Mapping[str, Any]) -> TramontaneError:
    field = str(problem.get("field", ""))
    if code == InvalidCursor.code:
        return InvalidCursor(detail.removeprefix("after: "), past_head=status == 409)
    if code == CallbackBlocked.code:
        return CallbackBlocked(field, detail.removeprefix(f"{field}: "), rule=str(problem.get("rule", "")))
    if code == StreamExpired.code:
        return StreamExpired(detail, job_id=str(problem.get("statusUrl", "")).rpartition("/")[2])
    if kind := _BY_FIELD.get(code):
        return kind(field, detail.removeprefix(f"{field}: "))
    if refusal := _BY_DETAIL.get(code):
        return refusal(detail)
    refused = NotAllowed if status in (401, 403) else InternalError
    return refused(f"the server says {status}: {detail}")


def failure(error: Mapping[str, Any], job_id: str) -> TramontaneError:
    """Why a job has no result, as the error that its attempt met, with the job's id as a note.

    error: `{code, message, retryable}`. A code that this version does not know is a JobError under that code.
    """
    code, message = str(error.get("code", "")), str(error.get("message", ""))
    found = _known(code, message)
    if found is None:
        found = JobError(message)
        found.code, found.retryable = code, bool(error.get("retryable"))  # type: ignore[misc]
    found.add_note(job_id)
    return found


def _known(code: str, message: str) -> TramontaneError | None:
    if code == UpstreamTimeout.code and (told := _TIMEOUT.search(message)):
        return UpstreamTimeout(told[1].replace(" ", "_"), float(told[2]))
    for kind in (*_kinds(JobError), *_kinds(MistralError)):
        if kind.code == code and kind not in (JobError, UpstreamTimeout):
            return kind(message)
    return None


def _kinds(kind: type[TramontaneError]) -> Iterator[type[TramontaneError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)

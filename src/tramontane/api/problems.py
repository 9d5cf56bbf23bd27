"""Errors on the wire: RFC 9457 problem details with a code that never changes."""

import logging
import math
from typing import Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tramontane.errors import (
    BodyTooLarge,
    BudgetExhausted,
    Busy,
    CallbackBlocked,
    Conflict,
    DatabaseError,
    IdempotencyMismatch,
    InvalidCursor,
    InvalidInput,
    InvalidJSON,
    InvalidSignature,
    InvalidTicket,
    KeyRefused,
    NotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    QueueFull,
    ResultExpired,
    ScopeMissing,
    SecretsLocked,
    StreamExpired,
    TooManyStreams,
    TooManyTries,
    TramontaneError,
)
from tramontane.listener import OUTAGES
from tramontane.telemetry import log

logger = logging.getLogger(__name__)

#: From the most special class to the most general.
_STATUS: Final[tuple[tuple[type[TramontaneError], int, str], ...]] = (
    (InvalidJSON, 400, "Not JSON"),
    (BodyTooLarge, 413, "Body too large"),
    (InvalidInput, 422, "Invalid request"),
    (NotAllowed, 403, "Not allowed"),
    (KeyRefused, 401, "Unauthorized"),
    (ScopeMissing, 403, "Forbidden"),
    (TooManyTries, 429, "Too many tries"),
    (NotFound, 404, "Not found"),
    (IdempotencyMismatch, 422, "Idempotency-Key reused"),
    (StreamExpired, 410, "Stream expired"),
    (ResultExpired, 410, "Result expired"),
    (Conflict, 409, "Conflict"),
    (InvalidSignature, 400, "Invalid signature"),
    (InvalidTicket, 401, "Invalid ticket"),
    (TooManyStreams, 429, "Too many streams"),
    (QueueFull, 429, "Queue full"),
    (Overloaded, 503, "Overloaded"),
    (BudgetExhausted, 429, "Budget exhausted"),
    (DatabaseError, 503, "Database unavailable"),
    (SecretsLocked, 503, "Secrets locked"),
    (NotReady, 503, "Not ready"),
)
_HEADERS: Final = {
    DatabaseError.code: {"retry-after": "2"},
    NotReady.code: {"retry-after": "2"},
    TooManyStreams.code: {"retry-after": "5"},
    InvalidTicket.code: {"www-authenticate": "Ticket"},
    KeyRefused.code: {"www-authenticate": "Bearer"},
    TooManyTries.code: {"retry-after": "60"},
}
_MEDIA_TYPE: Final = "application/problem+json"
_FAULT: Final = "a fault in Tramontane; its log tells more"


def install(api: FastAPI) -> None:
    """Turn every error of the API into a problem document."""
    api.add_exception_handler(TramontaneError, _ours)
    api.add_exception_handler(RequestValidationError, _parameters)
    api.add_exception_handler(HTTPException, _framework)
    for outage in OUTAGES:
        api.add_exception_handler(outage, _outage)
    api.add_exception_handler(ClientDisconnect, _gone)
    api.add_middleware(Faults)


def problem(status: int, title: str, code: str, detail: str, **more: str | None) -> Response:
    """A problem document, with the members of `more` that are not None."""
    fields = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
    fields |= {name: value for name, value in more.items() if value is not None}
    return Response(msgspec.json.encode(fields), status, _HEADERS.get(code), media_type=_MEDIA_TYPE)


def response_to(error: TramontaneError) -> Response:
    """The problem document of one of our errors."""
    status, title = next(((s, t) for kind, s, t in _STATUS if isinstance(error, kind)), (500, "Internal error"))
    if isinstance(error, InvalidCursor):
        status = 409 if error.past_head else 400
    more = {"field": error.field or None} if isinstance(error, InvalidInput) else {}
    if isinstance(error, CallbackBlocked):
        more |= {"rule": error.rule, "hint": error.hint or None}
    if isinstance(error, StreamExpired) and error.job_id:
        more |= {"statusUrl": f"/api/jobs/{error.job_id}"}
    response = problem(status, title, error.code, error.message, **more)
    if isinstance(error, Busy | BudgetExhausted) and error.retry_after is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after))
    return response


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, TramontaneError)
    return response_to(error)


async def _parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return problem(422, "Invalid request", InvalidInput.code, f"{name}: {first['msg']}", field=name)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    response = problem(error.status_code, str(error.detail), code, f"{request.method} {request.url.path}")
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _outage(_: Request, __: Exception) -> Response:
    return problem(503, "Database unavailable", DatabaseError.code, "the database does not answer; try again")


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


class Faults:
    """ASGI middleware for what nobody foresaw: it is logged, answered, and the connection lives on.

    Starlette's own would answer too, and then raise it again, upon which the server cuts the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:
                raise
            log(logger, logging.ERROR, "request.broken", path=scope.get("path"), error=error)
            await problem(500, "Internal error", "internal", _FAULT)(scope, receive, send)

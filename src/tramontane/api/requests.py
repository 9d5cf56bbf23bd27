"""What routes ask of every request, and the answer that they give: the same everywhere."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request, Response

from tramontane.api.authentication import CALLER
from tramontane.app import App
from tramontane.errors import BodyTooLarge, InvalidInput, KeyRefused, ScopeMissing
from tramontane.ids import read_id
from tramontane.models import Caller, Scope
from tramontane.wire import encode

#: Longest long-poll (seconds); proxies cut silent requests after about a minute.
LONGEST_WAIT: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})")


def caller_of(request: Request, scope: Scope) -> Caller:
    """Who asks. Raises ScopeMissing for one who may not do that, and KeyRefused when nobody was let in by name."""
    caller: Caller | None = request.scope.get(CALLER)
    if caller is None:
        raise KeyRefused("a key is needed here")
    if not caller.may(scope):
        raise ScopeMissing(f"this key lacks the scope {scope}: use one that has it")
    return caller


def _tenant_with(scope: Scope) -> Any:
    async def tenant(request: Request) -> str:
        return caller_of(request, scope).tenant

    return Depends(tenant)


#: As a parameter of a route: the tenant of a caller who may do that, told before anything else is looked at.
Submitter = Annotated[str, _tenant_with(Scope.SUBMIT)]
Reader = Annotated[str, _tenant_with(Scope.READ)]
Admin = Annotated[str, _tenant_with(Scope.ADMIN)]


def app_of(request: Request) -> App:
    """The app behind the API."""
    app: App = request.app.state.app
    return app


async def read_body(request: Request) -> bytes:
    """The whole body. Raises BodyTooLarge before it has read much more than the limit."""
    limit = app_of(request).settings.body_limit
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge("", f"the body is over {limit} bytes")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise BodyTooLarge("", f"the body is over {limit} bytes")
    return bytes(body)


def read_wait(prefer: str | None) -> int:
    """Seconds of `Prefer: wait=N`, up to LONGEST_WAIT; 0 without it."""
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), LONGEST_WAIT) if found else 0


def wait_applied(wait: int) -> dict[str, str]:
    """The header that says how long an answer was willing to wait."""
    return {"preference-applied": f"wait={wait}"} if wait else {}


def optional_id(prefix: str, text: str | None) -> UUID | None:
    """The id of a filter or a cursor, if there is one. Raises NotFound."""
    return None if text is None else read_id(prefix, text)


def read_time(name: str, moment: datetime | None) -> datetime | None:
    """A time of the query in UTC. Raises InvalidInput for one without a time zone, or out of range."""
    if moment is not None and moment.tzinfo is None:
        raise InvalidInput(name, "needs a time zone: write 2026-11-22T06:46:00Z")
    try:
        return moment and moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(name, "is out of range") from None


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(encode(value), status, headers, media_type="application/json")

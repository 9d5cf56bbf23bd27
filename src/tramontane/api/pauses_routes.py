"""What is not let through for now: of a kind, of a model, of everything. What runs goes on."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from tramontane.api.requests import Reader, app_of, caller_of, json_answer, read_body
from tramontane.api.schemas import PlainText, parse
from tramontane.errors import InvalidInput
from tramontane.ids import iso, read_id, show_id, utc_now
from tramontane.models import EVERY, Pause, Scope

router = APIRouter()


class PauseForm(BaseModel):
    """What shall wait. Without a kind and a model: everything."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: PlainText | None = None
    model: PlainText | None = None
    reason: PlainText | None = None
    #: `*`: of the whole fleet.
    tenant: PlainText | None = None


SCHEMA: Final = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": PauseForm.model_json_schema()}}}
}


@router.post("/api/pauses", status_code=201, openapi_extra=SCHEMA)
async def pause(request: Request) -> Response:
    """Let nothing of that through until it is resumed. A repeat finds the same pause, and renews its reason."""
    caller = caller_of(request, Scope.ADMIN)
    form = parse(PauseForm, await read_body(request) or b"{}")
    if form.tenant == EVERY:
        caller_of(request, Scope.OPERATOR)
    elif form.tenant not in (None, caller.tenant):
        raise InvalidInput("tenant", "must be `*`, for the whole fleet, or left out")
    made = await app_of(request).pauses.pause(
        form.tenant or caller.tenant,
        form.kind or EVERY,
        form.model or EVERY,
        reason=form.reason or "",
        now=utc_now(),
    )
    return json_answer(pause_shape(made), 201)


@router.get("/api/pauses")
async def list_pauses(request: Request, tenant: Reader) -> Response:
    """The tenant's pauses, and those of the whole fleet."""
    return json_answer({"pauses": [pause_shape(one) for one in await app_of(request).pauses.list(tenant)]})


@router.delete("/api/pauses/{pause_id}", status_code=204)
async def resume(request: Request, pause_id: str) -> Response:
    """Let it through again, at once."""
    caller = caller_of(request, Scope.ADMIN)
    fleet = caller.may(Scope.OPERATOR)
    await app_of(request).pauses.resume(caller.tenant, read_id("pau", pause_id), fleet=fleet)
    return Response(status_code=204)


def pause_shape(one: Pause) -> dict[str, Any]:
    """A pause for the wire; null stands for every kind, and every model."""
    return {
        "pauseId": show_id("pau", one.id),
        "tenant": one.tenant,
        "kind": None if one.kind == EVERY else one.kind,
        "model": None if one.model == EVERY else one.model,
        "reason": one.reason or None,
        "pausedAt": iso(one.paused_at),
    }

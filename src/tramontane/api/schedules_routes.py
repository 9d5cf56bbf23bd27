"""Jobs that come again."""

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Raw
from pydantic import BaseModel, ConfigDict, Field

from tramontane import tracing
from tramontane.api.requests import Admin, Reader, Submitter, app_of, json_answer, read_body
from tramontane.api.schemas import PlainText, new_job, parse, read_fields
from tramontane.app import App
from tramontane.errors import InvalidInput
from tramontane.ids import iso, read_id, show_id, utc_now
from tramontane.models import CatchUp, Schedule
from tramontane.schedules import Template, job_now
from tramontane.wire import accepted_shape

router = APIRouter()

#: Of a callback: sealed, and never shown again.
_SECRETS: Final = ("secret", "headers")


class ScheduleChange(BaseModel):
    """What is to be changed of a schedule."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: PlainText | None = None
    cron: PlainText | None = None
    timezone: PlainText | None = None
    job: dict[str, Any] | None = None
    catchUp: Annotated[CatchUp, Field(strict=False)] | None = None  # noqa: N815 - the wire's name
    status: Literal["active", "paused"] | None = None


class ScheduleForm(ScheduleChange):
    """A new schedule. `job` is the body of a submit, in either form."""

    name: PlainText
    cron: PlainText
    timezone: PlainText = "UTC"
    job: dict[str, Any]
    catchUp: Annotated[CatchUp, Field(strict=False)] = CatchUp.ONE  # noqa: N815
    status: Literal["active", "paused"] = "active"


def _schema(form: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": form.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/api/schedules", status_code=201, openapi_extra=_schema(ScheduleForm))
async def add_schedule(request: Request, tenant: Admin) -> Response:
    """A job that comes again, from the first of its times after now."""
    app, body, now = app_of(request), await read_body(request), utc_now()
    fields, form = read_fields(body), parse(ScheduleForm, body)
    job, template = _template(app, fields, tenant, now)
    made = await app.schedules.add(
        tenant,
        name=form.name,
        cron=form.cron,
        timezone=form.timezone,
        job=job,
        template=template,
        catch_up=form.catchUp,
        active=form.status == "active",
        now=now,
    )
    return json_answer(_shape(made), 201, {"location": f"/api/schedules/{show_id('sch', made.id)}"})


@router.get("/api/schedules")
async def list_schedules(request: Request, tenant: Reader) -> Response:
    """All schedules, by name."""
    return json_answer({"schedules": [_shape(one) for one in await app_of(request).schedules.list(tenant)]})


@router.get("/api/schedules/{schedule_id}")
async def get_schedule(request: Request, schedule_id: str, tenant: Reader) -> Response:
    """One schedule."""
    return json_answer(_shape(await app_of(request).schedules.get(tenant, read_id("sch", schedule_id))))


@router.patch("/api/schedules/{schedule_id}", openapi_extra=_schema(ScheduleChange))
async def change_schedule(request: Request, schedule_id: str, tenant: Admin) -> Response:
    """Change what is given; its next time is the first after now. `status`: `paused`, or `active` again."""
    app, body, now = app_of(request), await read_body(request), utc_now()
    fields, form = read_fields(body), parse(ScheduleChange, body)
    schedule = await app.schedules.get(tenant, read_id("sch", schedule_id))
    job, template = (schedule.job.encode(), None) if form.job is None else _template(app, fields, tenant, now)
    changed = dataclasses.replace(
        schedule,
        name=form.name or schedule.name,
        cron=form.cron or schedule.cron,
        timezone=form.timezone or schedule.timezone,
        job=job.decode(),
        catch_up=form.catchUp or schedule.catch_up,
        active=schedule.active if form.status is None else form.status == "active",
    )
    return json_answer(_shape(await app.schedules.change(changed, template=template, now=now)))


@router.delete("/api/schedules/{schedule_id}", status_code=204)
async def delete_schedule(request: Request, schedule_id: str, tenant: Admin) -> Response:
    """Forget a schedule. Its jobs stay."""
    await app_of(request).schedules.delete(tenant, read_id("sch", schedule_id))
    return Response(status_code=204)


@router.post("/api/schedules/{schedule_id}/run", status_code=202)
async def run_schedule(request: Request, schedule_id: str, tenant: Submitter) -> Response:
    """Its job now, out of turn. The schedule itself stays as it is."""
    app = app_of(request)
    with app.tracing.request("submit", request.headers):
        schedule = await app.schedules.get(tenant, read_id("sch", schedule_id))
        job = dataclasses.replace(job_now(schedule, utc_now()), trace_context=tracing.current())
        shape = accepted_shape(await app.jobs.submit(job))
    return json_answer(shape, 202, {"location": shape.status_url})


def _template(app: App, fields: dict[str, Raw], tenant: str, now: datetime) -> tuple[bytes, Template]:
    """The job of a body as it will be shown, and as it will be submitted. Raises InvalidInput naming `job.…`."""
    raw = bytes(fields["job"])
    given = msgspec.json.decode(raw, type=dict[str, Any])
    for name in ("runAt", "delay"):
        if name in given:
            raise InvalidInput(f"job.{name}", "is the schedule's to say: leave it out")
    if isinstance(deadline := given.get("deadline"), str) and "T" in deadline.upper():
        raise InvalidInput("job.deadline", 'must be a duration from each start on ("2h")')
    try:
        job = new_job(raw, app.settings, tenant=tenant, idempotency_key=None, now=now, callbacks=app.callbacks)
    except InvalidInput as error:
        error.args = (f"job.{error}" if error.field else str(error),)
        error.message, error.field = str(error), f"job.{error.field}" if error.field else "job"
        raise
    return _without_secrets(raw, given), Template(job=job, request_id=given.get("requestId"))


def _without_secrets(raw: bytes, fields: dict[str, Any]) -> bytes:
    callback = fields.get("callback")
    if not isinstance(callback, dict) or not any(name in callback for name in _SECRETS):
        return raw
    kept = {name: value for name, value in callback.items() if name not in _SECRETS}
    return msgspec.json.encode(msgspec.json.decode(raw, type=dict[str, Raw]) | {"callback": kept})


def _shape(schedule: Schedule) -> dict[str, Any]:
    return {
        "scheduleId": show_id("sch", schedule.id),
        "name": schedule.name,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "job": Raw(schedule.job.encode()),
        "catchUp": schedule.catch_up,
        "status": "active" if schedule.active else "paused",
        "reason": schedule.reason,
        "nextAt": iso(schedule.next_at) if schedule.next_at else None,
        "lastAt": iso(schedule.last_at) if schedule.last_at else None,
        "lastJobId": show_id("job", schedule.last_job) if schedule.last_job else None,
        "createdAt": iso(schedule.created_at),
        "updatedAt": iso(schedule.updated_at),
    }

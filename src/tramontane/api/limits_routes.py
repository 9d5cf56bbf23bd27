"""What may run now, and what does not yet: Mistral's limits as they are known, and who waits for them."""

from typing import Any

from fastapi import APIRouter, Request, Response

from tramontane.api.requests import app_of, caller_of, json_answer
from tramontane.forecast import Forecast
from tramontane.ids import iso, read_id, show_id, utc_now
from tramontane.limits import caution, foreign
from tramontane.models import SERVER_ACCOUNT, JobKey, Scope
from tramontane.store import Line, Survey
from tramontane.store.surveys import MOST

router = APIRouter()


@router.get("/api/limits")
async def show_limits(request: Request, jobId: str | None = None) -> Response:  # noqa: N803 - the wire's name
    """Each bucket of requests and tokens: known, free, reserved, and how many wait; and when a job may start."""
    caller, app, now = caller_of(request, Scope.READ), app_of(request), utc_now()
    everyone = caller.may(Scope.OPERATOR)
    survey = await app.surveys.survey(None if everyone else caller.tenant, now)
    shown: dict[str, Any] = {
        "fleet": _fleet(survey),
        "buckets": [_bucket(line, survey, everyone=everyone) for line in survey.lines],
        "more": survey.more,
    }
    if jobId is not None:
        job = await app.jobs.get(JobKey(tenant=caller.tenant, id=read_id("job", jobId)))
        forecast = await app.surveys.forecast(job, now)
        shown["job"] = {"jobId": show_id("job", job.key.id), "status": job.state, **_forecast(forecast)}
    return json_answer(shown)


def _fleet(survey: Survey) -> dict[str, Any]:
    fleet = survey.fleet
    return {
        "workers": fleet.workers,
        "slots": fleet.slots,
        "freeSlots": max(0, fleet.free),
        "startsPerSecond": fleet.rate or None,
        "freeStarts": fleet.rate_room if fleet.rate else None,
        "windowSeconds": fleet.window.total_seconds(),
    }


def _bucket(line: Line, survey: Survey, *, everyone: bool) -> dict[str, Any]:
    """None is what is not known, or not limited."""
    bucket, use, room = line.bucket, line.use, line.room
    others = foreign(bucket, survey.now, survey.fleet.window)
    blocked = bucket.blocked_until if bucket.blocked_until and bucket.blocked_until > survey.now else None
    shown = {
        "account": "server" if bucket.account == SERVER_ACCOUNT else bucket.account,
        "model": bucket.model,
        "observedAt": iso(bucket.observed_at) if bucket.observed_at else None,
        "requests": {
            "limit": bucket.limit_requests,
            "free": None if bucket.limit_requests is None else _whole(room.requests),
            "used": use.requests + use.starting,
            "others": others[0],
        },
        "tokens": {
            "limit": bucket.limit_tokens,
            "free": None if bucket.limit_tokens is None else _whole(room.tokens),
            "used": use.tokens,
            "reserved": use.reserved,
            "others": others[1],
        },
        "inFlight": use.flying,
        "blockedUntil": iso(blocked) if blocked else None,
        "caution": round(caution(bucket, survey.now, survey.fleet.window), 3),
        "waiting": _counted(sum(line.waiting.values())),
    }
    if everyone:
        shown["tenants"] = {tenant: _counted(count) for tenant, count in sorted(line.waiting.items())}
    return shown


def _counted(count: int) -> dict[str, Any]:
    """A number, and whether there are more than were counted."""
    return {"count": count, "more": count >= MOST}


def _whole(number: float) -> int:
    return int(min(number, 2**53))


def _forecast(forecast: Forecast | None) -> dict[str, Any]:
    if forecast is None:
        return {"ahead": 0, "expectedStartAt": None, "waitsFor": None}
    expected = iso(forecast.expected_at) if forecast.expected_at else None
    return {"ahead": forecast.ahead, "expectedStartAt": expected, "waitsFor": forecast.waits_for}

"""The routes of endpoints, and of what is asked of them; those of what was told are in webhook_history."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from tramontane.api.requests import (
    LONGEST_WAIT,
    Admin,
    Reader,
    app_of,
    json_answer,
    optional_id,
    read_body,
    read_time,
    read_wait,
    wait_applied,
)
from tramontane.api.webhook_schemas import (
    EndpointFields,
    ExplainedURL,
    NewEndpoint,
    NewListener,
    NewRecovery,
    NextOnes,
    Rotation,
    body_of,
    read,
)
from tramontane.ids import iso, read_id, show_id, utc_now
from tramontane.webhooks.models import EndpointState
from tramontane.webhooks.records import Endpoint, RecoveryState
from tramontane.webhooks.shapes import (
    EndpointShape,
    delivery_shape,
    endpoint_shape,
    explanation_shape,
    recovery_shape,
)

router = APIRouter(prefix="/api/webhooks")

Limit = Annotated[int, Query(ge=1, le=200)]
Prefer = Annotated[str | None, Header()]


# Endpoints


@router.post("/endpoints", status_code=201, openapi_extra=body_of(NewEndpoint))
async def add_endpoint(request: Request, tenant: Admin) -> Response:
    """Register a URL. Its secret is shown here, and never again."""
    form = read(NewEndpoint, await read_body(request))
    endpoint, secret = await app_of(request).endpoints.add(tenant, form.change(), secret=form.secret)
    shape = _endpoint(request, endpoint, secret=secret)
    return json_answer(shape, 201, {"location": f"/api/webhooks/endpoints/{shape.endpoint_id}"})


@router.get("/endpoints")
async def find_endpoints(request: Request, tenant: Reader, cursor: str | None = None, limit: Limit = 50) -> Response:
    """Endpoints, newest first."""
    found = await app_of(request).endpoints.find(tenant, before=optional_id("ep", cursor), limit=limit + 1)
    more = show_id("ep", found[limit - 1].id) if len(found) > limit else None
    return json_answer({"endpoints": [_endpoint(request, one) for one in found[:limit]], "next": more})


@router.get("/endpoints/{endpoint_id}")
async def get_endpoint(request: Request, tenant: Reader, endpoint_id: str) -> Response:
    """An endpoint, with its health and its backlog."""
    endpoint = await app_of(request).endpoints.get(tenant, read_id("ep", endpoint_id))
    return json_answer(_endpoint(request, endpoint))


@router.patch("/endpoints/{endpoint_id}", openapi_extra=body_of(EndpointFields))
async def change_endpoint(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Change the fields that are given."""
    form = read(EndpointFields, await read_body(request))
    endpoint = await app_of(request).endpoints.change(tenant, read_id("ep", endpoint_id), form.change())
    return json_answer(_endpoint(request, endpoint))


@router.delete("/endpoints/{endpoint_id}", status_code=204)
async def remove_endpoint(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Forget an endpoint. What waits for it is cancelled; its log stays."""
    await app_of(request).endpoints.remove(tenant, read_id("ep", endpoint_id))
    return Response(status_code=204)


@router.post("/endpoints/{endpoint_id}/test", status_code=202)
async def try_endpoint(request: Request, tenant: Admin, endpoint_id: str, prefer: Prefer = None) -> Response:
    """Send `webhook.test`. With `Prefer: wait=N` the answer comes when it has been tried once."""
    wait = read_wait(prefer)
    endpoints = app_of(request).endpoints
    delivery = await endpoints.test(tenant, read_id("ep", endpoint_id), wait=wait)
    return json_answer(delivery_shape(delivery), 202, wait_applied(wait))


@router.post("/endpoints/{endpoint_id}/rotate", openapi_extra=body_of(Rotation, required=False))
async def rotate_secret(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Give an endpoint a further secret, which is shown here, and never again."""
    form = read(Rotation, await read_body(request) or b"{}")
    endpoint, secret = await app_of(request).endpoints.rotate(
        tenant,
        read_id("ep", endpoint_id),
        overlap=float(form.overlap),
        at_end=form.promote == "end",
        secret=form.secret,
    )
    return json_answer(_endpoint(request, endpoint, secret=secret))


@router.post("/endpoints/{endpoint_id}/enable")
async def enable_endpoint(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Send again; its health begins anew."""
    return await _set_state(request, tenant, endpoint_id, EndpointState.ACTIVE)


@router.post("/endpoints/{endpoint_id}/pause")
async def pause_endpoint(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Send nothing for now: deliveries wait."""
    return await _set_state(request, tenant, endpoint_id, EndpointState.PAUSED)


@router.post("/endpoints/{endpoint_id}/disable")
async def disable_endpoint(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Make no deliveries any more; what waits is kept."""
    return await _set_state(request, tenant, endpoint_id, EndpointState.DISABLED)


@router.post("/endpoints/{endpoint_id}/recover", status_code=202, openapi_extra=body_of(NewRecovery))
async def recover(request: Request, tenant: Admin, endpoint_id: str) -> Response:
    """Tell an endpoint a stretch of time again. It goes on by itself."""
    form = read(NewRecovery, await read_body(request))
    since, until = read_time("since", form.since), read_time("until", form.until)
    assert since is not None, "the form requires it"
    recovery = await app_of(request).endpoints.recover(
        tenant, read_id("ep", endpoint_id), since=since, until=until, only=form.only, event=form.event
    )
    shape = recovery_shape(recovery)
    return json_answer(shape, 202, {"location": f"/api/webhooks/recoveries/{shape.recovery_id}"})


# Recoveries


@router.get("/recoveries")
async def find_recoveries(
    request: Request, tenant: Reader, endpoint: str | None = None, cursor: str | None = None, limit: Limit = 50
) -> Response:
    """Recoveries, newest first."""
    found = await app_of(request).endpoints.recoveries.find(
        tenant, optional_id("ep", endpoint), before=optional_id("rec", cursor), limit=limit + 1
    )
    more = show_id("rec", found[limit - 1].id) if len(found) > limit else None
    return json_answer({"recoveries": [recovery_shape(one) for one in found[:limit]], "next": more})


@router.get("/recoveries/{recovery_id}")
async def get_recovery(request: Request, tenant: Reader, recovery_id: str) -> Response:
    """A recovery and how far it is."""
    recovery = await app_of(request).endpoints.recoveries.get(tenant, read_id("rec", recovery_id))
    return json_answer(recovery_shape(recovery))


@router.post("/recoveries/{recovery_id}/pause")
async def pause_recovery(request: Request, tenant: Admin, recovery_id: str) -> Response:
    """Make no further deliveries; those that wait go on."""
    return await _steer(request, tenant, recovery_id, "paused")


@router.post("/recoveries/{recovery_id}/resume")
async def resume_recovery(request: Request, tenant: Admin, recovery_id: str) -> Response:
    """Go on where it was paused."""
    return await _steer(request, tenant, recovery_id, "running")


@router.post("/recoveries/{recovery_id}/cancel")
async def cancel_recovery(request: Request, tenant: Admin, recovery_id: str) -> Response:
    """End it, and cancel those of its deliveries that wait."""
    return await _steer(request, tenant, recovery_id, "cancelled")


# The policy


@router.post("/explain", openapi_extra=body_of(ExplainedURL))
async def explain(request: Request, _: Admin) -> Response:
    """What the address policy says of a URL. Nothing is sent there."""
    form = read(ExplainedURL, await read_body(request))
    return json_answer(explanation_shape(await app_of(request).endpoints.explain(form.url), utc_now()))


# Listening


@router.post("/listeners", status_code=201, openapi_extra=body_of(NewListener, required=False))
async def add_listener(request: Request, tenant: Reader) -> Response:
    """Listen: deliveries wait to be fetched, for as long as somebody comes for them."""
    form = read(NewListener, await read_body(request) or b"{}")
    listener_id, secret, ends = await app_of(request).listeners.add(tenant, tuple(form.events))
    answer = {"listenerId": show_id("ep", listener_id), "secret": secret, "expiresAt": iso(ends)}
    return json_answer(answer, 201)


@router.post("/listeners/{listener_id}/next", openapi_extra=body_of(NextOnes, required=False))
async def next_deliveries(request: Request, tenant: Reader, listener_id: str) -> Response:
    """Say what came of the last deliveries, and get the next as soon as there are any."""
    form = read(NextOnes, await read_body(request) or b"{}")
    results = [result.heard() for result in form.results]
    taken, ends = await app_of(request).listeners.next(
        tenant, read_id("ep", listener_id), results, wait=min(float(form.wait), LONGEST_WAIT)
    )
    deliveries = [
        {
            "deliveryId": show_id("dlv", one.id),
            "messageId": show_id("msg", one.message_id),
            "event": one.event,
            "attempt": one.attempt,
            "headers": headers,
            "body": one.body.decode(),
        }
        for one, headers in taken
    ]
    return json_answer({"deliveries": deliveries, "expiresAt": iso(ends)})


@router.delete("/listeners/{listener_id}", status_code=204)
async def remove_listener(request: Request, tenant: Reader, listener_id: str) -> Response:
    """Listen no more."""
    await app_of(request).listeners.remove(tenant, read_id("ep", listener_id))
    return Response(status_code=204)


async def _set_state(request: Request, tenant: str, endpoint_id: str, state: EndpointState) -> Response:
    endpoint = await app_of(request).endpoints.set_state(tenant, read_id("ep", endpoint_id), state)
    return json_answer(_endpoint(request, endpoint))


async def _steer(request: Request, tenant: str, recovery_id: str, to: RecoveryState) -> Response:
    recoveries = app_of(request).endpoints.recoveries
    return json_answer(recovery_shape(await recoveries.steer(tenant, read_id("rec", recovery_id), to, utc_now())))


def _endpoint(request: Request, endpoint: Endpoint, **more: Any) -> EndpointShape:
    return endpoint_shape(endpoint, app_of(request).endpoints.header_names(endpoint), utc_now(), **more)

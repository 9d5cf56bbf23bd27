"""The routes of what was told: messages, deliveries, and each try. The same parameters filter each listing."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from tramontane.api.requests import (
    Admin,
    Reader,
    app_of,
    json_answer,
    optional_id,
    read_time,
    read_wait,
    wait_applied,
)
from tramontane.errors import NotFound
from tramontane.ids import read_id, show_id
from tramontane.webhooks.models import DeliveryState
from tramontane.webhooks.records import AttemptFilter, AttemptLine, DeliveryFilter, MessageFilter
from tramontane.webhooks.shapes import attempt_shape, delivery_shape, message_shape

router = APIRouter(prefix="/api/webhooks")

#: Deliveries of one message, or attempts of one delivery, that are shown with it.
_MOST_BESIDE = 200

Limit = Annotated[int, Query(ge=1, le=200)]
JobId = Annotated[str | None, Query(alias="jobId")]
MessageId = Annotated[str | None, Query(alias="messageId")]
DeliveryId = Annotated[str | None, Query(alias="deliveryId")]
ErrorName = Annotated[str | None, Query(alias="errorClass")]
Prefer = Annotated[str | None, Header()]


@router.get("/messages")
async def find_messages(
    request: Request,
    tenant: Reader,
    event: str | None = None,
    job_id: JobId = None,
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """Messages, newest first."""
    wanted = MessageFilter(
        event=event, job_id=optional_id("job", job_id), since=read_time("since", since), until=read_time("until", until)
    )
    history = app_of(request).endpoints.history
    found = await history.messages(tenant, wanted, before=optional_id("msg", cursor), limit=limit + 1)
    more = show_id("msg", found[limit - 1].id) if len(found) > limit else None
    return json_answer({"messages": [message_shape(one) for one in found[:limit]], "next": more})


@router.get("/messages/{message_id}")
async def get_message(request: Request, tenant: Reader, message_id: str) -> Response:
    """A message with its body, as it is sent, and its deliveries."""
    history, key = app_of(request).endpoints.history, read_id("msg", message_id)
    message = await history.message(tenant, key)
    wanted = DeliveryFilter(message_id=key)
    deliveries = await history.deliveries(tenant, wanted, before=None, limit=_MOST_BESIDE)
    return json_answer(message_shape(message, deliveries=deliveries))


@router.get("/deliveries")
async def find_deliveries(
    request: Request,
    tenant: Reader,
    endpoint: str | None = None,
    event: str | None = None,
    status: DeliveryState | None = None,
    error_class: ErrorName = None,
    job_id: JobId = None,
    message_id: MessageId = None,
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """Deliveries, newest first."""
    wanted = DeliveryFilter(
        endpoint_id=optional_id("ep", endpoint),
        event=event,
        state=status,
        error_class=error_class,
        job_id=optional_id("job", job_id),
        message_id=optional_id("msg", message_id),
        since=read_time("since", since),
        until=read_time("until", until),
    )
    history = app_of(request).endpoints.history
    found = await history.deliveries(tenant, wanted, before=optional_id("dlv", cursor), limit=limit + 1)
    more = show_id("dlv", found[limit - 1].id) if len(found) > limit else None
    return json_answer({"deliveries": [delivery_shape(one) for one in found[:limit]], "next": more})


@router.get("/deliveries/{delivery_id}")
async def get_delivery(request: Request, tenant: Reader, delivery_id: str, prefer: Prefer = None) -> Response:
    """A delivery and its attempts. With `Prefer: wait=N` the answer comes when it has ended, or after N seconds."""
    endpoints, key, wait = app_of(request).endpoints, read_id("dlv", delivery_id), read_wait(prefer)
    delivery = await endpoints.wait_for_end(tenant, key, wait)
    wanted = AttemptFilter(delivery_id=key)
    attempts = await endpoints.history.attempts(tenant, wanted, before=None, limit=_MOST_BESIDE)
    return json_answer(delivery_shape(delivery, attempts=attempts[::-1]), headers=wait_applied(wait))


@router.post("/deliveries/{delivery_id}/replay", status_code=202)
async def replay_delivery(request: Request, tenant: Admin, delivery_id: str) -> Response:
    """A new delivery of the same message: the same webhook-id, the same bytes."""
    delivery = await app_of(request).endpoints.replay(tenant, read_id("dlv", delivery_id))
    shape = delivery_shape(delivery)
    return json_answer(shape, 202, {"location": f"/api/webhooks/deliveries/{shape.delivery_id}"})


@router.get("/attempts")
async def find_attempts(
    request: Request,
    tenant: Reader,
    endpoint: str | None = None,
    event: str | None = None,
    delivery_id: DeliveryId = None,
    error_class: ErrorName = None,
    outcome: Literal["succeeded", "failed"] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """Tries of deliveries, newest first."""
    wanted = AttemptFilter(
        endpoint_id=optional_id("ep", endpoint),
        event=event,
        delivery_id=optional_id("dlv", delivery_id),
        error_class=error_class,
        succeeded=outcome and outcome == "succeeded",
        since=read_time("since", since),
        until=read_time("until", until),
    )
    history = app_of(request).endpoints.history
    found = await history.attempts(tenant, wanted, before=_attempt_cursor(cursor), limit=limit + 1)
    more = _show_cursor(found[limit - 1]) if len(found) > limit else None
    return json_answer({"attempts": [attempt_shape(one) for one in found[:limit]], "next": more})


def _show_cursor(attempt: AttemptLine) -> str:
    return f"{show_id('dlv', attempt.delivery_id)}.{attempt.number}"


def _attempt_cursor(text: str | None) -> tuple[UUID, int] | None:
    if text is None:
        return None
    delivery_id, _, number = text.partition(".")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise NotFound(f"no such cursor: {text[:64]!r}")
    return read_id("dlv", delivery_id), int(number)

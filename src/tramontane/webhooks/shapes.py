"""JSON shapes of webhooks: camelCase outside, snake_case inside. No secret and no header value has a place in them."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from tramontane.ids import iso, show_id
from tramontane.webhooks.health import breaker
from tramontane.webhooks.models import Timings
from tramontane.webhooks.policy import Verdict
from tramontane.webhooks.records import AttemptLine, DeliveryRecord, Endpoint, Explanation, MessageRecord, Recovery


class HealthShape(msgspec.Struct, rename="camel"):
    """How an endpoint is."""

    breaker: str
    window: int
    blocked_until: str | None
    failing_since: str | None
    trips: int


class SecretShape(msgspec.Struct, rename="camel"):
    """A secret that signs now, by its name."""

    secret_id: str
    primary: bool
    not_after: str | None


class BacklogShape(msgspec.Struct, rename="camel"):
    """Deliveries that have not ended."""

    waiting: int
    dispatched: int


class EndpointShape(msgspec.Struct, rename="camel"):
    """An endpoint. A listing leaves `backlog` out; `secret` is there when it was made, and never again."""

    endpoint_id: str
    url: str
    description: str
    events: tuple[str, ...]
    format: str
    ordering: str
    header_names: tuple[str, ...]
    timeout: float | None
    status: str
    disabled_reason: str | None
    health: HealthShape
    secrets: list[SecretShape]
    created_at: str
    updated_at: str
    backlog: BacklogShape | UnsetType = UNSET
    secret: str | UnsetType = UNSET


class MessageShape(msgspec.Struct, rename="camel"):
    """A message. Asked for alone it has its body, as sent, and its deliveries."""

    message_id: str
    event: str
    timestamp: str
    job_id: str | None
    seq: int | None
    body: str | UnsetType | None = UNSET
    deliveries: "list[DeliveryShape] | UnsetType" = UNSET


class DeliveryShape(msgspec.Struct, rename="camel"):
    """A delivery. Asked for alone it has the log of its attempts."""

    delivery_id: str
    message_id: str
    endpoint_id: str | None
    callback: bool
    url: str | None
    event: str
    job_id: str | None
    seq: int | None
    status: str
    attempts: int
    tries: int
    origin: str
    due_at: str
    last_status: int | None
    error_class: str | None
    hint: str | None
    created_at: str
    ended_at: str | None
    attempt_log: "list[AttemptShape] | UnsetType" = UNSET


class TimingsShape(msgspec.Struct, rename="camel"):
    """Milliseconds of the phases; null for one that did not take place."""

    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float


class AnswerShape(msgspec.Struct, rename="camel"):
    """What a receiver answered, as far as it is kept."""

    headers: dict[str, str]
    body: str
    truncated: bool


class AttemptShape(msgspec.Struct, rename="camel"):
    """One try of a delivery; `response` is null when no answer came."""

    delivery_id: str
    attempt: int
    counted: bool
    endpoint_id: str | None
    event: str
    started_at: str
    status: int | None
    error_class: str | None
    detail: str
    hint: str
    timings: TimingsShape
    remote_ip: str | None
    response: AnswerShape | None


class RecoveryShape(msgspec.Struct, rename="camel"):
    """A recovery and how far it is."""

    recovery_id: str
    endpoint_id: str
    since: str
    until: str
    only: str
    event: str | None
    status: str
    total: int
    done: int
    succeeded: int
    failed: int
    waiting: int
    created_at: str
    ended_at: str | None


class RuleShape(msgspec.Struct, rename="camel"):
    """What one rule of the address policy says; `hint` names the setting that would change it."""

    rule: str
    allowed: bool
    detail: str
    hint: str


class AddressShape(RuleShape, rename="camel"):
    """What the policy says of one address."""

    address: str


class CertificateShape(msgspec.Struct, rename="camel"):
    """How long the receiver's certificate lasts."""

    not_after: str
    days_left: int


class ExplanationShape(msgspec.Struct, rename="camel"):
    """What the address policy says of a URL."""

    url: str
    allowed: bool
    rules: list[RuleShape]
    addresses: list[AddressShape]
    tls: CertificateShape | None


def endpoint_shape(
    endpoint: Endpoint, header_names: tuple[str, ...], now: datetime, *, secret: str | UnsetType = UNSET
) -> EndpointShape:
    """An endpoint for the wire; `secret` only when it has just been made."""
    health = endpoint.health
    backlog: BacklogShape | UnsetType = UNSET
    if endpoint.waiting is not None and endpoint.dispatched is not None:
        backlog = BacklogShape(endpoint.waiting, endpoint.dispatched)
    return EndpointShape(
        endpoint_id=show_id("ep", endpoint.id),
        url=endpoint.url,
        description=endpoint.description,
        events=endpoint.events,
        format=endpoint.format,
        ordering=endpoint.ordering,
        header_names=header_names,
        timeout=endpoint.timeout,
        status=endpoint.state,
        disabled_reason=endpoint.disabled_reason,
        health=HealthShape(
            breaker=breaker(health, now),
            window=int(health.window),
            blocked_until=_unix(health.since) if health.open else None,
            failing_since=_unix(health.failing_since),
            trips=health.trips,
        ),
        secrets=[SecretShape(show_id("sec", one.id), one.primary, _iso(one.not_after)) for one in endpoint.secrets],
        created_at=iso(endpoint.created_at),
        updated_at=iso(endpoint.updated_at),
        backlog=backlog,
        secret=secret,
    )


def message_shape(message: MessageRecord, *, deliveries: list[DeliveryRecord] | UnsetType = UNSET) -> MessageShape:
    """A message for the wire; with its deliveries it shows its body too."""
    alone = deliveries is not UNSET
    return MessageShape(
        message_id=show_id("msg", message.id),
        event=message.event,
        timestamp=iso(message.at),
        job_id=_shown("job", message.job_id),
        seq=message.seq,
        body=(message.body.decode() if message.body is not None else None) if alone else UNSET,
        deliveries=UNSET if deliveries is UNSET else [delivery_shape(delivery) for delivery in deliveries],
    )


def delivery_shape(delivery: DeliveryRecord, *, attempts: list[AttemptLine] | UnsetType = UNSET) -> DeliveryShape:
    """A delivery for the wire."""
    return DeliveryShape(
        delivery_id=show_id("dlv", delivery.id),
        message_id=show_id("msg", delivery.message_id),
        endpoint_id=None if delivery.callback else show_id("ep", delivery.endpoint_id),
        callback=delivery.callback,
        url=delivery.url,
        event=delivery.event,
        job_id=_shown("job", delivery.job_id),
        seq=delivery.seq,
        status=delivery.state,
        attempts=delivery.attempts,
        tries=delivery.tries,
        origin=delivery.origin,
        due_at=iso(delivery.due_at),
        last_status=delivery.last_status,
        error_class=delivery.last_error,
        hint=delivery.hint or None,
        created_at=iso(delivery.created_at),
        ended_at=_iso(delivery.ended_at),
        attempt_log=UNSET if attempts is UNSET else [attempt_shape(attempt) for attempt in attempts],
    )


def attempt_shape(attempt: AttemptLine) -> AttemptShape:
    """A try for the wire. What cannot be read of the answer's body is replaced, since JSON is text."""
    answer = None
    if attempt.status is not None:
        answer = AnswerShape(_joined(attempt.headers), attempt.body.decode("utf-8", "replace"), attempt.truncated)
    return AttemptShape(
        delivery_id=show_id("dlv", attempt.delivery_id),
        attempt=attempt.number,
        counted=attempt.counted,
        endpoint_id=_shown("ep", attempt.endpoint_id),
        event=attempt.event,
        started_at=iso(attempt.started_at),
        status=attempt.status,
        error_class=attempt.error_class,
        detail=attempt.detail,
        hint=attempt.hint,
        timings=_timings(attempt.timings),
        remote_ip=attempt.remote_ip,
        response=answer,
    )


def recovery_shape(recovery: Recovery) -> RecoveryShape:
    """A recovery for the wire."""
    return RecoveryShape(
        recovery_id=show_id("rec", recovery.id),
        endpoint_id=show_id("ep", recovery.endpoint_id),
        since=iso(recovery.since),
        until=iso(recovery.until),
        only=recovery.only,
        event=recovery.event,
        status=recovery.state,
        total=recovery.total,
        done=recovery.done,
        succeeded=recovery.succeeded,
        failed=recovery.failed,
        waiting=recovery.waiting,
        created_at=iso(recovery.created_at),
        ended_at=_iso(recovery.ended_at),
    )


def explanation_shape(explanation: Explanation, now: datetime) -> ExplanationShape:
    """What the policy says, for the wire."""
    ends = explanation.certificate_ends
    return ExplanationShape(
        url=explanation.url,
        allowed=explanation.allowed,
        rules=[RuleShape(*_judged(verdict)) for verdict in explanation.rules],
        addresses=[AddressShape(*_judged(verdict), address) for address, verdict in explanation.addresses],
        tls=CertificateShape(iso(ends), (ends - now).days) if ends else None,
    )


def _judged(verdict: Verdict) -> tuple[str, bool, str, str]:
    return verdict.rule, verdict.passed, verdict.detail, verdict.hint


def _joined(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """One value for each name, as HTTP lets several of a name be joined."""
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _timings(timings: Timings) -> TimingsShape:
    return TimingsShape(timings.dns, timings.connect, timings.tls, timings.first_byte, timings.total)


def _shown(prefix: str, value: UUID | None) -> str | None:
    return show_id(prefix, value) if value else None


def _iso(moment: datetime | None) -> str | None:
    return iso(moment) if moment else None


def _unix(seconds: float | None) -> str | None:
    return None if seconds is None else iso(datetime.fromtimestamp(seconds, UTC))

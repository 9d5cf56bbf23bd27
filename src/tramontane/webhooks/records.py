"""What is known of webhooks, as it is read and shown: endpoints, their messages and deliveries, what is told again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

from tramontane.webhooks.health import Health
from tramontane.webhooks.models import DeliveryState, EndpointState, Timings
from tramontane.webhooks.policy import Verdict

RecoveryState: TypeAlias = Literal["running", "paused", "completed", "cancelled"]
#: Which messages are told again: those that failed, those that were never meant for it, or all.
Wanted: TypeAlias = Literal["failed", "missing", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretRecord:
    """A secret that signs now: everything but the secret."""

    id: UUID
    #: Whether `X-Webhook-Signature` is made with it.
    primary: bool
    #: It signs until then; None for ever.
    not_after: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A registered URL, with what is so of a new one."""

    tenant: str
    id: UUID
    url: str
    description: str = ""
    events: tuple[str, ...]
    format: str = "default"
    ordering: str = "none"
    #: A JSON object of headers, encrypted, or None.
    headers: bytes | None = field(default=None, repr=False)
    #: Seconds, None for the server's default.
    timeout: float | None = None
    state: EndpointState = EndpointState.ACTIVE
    #: While disabled: `manual`, `gone` or `failing`.
    disabled_reason: str | None = None
    health: Health = Health()
    created_at: datetime
    #: When somebody, or its health, last changed what it is.
    updated_at: datetime
    #: Those that sign now, the primary first.
    secrets: tuple[SecretRecord, ...] = ()
    #: Deliveries that wait and that are under way; None where nobody has counted.
    waiting: int | None = None
    dispatched: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointChange:
    """What an owner asks of an endpoint. None leaves a field as it is."""

    url: str | None = None
    events: tuple[str, ...] | None = None
    description: str | None = None
    format: str | None = None
    ordering: str | None = None
    #: Seconds; 0 for the server's default.
    timeout: float | None = None
    #: All of them anew, `Authorization` included.
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    #: The value of `Authorization`; empty for none.
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageRecord:
    """A message, and, when it was asked for alone, the bytes that are sent."""

    id: UUID
    event: str
    at: datetime
    job_id: UUID | None
    seq: int | None
    #: None once the job was erased, and in listings.
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryRecord:
    """The sending of one message to one endpoint, or to the callback of its job."""

    id: UUID
    message_id: UUID
    endpoint_id: UUID
    callback: bool
    #: None once the endpoint was removed.
    url: str | None
    event: str
    job_id: UUID | None
    seq: int | None
    state: DeliveryState
    #: Attempts that count; tries are all of them.
    attempts: int
    tries: int
    #: event, replay, recovery or test.
    origin: str
    due_at: datetime
    last_status: int | None
    last_error: str | None
    hint: str | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLine:
    """One try of a delivery."""

    delivery_id: UUID
    #: From 1 per delivery.
    number: int
    counted: bool
    #: None for a job's callback.
    endpoint_id: UUID | None
    event: str
    started_at: datetime
    status: int | None
    error_class: str | None
    detail: str
    hint: str
    timings: Timings
    remote_ip: str | None
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    truncated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """A stretch of time that is told an endpoint again."""

    id: UUID
    endpoint_id: UUID
    since: datetime
    until: datetime
    only: Wanted
    #: A filter of events, None for all that the endpoint wants.
    event: str | None
    state: RecoveryState
    #: Messages in it when it began, and deliveries made so far.
    total: int
    done: int
    #: What became of those; `waiting` are also those under way.
    succeeded: int
    failed: int
    waiting: int
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageFilter:
    """What a listing of messages asks for; None means any. A time is that of the event."""

    event: str | None = None
    job_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryFilter:
    """What a listing of deliveries asks for; None means any. A time is when the delivery was made."""

    endpoint_id: UUID | None = None
    event: str | None = None
    state: DeliveryState | None = None
    error_class: str | None = None
    job_id: UUID | None = None
    message_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFilter:
    """What a listing of attempts asks for; None means any. A time is when the attempt began."""

    endpoint_id: UUID | None = None
    event: str | None = None
    delivery_id: UUID | None = None
    error_class: str | None = None
    succeeded: bool | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HandedOut:
    """A delivery in the hands of a terminal that listens."""

    id: UUID
    message_id: UUID
    event: str
    event_at: datetime
    job_id: UUID | None
    seq: int | None
    #: Which try this is, from 1.
    attempt: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a terminal says came of a delivery. A success has no error class."""

    delivery_id: UUID
    status: int | None
    error_class: str | None
    detail: str
    hint: str
    total_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What the address policy says of a URL. No event was sent to find out."""

    url: str
    rules: tuple[Verdict, ...]
    #: Those that its host leads to now; none were looked up for a URL that the rules refuse.
    addresses: tuple[tuple[str, Verdict], ...] = ()
    #: When the certificate of the first address ends; None without one.
    certificate_ends: datetime | None = None

    @property
    def allowed(self) -> bool:
        """True when a delivery would be sent there now."""
        return all(rule.passed for rule in self.rules) and all(verdict.passed for _, verdict in self.addresses)

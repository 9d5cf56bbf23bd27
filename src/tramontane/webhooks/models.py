"""Values of webhooks: what is told, to whom, and how it went."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID

from tramontane.webhooks.health import Outcome


class DeliveryState(StrEnum):
    """Where a delivery stands. The last four are final: a replay is a new delivery of the same message."""

    WAITING = "waiting"
    DISPATCHED = "dispatched"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"

    @property
    def final(self) -> bool:
        """True when the delivery will never change again."""
        return not DELIVERY_TRANSITIONS[self]


#: Every change of state there is. `dispatched` goes back to `waiting` for a retry, and uncounted when nothing was sent.
DELIVERY_TRANSITIONS: Final = MappingProxyType(
    {
        DeliveryState.WAITING: frozenset({DeliveryState.DISPATCHED, DeliveryState.CANCELLED, DeliveryState.SUPERSEDED}),
        DeliveryState.DISPATCHED: frozenset(
            {DeliveryState.WAITING, DeliveryState.SUCCEEDED, DeliveryState.FAILED, DeliveryState.CANCELLED}
        ),
        DeliveryState.SUCCEEDED: frozenset[DeliveryState](),
        DeliveryState.FAILED: frozenset[DeliveryState](),
        DeliveryState.CANCELLED: frozenset[DeliveryState](),
        DeliveryState.SUPERSEDED: frozenset[DeliveryState](),
    }
)


class EndpointState(StrEnum):
    """Whether an endpoint is sent anything: paused, deliveries wait; disabled, none are made and what waits is kept."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class ErrorClass(StrEnum):
    """What went wrong in an exchange, in one word."""

    DNS = "dns"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_CERT_EXPIRED = "tls_cert_expired"
    TLS_HOSTNAME = "tls_hostname"
    TLS_OTHER = "tls_other"
    TIMEOUT_HEADERS = "timeout_headers"
    TIMEOUT_BODY = "timeout_body"
    RESET = "reset"
    PROTOCOL = "protocol"
    BLOCKED_SSRF = "blocked_ssrf"
    REDIRECT = "redirect"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    GONE = "gone"
    #: 413: the receiver takes no body of this size.
    TOO_LARGE = "too_large"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Milliseconds of the phases of one exchange; None for a phase that did not take place (a pooled connection)."""

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    #: From the first byte sent to the first byte of the answer.
    first_byte: float | None = None
    total: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """One POST, ready to be sent: bytes and headers are final."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    #: Seconds for the whole exchange, the answer's body included.
    timeout: float = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What came of one POST. Whatever the receiver does, there is an Exchange and no exception."""

    #: HTTP status, None when no answer came.
    status: int | None = None
    #: None for a 2xx alone.
    error_class: ErrorClass | None = None
    #: One line for people; never a byte that an internal address answered.
    detail: str = ""
    #: The answer's headers, names in lower case, 8 KiB at most.
    headers: tuple[tuple[str, str], ...] = ()
    #: The answer's body as it came, never decompressed, 16 KiB at most.
    body: bytes = b""
    truncated: bool = False
    remote_ip: str | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def succeeded(self) -> bool:
        """True for a 2xx whose body came within the time."""
        return self.error_class is None

    def header(self, name: str) -> str | None:
        """The first header of that lower-case name."""
        return next((value for known, value in self.headers if known == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewMessage:
    """An event to be told, before it is written; `id` is the `webhook-id` of every attempt."""

    id: UUID
    tenant: str
    #: `chat.completed`; two words, the first one a job's kind or `endpoint`, `webhook`.
    event: str
    at: datetime
    #: The body, serialised once: `default`, and `thin` for endpoints that want it or bodies over the limit.
    body: bytes
    thin: bytes
    job_id: UUID | None = None
    #: seq of the job's event that it tells.
    seq: int | None = None
    #: True when the job has ended with it.
    final: bool = False
    #: The endpoint that it is about, which is never told it.
    about: UUID | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sendable:
    """A delivery that was let through, with all that an attempt needs, as it is now."""

    tenant: str
    id: UUID
    entry_id: int
    #: The dispatch that this is: what comes of an earlier one is refused.
    fence: int
    #: Attempts that have been counted before this one.
    attempts: int
    event: str
    event_at: datetime
    message_id: UUID
    job_id: UUID | None
    seq: int | None
    endpoint_id: UUID
    url: str
    #: Bytes to be sent; None once the job was erased.
    body: bytes | None
    #: Encrypted, the primary first; empty for the server's default.
    secrets: tuple[bytes, ...]
    #: Encrypted JSON object, or None.
    headers: bytes | None
    #: Seconds, None for the server's default.
    timeout: float | None
    #: When it was let through.
    admitted_at: datetime
    #: False when the endpoint was paused, disabled or found ill after this was let through.
    welcome: bool
    #: `traceparent` of the submit whose job it tells of.
    trace_context: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What came of a delivery: what is to be written of it."""

    sendable: Sendable
    state: DeliveryState
    #: Not before this time, for one that waits again.
    due_at: datetime | None = None
    #: True when it consumed an attempt.
    counted: bool = False
    hint: str = ""
    started_at: datetime | None = None
    #: None when nothing was sent: then there is no line in the log of attempts.
    exchange: Exchange | None = None
    #: What it says of the endpoint.
    outcome: Outcome = Outcome.NEUTRAL

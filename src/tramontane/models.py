"""Values: what a job is, and what happens to it. They hold no store, client or clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID

from msgspec import Struct

#: Whose everything is where no API key says otherwise.
DEFAULT_TENANT: Final = "default"

#: Whose Mistral key is used where a tenant has none of its own: the server's.
SERVER_ACCOUNT: Final = "*"

#: Stream events that end a stream: exactly one of them, and nothing after it.
FINAL_EVENTS: Final = frozenset({"complete", "error"})


class State(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True when the job will never change again."""
        return not TRANSITIONS[self]


#: Every change of state there is. A retry and a hand-over go back to queued; a cancel may come at any time; a job that
#: may not start any more (its deadline, its tenant's budget) fails as it waits.
TRANSITIONS: Final = MappingProxyType(
    {
        State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
        State.RUNNING: frozenset({State.QUEUED, State.COMPLETED, State.FAILED, State.CANCELLED}),
        State.COMPLETED: frozenset[State](),
        State.FAILED: frozenset[State](),
        State.CANCELLED: frozenset[State](),
    }
)


class Scope(StrEnum):
    """What a caller may do. `OPERATOR` may everything, for every tenant."""

    SUBMIT = "submit"
    READ = "read"
    #: What is shared within the tenant: endpoints, schedules, pauses.
    ADMIN = "admin"
    #: What the whole fleet shares: tenants, limits, metrics.
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: a tenant, what it may do, and by which key; no key where none are needed."""

    tenant: str = DEFAULT_TENANT
    scopes: frozenset[Scope] = frozenset(Scope)
    key: UUID | None = None

    def may(self, scope: Scope) -> bool:
        """Whether this caller may do that."""
        return scope in self.scopes or Scope.OPERATOR in self.scopes


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKey:
    """What names a job everywhere: whose it is, and which."""

    tenant: str
    id: UUID

    def __hash__(self) -> int:
        # Asked for at every step of every chunk: the id tells keys apart, and its number hashes at once.
        return hash(self.id.int)


@dataclass(frozen=True, kw_only=True, slots=True)
class Callback:
    """Where a job's own events are told, checked and sealed."""

    url: str
    #: scheme://host:port, whose health all callbacks to it share.
    origin: str
    events: tuple[str, ...]
    format: str = "default"
    #: Encrypted; None for the server's default.
    secret: bytes | None = None
    #: A JSON object of custom headers, encrypted.
    headers: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job as asked for, validated, before it is in the database."""

    key: JobKey
    kind: str
    #: Mistral's request as JSON, byte for byte what the caller sent.
    request: bytes
    request_id: str
    model: str
    attempts: int
    backoff_kind: str
    backoff_seconds: float
    timeout_seconds: float
    run_at: datetime
    priority: int = 0
    #: JSON object of strings, or None.
    metadata: str | None = None
    retry_of: UUID | None = None
    idempotency_key: str | None = None
    #: SHA-256 of what the caller sent under the key: another body under the same key is refused.
    idempotency_hash: bytes | None = None
    callback: Callback | None = None
    #: `auto`: a later attempt goes on with the text that is there, if it can. `never`: it starts from nothing.
    resume: str = "auto"
    #: Not started by then, it fails unspent.
    deadline: datetime | None = None
    #: Estimated tokens of the prompt, and the most that the caller wants back.
    prompt_tokens: int = 0
    max_tokens: int | None = None
    schedule: UUID | None = None
    #: W3C `traceparent`.
    trace_context: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """What became of a NewJob: its own job, or, under the same Idempotency-Key, the earlier one."""

    job: "Job"
    replayed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt or a job ended badly, fit to be shown."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job's row: the ledger, without its contents."""

    key: JobKey
    kind: str
    state: State
    request_id: str
    model: str
    #: 0 when queued, one more at every start: the fence that every write of an attempt carries.
    attempt: int
    #: Attempts that failed or crashed; a planned hand-over is none.
    failures: int
    #: `failures` may not reach this.
    attempts: int
    backoff_kind: str
    backoff_seconds: float
    timeout_seconds: float
    priority: int
    #: Not before this time. A retry moves it into the future.
    run_at: datetime
    #: Set when admission has let the job through to the queue; cleared when it goes back to wait.
    admitted_at: datetime | None
    #: seq of the last event in the log, 0 before the first.
    head: int
    created_at: datetime
    #: First start; later attempts leave it.
    started_at: datetime | None
    #: When it became final.
    completed_at: datetime | None
    failure: Failure | None
    #: Mistral's usage as JSON, summed over all attempts that it reported one of.
    usage: str | None
    metadata: str | None
    retry_of: UUID | None
    #: When its events were deleted by retention; the result may still be there.
    events_pruned_at: datetime | None
    resume: str = "auto"
    #: Whose Mistral key it is asked with: a tenant's own, or `*` for the server's.
    account: str = SERVER_ACCOUNT
    #: Not started by then, it fails unspent.
    deadline: datetime | None = None
    #: The most tokens that the caller wants back.
    max_tokens: int | None = None
    #: Times in a row that Mistral has sent it away (429), which count as no failure.
    refusals: int = 0
    #: Of all its attempts, as a decimal number, by the price table of the day it ended; None when that knows no price.
    cost: str | None = None
    currency: str | None = None
    schedule: UUID | None = None
    trace_context: str | None = None
    #: When what it asked and answered was deleted by retention.
    contents_pruned_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A start that succeeded: the job as it runs now, and what to ask Mistral."""

    job: Job
    entry_id: int
    request: bytes
    #: None for the first.
    past: "Past | None" = None
    #: The tenant's own Mistral key, sealed; None: the server's is used.
    mistral_key: bytes | None = None
    #: The tenant has a budget of money, which only what has a price is counted against.
    money_counts: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What the attempts before this one have left."""

    #: Why there is another one: how the last of them ended.
    reason: str
    #: What readers were told of the answer: `chunk`, `tool` and `attempt` events, in order.
    events: tuple["Event", ...] = ()
    #: What Mistral reported of them, as JSON.
    usages: tuple[bytes, ...] = ()
    #: How many of them Mistral may have billed without saying so.
    unreported: int = 0


# Of these there is one per chunk: a Struct is made in a tenth of the time of a frozen dataclass.
class NewEvent(Struct, frozen=True, gc=False):
    """An event to be appended: its type and the JSON object of its own fields."""

    type: str
    body: bytes


class Event(Struct, frozen=True, kw_only=True, gc=False):
    """An immutable fact in a job's log. `seq` is dense from 1 per job."""

    seq: int
    attempt: int
    type: str
    body: bytes

    @property
    def final(self) -> bool:
        """True for the last event of a stream."""
        return self.type in FINAL_EVENTS


class Batch(Struct, frozen=True, kw_only=True):
    """Events of one attempt to be appended together; `number` rises by one per batch, so a repeat is known."""

    key: JobKey
    attempt: int
    number: int
    events: tuple[NewEvent, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What one attempt has used; `cached` are those of the prompt that Mistral knew already."""

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """An exact amount."""

    amount: Decimal
    currency: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt ends its job for good: everything that one transaction writes."""

    key: JobKey
    attempt: int
    entry_id: int
    state: State
    at: datetime
    #: The last text, if any is not yet in the log, and the final event.
    events: tuple[NewEvent, ...]
    #: The result object of the wire as JSON; None for a failed job.
    result: bytes | None = None
    #: Over all attempts, and of this one.
    usage: str | None = None
    own_usage: str | None = None
    #: Mistral may have billed this attempt without saying so.
    unreported: bool = False
    failure: Failure | None = None
    correlation_id: str | None = None
    #: Of this attempt alone.
    cost: Money | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Requeue:
    """How an attempt gives its job back: to be tried again at `run_at`."""

    key: JobKey
    attempt: int
    entry_id: int
    run_at: datetime
    #: What the next attempt tells readers: worker_lost, stall, truncated, upstream, timeout or handover.
    reason: str
    #: None for a planned hand-over, which counts as no failure.
    failure: Failure | None
    correlation_id: str | None = None
    usage: str | None = None
    unreported: bool = False
    #: Of this attempt alone.
    cost: Money | None = None
    #: Mistral has sent it away (429): no failure, for so many times in a row.
    refused: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFilter:
    """What a listing asks for; None means any."""

    state: State | None = None
    kind: str | None = None
    model: str | None = None
    request_id: str | None = None
    #: Code of the error that it ended with.
    error: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: tuple[tuple[str, str], ...] = ()


#: In a pause: every kind, every model, every tenant.
EVERY: Final = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """What is not let through for now; what runs goes on."""

    #: `*`: of the whole fleet.
    tenant: str
    id: UUID
    #: `*`: every kind; every model.
    kind: str
    model: str
    reason: str
    paused_at: datetime


class CatchUp(StrEnum):
    """What becomes of a schedule's times that passed while nobody looked."""

    SKIP = "skip"
    ONE = "one"
    ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Jobs that come again."""

    tenant: str
    id: UUID
    #: One of its kind within the tenant.
    name: str
    cron: str
    timezone: str
    #: The body of the submit as JSON, without its secrets; and what it became, validated and sealed.
    job: str
    template: str
    catch_up: CatchUp
    active: bool
    #: Why it is paused, when that was not asked for.
    reason: str | None
    #: When it comes next; None while it is paused.
    next_at: datetime | None
    last_at: datetime | None
    last_job: UUID | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One line of a job's history."""

    attempt: int
    started_at: datetime
    ended_at: datetime | None
    #: running, completed, failed, cancelled, lost or handover.
    outcome: str
    failure: Failure | None = None
    correlation_id: str | None = None
    #: As Mistral reported it, JSON; an attempt that was interrupted has most often none.
    usage: str | None = None
    #: Mistral may have billed it without saying so.
    unreported: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerInfo:
    """A worker as the fleet knows it."""

    id: UUID
    concurrency: int
    heartbeat_seconds: float
    host: str
    pid: int
    #: Deliveries that it sends at a time.
    deliveries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What one round of admission did."""

    admitted: tuple[JobKey, ...] = ()
    #: When another round may admit more, as far as time alone decides; None when nothing waits for a time.
    next_at: datetime | None = None
    #: Somebody else was deciding at the same moment.
    busy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """What is there, at one moment, for those who operate the fleet."""

    #: Jobs: `scheduled`, `waiting` (for admission), `admitted` (for a worker), `running`.
    jobs: Mapping[str, int]
    #: Deliveries: `waiting`, `dispatched`.
    deliveries: Mapping[str, int]
    #: Since when the job that has waited longest may run; None when none waits.
    oldest_at: datetime | None
    #: Workers that are alive, and the jobs that they can run at a time.
    workers: int
    slots: int

"""The tree of everything that can go wrong, each kind with a code that never changes.

    TramontaneError
    ├── InvalidInput              the caller's value, by field
    │   ├── InvalidJSON
    │   ├── InvalidCursor
    │   ├── NotSupported          known, and not built yet
    │   ├── BodyTooLarge
    │   └── CallbackBlocked       a webhook's address that the policy forbids
    ├── NotFound
    ├── NotAllowed                a name or an origin that may not call this server
    ├── KeyRefused                no API key, or one that opens nothing (any more)
    ├── ScopeMissing              a key that may not do this
    ├── TooManyTries              of keys that nobody has
    ├── InvalidTicket             expired, not for these events, or made with a key that opens nothing any more
    ├── TooManyStreams            as many are open as the limits allow
    ├── Busy                      as many jobs wait as may: come back later
    │   ├── QueueFull             of the tenant
    │   └── Overloaded            of the fleet
    ├── Conflict                  true of the job as it stands
    │   ├── IdempotencyMismatch
    │   ├── JobNotEnded
    │   └── StreamExpired
    ├── InvalidSignature          a webhook that was not signed with our secret, or not now
    ├── AttemptLost               somebody else owns the job now: write nothing more
    ├── ConfigurationError        a setting, a port, a directory
    │   ├── DatabaseError
    │   └── SecretsLocked         encrypted with a key that is not here
    ├── JobError                  how a job ended, when not by Mistral's doing
    │   ├── Interrupted
    │   ├── JobTimeout
    │   ├── DeadlineExceeded
    │   ├── BudgetExhausted
    │   ├── Cancelled
    │   └── InternalError
    └── MistralError              what came, or did not come, from the Mistral API
        ├── Unauthorized, Forbidden, ModelNotFound, RequestRefused
        ├── RateLimited, ZeroAllowance
        ├── UpstreamUnavailable, ConnectFailed, MalformedAnswer, Truncated, GenerationFailed
        └── UpstreamTimeout       connect, first token, silence, total

The code of an error is part of the HTTP contract; docs/errors.md lists them all.
"""

from typing import ClassVar


class TramontaneError(Exception):
    """Base of all our errors. `str(error)` is fit to be shown: no secret, no message content."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(TramontaneError):
    """A value that the caller must change. `field` is its path as the caller wrote it."""

    code = "invalid_request"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.reason = message


class InvalidJSON(InvalidInput):
    """A body that is not JSON at all."""

    code = "invalid_json"


class InvalidCursor(InvalidInput):
    """A cursor that is no number (400), or that points past the head of the log (409)."""

    code = "invalid_cursor"

    def __init__(self, message: str, *, past_head: bool) -> None:
        super().__init__("after", message)
        self.past_head = past_head


class NotSupported(InvalidInput):
    """A field that is part of the contract but not built yet: refused, never ignored."""

    code = "not_supported"


class BodyTooLarge(InvalidInput):
    """A body over the limit, refused before it is read to its end."""

    code = "body_too_large"


class CallbackBlocked(InvalidInput):
    """A webhook's URL or header that is not allowed. `rule` names the rule, `hint` says what to change."""

    code = "callback_blocked"

    def __init__(self, field: str, message: str, *, rule: str, hint: str = "") -> None:
        super().__init__(field, f"{message}: {hint}" if hint else message)
        self.rule = rule
        self.hint = hint


class InvalidSignature(TramontaneError):
    """A webhook that must not be trusted: answer 400 or 401, and do nothing else with it."""

    code = "invalid_signature"


class NotFound(TramontaneError):
    """No such thing, or not yours: the two are not told apart."""

    code = "not_found"


class NotAllowed(TramontaneError):
    """A request under a foreign host name, or from a page of another origin."""

    code = "not_allowed"


class KeyRefused(TramontaneError):
    """No API key came, or one that is unknown, expired or revoked."""

    code = "unauthorized"


class ScopeMissing(TramontaneError):
    """The key is good, and may not do this."""

    code = "forbidden"


class TooManyTries(TramontaneError):
    """One address has tried too many unknown keys: come back a little later."""

    code = "too_many_tries"
    retryable = True


class InvalidTicket(TramontaneError):
    """A ticket that does not open what it came for."""

    code = "invalid_ticket"


class TooManyStreams(TramontaneError):
    """As many streams are open as the limits allow: come back a little later."""

    code = "too_many_streams"
    retryable = True


class Busy(TramontaneError):
    """Nothing more is taken for now. `retry_after`: seconds after which there may be room."""

    code = "busy"
    retryable = True

    def __init__(self, message: str, *, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    """As many jobs of this tenant wait as may."""

    code = "queue_full"


class Overloaded(Busy):
    """As many jobs wait, of all tenants, as may."""

    code = "overloaded"


class Conflict(TramontaneError):
    """Asked for something that the present state forbids."""

    code = "conflict"


class IdempotencyMismatch(Conflict):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_mismatch"


class JobNotEnded(Conflict):
    """Only an ended job can be retried or erased: cancel it first."""

    code = "job_not_ended"


class StreamExpired(Conflict):
    """The events are past their retention; the job's result may still be there. `job_id` as it is shown."""

    code = "stream_expired"

    def __init__(self, message: str, *, job_id: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id


class ResultExpired(Conflict):
    """What the job asked and answered is past its retention; its row is still there."""

    code = "result_expired"


class NotReady(TramontaneError):
    """This process takes no work: it is about to end, or too old for its database."""

    code = "not_ready"
    retryable = True


class AttemptLost(TramontaneError):
    """This attempt no longer owns its job. Close the upstream call and write nothing more."""

    code = "attempt_lost"


class ConfigurationError(TramontaneError):
    """Something outside the code keeps the process from starting. The message says what to change."""

    code = "configuration"


class DatabaseError(ConfigurationError):
    """The database is out of reach, of a newer version, or cannot be started."""

    code = "database"


class SecretsLocked(ConfigurationError):
    """A secret in the database was encrypted with a key that this process does not have."""

    code = "secrets_locked"


class JobError(TramontaneError):
    """How an attempt ended when it was not Mistral's doing."""


class Interrupted(JobError):
    """The worker died or lost the job, as often as attempts are allowed."""

    code = "interrupted"
    retryable = True


class JobTimeout(JobError):
    """The attempt took longer than the job's timeout."""

    code = "timeout"
    retryable = True


class DeadlineExceeded(JobError):
    """It had not started, or not again, by its deadline."""

    code = "deadline_exceeded"


class BudgetExhausted(JobError):
    """The tenant's budget of the day is spent. `retry_after`: seconds until the next one, for a submit."""

    code = "budget_exhausted"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Cancelled(JobError):
    """Somebody asked for the job to stop."""

    code = "cancelled"


class InternalError(JobError):
    """A fault of ours. It is logged with its traceback and retried like a crash."""

    code = "internal"
    retryable = True


class MistralError(TramontaneError):
    """An answer, or the lack of one, from the Mistral API.

    status: HTTP status, None when there was no answer.
    retry_after: seconds that Mistral asked us to wait, None when it did not say.
    correlation_id: Mistral's `mistral-correlation-id`, to quote to its support.
    upstream_code, upstream_type: `code` and `type` of Mistral's own error body.
    """

    code = "upstream"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        correlation_id: str | None = None,
        upstream_code: str | None = None,
        upstream_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.correlation_id = correlation_id
        self.upstream_code = upstream_code
        self.upstream_type = upstream_type


class Unauthorized(MistralError):
    """401: the API key is missing, wrong or revoked."""

    code = "upstream_unauthorized"


class Forbidden(MistralError):
    """403: the key is good, but its tier or workspace may not use this."""

    code = "upstream_forbidden"


class ModelNotFound(MistralError):
    """404: no such model or path."""

    code = "upstream_not_found"


class RequestRefused(MistralError):
    """400, 413, 422 and any other 4xx: the request itself is wrong, so repeating it is useless."""

    code = "upstream_refused"


class RateLimited(MistralError):
    """429: wait and try again."""

    code = "rate_limited"
    retryable = True


class ZeroAllowance(MistralError):
    """429 with a limit of zero: this key may never use this model, so waiting is useless."""

    code = "zero_allowance"


class UpstreamUnavailable(MistralError):
    """5xx, in whatever body."""

    code = "upstream_unavailable"
    retryable = True


class ConnectFailed(MistralError):
    """Refused, reset, unresolved, or closed before an answer."""

    code = "connect_failed"
    retryable = True


class MalformedAnswer(MistralError):
    """A success status with a body that is not what was asked for."""

    code = "upstream_malformed"
    retryable = True


class Truncated(MistralError):
    """The stream ended without a `finish_reason`: an interruption, not an end."""

    code = "truncated"
    retryable = True


class GenerationFailed(MistralError):
    """Mistral reported the failure inside the stream, or as `finish_reason: "error"`."""

    code = "generation_failed"
    retryable = True


class UpstreamTimeout(MistralError):
    """Mistral was too slow. `phase` is `connect`, `first_token`, `silence` or `total`."""

    code = "upstream_timeout"
    retryable = True

    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(f"Mistral did not answer in time: {phase.replace('_', ' ')} took over {seconds:g} s")
        self.phase = phase

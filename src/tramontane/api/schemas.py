"""What callers may send. Our own fields are strict; Mistral's are checked for their type and passed on as they came."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from tramontane.api.numbers import refuse_unreadable_numbers
from tramontane.callbacks import Callbacks
from tramontane.errors import InvalidInput, InvalidJSON, NotSupported
from tramontane.ids import new_id, show_id
from tramontane.limits import estimate
from tramontane.models import Callback, JobKey, NewJob
from tramontane.settings import Settings, seconds
from tramontane.webhooks.messages import ENDINGS

DEFAULT_MODEL: Final = "mistral-small-latest"

#: What pydantic adds to a path for a field of several types.
_BRANCHES: Final = frozenset(
    {"str", "float", "int", "bool", "list[str]", "list[any]", "dict[str,any]", "list[dict[str,any]]"}
)
#: Fields of the short form that are not Mistral's.
_OURS: Final = ("requestId", "callback")
#: Fields of the contract that are not built yet: refused by name, never accepted and ignored.
_NOT_BUILT: Final = ("lane", "onDisconnect")


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("may not hold control characters")
    return text


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError for one that is out of range there."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def _duration(value: str | float) -> float:
    length = seconds(value)
    if not 0 < length <= 7 * 86400:
        raise ValueError("must be more than 0 and at most 7 days")
    return length


def _distance(value: str | float) -> float:
    length = seconds(value)
    if not 0 < length <= 366 * 86400:
        raise ValueError("must be more than 0 and at most a year")
    return length


def _deadline(value: str | float) -> timedelta | datetime:
    """A duration from now on, or a time with its zone."""
    if isinstance(value, str) and "T" in value.upper():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError('must be a duration from now ("2h") or a time with its zone') from None
        if moment.tzinfo is None:
            raise ValueError("needs a time zone: write 2026-11-22T06:46:00Z")
        return in_utc(moment)
    return timedelta(seconds=_distance(value))


Form = TypeVar("Form", bound=BaseModel)

PlainText = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_plain)]
Duration = Annotated[str | float, AfterValidator(_duration)]
Distance = Annotated[str | float, AfterValidator(_distance)]


class Message(BaseModel):
    """An item of Mistral's `messages`."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    """Mistral's chat request: the fields that the API documents, by type. Their values are Mistral's to judge."""

    model_config = ConfigDict(extra="allow", strict=True)

    messages: Annotated[list[Message], Field(min_length=1)]
    model: PlainText = DEFAULT_MODEL
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    random_seed: int | None = None
    metadata: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prompt_logprobs: bool | int | None = None
    top_prompt_logprobs: int | None = None
    n: int | None = None
    prediction: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    prompt_mode: str | None = None
    guardrails: list[Any] | dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    safe_prompt: bool | None = None


class CallbackForm(BaseModel):
    """Where the job's own events are told, when a URL alone does not say enough."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    events: list[str] | None = None
    secret: str | None = None
    headers: dict[str, str] | None = None
    format: Literal["default", "thin"] = "default"


def _form_of(callback: object) -> object:
    return {"url": callback} if isinstance(callback, str) else callback


AnyCallback = Annotated[CallbackForm, BeforeValidator(_form_of, json_schema_input_type=str | CallbackForm)]


class ShortForm(ChatRequest):
    """The seed's body: Mistral's chat request itself, with `requestId` and `callback` beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requestId: PlainText | None = None  # noqa: N815 - the wire's name
    callback: AnyCallback | None = None


class BackoffForm(BaseModel):
    """The seed's `backoff`. `delay` is in milliseconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["exponential", "fixed"] = "exponential"
    delay: Annotated[float, Field(gt=0, le=3_600_000)] = 1000


class LongForm(BaseModel):
    """A job with its options. `request` is Mistral's chat request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["chat"] = "chat"
    request: ChatRequest
    requestId: PlainText | None = None  # noqa: N815
    callback: AnyCallback | None = None
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    runAt: Annotated[AwareDatetime, AfterValidator(in_utc)] | None = None  # noqa: N815
    delay: Distance | None = None
    deadline: Annotated[str | float, AfterValidator(_deadline)] | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    backoff: BackoffForm | None = None
    timeout: Duration | None = None
    resume: Literal["auto", "never"] = "auto"
    metadata: Annotated[dict[PlainText, PlainText], Field(max_length=32)] | None = None


_REF: Final = "#/components/schemas/{model}"
#: For the components of the OpenAPI document, which does not see the bodies that we read ourselves.
COMPONENTS: Final = models_json_schema([(ShortForm, "validation"), (LongForm, "validation")], ref_template=_REF)[1][
    "$defs"
]
_FORMS: Final = [{"$ref": _REF.format(model=form.__name__)} for form in (ShortForm, LongForm)]
BODY_SCHEMA: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": _FORMS}}}},
}


def new_job(
    body: bytes,
    settings: Settings,
    *,
    tenant: str,
    idempotency_key: str | None,
    now: datetime,
    callbacks: Callbacks | None = None,
) -> NewJob:
    """A validated job from a body in either form. Mistral's own part keeps its bytes.

    callbacks: makes the job's callback; without it that is checked for its shape alone, and left out.
    Raises InvalidJSON, NotSupported, CallbackBlocked, and InvalidInput naming the field.
    """
    fields = read_fields(body)
    if "kind" in fields or "request" in fields:
        _refuse_mixed(fields)
        form = parse(LongForm, body)
        request, own = fields["request"], form
        chat = form.request
    else:
        chat = parse(ShortForm, body)
        request = Raw(msgspec.json.encode({name: raw for name, raw in fields.items() if name not in _OURS}))
        own = LongForm.model_construct(request=chat, requestId=chat.requestId, callback=chat.callback)
    upstream = _upstream(request)
    run_at, deadline = _times(own, now)
    backoff = own.backoff or BackoffForm.model_construct(delay=settings.backoff * 1000)
    return NewJob(
        key=JobKey(tenant=tenant, id=new_id()),
        kind="chat",
        request=upstream,
        request_id=own.requestId or show_id("req", new_id()),
        model=chat.model,
        attempts=own.attempts or settings.attempts,
        backoff_kind=backoff.type,
        backoff_seconds=backoff.delay / 1000,
        timeout_seconds=float(own.timeout or settings.job_timeout),
        run_at=run_at,
        deadline=deadline,
        priority=own.priority,
        resume=own.resume,
        prompt_tokens=estimate(upstream),
        max_tokens=chat.max_tokens if chat.max_tokens and 0 < chat.max_tokens < 2**31 else None,
        metadata=msgspec.json.encode(own.metadata).decode() if own.metadata else None,
        idempotency_key=idempotency_key,
        idempotency_hash=_hash(body) if idempotency_key else None,
        callback=_callback(own.callback, callbacks) if own.callback is not None and callbacks else None,
    )


def _times(form: LongForm, now: datetime) -> tuple[datetime, datetime | None]:
    """Not before, and not after."""
    if form.runAt is not None and form.delay is not None:
        raise InvalidInput("delay", "says what `runAt` says: give one of them")
    run_at = max(form.runAt or now, now + timedelta(seconds=float(form.delay or 0)))
    deadline: Any = form.deadline
    if isinstance(deadline, timedelta):
        deadline = now + deadline
    if deadline is not None and deadline <= run_at:
        raise InvalidInput("deadline", "is over already" if deadline <= now else "is over before the job may run")
    return run_at, deadline


def _callback(form: CallbackForm, callbacks: Callbacks) -> Callback:
    events = ENDINGS if form.events is None else tuple(form.events)
    return callbacks.make(form.url, events=events, secret=form.secret, headers=form.headers, format=form.format)


def read_idempotency_key(text: str | None) -> str | None:
    """The Idempotency-Key header, checked. Raises InvalidInput."""
    if text is None:
        return None
    if not 0 < len(text) <= 255 or not text.isprintable():
        raise InvalidInput("Idempotency-Key", "must be 1 to 255 visible characters")
    return text


def read_cursor(text: str | None) -> UUID | None:
    """The cursor of a listing: the id of the last job seen. Raises NotFound."""
    from tramontane.ids import read_id

    return None if text is None else read_id("job", text)


def invalid(error: ValidationError) -> InvalidInput:
    """The first thing that is wrong, by its field; never the value itself, which may be somebody's message."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return InvalidJSON("", f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    path = ".".join(str(part) for part in first["loc"] if part not in _BRANCHES)
    if first["type"] == "extra_forbidden":
        return InvalidInput(path, _unknown(path))
    return InvalidInput(path, first["msg"].removeprefix("Value error, "))


def read_fields(body: bytes) -> dict[str, Raw]:
    """The fields of a body that holds a job, each as it came. Raises InvalidJSON, NotSupported, and InvalidInput."""
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=dict[str, Raw])
        refuse_unreadable_numbers(body)
    except UnicodeDecodeError:
        raise InvalidJSON("", "the body is not UTF-8") from None
    except msgspec.ValidationError:
        raise InvalidInput("", "the body must be a JSON object") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidJSON("", f"the body is not JSON: {error}") from None
    for name in _NOT_BUILT:
        if name in fields:
            raise NotSupported(name, "is not supported yet; leave it out")
    return fields


def _refuse_mixed(fields: dict[str, Raw]) -> None:
    options = set(LongForm.model_fields)
    for name in fields:
        if name in ChatRequest.model_fields and name not in options:
            raise InvalidInput(name, "belongs inside `request` when `kind` or `request` is given")
    if "request" not in fields:
        raise InvalidInput("request", "is missing: with `kind`, Mistral's request goes into `request`")


def _unknown(path: str) -> str:
    if path in LongForm.model_fields:
        return "goes with the long form: {kind, request, …}"
    return "is not a known field; what this version does not know of Mistral's goes into the long form's `request`"


def parse(form: type[Form], body: bytes) -> Form:
    """A body as a form. Raises InvalidInput for the first thing that is wrong."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def _upstream(request: Raw) -> bytes:
    """The request as Mistral will get it; how it is transported is ours to decide, so `stream` goes."""
    fields = msgspec.json.decode(request, type=dict[str, Raw])
    if "model" in fields and "stream" not in fields:
        return bytes(request)
    fields.pop("stream", None)
    fields.setdefault("model", Raw(msgspec.json.encode(DEFAULT_MODEL)))
    return msgspec.json.encode(fields)


def _hash(body: bytes) -> bytes:
    return hashlib.sha256(msgspec.json.encode(msgspec.json.decode(body), order="sorted")).digest()

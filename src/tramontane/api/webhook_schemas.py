"""What callers may send to /api/webhooks. Strict, and nothing unknown passes."""

import base64
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from tramontane.api.schemas import invalid
from tramontane.errors import InvalidInput
from tramontane.ids import read_id
from tramontane.settings import seconds
from tramontane.webhooks.failures import failure_of_status
from tramontane.webhooks.hints import hint_for
from tramontane.webhooks.models import ErrorClass, Exchange
from tramontane.webhooks.records import EndpointChange, Heard

_WEEK: Final = 7 * 86400.0


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("may not hold control characters")
    return text


def _credential(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII")
    return text


def _user(text: str) -> str:
    if ":" in text or not text.isprintable():
        raise ValueError("may hold no colon and no control characters")
    return text


def _timeout(value: str | float) -> float:
    length = seconds(value)
    if not 1 <= length <= 30:
        raise ValueError("must be 1 to 30 seconds")
    return length


def _overlap(value: str | float) -> float:
    length = seconds(value)
    if length > _WEEK:
        raise ValueError("must be at most 7 days")
    return length


Form = TypeVar("Form", bound=BaseModel)
Events = Annotated[list[str], Field(min_length=1, max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BasicAuth(_Strict):
    """HTTP's own way to send a name and a password."""

    type: Literal["basic"]
    username: Annotated[str, Field(max_length=256), AfterValidator(_user)]
    password: Annotated[str, Field(max_length=1024), AfterValidator(_printable)]

    def header(self) -> str:
        """The value of `Authorization`."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class BearerAuth(_Strict):
    """A token."""

    type: Literal["bearer"]
    token: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_credential)]

    def header(self) -> str:
        """The value of `Authorization`."""
        return f"Bearer {self.token}"


class EndpointFields(_Strict):
    """What can be changed of an endpoint. `null` takes headers, auth and timeout away."""

    url: str | None = None
    events: Events | None = None
    description: Annotated[str, Field(max_length=500), AfterValidator(_printable)] | None = None
    headers: Annotated[dict[str, str], Field(max_length=64)] | None = None
    auth: Annotated[BasicAuth | BearerAuth, Field(discriminator="type")] | None = None
    format: Literal["default", "thin"] | None = None
    ordering: Literal["none", "job"] | None = None
    timeout: Annotated[str | float, AfterValidator(_timeout)] | None = None

    def change(self) -> EndpointChange:
        """What is asked for; a field that was not given is left as it is."""
        given = self.model_fields_set
        for name in ("url", "events", "description", "format", "ordering"):
            if name in given and getattr(self, name) is None:
                raise InvalidInput(name, "may not be null: leave it out")
        headers, authorization, timeout = self.headers, self.auth and self.auth.header(), self.timeout
        return EndpointChange(
            url=self.url,
            events=None if self.events is None else tuple(self.events),
            description=self.description,
            format=self.format,
            ordering=self.ordering,
            timeout=(float(timeout or 0.0) if "timeout" in given else None),
            headers=(headers or {}) if "headers" in given else None,
            authorization=(authorization or "") if "auth" in given else None,
        )


class NewEndpoint(EndpointFields):
    """A URL to be registered."""

    url: str
    secret: str | None = None


class Rotation(_Strict):
    """A further secret: ours to make unless it is given."""

    overlap: Annotated[str | float, AfterValidator(_overlap)] = 86400.0
    promote: Literal["now", "end"] = "now"
    secret: str | None = None


class NewRecovery(_Strict):
    """A stretch of time to be told again."""

    since: AwareDatetime
    until: AwareDatetime | None = None
    only: Literal["failed", "missing", "all"] = "failed"
    event: str | None = None


class ExplainedURL(_Strict):
    """A URL to be judged."""

    url: str


class NewListener(_Strict):
    """A terminal that listens."""

    events: Events = Field(default=["*"])


class Result(_Strict):
    """What a terminal says came of one delivery."""

    deliveryId: str  # noqa: N815 - the wire's name
    status: Annotated[int, Field(ge=100, le=599)] | None
    errorClass: ErrorClass | None = Field(default=None, strict=False)  # noqa: N815
    detail: Annotated[str, Field(max_length=500), AfterValidator(_printable)] = ""
    totalMs: Annotated[float, Field(ge=0, le=1e9)] = 0.0  # noqa: N815

    def heard(self) -> Heard:
        """As it is written. A status that is no success has its own error class. Raises NotFound."""
        failed = failure_of_status(self.status) if self.status is not None else None
        error_class = self.errorClass or (failed[0] if failed else None)
        detail = self.detail or (failed[1] if failed else "")
        hint = hint_for(Exchange(status=self.status, error_class=error_class, detail=detail))
        return Heard(
            delivery_id=read_id("dlv", self.deliveryId),
            status=self.status,
            error_class=error_class,
            detail=detail,
            hint=hint,
            total_ms=self.totalMs,
        )


class NextOnes(_Strict):
    """What came of the last deliveries, and the wish for the next."""

    results: Annotated[list[Result], Field(max_length=1000)] = []
    wait: Annotated[str | float, AfterValidator(_overlap)] = 20.0


_FORMS: Final = (NewEndpoint, EndpointFields, Rotation, NewRecovery, ExplainedURL, NewListener, NextOnes)
_REF: Final = "#/components/schemas/{model}"
#: For the components of the OpenAPI document, which does not see the bodies that we read ourselves.
COMPONENTS: Final = models_json_schema([(form, "validation") for form in _FORMS], ref_template=_REF)[1]["$defs"]


def body_of(form: type[BaseModel], *, required: bool = True) -> dict[str, object]:
    """How the OpenAPI document describes a body."""
    schema = {"$ref": _REF.format(model=form.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def read(form: type[Form], body: bytes) -> Form:
    """The form that a body fills in. Raises InvalidJSON, and InvalidInput naming the field."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise _plain(error) from None


def _plain(error: ValidationError) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if part not in _BRANCHES)
    if first["type"] == "extra_forbidden":
        return InvalidInput(path, "is not a known field")
    if first["type"] == "json_invalid":
        return invalid(error)
    return InvalidInput(path, first["msg"].removeprefix("Value error, "))


#: What pydantic adds to a path for a field of several types.
_BRANCHES: Final = frozenset({"str", "float", "basic", "bearer"})

"""The OpenAPI document, made true: what each operation answers, its errors included.

FastAPI sees the parameters of a route, but not the bodies that we read and write ourselves. Here is what it cannot
see; a test holds every route to it, and another holds the answers to the document.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, get_args, get_type_hints

import msgspec
from msgspec import UnsetType

from tramontane import wire
from tramontane.api.authentication import PUBLIC
from tramontane.webhooks import shapes

_Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_SHAPES: Final = (
    wire.JobShape,
    wire.AcceptedShape,
    shapes.EndpointShape,
    shapes.MessageShape,
    shapes.DeliveryShape,
    shapes.AttemptShape,
    shapes.RecoveryShape,
    shapes.ExplanationShape,
)
_TEXT: Final[_Schema] = {"type": "string"}
_TIME: Final[_Schema] = {"type": "string", "format": "date-time"}
_PERHAPS: Final[_Schema] = {"type": ["string", "null"]}
_COUNT: Final[_Schema] = {"type": "integer"}
_PROBLEM: Final[_Schema] = {
    "type": "object",
    "description": "RFC 9457. `code` never changes; docs/errors.md lists all.",
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": _COUNT,
        "code": _TEXT,
        "detail": _TEXT,
        "field": {"type": "string", "description": "path of the value that must be changed"},
    },
    "required": ["type", "title", "status", "code", "detail"],
}
_ERRORS: Final = {
    "400": "not JSON, or no cursor at all",
    "401": "the key or the ticket is missing, wrong, expired or revoked",
    "403": "the key may not do this, or the page or host name may not call",
    "404": "no such thing, or not yours",
    "409": "the present state forbids it",
    "410": "the events are past their retention",
    "413": "the body is over the limit",
    "422": "a value must be changed; `field` names it",
    "429": "too much at a time: come back after `Retry-After`",
    "503": "the database does not answer, or a secret cannot be read: try again",
}
#: What a parameter of the path names, and the answer in which a client has met it.
_SOURCES: Final = {
    "job_id": ("/api/jobs", "jobId"),
    "endpoint_id": ("/api/webhooks/endpoints", "endpointId"),
    "listener_id": ("/api/webhooks/listeners", "listenerId"),
    "recovery_id": ("/api/webhooks/endpoints/{endpoint_id}/recover", "recoveryId"),
    "delivery_id": ("/api/webhooks/endpoints/{endpoint_id}/test", "deliveryId"),
    "pause_id": ("/api/pauses", "pauseId"),
    "schedule_id": ("/api/schedules", "scheduleId"),
    "message_id": ("/api/webhooks/endpoints/{endpoint_id}/test", "messageId"),
}


def shape(value: type) -> _Schema:
    """The schema of one of our wire's structs, by name."""
    names = {"tramontane.wire.AttemptShape": "JobAttempt", "tramontane.webhooks.shapes.AttemptShape": "Try"}
    full = f"{value.__module__}.{value.__name__}"
    return {"$ref": _REF.format(name=names.get(full, value.__name__))}


def fields(**properties: _Schema) -> _Schema:
    """An object of exactly these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def page(name: str, value: type) -> _Schema:
    """A page of a listing."""
    return fields(**{name: _many(shape(value)), "next": _PERHAPS})


def _many(schema: _Schema) -> _Schema:
    return {"type": "array", "items": schema}


def _json(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


_ENDPOINTS, _HOOKS = "/api/webhooks/endpoints", "/api/webhooks"
_HEARD: Final = fields(
    deliveryId=_TEXT,
    messageId=_TEXT,
    event=_TEXT,
    attempt=_COUNT,
    headers={"type": "object", "additionalProperties": _TEXT},
    body=_TEXT,
)
_PAUSE: Final = fields(pauseId=_TEXT, tenant=_TEXT, kind=_PERHAPS, model=_PERHAPS, reason=_PERHAPS, pausedAt=_TIME)
_SCHEDULE: Final = fields(
    scheduleId=_TEXT,
    name=_TEXT,
    cron=_TEXT,
    timezone=_TEXT,
    job={"type": "object"},
    catchUp=_TEXT,
    status=_TEXT,
    reason=_PERHAPS,
    nextAt=_PERHAPS,
    lastAt=_PERHAPS,
    lastJobId=_PERHAPS,
    createdAt=_TIME,
    updatedAt=_TIME,
)
#: The JSON of a success, by method and path. What is not here has none.
ANSWERS: Final[dict[str, _Schema]] = {
    "POST /api/jobs": shape(wire.AcceptedShape),
    "GET /api/jobs": page("jobs", wire.JobShape),
    "GET /api/jobs/{job_id}": shape(wire.JobShape),
    "POST /api/jobs/{job_id}/ticket": fields(ticket=_TEXT, url=_TEXT, expiresAt=_TIME),
    "POST /api/jobs/{job_id}/cancel": shape(wire.JobShape),
    "POST /api/jobs/{job_id}/retry": shape(wire.AcceptedShape),
    f"POST {_ENDPOINTS}": shape(shapes.EndpointShape),
    f"GET {_ENDPOINTS}": page("endpoints", shapes.EndpointShape),
    f"POST {_ENDPOINTS}/{{endpoint_id}}/test": shape(shapes.DeliveryShape),
    f"POST {_ENDPOINTS}/{{endpoint_id}}/recover": shape(shapes.RecoveryShape),
    **{
        f"{operation}": shape(shapes.EndpointShape)
        for operation in (
            f"GET {_ENDPOINTS}/{{endpoint_id}}",
            f"PATCH {_ENDPOINTS}/{{endpoint_id}}",
            *(f"POST {_ENDPOINTS}/{{endpoint_id}}/{verb}" for verb in ("rotate", "enable", "pause", "disable")),
        )
    },
    f"GET {_HOOKS}/recoveries": page("recoveries", shapes.RecoveryShape),
    f"GET {_HOOKS}/recoveries/{{recovery_id}}": shape(shapes.RecoveryShape),
    **{
        f"POST {_HOOKS}/recoveries/{{recovery_id}}/{verb}": shape(shapes.RecoveryShape)
        for verb in ("pause", "resume", "cancel")
    },
    f"POST {_HOOKS}/explain": shape(shapes.ExplanationShape),
    f"POST {_HOOKS}/listeners": fields(listenerId=_TEXT, secret=_TEXT, expiresAt=_TIME),
    f"POST {_HOOKS}/listeners/{{listener_id}}/next": fields(deliveries=_many(_HEARD), expiresAt=_TIME),
    f"GET {_HOOKS}/messages": page("messages", shapes.MessageShape),
    f"GET {_HOOKS}/messages/{{message_id}}": shape(shapes.MessageShape),
    f"GET {_HOOKS}/deliveries": page("deliveries", shapes.DeliveryShape),
    f"GET {_HOOKS}/deliveries/{{delivery_id}}": shape(shapes.DeliveryShape),
    f"POST {_HOOKS}/deliveries/{{delivery_id}}/replay": shape(shapes.DeliveryShape),
    f"GET {_HOOKS}/attempts": page("attempts", shapes.AttemptShape),
    "POST /api/jobs/bulk": fields(accepted=_COUNT, replayed=_COUNT, refused=_COUNT, jobs=_many({"type": "object"})),
    "POST /api/jobs/retry": fields(retried=_COUNT, jobs=_many(fields(jobId=_TEXT, retryOf=_TEXT)), next=_PERHAPS),
    "POST /api/pauses": _PAUSE,
    "GET /api/pauses": fields(pauses=_many(_PAUSE)),
    "POST /api/schedules": _SCHEDULE,
    "GET /api/schedules": fields(schedules=_many(_SCHEDULE)),
    "GET /api/schedules/{schedule_id}": _SCHEDULE,
    "PATCH /api/schedules/{schedule_id}": _SCHEDULE,
    "POST /api/schedules/{schedule_id}/run": shape(wire.AcceptedShape),
    "GET /api/limits": fields(fleet={"type": "object"}, buckets=_many({"type": "object"})),
    "GET /healthz": fields(status=_TEXT),
    "GET /readyz": fields(status=_TEXT, worker={"type": "boolean"}),
}
#: Where the JSON may come line by line.
_LINES: Final[dict[str, _Schema]] = {"POST /api/jobs/bulk": {"application/x-ndjson": {"schema": {"type": "string"}}}}
#: Answers beside the one of a success.
_OTHERS: Final[dict[str, dict[str, _Schema]]] = {
    "GET /api/jobs/{job_id}": {"304": {"description": "nothing is new since `If-None-Match`"}},
    "GET /api/jobs/{job_id}/events": {"204": {"description": "the cursor is at the final event: there is no more"}},
    "GET /readyz": {"503": {"description": "not ready", "content": _json(fields(status=_TEXT, reason=_TEXT))}},
    "GET /metrics": {"200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": _TEXT}}}},
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document that FastAPI made, with what it could not see."""
    document = _hoisted(document)
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _components() | {"Problem": _PROBLEM}
    document["components"]["responses"] = {
        f"Error{status}": {
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
        for status, description in _ERRORS.items()
    }
    for path, method, operation in _operations(document):
        _answer(path, method, operation)
    _link(document)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _hoisted(document: dict[str, Any]) -> dict[str, Any]:
    """A copy in which the definitions that pydantic puts into a body's schema are components like the others."""
    text = msgspec.json.encode(document).replace(b'"#/$defs/', b'"#/components/schemas/')
    copy: dict[str, Any] = msgspec.json.decode(text)
    for _, _, operation in _operations(copy):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            copy["components"]["schemas"] |= media["schema"].pop("$defs", {})
    return copy


def _components() -> dict[str, Any]:
    _, found = msgspec.json.schema_components(_SHAPES, ref_template=_REF)
    text = msgspec.json.encode(found).decode()
    for full, short in (
        ("tramontane.wire.AttemptShape", "JobAttempt"),
        ("tramontane.webhooks.shapes.AttemptShape", "Try"),
    ):
        text = text.replace(full, short)
    components: dict[str, Any] = msgspec.json.decode(text)
    for struct in _SHAPES:
        schema = components[shape(struct)["$ref"].rpartition("/")[2]]
        hints = get_type_hints(struct)
        schema["required"] = [
            field.encode_name
            for field in msgspec.structs.fields(struct)
            if UnsetType not in get_args(hints[field.name])
        ]
    return components


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def _answer(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    name = f"{method} {path}"
    if name in ANSWERS:
        for status in filter(_with_body, responses):
            responses[status]["content"] = _json(ANSWERS[name]) | _LINES.get(name, {})
    for response in responses.values():
        content = response.get("content", {})
        if "text/event-stream" in content:
            content.pop("application/json", None)
    responses |= _OTHERS.get(name, {})
    if path not in PUBLIC:
        # On loopback none is needed as long as there is none.
        operation["security"] = [{"key": []}]
        for status in _errors(path, method, operation):
            responses[status] = {"$ref": f"#/components/responses/Error{status}"}


def _with_body(status: str) -> bool:
    return status.startswith("2") and status != "204"


def _errors(path: str, method: str, operation: dict[str, Any]) -> set[str]:
    parameters = {parameter["name"] for parameter in operation.get("parameters", ())}
    found = {"401", "403", "422", "503"}
    if "requestBody" in operation:
        found |= {"400", "404", "413"}
    if "{" in path or parameters & {"cursor", "jobId"}:
        found.add("404")
    if method != "GET":
        found |= {"409", "429"}
    if "Last-Event-ID" in parameters or path.endswith("/stream"):
        found |= {"400", "409", "410", "429"}
    return found


def _link(document: dict[str, Any]) -> None:
    """Say where ids come from: what follows from an answer can be walked."""
    for path, method, operation in _operations(document):
        for parameter in re.findall(r"{(\w+)}", path):
            source, field = _SOURCES.get(parameter, ("", ""))
            made = document["paths"].get(source, {}).get("post")
            if made is None:
                continue
            success = next(filter(_with_body, made["responses"]))
            made["responses"][success].setdefault("links", {})[f"{method.lower()}{path.replace('/', '.')}"] = {
                "operationId": operation["operationId"],
                "parameters": {f"path.{parameter}": f"$response.body#/{field}"},
            }

"""Everything that can go wrong between us and Mistral, mapped once to the tree in `tramontane.errors`.

The messages name the status, Mistral's own `type` and `code`, and for a refused field its path. Mistral's own words
are left out: its `message`, `detail` and `input` may repeat what the caller sent, and an error ends up in logs.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import aiohttp
import msgspec

from tramontane.errors import (
    ConnectFailed,
    Forbidden,
    GenerationFailed,
    MalformedAnswer,
    MistralError,
    ModelNotFound,
    RateLimited,
    RequestRefused,
    Truncated,
    Unauthorized,
    UpstreamTimeout,
    UpstreamUnavailable,
    ZeroAllowance,
)
from tramontane.mistral.headers import CORRELATION_ID, allows_nothing, retry_after

#: More of an error's body than this is not read: nothing that we use comes later.
ERROR_BODY = 64 * 2**10

_STATUSES: dict[int, tuple[type[MistralError], str]] = {
    401: (Unauthorized, "the API key is missing, wrong or revoked"),
    403: (Forbidden, "this key may not use this model or service"),
    404: (ModelNotFound, "no such model or path"),
    429: (RateLimited, "the rate limit is used up for now"),
}
# A code or type is shown only if it is one word: a sentence in its place could be anything.
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_PATHS = 5


def error_from(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> MistralError:
    """The error that an answer other than 200 stands for. The status decides; the body only adds its words.

    headers: a mapping that ignores case. body: JSON in any of Mistral's shapes, HTML of a gateway, or nothing.
    """
    fields = _json_object(body)
    upstream_type, upstream_code = _names(fields)
    kind, meaning = _kind(status, headers)
    if kind is RequestRefused:
        meaning = _refused(fields)
    return kind(
        f"Mistral answered {status}{_in_brackets(upstream_type, upstream_code)}: {meaning}",
        status=status,
        retry_after=retry_after(headers, now),
        correlation_id=headers.get(CORRELATION_ID),
        upstream_code=upstream_code,
        upstream_type=upstream_type,
    )


def failure_in(body: bytes) -> MistralError:
    """The error that a chunk or an answer without `choices` stands for, although its status was 200.

    Mistral's own error object, at the top or inside `error`, or else something that is none of Mistral's shapes.
    """
    fields = _json_object(body)
    if fields.get("object") != "error" and not fields.get("error"):
        return MalformedAnswer("Mistral sent JSON of another shape than an answer's, or no JSON at all")
    upstream_type, upstream_code = _names(fields)
    return GenerationFailed(
        f"Mistral reported a failure in place of an answer{_in_brackets(upstream_type, upstream_code)}",
        upstream_code=upstream_code,
        upstream_type=upstream_type,
    )


@contextmanager
def answered(status: int, headers: Mapping[str, str]) -> Iterator[None]:
    """Adds what the answer's head said to an error that its body brings."""
    try:
        yield
    except MistralError as error:
        error.status = error.status or status
        error.correlation_id = error.correlation_id or headers.get(CORRELATION_ID)
        raise


def transport_error(error: Exception, *, host: str, answering: bool, connect: float) -> MistralError:
    """The error that an exception of aiohttp or of a socket stands for.

    answering: whether an answer had begun. What breaks off then is Truncated; before it, nobody was there.
    connect: the limit, in seconds, that a connection had.
    """
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout("connect", connect)
    if isinstance(error, aiohttp.ClientResponseError):
        return MalformedAnswer(f"{host} does not speak HTTP as it should")
    if answering:
        return Truncated("the connection to Mistral broke off before the answer had ended")
    reason = getattr(error, "strerror", None) or type(error).__name__
    return ConnectFailed(f"no answer from {host}: {reason}")


def _kind(status: int, headers: Mapping[str, str]) -> tuple[type[MistralError], str]:
    if status == 429 and allows_nothing(headers):
        return ZeroAllowance, "this key has no allowance for this model"
    if status in _STATUSES:
        return _STATUSES[status]
    if 400 <= status < 500:
        return RequestRefused, ""
    if 500 <= status < 600:
        return UpstreamUnavailable, "it cannot serve this now"
    return MalformedAnswer, "this is no answer to a request; is MISTRAL_SERVER_URL right?"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except ValueError:  # msgspec's errors and UnicodeDecodeError are both of this kind
        return {}
    return value if isinstance(value, dict) else {}


def _names(fields: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Mistral's `type` and `code`, at the top or inside `error`."""
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields = inner
    return _word(fields.get("type")), _word(fields.get("code"))


def _word(value: object) -> str | None:
    text = str(value) if isinstance(value, str | int) else ""
    return text if _WORD.fullmatch(text) else None


def _in_brackets(upstream_type: str | None, upstream_code: str | None) -> str:
    code = upstream_code and f"code {upstream_code}"
    words = ", ".join(word for word in (upstream_type, code) if word)
    return f" ({words})" if words else ""


def _refused(fields: Mapping[str, Any]) -> str:
    paths = list(_paths(fields))[:_MOST_PATHS]
    return f"it refused {', '.join(paths)}" if paths else "it refused the request"


def _paths(fields: Mapping[str, Any]) -> Iterator[str]:
    """Where the refused fields are, such as `body.messages`: from `detail`, at the top or inside `message`."""
    message = fields.get("message")
    detail = (message if isinstance(message, dict) else fields).get("detail")
    for item in detail if isinstance(detail, list) else ():
        path = item.get("loc") if isinstance(item, dict) else None
        if isinstance(path, list):
            yield ".".join(_word(part) or "?" for part in path)

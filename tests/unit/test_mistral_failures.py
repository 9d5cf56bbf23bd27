import inspect
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from tramontane.errors import (
    ConnectFailed,
    Forbidden,
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
from tramontane.mistral import RateHeaders, error_from, transport_error
from tramontane.mistral.headers import rate_headers, retry_after

NOW = datetime(2026, 11, 22, 7, 0, 0, tzinfo=UTC)

# What Mistral may say and we may not repeat.
WORDS = "Invalid model: my-secret-model"
MISSING = [{"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": WORDS, "input": {"x": WORDS}}]


def envelope(status: int, type_: str, code: str | None, message: Any = WORDS) -> dict[str, Any]:
    fields = {"object": "error", "message": message, "type": type_, "param": None}
    return fields | {"code": code, "raw_status_code": status}


def error(status: int, body: Any = b"", **headers: str) -> MistralError:
    told = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return error_from(status, named, told, now=NOW)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (
            400,
            envelope(400, "invalid_model", "1500"),
            RequestRefused,
            "Mistral answered 400 (invalid_model, code 1500): it refused the request",
        ),
        (
            401,
            {"detail": "Unauthorized"},
            Unauthorized,
            "Mistral answered 401: the API key is missing, wrong or revoked",
        ),
        (401, {"message": "Unauthorized", "request_id": "x"}, Unauthorized, None),
        (403, b"", Forbidden, None),
        (404, {"detail": "Not Found"}, ModelNotFound, "Mistral answered 404: no such model or path"),
        (413, b"<html>", RequestRefused, None),
        (418, b"", RequestRefused, None),
        (422, {"detail": MISSING}, RequestRefused, "Mistral answered 422: it refused body.messages.0.content"),
        (
            422,
            envelope(422, "invalid_request_error", None, {"detail": MISSING}),
            RequestRefused,
            "Mistral answered 422 (invalid_request_error): it refused body.messages.0.content",
        ),
        (422, {"detail": WORDS}, RequestRefused, "Mistral answered 422: it refused the request"),
        (
            429,
            envelope(429, "rate_limited", "1300"),
            RateLimited,
            "Mistral answered 429 (rate_limited, code 1300): the rate limit is used up for now",
        ),
        (429, {"message": "Requests rate limit exceeded"}, RateLimited, None),
        (500, envelope(500, "internal_server_error", "1000"), UpstreamUnavailable, None),
        (502, f"<html>{WORDS}</html>".encode(), UpstreamUnavailable, "Mistral answered 502: it cannot serve this now"),
        (503, b"\xff\x00", UpstreamUnavailable, None),
        (504, b"[1, 2]", UpstreamUnavailable, None),
        (599, b'{"detail": {"a": [[', UpstreamUnavailable, None),
        (202, b"{}", MalformedAnswer, None),
        (302, b"", MalformedAnswer, None),
    ],
)
def test_a_status_and_body_become_the_error_of_the_table(
    status: int, body: Any, kind: type[MistralError], message: str | None
) -> None:
    made = error(status, body, mistral_correlation_id="corr-1")
    assert type(made) is kind
    assert (made.status, made.correlation_id) == (status, "corr-1")
    if message is not None:
        assert str(made) == message


def test_no_status_is_left_unmapped_and_no_message_repeats_what_mistral_said() -> None:
    bodies: list[Any] = [
        envelope(400, "kind_of_error", "17", WORDS),
        envelope(400, WORDS, WORDS, {"detail": [{"loc": [WORDS, None, {"a": 1}], "msg": WORDS}]}),
        {"detail": WORDS},
        {"detail": [WORDS, {"loc": WORDS}, {"msg": WORDS}]},
        {"error": {"message": WORDS, "type": WORDS, "code": [WORDS]}},
        f"<h1>{WORDS}</h1>".encode(),
    ]
    for status, body in product(range(201, 600), bodies):
        made = error(status, body)
        assert type(made) is not MistralError
        assert "secret" not in f"{made} {vars(made)}"
        assert made.retryable == (status == 429 or status >= 500 or status < 400)


def test_mistrals_own_code_and_type_are_kept() -> None:
    made = error(400, {"error": {"type": "invalid_model", "code": 1500}})
    assert (made.upstream_type, made.upstream_code) == ("invalid_model", "1500")


def test_a_limit_of_zero_is_no_matter_of_waiting() -> None:
    assert isinstance(error(429, x_ratelimit_limit_req_minute="0"), ZeroAllowance)
    assert isinstance(error(429, X_RateLimit_Limit_Tokens_Month="0 "), ZeroAllowance)
    assert isinstance(error(429, x_ratelimit_remaining_req_minute="0", x_ratelimit_limit_req_minute="4"), RateLimited)
    assert isinstance(error(503, x_ratelimit_limit_req_minute="0"), UpstreamUnavailable)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After-Ms": "250", "Retry-After": "30"}, 0.25),
        ({"Retry-After": "Sun, 22 Nov 2026 07:00:20 GMT"}, 20.0),
        ({"Retry-After": "Sun, 22 Nov 2026 07:00:20 GMT", "Date": "Sun, 22 Nov 2026 07:00:15 GMT"}, 5.0),
        ({"Retry-After": "Sun, 22 Nov 2026 06:00:00 GMT"}, 0.0),
        ({"Retry-After": "Sun, 22 Nov 2026 07:00:20 -0000"}, 20.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": ""}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(CIMultiDict(headers), NOW) == seconds
    assert error_from(429, CIMultiDict(headers), b"", now=NOW).retry_after == seconds


def test_rates_are_read_where_they_are_said() -> None:
    said = CIMultiDict(
        {
            "X-RateLimit-Limit-Req-Minute": "60",
            "x-ratelimit-remaining-req-minute": "59",
            "x-ratelimit-limit-tokens-minute": "50000",
            "x-ratelimit-remaining-tokens-minute": "many",
            "x-ratelimit-tokens-query-cost": "30",
        }
    )
    assert rate_headers(said) == RateHeaders(
        limit_requests=60, remaining_requests=59, limit_tokens=50000, query_cost=30
    )
    assert rate_headers({}) == RateHeaders()


BAD_HTTP = (aiohttp.ClientResponseError,)


def exceptions() -> Iterator[type[Exception]]:
    """Every exception that aiohttp's client can raise, and those of sockets."""
    for _, kind in inspect.getmembers(aiohttp.client_exceptions, inspect.isclass):
        if issubclass(kind, aiohttp.ClientError):
            yield kind
    yield from (ConnectionResetError, BrokenPipeError, TimeoutError, OSError)


@pytest.mark.parametrize("kind", list(exceptions()))
def test_no_transport_exception_is_left_unmapped(kind: type[Exception]) -> None:
    raised = kind.__new__(kind)
    before = transport_error(raised, host="mistral.test", answering=False, connect=10)
    during = transport_error(raised, host="mistral.test", answering=True, connect=10)
    if issubclass(kind, aiohttp.ConnectionTimeoutError):
        assert isinstance(before, UpstreamTimeout)
    elif issubclass(kind, BAD_HTTP):
        assert isinstance(before, MalformedAnswer)
        assert isinstance(during, MalformedAnswer)
    else:
        assert isinstance(before, ConnectFailed)
        assert isinstance(during, Truncated)
    assert before.retryable
    assert during.retryable


def test_a_refused_connection_says_which_host_and_why() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    made = transport_error(refused, host="mistral.test", answering=False, connect=10)
    assert str(made) == "no answer from mistral.test: Connection refused"

"""What callers may send: our fields are strict, Mistral's pass on as they came."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tramontane.api.schemas import new_job, read_cursor, read_idempotency_key
from tramontane.errors import InvalidInput, InvalidJSON, NotFound, NotSupported
from tramontane.ids import show_id
from tramontane.models import NewJob
from tramontane.settings import Settings

NOW = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
MESSAGES = [{"role": "user", "content": "Hello!"}]


def read(body: Any, *, key: str | None = None, **settings: Any) -> NewJob:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return new_job(raw, Settings(**settings), tenant="default", idempotency_key=key, now=NOW)


def short(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES} | fields


def long(**fields: Any) -> dict[str, Any]:
    return {"kind": "chat", "request": {"messages": MESSAGES}} | fields


def test_the_seeds_short_body_is_a_job_with_the_defaults() -> None:
    job = read(short())
    assert msgspec.json.decode(job.request) == {"messages": MESSAGES, "model": "mistral-small-latest"}
    assert (job.kind, job.model, job.attempts, job.priority) == ("chat", "mistral-small-latest", 3, 0)
    assert (job.backoff_kind, job.backoff_seconds, job.timeout_seconds) == ("exponential", 1.0, 600.0)
    assert (job.run_at, job.metadata, job.idempotency_hash) == (NOW, None, None)
    assert job.request_id.startswith("req_")


def test_the_short_body_takes_mistrals_fields_and_a_request_id() -> None:
    job = read(short(model="mistral-large-latest", temperature=0.3, requestId="req-123", stop=["a"], stream=True))
    assert (job.request_id, job.model) == ("req-123", "mistral-large-latest")
    assert msgspec.json.decode(job.request) == {
        "messages": MESSAGES,
        "model": "mistral-large-latest",
        "temperature": 0.3,
        "stop": ["a"],
    }


def test_the_long_body_takes_our_fields() -> None:
    job = read(
        long(
            requestId="r",
            priority=-5,
            runAt="2026-11-22T07:46:00+01:00",
            attempts=1,
            backoff={"type": "fixed", "delay": 250},
            timeout="2m",
            metadata={"team": "blue"},
        )
    )
    assert (job.priority, job.attempts, job.timeout_seconds) == (-5, 1, 120.0)
    assert (job.backoff_kind, job.backoff_seconds) == ("fixed", 0.25)
    assert (job.run_at, job.metadata) == (NOW, '{"team":"blue"}')


def test_a_job_runs_at_its_time_and_never_before_now() -> None:
    assert read(long(runAt="2026-11-22T08:00:00Z")).run_at == NOW + timedelta(minutes=74)
    assert read(long(runAt="2001-01-01T00:00:00Z")).run_at == NOW


def test_settings_are_the_defaults_of_a_job() -> None:
    job = read(short(), attempts=7, backoff=7200.0, job_timeout=5.0)
    assert (job.attempts, job.backoff_seconds, job.timeout_seconds) == (7, 7200.0, 5.0)


def test_mistrals_part_of_the_long_form_keeps_its_bytes_and_what_we_do_not_know() -> None:
    request = b'{"model":"m", "messages":[{"role":"user","content":"\\u0000 \xf0\x9f\x98\x80"}],"new_field" : 1.0}'
    assert read(b'{"request": ' + request + b"}").request == request


@pytest.mark.parametrize("timeout", ["30s", 30, 30.0, "30"])
def test_a_timeout_is_a_duration(timeout: Any) -> None:
    assert read(long(timeout=timeout)).timeout_seconds == 30.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], ""),
        ("text", ""),
        (None, ""),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        (short(model=""), "model"),
        (short(model=7), "model"),
        (short(model="a\nb"), "model"),
        (short(temperature="warm"), "temperature"),
        (short(n=1.5), "n"),
        (short(stream="yes"), "stream"),
        (short(requestId=""), "requestId"),
        (short(requestId="x" * 257), "requestId"),
        (short(surprise=1), "surprise"),
        (short(priority=1), "priority"),
        (long(surprise=1), "surprise"),
        (long(kind="ocr"), "kind"),
        (long(messages=MESSAGES), "messages"),
        (long(model="m"), "model"),
        ({"kind": "chat"}, "request"),
        ({"request": {}}, "request.messages"),
        ({"request": []}, "request"),
        (long(priority=1.5), "priority"),
        (long(priority=True), "priority"),
        (long(attempts=0), "attempts"),
        (long(attempts=101), "attempts"),
        (long(timeout="soon"), "timeout"),
        (long(timeout=0), "timeout"),
        (long(timeout=True), "timeout"),
        (long(timeout="8d"), "timeout"),
        (long(runAt="tomorrow"), "runAt"),
        (long(runAt="2026-11-22T07:00:00"), "runAt"),
        (long(backoff={"type": "linear"}), "backoff.type"),
        (long(backoff={"delay": 0}), "backoff.delay"),
        (long(metadata={"a": 1}), "metadata.a"),
        (long(metadata={"a": "\n"}), "metadata.a"),
        (long(metadata={str(n): "x" for n in range(33)}), "metadata"),
    ],
)  # fmt: skip
def test_bad_input_names_its_field(body: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(body)
    assert not isinstance(caught.value, InvalidJSON | NotSupported)
    assert caught.value.field.startswith(field)
    assert "Hello" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b'{"messages": [}', b"\xff\xfe", b'{"a":"\xc3"}', b'{"a":' * 100_000]
)
def test_what_is_no_json_is_told_apart(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        read(body)


@pytest.mark.parametrize("field", ["lane", "onDisconnect"])
@pytest.mark.parametrize("form", [short, long])
def test_what_is_not_built_yet_is_refused_by_name(form: Any, field: str) -> None:
    with pytest.raises(NotSupported) as caught:
        read(form(**{field: "x"}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "run_at", "deadline"),
    [
        ({"delay": "30s"}, 30, None),
        ({"delay": 0.5}, 0.5, None),
        ({"deadline": "2h"}, 0, 7200),
        ({"deadline": 90}, 0, 90),
        ({"deadline": "2026-11-22T08:46:00+01:00"}, 0, 3600),
        ({"delay": "1h", "deadline": "2h"}, 3600, 7200),
        ({"runAt": "2026-11-22T06:47:00Z", "deadline": "2026-11-22T06:48:00Z"}, 60, 120),
    ],
)
def test_a_job_may_be_put_off_and_have_a_deadline(fields: Any, run_at: float, deadline: float | None) -> None:
    job = read(long(**fields))
    assert job.run_at == NOW + timedelta(seconds=run_at)
    assert job.deadline == (None if deadline is None else NOW + timedelta(seconds=deadline))


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"delay": "30s", "runAt": "2026-11-22T07:00:00Z"}, "delay", "one of them"),
        ({"deadline": "2026-11-22T06:46:00Z"}, "deadline", "over already"),
        ({"deadline": "2026-11-22T06:46:00"}, "deadline", "time zone"),
        ({"deadline": "Today"}, "deadline", "a duration"),
        ({"deadline": "soon"}, "deadline", "not a duration"),
        ({"deadline": 0}, "deadline", "more than 0"),
        ({"delay": "1h", "deadline": "1h"}, "deadline", "before the job may run"),
        ({"delay": -1}, "delay", "not a duration"),
        ({"delay": "400d"}, "delay", "at most a year"),
    ],
)
def test_times_that_do_not_fit_are_refused_by_name(fields: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        read(long(**fields))
    assert caught.value.field == field


def test_the_hash_of_a_body_knows_its_meaning_and_not_its_layout() -> None:
    one = read(b'{"messages":[{"role":"user","content":"x"}],"model":"m"}', key="k").idempotency_hash
    two = read(b'{ "model": "m", "messages": [{"content":"x","role":"user"}] }', key="k").idempotency_hash
    other = read(b'{"messages":[{"role":"user","content":"y"}],"model":"m"}', key="k").idempotency_hash
    assert one == two != other


@pytest.mark.parametrize("text", ["", "x" * 256, "a\tb"])
def test_a_bad_idempotency_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        read_idempotency_key(text)


def test_a_good_idempotency_key_and_none_are_taken() -> None:
    assert read_idempotency_key("k" * 255) == "k" * 255
    assert read_idempotency_key(None) is None


def test_a_cursor_is_the_id_of_a_job() -> None:
    job = read(short())
    assert read_cursor(show_id("job", job.key.id)) == job.key.id
    assert read_cursor(None) is None
    with pytest.raises(NotFound):
        read_cursor("7")

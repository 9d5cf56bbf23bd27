"""Our JSON: camelCase outside, Mistral's bytes untouched, and `status` where the code says state."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.models import AttemptRecord, Failure, Job, JobKey, State, Submitted
from tramontane.wire import accepted_shape, encode, error_body, job_shape, utf16_length

NOW = datetime(2026, 11, 22, 6, 46, 0, 123000, tzinfo=UTC)
SHOWN = "job_" + "0" * 25 + "1"
FAILURE = Failure(code="timeout", message="too slow", retryable=True)
JOB = Job(
    key=JobKey(tenant="default", id=UUID(int=1)),
    kind="chat",
    state=State.COMPLETED,
    request_id="req-1",
    model="mistral-small-latest",
    attempt=2,
    failures=1,
    attempts=3,
    backoff_kind="exponential",
    backoff_seconds=1.0,
    timeout_seconds=600.0,
    priority=0,
    run_at=NOW,
    admitted_at=NOW,
    head=9,
    created_at=NOW,
    started_at=NOW,
    completed_at=None,
    failure=None,
    usage='{"total_tokens": 7}',
    metadata=None,
    retry_of=None,
    events_pruned_at=None,
)


def shown(job: Job, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(encode(job_shape(job, **fields)))
    return decoded


def test_a_job_is_written_in_camel_case_with_its_routes() -> None:
    assert shown(JOB, result=None) == {
        "jobId": SHOWN,
        "kind": "chat",
        "status": "completed",
        "attempt": 2,
        "failures": 1,
        "maxAttempts": 3,
        "requestId": "req-1",
        "model": "mistral-small-latest",
        "priority": 0,
        "metadata": None,
        "result": None,
        "error": None,
        "usage": {"total_tokens": 7},
        "cost": None,
        "head": 9,
        "retryOf": None,
        "scheduleId": None,
        "createdAt": "2026-11-22T06:46:00.123Z",
        "runAt": "2026-11-22T06:46:00.123Z",
        "deadline": None,
        "startedAt": "2026-11-22T06:46:00.123Z",
        "completedAt": None,
        "statusUrl": f"/api/jobs/{SHOWN}",
        "eventsUrl": f"/api/jobs/{SHOWN}/events",
        "cancelUrl": f"/api/jobs/{SHOWN}/cancel",
    }


def test_a_listing_leaves_result_and_attempts_out() -> None:
    assert not {"result", "attempts"} & shown(JOB).keys()


def test_what_is_mistrals_keeps_its_bytes() -> None:
    result = b'{"b" : 1.0,"usage":{"new_field":1e2}}'
    encoded = encode(job_shape(JOB, result=result))
    assert result in encoded
    assert b'"usage":{"total_tokens": 7}' in encoded


def test_a_failed_job_has_its_error_and_its_attempts() -> None:
    record = AttemptRecord(attempt=1, started_at=NOW, ended_at=None, outcome="lost", failure=FAILURE)
    job = replace(JOB, state=State.FAILED, failure=FAILURE, retry_of=UUID(int=1), metadata='{"a": "b"}')
    fields = shown(job, attempts=[record])
    assert fields["error"] == {"code": "timeout", "message": "too slow", "retryable": True}
    assert (fields["retryOf"], fields["metadata"]) == (SHOWN, {"a": "b"})
    assert fields["attempts"] == [
        {
            "attempt": 1,
            "outcome": "lost",
            "startedAt": "2026-11-22T06:46:00.123Z",
            "endedAt": None,
            "error": {"code": "timeout", "message": "too slow", "retryable": True},
            "correlationId": None,
            "usage": None,
            "unreported": False,
        }
    ]


@pytest.mark.parametrize("replayed", [True, False])
def test_the_answer_to_a_submit_says_queued_also_when_it_is_replayed(replayed: bool) -> None:
    assert msgspec.json.decode(encode(accepted_shape(Submitted(job=JOB, replayed=replayed)))) == {
        "jobId": SHOWN,
        "status": "queued",
        "statusUrl": f"/api/jobs/{SHOWN}",
        "eventsUrl": f"/api/jobs/{SHOWN}/events",
        "cancelUrl": f"/api/jobs/{SHOWN}/cancel",
        "requestId": "req-1",
    }


@pytest.mark.parametrize(("length", "partial"), [(0, False), (1, True)])
def test_an_error_event_says_how_much_text_there_is(length: int, partial: bool) -> None:
    assert msgspec.json.decode(error_body(FAILURE, length=length)) == {
        "error": "too slow",
        "code": "timeout",
        "retryable": True,
        "partial": partial,
        "len": length,
        "final": True,
    }


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), ("abc", 3), ("é", 1), ("😀", 2), ("👨‍👩‍👧", 8), ("a\u0000b", 3), ("\ud800", 1)]
)
def test_lengths_count_what_a_browser_counts(text: str, length: int) -> None:
    assert utf16_length(text) == length


@given(st.text(), st.text())
def test_lengths_add_up(one: str, two: str) -> None:
    assert utf16_length(one) + utf16_length(two) == utf16_length(one + two)
    assert utf16_length(one) == len(one) + sum(character > "\uffff" for character in one)

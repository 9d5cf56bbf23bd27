"""What is told of an event: filters that can match, and bodies that are made once."""

from typing import Any

import msgspec
import pytest
from lives import T0, at

from tramontane.errors import InvalidInput
from tramontane.ids import new_id, show_id
from tramontane.models import Failure, Job, JobKey, State
from tramontane.webhooks.messages import ENDINGS, EVENTS, FILTERS, check_filters, new_message, of_job


def job(state: State = State.COMPLETED, **fields: Any) -> Job:
    given: dict[str, Any] = {
        "key": JobKey(tenant="default", id=new_id()),
        "kind": "chat",
        "state": state,
        "request_id": "req-1",
        "model": "mistral-small-latest",
        "attempt": 1,
        "failures": 0,
        "attempts": 3,
        "backoff_kind": "exponential",
        "backoff_seconds": 1.0,
        "timeout_seconds": 600.0,
        "priority": 0,
        "run_at": T0,
        "admitted_at": T0,
        "head": 7,
        "created_at": T0,
        "started_at": T0,
        "completed_at": at(9) if state.final else None,
        "failure": None,
        "usage": None,
        "metadata": None,
        "retry_of": None,
        "events_pruned_at": None,
    }
    return Job(**(given | fields))


# Filters


def test_every_event_can_be_asked_for_in_four_ways() -> None:
    for event in EVENTS:
        kind, verb = event.split(".")
        assert {event, f"{kind}.*", f"*.{verb}", "*"} <= FILTERS


def test_a_filter_that_was_named_twice_counts_once() -> None:
    assert check_filters(("chat.*", "*", "chat.*"), "events") == ("chat.*", "*")


@pytest.mark.parametrize(
    "wanted",
    ["", "chat", "chat.", ".completed", "chat.done", "**", "*.*", "ch*.completed", "Chat.completed", "chat.completed "],
)
def test_a_filter_that_could_never_match_is_refused_with_those_that_can(wanted: str) -> None:
    with pytest.raises(InvalidInput, match=r"chat\.completed") as caught:
        check_filters(("*", wanted), "callback.events")
    assert caught.value.field == "callback.events"


def test_an_unknown_filter_is_not_shown_at_length() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_filters(("x" * 10_000,), "events")
    assert len(str(caught.value)) < 600


def test_to_ask_for_no_event_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="names no event"):
        check_filters((), "events")


def test_other_names_are_understood_on_callbacks_alone() -> None:
    assert check_filters(("completed", "start"), "events", aliases=True) == ("*.completed", "*.started")
    assert check_filters(("completed", "*.completed"), "events", aliases=True) == ("*.completed",)
    with pytest.raises(InvalidInput):
        check_filters(("completed",), "events")


def test_a_callback_that_asks_for_nothing_is_told_of_every_ending() -> None:
    assert check_filters(ENDINGS, "events") == ("*.completed", "*.failed", "*.cancelled")


# Bodies


def test_a_body_names_its_message_its_event_and_the_time_of_the_event() -> None:
    message = new_message("endpoint.disabled", at(0.1234), tenant="default", data={"a": 1})
    assert msgspec.json.decode(message.body) == {
        "id": show_id("msg", message.id),
        "event": "endpoint.disabled",
        "type": "endpoint.disabled",
        "timestamp": "2026-11-22T06:46:00.123Z",
        "data": {"a": 1},
    }
    assert message.body.startswith(b'{"id":"msg_')
    assert message.thin == message.body


def test_two_messages_of_one_event_have_ids_of_their_own() -> None:
    first, second = (new_message("chat.failed", T0, tenant="default", data={}) for _ in range(2))
    assert first.id != second.id
    assert first.body != second.body


def test_only_a_start_is_not_final() -> None:
    running = job(State.RUNNING)
    assert not of_job(running, "started", T0).final
    for verb, state in (("completed", State.COMPLETED), ("failed", State.FAILED), ("cancelled", State.CANCELLED)):
        assert of_job(job(state), verb, at(9), result=b"{}" if state == State.COMPLETED else None).final


def test_what_a_result_says_goes_through_byte_for_byte() -> None:
    result = (
        b'{"content":"\\u0041\\ud83d\\ude00","usage":{"x" : 1.50, "y":[ ]},"completion":{"big":12345678901234567890}}'
    )
    body = of_job(job(), "completed", at(9), result=result).body
    for piece in (b'"\\u0041\\ud83d\\ude00"', b'{"x" : 1.50, "y":[ ]}', b'{"big":12345678901234567890}'):
        assert piece in body


def test_a_failure_says_why_and_metadata_comes_along() -> None:
    failure = Failure(code="timeout", message="it took too long", retryable=True)
    failed = job(State.FAILED, failure=failure, metadata='{"user":"7"}')
    message = of_job(failed, "failed", at(9), public_url="https://api.example")
    full, thin = (msgspec.json.decode(one)["data"] for one in (message.body, message.thin))
    assert full["error"] == {"code": "timeout", "message": "it took too long", "retryable": True}
    assert full["metadata"] == thin["metadata"] == {"user": "7"}
    assert (full["seq"], message.seq, message.job_id) == (7, 7, failed.key.id)
    assert thin["resultUrl"] == f"https://api.example/api/jobs/{full['jobId']}"
    assert "error" not in thin

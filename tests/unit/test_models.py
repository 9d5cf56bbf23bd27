import pytest

from tramontane.models import FINAL_EVENTS, TRANSITIONS, Event, State


def test_the_last_three_states_are_final_and_nothing_follows_them() -> None:
    assert {state for state in State if state.final} == {State.COMPLETED, State.FAILED, State.CANCELLED}
    assert all(not TRANSITIONS[state] for state in State if state.final)


def test_every_state_has_its_transitions_and_every_other_state_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {state for following in TRANSITIONS.values() for state in following}
    assert reached == set(State)


def test_every_state_that_is_not_final_may_be_cancelled() -> None:
    assert all(State.CANCELLED in TRANSITIONS[state] for state in State if not state.final)


def test_a_state_is_written_as_its_word() -> None:
    assert f"{State.QUEUED}" == "queued"


@pytest.mark.parametrize("kind", ["start", "chunk", "tool", "attempt", "complete", "error"])
def test_a_stream_ends_with_complete_or_error(kind: str) -> None:
    event = Event(seq=1, attempt=1, type=kind, body=b"{}")
    assert event.final == (kind in ("complete", "error")) == (kind in FINAL_EVENTS)

"""The window is exact: never more than the rate in any stretch of a second, wherever it begins."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.limits import Window, window_of

T0 = datetime(2026, 11, 22, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("rate", "starts", "seconds"),
    [(10, 10, 1), (1, 1, 1), (2.5, 2, 1), (0.5, 1, 2), (0.1, 1, 10), (1000, 1000, 1)],
)
def test_a_rate_is_so_many_starts_in_a_stretch_of_time(rate: float, starts: int, seconds: float) -> None:
    assert window_of(rate) == (starts, timedelta(seconds=seconds))


def test_an_empty_window_has_room_for_the_rate() -> None:
    assert Window().room(T0, 10) == 10
    assert Window().next_at(T0, 10) == T0


def test_a_use_counts_for_one_second_and_not_a_microsecond_longer() -> None:
    window = Window().take(T0, 10, 10)
    assert window.room(at(0.999999), 10) == 0
    assert window.room(at(1), 10) == 10


def test_room_comes_back_when_the_oldest_use_is_past() -> None:
    window = Window().take(T0, 4, 10).take(at(0.5), 6, 10)
    assert window.next_at(at(0.6), 10) == at(1)
    assert window.room(at(1), 10) == 4
    assert window.room(at(1.5), 10) == 10


def test_there_is_no_burst_after_a_pause() -> None:
    window = Window().take(T0, 10, 10)
    window = window.take(at(60), 10, 10)
    assert window.room(at(60.5), 10) == 0


def test_below_one_per_second_starts_are_spread() -> None:
    window = Window().take(T0, 1, 0.5)
    assert window.room(at(1.9), 0.5) == 0
    assert window.next_at(at(0.1), 0.5) == at(2)
    assert window.room(at(2), 0.5) == 1


def test_a_lower_rate_counts_what_was_taken_at_the_higher_one() -> None:
    window = Window().take(T0, 8, 10)
    assert window.room(at(0.1), 3) == 0
    assert window.room(at(1), 3) == 3


def test_taking_nothing_changes_nothing() -> None:
    window = Window().take(T0, 5, 10)
    assert window.take(at(2), 0, 10) == window


def test_what_is_past_is_forgotten() -> None:
    assert Window().take(T0, 5, 10).take(at(2), 1, 10).uses == ((at(2), 1),)


def test_a_caller_whose_clock_is_behind_counts_from_the_last_use() -> None:
    window = Window().take(T0, 10, 10).take(at(1), 1, 10)
    # At T0 + 0.5 there was no room, and that the first ten are forgotten by now makes none.
    window = window.take(at(0.5), window.room(at(0.5), 10), 10)
    assert window.room(at(1.5), 10) == 0


def test_uses_stay_in_order_so_that_the_oldest_is_the_first() -> None:
    window = Window().take(at(5), 5, 10).take(at(4), 5, 10)
    assert [when for when, _ in window.uses] == [at(5), at(5)]


def test_a_clock_that_was_wrong_by_far_stops_nobody() -> None:
    window = Window().take(at(3600), 10, 10)
    assert window.room(T0, 10) == 10
    assert window.take(T0, 10, 10).uses == ((T0, 10),)


steps = st.lists(st.tuples(st.integers(-1500, 1500), st.integers(0, 40)), max_size=60)
rates = st.sampled_from([0.3, 0.5, 1.0, 2.5, 3.0, 10.0, 33.3])


@given(steps=steps, rate=rates)
def test_never_more_than_the_rate_in_any_stretch_whatever_the_times(steps: list[tuple[int, int]], rate: float) -> None:
    window, now, taken = Window(), T0, []
    for step, wanted in steps:
        now += step * MILLISECOND
        count = min(wanted, window.room(now, rate))
        window = window.take(now, count, rate)
        if count:
            taken.append((window.uses[-1][0], count))
    limit, span = window_of(rate)
    for begin, _ in taken:
        assert sum(count for when, count in taken if begin <= when < begin + span) <= limit


@given(steps=steps, rate=rates)
def test_at_the_time_it_names_there_is_room_and_not_before(steps: list[tuple[int, int]], rate: float) -> None:
    window, now = Window(), T0
    for step, wanted in steps:
        now += abs(step) * MILLISECOND
        window = window.take(now, min(wanted, window.room(now, rate)), rate)
        next_at = window.next_at(now, rate)
        assert window.room(next_at, rate) > 0
        if next_at > now:
            assert window.room(next_at - timedelta(microseconds=1), rate) == 0

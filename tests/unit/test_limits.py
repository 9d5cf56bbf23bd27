"""The sums behind the rate."""

from datetime import timedelta

import pytest

from tramontane.limits import room, window_of


@pytest.mark.parametrize(
    ("rate", "starts", "seconds"),
    [(10, 10, 1), (1, 1, 1), (2.5, 2, 1), (33.3, 33, 1), (0.5, 1, 2), (0.1, 1, 10)],
)
def test_a_rate_is_so_many_starts_in_a_stretch_of_time(rate: float, starts: int, seconds: float) -> None:
    assert window_of(rate) == (starts, timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("recent", "starting", "left"), [(0, 0, 10), (4, 0, 6), (4, 3, 3), (10, 0, 0), (0, 10, 0), (8, 8, 0), (30, 0, 0)]
)
def test_what_has_started_and_what_is_about_to_take_from_the_room(recent: int, starting: int, left: int) -> None:
    assert room(10, recent=recent, starting=starting) == left

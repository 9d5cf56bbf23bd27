"""When a waiting job may start: the slowest of what it waits for, and whoever holds its bucket before it."""

from datetime import UTC, datetime, timedelta

import pytest

from tramontane.forecast import Forecast, forecast, paces
from tramontane.limits import Bucket, Room

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
MINUTE = timedelta(seconds=60)
BUCKET = Bucket(account="*", model="m", observed_at=NOW, limit_requests=600, limit_tokens=60_000)


def seen(*, ahead: int, tokens: int, largest: int, room: float, empty: bool = False) -> Forecast:
    free = Room(requests=600, tokens=room, empty=empty)
    return forecast(ahead, paces(BUCKET, free, tokens, largest, MINUTE), BUCKET, NOW)


@pytest.mark.parametrize(
    ("ahead", "tokens", "largest", "room", "empty", "seconds"),
    [
        (0, 100, 100, 60_000, True, 0),
        (9, 100, 100, 1000, False, 0),  # all of them fit
        (10, 100, 100, 1000, False, 0.1),  # it is the first that does not
        (1, 100, 31_000, 1000, False, 30),  # behind a large one that waits for room
        (1, 100, 90_000, 50_000, False, 40),
        (1, 100, 200_000, 50_000, False, 60),  # larger than the limit: until nothing is left in the window
        (0, 200_000, 200_000, 50_000, False, 60),
        (0, 200_000, 200_000, 60_000, True, 0),  # which is now
    ],
)
def test_a_job_starts_when_it_and_those_who_hold_its_bucket_fit(
    ahead: int, tokens: int, largest: int, room: float, empty: bool, seconds: float
) -> None:
    told = seen(ahead=ahead, tokens=tokens, largest=largest, room=room, empty=empty)
    assert told.expected_at is not None
    assert (told.expected_at - NOW).total_seconds() == pytest.approx(seconds)
    assert told.waits_for == ("tokens" if seconds else None)

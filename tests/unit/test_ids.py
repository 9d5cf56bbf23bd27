from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.errors import NotFound
from tramontane.ids import iso, new_id, read_id, show_id, utc_now


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before = utc_now()
    made = new_id()
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    milliseconds = made.int >> 80
    assert abs(milliseconds / 1000 - before.timestamp()) < 5


def test_ids_sort_by_the_time_they_were_made_also_as_shown() -> None:
    made = [new_id() for _ in range(500)]
    times = [value.int >> 64 for value in made]
    assert times == sorted(times)
    assert len(set(made)) == len(made)
    shown = [show_id("job", UUID(int=value << 64)) for value in times]
    assert shown == sorted(shown)


@given(st.uuids())
def test_a_shown_id_is_read_back(value: UUID) -> None:
    shown = show_id("job", value)
    assert len(shown) == 30
    assert read_id("job", shown) == value
    assert read_id("job", "job_" + shown[4:].lower()) == value


def test_look_alikes_are_read_as_what_they_look_like() -> None:
    shown = show_id("job", UUID(int=1 << 5 | 0))
    assert shown == "job_" + "0" * 24 + "10"
    for typed in ("O" * 24 + "I0", "o" * 24 + "lo", "0" * 24 + "Lo"):
        assert read_id("job", f"job_{typed}") == UUID(int=32)


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job", "req_" + "0" * 26, "0" * 26, "job_" + "0" * 25, "job_" + "0" * 27, "job_" + "U" + "0" * 25,
     "job_8" + "0" * 25, "job_" + "é" * 26, "job_" + "\0" * 26, "JOB_" + "0" * 26, "job_ " + "0" * 25, "x" * 10_000],
)  # fmt: skip
def test_what_is_no_id_is_not_found(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        read_id("job", text)
    assert len(str(caught.value)) < 400


def test_a_time_is_written_in_utc_with_milliseconds() -> None:
    moment = datetime(2026, 11, 22, 7, 46, 0, 123_999, tzinfo=timezone(timedelta(hours=1)))
    assert iso(moment) == "2026-11-22T06:46:00.123Z"
    assert iso(datetime(2026, 11, 22, tzinfo=UTC)) == "2026-11-22T00:00:00.000Z"

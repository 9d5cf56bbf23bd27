"""Cron: what the five fields mean, and what happens where clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.cron import read_cron
from tramontane.errors import InvalidInput

SUNDAY = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)


def times(cron: str, zone: str, after: datetime, count: int) -> list[str]:
    """The next times, as the clock on the wall shows them, with the zone's distance from UTC."""
    schedule, shown = read_cron(cron, zone), []
    for _ in range(count):
        moment = schedule.after(after)
        assert moment is not None
        after = moment
        shown.append(moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %z"))
    return shown


@pytest.mark.parametrize(
    ("cron", "next_two"),
    [
        ("* * * * *", ["22 06:47", "22 06:48"]),
        ("*/15 * * * *", ["22 07:00", "22 07:15"]),
        ("5/20 * * * *", ["22 07:05", "22 07:25"]),
        ("0,30 9-10 * * *", ["22 09:00", "22 09:30"]),
        ("0 6 * * mon-fri", ["23 06:00", "24 06:00"]),
        ("0 6 * * 7", ["29 06:00", "06 06:00"]),
        ("0 6 * * SUN", ["29 06:00", "06 06:00"]),
        ("0 0 1 jan *", ["01 00:00", "01 00:00"]),
        ("0 0 13 * fri", ["27 00:00", "04 00:00"]),  # either of the days
        ("0 0 */10 * fri", ["11 00:00", "01 00:00"]),  # a star is no restriction: both
        ("@daily", ["23 00:00", "24 00:00"]),
        ("@hourly", ["22 07:00", "22 08:00"]),
    ],
)
def test_the_fields_mean_what_they_have_always_meant(cron: str, next_two: list[str]) -> None:
    assert [shown[:8] for shown in times(cron, "UTC", SUNDAY, 2)] == next_two


def test_a_leap_day_is_waited_for() -> None:
    assert read_cron("0 0 29 2 *", "UTC").after(SUNDAY) == datetime(2028, 2, 29, tzinfo=UTC)


def test_a_time_that_the_spring_leaves_out_comes_when_the_clocks_jump() -> None:
    assert times("30 2 * * *", "Europe/Paris", datetime(2026, 3, 28, 12, tzinfo=UTC), 2) == [
        "29 03:00 +0200",
        "30 02:30 +0200",
    ]


def test_two_times_of_the_left_out_hour_come_as_one() -> None:
    assert times("15,45 2 * * *", "Europe/Paris", datetime(2026, 3, 28, 12, tzinfo=UTC), 3) == [
        "29 03:00 +0200",
        "30 02:15 +0200",
        "30 02:45 +0200",
    ]


def test_a_time_that_the_autumn_has_twice_comes_the_first_time_only() -> None:
    assert times("30 2 * * *", "Europe/Paris", datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        "25 02:30 +0200",
        "26 02:30 +0100",
    ]


def test_a_schedule_of_every_hour_keeps_real_time() -> None:
    assert times("30 * * * *", "Europe/Paris", datetime(2026, 10, 24, 23, tzinfo=UTC), 4) == [
        "25 01:30 +0200",
        "25 02:30 +0200",
        "25 02:30 +0100",
        "25 03:30 +0100",
    ]
    assert times("30 * * * *", "Europe/Paris", datetime(2026, 3, 29, 0, tzinfo=UTC), 2) == [
        "29 01:30 +0100",
        "29 03:30 +0200",
    ]


@pytest.mark.parametrize("hours", ["*", "*/1", "0-23", "0-23/1", "0-11,12-23", "*/2,1-23/2"])
def test_every_hour_is_every_hour_however_it_is_written(hours: str) -> None:
    cron = f"0 {hours} * * *"
    assert times(cron, "Europe/Paris", datetime(2026, 10, 24, 23, tzinfo=UTC), 4) == [
        "25 02:00 +0200",
        "25 02:00 +0100",
        "25 03:00 +0100",
        "25 04:00 +0100",
    ]
    assert times(cron, "Europe/Paris", datetime(2026, 3, 29, 0, tzinfo=UTC), 2) == [
        "29 03:00 +0200",
        "29 04:00 +0200",
    ]


@pytest.mark.parametrize("hours", ["*/2", "0-22/2", "0,2,4,6,8,10,12,14,16,18,20,22"])
def test_every_other_hour_goes_by_the_clock_and_loses_none_of_its_times(hours: str) -> None:
    cron = f"0 {hours} * * *"
    assert times(cron, "Europe/Paris", datetime(2026, 3, 28, 22, 30, tzinfo=UTC), 3) == [
        "29 00:00 +0100",
        "29 03:00 +0200",  # for 2:00
        "29 04:00 +0200",
    ]
    assert times(cron, "Europe/Paris", datetime(2026, 10, 24, 21, 30, tzinfo=UTC), 3) == [
        "25 00:00 +0200",
        "25 02:00 +0200",
        "25 04:00 +0100",
    ]


def test_every_hour_makes_up_for_a_time_where_less_than_an_hour_is_left_out() -> None:
    # On Lord Howe the clocks jump from 2:00 to 2:30.
    assert times("15 * * * *", "Australia/Lord_Howe", datetime(2026, 10, 3, 14, 30, tzinfo=UTC), 3) == [
        "04 01:15 +1030",
        "04 02:30 +1100",
        "04 03:15 +1100",
    ]


def test_a_day_without_a_midnight_begins_when_the_clocks_jump() -> None:
    # In Cairo the last Friday of April begins at one o'clock.
    assert times("0 0 * * *", "Africa/Cairo", datetime(2026, 4, 23, 12, tzinfo=UTC), 2) == [
        "24 01:00 +0300",
        "25 00:00 +0300",
    ]


def test_all_times_of_a_stretch_are_given_with_both_its_ends() -> None:
    cron = read_cron("*/20 * * * *", "UTC")
    first, last = SUNDAY.replace(minute=0), SUNDAY.replace(hour=7, minute=0)
    assert [f"{at:%H:%M}" for at in cron.between(first, last)] == ["06:00", "06:20", "06:40", "07:00"]


@settings(max_examples=40)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    zone=st.sampled_from(["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kathmandu"]),
    minutes=st.integers(0, 15 * 366 * 1440),
)
def test_a_time_of_day_comes_once_a_day_in_every_zone(minute: int, hour: int, zone: str, minutes: int) -> None:
    cron = read_cron(f"{minute} {hour} * * *", zone)
    moment, days = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes), []
    for _ in range(5):
        following = cron.after(moment)
        assert following is not None
        assert following > moment
        moment = following
        days.append(moment.astimezone(ZoneInfo(zone)).date().toordinal())
    assert days == list(range(days[0], days[0] + 5))


@pytest.mark.parametrize(
    ("cron", "zone", "field", "reason"),
    [
        ("* * * *", "UTC", "cron", "five fields"),
        ("60 * * * *", "UTC", "cron", "minute: '60' is not between 0 and 59"),
        ("* * 0 * *", "UTC", "cron", "day of month"),
        ("* * * * 8", "UTC", "cron", "day of week"),
        ("*/0 * * * *", "UTC", "cron", "minute, step"),
        ("5-1 * * * *", "UTC", "cron", "runs backwards"),
        ("x * * * *", "UTC", "cron", "'x'"),
        ("1,,2 * * * *", "UTC", "cron", "''"),
        ("²  * * * *", "UTC", "cron", "'²'"),
        ("0 0 31 2 *", "UTC", "cron", "never comes"),
        ("* * * * *", "Europe/Atlantis", "timezone", "IANA"),
        ("* * * * *", "../../etc/passwd", "timezone", "IANA"),
        ("* * * * *", "", "timezone", "IANA"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(cron: str, zone: str, field: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as raised:
        read_cron(cron, zone)
    assert raised.value.field == field

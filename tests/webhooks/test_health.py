"""The health of an endpoint: its rules one by one, then whole lives of endpoints in a small simulation."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.webhooks.health import (
    LEAST_FAILURES,
    LONGEST_BLOCK,
    SILENT_IN_A_ROW,
    SLICE_SECONDS,
    SLICES,
    WIDEST_WINDOW,
    Fact,
    Health,
    Outcome,
    allowance,
    blocked_until,
    breaker,
    enable,
    notices,
    observe,
)

START = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
SUCCESS, FAILURE, PRESSURE = Outcome.SUCCESS, Outcome.FAILURE, Outcome.PRESSURE
SILENCE, BLOCKED, GONE, NEUTRAL = Outcome.SILENCE, Outcome.BLOCKED, Outcome.GONE, Outcome.NEUTRAL
WIDE = Health(window=WIDEST_WINDOW, threshold=WIDEST_WINDOW)
HOUR, DAY = 3600.0, 86400.0


def _at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def _tell(health: Health, *outcomes: Outcome, at: float, admitted: float | None = None) -> Health:
    admitted_at = _at(at if admitted is None else admitted)
    return observe(health, [Fact(outcome, admitted_at) for outcome in outcomes], _at(at))


def _opened(at: float = 0.0, health: Health = WIDE) -> Health:
    opened = _tell(health, *[SILENCE] * SILENT_IN_A_ROW, at=at, admitted=at - 0.1)
    assert opened.open
    return opened


def _until(health: Health) -> float:
    until = blocked_until(health)
    assert until is not None
    return (until - START).total_seconds()


# The window


def test_a_new_endpoint_may_be_sent_four_at_a_time() -> None:
    assert allowance(Health(), START) == 4


def test_the_window_grows_by_about_one_a_round() -> None:
    health, rounds = Health(), 0
    while allowance(health, START) < WIDEST_WINDOW:
        health = _tell(health, *[SUCCESS] * allowance(health, START), at=rounds)
        rounds += 1

    assert 60 <= rounds <= 64


def test_a_burst_of_pressure_halves_the_window_once() -> None:
    health = _tell(WIDE, *[PRESSURE] * 6, at=1.0, admitted=0.0)
    assert allowance(health, _at(1.0)) == 32

    health = _tell(health, PRESSURE, at=1.5, admitted=0.5)
    assert allowance(health, _at(1.5)) == 32

    health = _tell(health, PRESSURE, at=2.5, admitted=1.5)
    assert allowance(health, _at(2.5)) == 16


def test_a_success_from_before_the_halving_does_not_widen_it() -> None:
    health = _tell(WIDE, PRESSURE, *[SUCCESS] * 63, at=1.0, admitted=0.0)
    assert allowance(health, _at(1.0)) == 32


def test_silence_is_pressure_and_a_plain_failure_is_none() -> None:
    assert allowance(_tell(WIDE, SILENCE, at=0.0), START) == 32
    assert allowance(_tell(WIDE, FAILURE, at=0.0), START) == 64


# The breaker


@pytest.mark.parametrize(
    ("failed", "succeeded", "opens"), [(9, 0, False), (10, 0, True), (7, 3, True), (6, 4, False), (69, 31, False)]
)
def test_the_breaker_opens_on_seven_failures_of_ten(failed: int, succeeded: int, opens: bool) -> None:
    health = _tell(Health(), *[SUCCESS] * succeeded, *[FAILURE] * failed, at=0.0)
    assert health.open is opens


def test_failures_of_more_than_a_minute_ago_do_not_count() -> None:
    health = _tell(Health(), *[FAILURE] * 9, at=0.0)

    assert _tell(health, FAILURE, at=49.0).open
    assert not _tell(health, FAILURE, at=60.0).open


@pytest.mark.parametrize(
    ("between", "opens"), [((), True), ((NEUTRAL,), True), ((FAILURE,), False), ((SUCCESS,), False)]
)
def test_five_in_a_row_without_an_answer_open_it(between: tuple[Outcome, ...], opens: bool) -> None:
    silences = [SILENCE] * (SILENT_IN_A_ROW - 1)
    assert _tell(Health(), *silences, *between, SILENCE, at=0.0).open is opens


def test_an_open_breaker_lets_nothing_through_and_then_one() -> None:
    health = _opened(at=0.0)

    assert _until(health) == 15.0
    assert [allowance(health, _at(at)) for at in (0.0, 14.999999, 15.0, 1000.0)] == [0, 0, 1, 1]
    assert [breaker(health, _at(at)) for at in (0.0, 14.999999, 15.0)] == ["open", "open", "half_open"]


def test_a_failed_probe_doubles_the_wait_up_to_ten_minutes() -> None:
    health, waits = _opened(at=0.0), []
    for _ in range(9):
        at = _until(health)
        health = _tell(health, FAILURE, at=at + 1.0, admitted=at)
        waits.append(_until(health) - at - 1.0)

    assert waits == [30, 60, 120, 240, 480, 600, 600, 600, 600]


def test_ten_thousand_failed_probes_are_no_error() -> None:
    health = Health(open=True, trips=10_000)
    assert _until(_tell(health, SILENCE, at=5.0)) == 605.0


@pytest.mark.parametrize("late", [FAILURE, PRESSURE, SILENCE, SUCCESS, BLOCKED])
def test_what_was_in_flight_when_the_breaker_opened_is_no_probe(late: Outcome) -> None:
    health = _opened(at=10.0)

    assert _tell(health, late, at=24.0, admitted=9.0).since == health.since
    # Not even when it ends after the block: it tells of the time before.
    after = _tell(health, *[late] * 60, at=26.0, admitted=9.0)
    assert (after.open, after.since, after.trips, after.window) == (True, health.since, 0, health.window)


def test_what_was_in_flight_when_the_breaker_opened_does_not_count_once_it_has_closed() -> None:
    health = _tell(_opened(at=0.0), SUCCESS, at=16.0, admitted=15.0)

    health = _tell(health, *[SILENCE] * 60, at=17.0, admitted=-1.0)

    assert (health.open, health.slices, allowance(health, _at(17.0))) == (False, (), 1)


def test_a_success_that_comes_late_still_ends_the_time_without_one() -> None:
    health = _tell(_opened(at=0.0), SUCCESS, at=14.0, admitted=-1.0)
    assert health.open
    assert health.failing_since is None


def test_a_successful_probe_closes_it_and_the_window_doubles_each_round_up_to_where_it_was() -> None:
    health = _tell(_opened(at=0.0), SUCCESS, at=15.1, admitted=15.0)
    widths, at = [allowance(health, _at(15.1))], 16.0
    while widths[-1] < 32:
        health = _tell(health, *[SUCCESS] * widths[-1], at=at)
        widths.append(allowance(health, _at(at)))
        at += 1.0

    assert widths == [1, 2, 4, 8, 16, 32]
    health = _tell(health, *[SUCCESS] * 32, at=at)
    assert 32 <= allowance(health, _at(at)) <= 33


def test_slow_start_ends_where_the_window_was_and_not_beyond() -> None:
    health = _tell(_tell(Health(window=5.5), *[FAILURE] * 10, at=0.0), SUCCESS, at=15.0)

    assert _tell(health, *[SUCCESS] * 4, at=16.0).window == 5.0
    assert _tell(health, *[SUCCESS] * 5, at=16.0).window == 5.5


def test_slow_start_that_is_broken_off_keeps_its_goal() -> None:
    health = _tell(_opened(at=0.0), SUCCESS, SUCCESS, at=15.1, admitted=15.0)
    health = _tell(health, *[FAILURE] * 10, at=16.0)
    assert (health.open, health.threshold) == (True, 32.0)
    health = _tell(health, SUCCESS, at=100.0)
    assert (allowance(health, _at(100.0)), health.threshold) == (1, 32.0)


def test_an_endpoint_that_falls_ill_at_once_again_is_left_alone_for_longer() -> None:
    health = _tell(_opened(at=0.0), SUCCESS, at=15.1, admitted=15.0)

    relapse = _tell(health, *[SILENCE] * 5, at=20.0)
    illness = _tell(health, *[SILENCE] * 5, at=31.0)

    assert (_until(relapse) - 20.0, _until(illness) - 31.0) == (30.0, 15.0)


def test_a_neutral_fact_changes_nothing() -> None:
    for health in (Health(), WIDE, _opened(at=0.0)):
        assert _tell(health, *[NEUTRAL] * 100, at=20.0) == health


def test_a_refusal_by_our_policy_shuts_the_endpoint_and_is_no_failure_of_it() -> None:
    health = _tell(WIDE, *[BLOCKED] * 64, at=1.0, admitted=0.0)

    assert _until(health) == 1.0 + LONGEST_BLOCK
    assert (health.failures, health.trips, health.window) == (0, 0, 64.0)
    again = _tell(health, BLOCKED, at=700.0)
    assert (_until(again), again.trips) == (700.0 + LONGEST_BLOCK, 0)


# The spell


def _failing(hours: float, *, every: float = HOUR, health: Health = WIDE) -> tuple[Health, list[tuple[float, str]]]:
    """An endpoint that fails once an hour, and what people are told of it, at which hour."""
    told, at = [], 0.0
    while at <= hours * HOUR:
        after = _tell(health, FAILURE, at=at)
        told += [(at / HOUR, event) for event in notices(health, after)]
        health, at = after, at + every
    return health, told


def test_people_are_told_after_a_day_and_after_two_and_the_endpoint_is_disabled_after_three() -> None:
    health, told = _failing(200)

    assert told == [(24.0, "endpoint.degraded"), (48.0, "endpoint.degraded"), (72.0, "endpoint.disabled")]
    assert health.disabled
    assert allowance(health, _at(1000 * HOUR)) == 0


def test_an_endpoint_is_not_disabled_by_a_few_failures_however_far_apart() -> None:
    health, told = _failing(24 * 8.9, every=DAY)
    assert health.failures == LEAST_FAILURES - 1
    assert [event for _, event in told] == ["endpoint.degraded"] * 2

    assert _tell(health, FAILURE, at=9 * DAY).disabled


def test_the_time_without_a_success_begins_with_a_failure() -> None:
    health = _tell(Health(), SUCCESS, at=0.0)
    health = _tell(health, *[FAILURE] * LEAST_FAILURES, at=90 * DAY)
    assert health.told == 0


@pytest.mark.parametrize(
    ("hours", "expected"), [(23, ()), (24, ("endpoint.recovered",)), (71, ("endpoint.recovered",))]
)
def test_a_success_ends_the_spell_and_is_told_if_the_spell_was(hours: float, expected: tuple[str, ...]) -> None:
    health, _ = _failing(hours)
    after = _tell(health, SUCCESS, at=72 * HOUR)

    assert notices(health, after) == expected
    assert notices(after, _tell(after, SUCCESS, at=73 * HOUR)) == ()


def test_a_spell_that_jumps_over_its_marks_is_told_once() -> None:
    health = _tell(Health(), *[FAILURE] * 9, at=0.0)
    assert notices(health, _tell(health, FAILURE, at=50 * HOUR)) == ("endpoint.degraded",)
    assert notices(health, _tell(health, FAILURE, at=80 * HOUR)) == ("endpoint.disabled",)


def test_a_receiver_that_asks_for_it_is_disabled_at_once() -> None:
    after = _tell(WIDE, GONE, at=0.0)

    assert notices(WIDE, after) == ("endpoint.disabled",)
    # What is still in flight does not bring it back.
    assert _tell(after, SUCCESS, at=1.0) == after


def test_an_endpoint_that_is_enabled_again_starts_slowly_and_has_three_days_again() -> None:
    health, _ = _failing(72)
    enabled = enable(health, _at(100 * HOUR))

    assert (enabled.disabled, allowance(enabled, _at(100 * HOUR))) == (False, 1)
    assert notices(health, enabled) == ()
    failing = _tell(enabled, *[FAILURE] * 9, at=100 * HOUR)
    assert notices(failing, _tell(failing, FAILURE, at=171 * HOUR)) == ()
    assert notices(failing, _tell(failing, FAILURE, at=172 * HOUR)) == ("endpoint.disabled",)
    assert notices(failing, _tell(failing, SUCCESS, at=101 * HOUR)) == ("endpoint.recovered",)


def test_enabling_closes_the_breaker() -> None:
    enabled = enable(_opened(at=0.0), _at(1.0))
    assert (allowance(enabled, _at(1.0)), enabled.threshold) == (1, 32.0)


def test_an_endpoint_whose_url_was_changed_is_tried_gently_and_gets_its_width_back() -> None:
    enabled = enable(Health(window=20.0), _at(0.0))
    assert (allowance(enabled, START), enabled.threshold) == (1, 20.0)


# Properties


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 1.0, 9.0, 16.0, 70.0, 700.0, 30_000.0]),  # seconds since the step before
        st.sampled_from([0.0, 0.05, 5.0, 30.0]),  # seconds that the attempt took
        st.sampled_from([*Outcome, SUCCESS, FAILURE, SILENCE]),
        st.integers(1, 20),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(_STEPS)
def test_whatever_comes_the_value_stays_sound(steps: list[tuple[float, float, Outcome, int]]) -> None:
    health, at = Health(), 0.0
    for pause, took, outcome, times in steps:
        at += pause
        before, health = health, _tell(health, *[outcome] * times, at=at, admitted=at - took)

        assert 0 <= allowance(health, _at(at)) <= WIDEST_WINDOW
        assert 1.0 <= health.window <= WIDEST_WINDOW
        assert len(health.slices) <= (0 if health.open else SLICES)
        assert sorted(health.slices, key=lambda one: one.number) == list(health.slices)
        assert len(notices(before, health)) <= 1
        encoded = msgspec.json.encode(health)
        assert len(encoded) <= 400
        assert msgspec.json.decode(encoded, type=Health) == health
        if before.disabled:
            assert health == before
        assert health.since >= before.since, "what is late stays late"
        if (until := blocked_until(health)) and not health.disabled:
            assert until <= _at(at + LONGEST_BLOCK)
            assert until > _at(at) or health.since == before.since
            assert allowance(health, until - timedelta(microseconds=1)) == 0
            assert allowance(health, until) == 1


def test_a_healthy_new_endpoint_takes_two_bytes() -> None:
    assert msgspec.json.encode(Health()) == b"{}"


@given(st.lists(st.tuples(st.floats(0, 12), st.sampled_from([SUCCESS, FAILURE, PRESSURE])), min_size=1, max_size=60))
def test_the_slices_say_what_a_list_of_all_attempts_says(steps: list[tuple[float, Outcome]]) -> None:
    health, at, log = Health(), 0.0, []
    for pause, outcome in steps:
        at += pause
        health = _tell(health, outcome, at=at)
        log.append((_at(at).timestamp(), outcome is not SUCCESS))
        edge = (log[-1][0] // SLICE_SECONDS - SLICES + 1) * SLICE_SECONDS
        recent = [failed for moment, failed in log if moment >= edge]
        assert health.open is (len(recent) >= 10 and sum(recent) * 10 >= len(recent) * 7)
        if health.open:
            return
        counted = sum(one.attempts for one in health.slices)
        within = [sum(moment > log[-1][0] - span for moment, _ in log) for span in (50, 60)]
        assert within[0] <= counted <= within[1]


# Lives


@dataclass
class _Life:
    """What an endpoint saw: when it was called, and when it was left alone."""

    health: Health = WIDE
    called: list[float] = field(default_factory=list)
    succeeded: list[float] = field(default_factory=list)
    blocks: set[tuple[float, float]] = field(default_factory=set)
    widths: list[tuple[float, int]] = field(default_factory=list)
    most: int = 0

    def between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.called)


def _live(answer: Callable[[float, int], tuple[Outcome, float]], *, seconds: float, health: Health = WIDE) -> _Life:
    """An endpoint with an endless backlog. `answer(at, in_flight)` gives what a call brings, and how long it takes."""
    life, at = _Life(health=health), 0.0
    flying: list[tuple[float, float, Outcome]] = []
    while at < seconds:
        while len(flying) < allowance(life.health, _at(at)):
            outcome, took = answer(at, len(flying) + 1)
            life.called.append(at)
            heapq.heappush(flying, (round(at + took, 6), at, outcome))
            life.most = max(life.most, len(flying))
        at = flying[0][0] if flying else _until(life.health)
        while flying and flying[0][0] <= at:
            _, admitted, outcome = heapq.heappop(flying)
            life.succeeded += [at] if outcome is SUCCESS else []
            life.health = _tell(life.health, outcome, at=at, admitted=admitted)
        if life.health.open and _until(life.health) > at:
            life.blocks.add((at, _until(life.health)))
        life.widths.append((at, allowance(life.health, _at(at))))
    assert not [at for at in life.called for start, end in life.blocks if start <= at < end]
    return life


@pytest.mark.parametrize(
    ("outcome", "took"), [(SILENCE, 0.001), (SILENCE, 15.0), (FAILURE, 0.1), (PRESSURE, 0.1), (BLOCKED, 0.01)]
)
def test_a_dead_endpoint_with_a_backlog_is_called_a_few_times_an_hour(outcome: Outcome, took: float) -> None:
    life = _live(lambda _at, _flying: (outcome, took), seconds=8 * HOUR)

    # The first burst is as wide as the window; then come the probes: 15 s, 30 s, ... 10 min.
    assert life.between(0, HOUR) <= WIDEST_WINDOW + 12
    assert all(life.between(hour * HOUR, (hour + 1) * HOUR) <= 6 for hour in range(1, 8))


def test_a_dead_endpoint_is_disabled_after_three_days_and_called_no_more() -> None:
    life, at = Health(), 0.0
    told: list[str] = []
    while not life.disabled:
        before, life = life, _tell(life, SILENCE, at=at)
        told += notices(before, life)
        at = max(at + 1.0, _until(life)) if life.open and not life.disabled else at + 1.0

    assert told == ["endpoint.degraded", "endpoint.degraded", "endpoint.disabled"]
    assert 72 * HOUR <= at <= 72.2 * HOUR


@pytest.mark.parametrize("dead", [30.0, 600.0, HOUR])
def test_a_recovered_endpoint_is_back_at_its_former_window_within_six_rounds(dead: float) -> None:
    latency = 1.0
    life = _live(
        lambda at, _: (SILENCE, 0.01) if at < dead else (SUCCESS, latency), seconds=dead + LONGEST_BLOCK + 60.0
    )

    first = life.succeeded[0]
    assert first <= dead + LONGEST_BLOCK + latency
    # A round later each: the window doubles, until it is where it was after the burst that opened the breaker.
    curve = [
        max(width for at, width in life.widths if at <= first + passed * latency + 1e-6 and at >= first)
        for passed in range(6)
    ]
    assert curve == [1, 2, 4, 8, 16, 32]
    full = next(at for at, width in life.widths if at > first and width == WIDEST_WINDOW)
    assert full - first <= 42 * latency


def test_a_slow_endpoint_is_sent_about_as_much_as_it_can_take() -> None:
    room, latency = 10, 0.2
    life = _live(lambda _, flying: (PRESSURE if flying > room else SUCCESS, latency), seconds=300.0, health=Health())

    assert not life.blocks
    assert life.most <= room + 1
    best = 300.0 / latency * room
    assert 0.65 * best <= len(life.succeeded) <= best
    assert (len(life.called) - len(life.succeeded)) / len(life.called) < 0.03


def test_an_endpoint_that_fails_every_other_time_is_not_cut_off() -> None:
    turn = iter(range(10**9))
    life = _live(lambda _at, _flying: (FAILURE if next(turn) % 2 else SUCCESS, 0.2), seconds=60.0, health=Health())

    assert not life.blocks
    assert len(life.succeeded) >= 1000


@pytest.mark.parametrize("seed", range(2))
def test_an_endpoint_that_loses_a_fifth_of_its_calls_is_left_alone_for_a_small_part_of_the_time(seed: int) -> None:
    dice = random.Random(seed)
    life = _live(lambda *_: (SILENCE if dice.random() < 0.2 else SUCCESS, 0.2), seconds=HOUR / 2)

    assert sum(end - start for start, end in life.blocks) < 0.15 * HOUR / 2
    assert len(life.succeeded) > 5000


def test_an_endpoint_that_goes_down_again_and_again_is_used_while_it_is_up() -> None:
    def is_down(at: float) -> bool:
        return at % 337 >= 290

    life = _live(lambda at, _: (SILENCE, 0.01) if is_down(at) else (SUCCESS, 5.0), seconds=2 * HOUR)

    up = [second for second in range(int(2 * HOUR)) if not is_down(second)]
    idle = [second for second in up if any(start <= second < end for start, end in life.blocks)]
    assert len(idle) < 0.2 * len(up)
    assert sum(map(is_down, life.called)) <= 22 * (WIDEST_WINDOW + 4)

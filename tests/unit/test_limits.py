"""The sums behind the rate, and what is learned of Mistral's limits."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lives import T0, WINDOW, at

from tramontane.limits import (
    Bucket,
    Heard,
    Use,
    answer_of,
    caution,
    cost,
    estimate,
    foreign,
    learn,
    reservation,
    room,
    room_of,
    tokens_of,
    window_of,
)

KNOWN = Bucket(account="*", model="m", observed_at=T0, limit_requests=60, limit_tokens=50_000)
UNKNOWN = Bucket(account="*", model="m")


def refusal(second: float, **fields: object) -> Heard:
    return Heard(at=at(second), status=429, **fields)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello there, mistral!" * 1000, 5270),
        ("data:image/png;base64," + "iVBORw0K" * 125, 275),  # a small image is what its bytes would be as text
        ("data:image/png;base64," + "iVBORw0K" * 25_000, 4025),  # 200 KB
        ("data:image/png;base64," + "iVBORw0K" * 25_000 + '"},{"image_url":"data:;base64,' + "/9j/4AAQ" * 9000, 8032),
        ("data:image/jpeg;base64," + "\\/9j\\/4AAQ" * 20_000, 4025),  # as some write a slash
        ("x" * 40_000, 10_020),  # no file at all
    ],
)
def test_a_prompt_is_estimated_by_its_text_and_a_file_in_it_by_no_more_than_a_file_takes(
    text: str, tokens: int
) -> None:
    request = '{"messages":[{"role":"user","content":[{"image_url":"' + text + '"}]}]}'
    assert estimate(request.encode()) == pytest.approx(tokens, abs=12)


# Room


@pytest.mark.parametrize(
    ("use", "requests", "tokens"),
    [
        (Use(), 60, 50_000),
        (Use(requests=10, starting=5), 45, 50_000),
        (Use(tokens=20_000, reserved=10_000), 60, 20_000),
        (Use(tokens=20_000, reserved=10_000, leaving=5_000), 60, 25_000),
        (Use(tokens=50_000, leaving=9_000), 60, 0),
        (Use(requests=70, tokens=90_000), 0, 0),
    ],
    ids=["nothing", "requests", "tokens", "tokens that are about to leave", "none before they have left", "over"],
)
def test_what_we_have_used_and_set_aside_takes_from_the_limits(use: Use, requests: int, tokens: int) -> None:
    left = room_of(KNOWN, use, at(100), WINDOW)
    assert (left.requests, left.tokens) == (requests, tokens)


def test_an_unknown_bucket_has_room_for_two_calls_at_a_time() -> None:
    assert room_of(UNKNOWN, Use(), T0, WINDOW).requests == 2
    assert room_of(UNKNOWN, Use(requests=50, flying=1), T0, WINDOW).requests == 1
    assert room_of(UNKNOWN, Use(flying=2), T0, WINDOW).requests == 0


def test_an_answer_without_headers_means_that_no_limit_is_known_and_none_is_kept() -> None:
    bucket = learn(UNKNOWN, Heard(at=T0), Use(), WINDOW)
    assert room_of(bucket, Use(requests=10**6, flying=99), at(1), WINDOW).requests == math.inf


def test_a_failure_of_mistral_says_nothing_of_its_limits() -> None:
    assert learn(UNKNOWN, Heard(at=T0, status=503), Use(), WINDOW) == UNKNOWN


def test_a_window_with_nothing_of_ours_in_it_is_empty() -> None:
    assert room_of(KNOWN, Use(requests=3), T0, WINDOW).empty
    assert not room_of(KNOWN, Use(tokens=1), T0, WINDOW).empty
    assert not room_of(KNOWN, Use(flying=1), T0, WINDOW).empty


# Headers


def test_what_mistral_counts_beyond_our_own_is_others_and_fades_over_the_window() -> None:
    heard = Heard(at=T0, limit_requests=60, remaining_requests=20, limit_tokens=50_000, remaining_tokens=30_000)
    bucket = learn(KNOWN, heard, Use(requests=10, tokens=5_000, reserved=3_000), WINDOW)
    assert foreign(bucket, T0, WINDOW) == (30, 12_000)
    assert foreign(bucket, at(30), WINDOW) == (15, 6_000)
    assert foreign(bucket, at(60), WINDOW) == (0, 0)
    assert room_of(bucket, Use(requests=10), at(30), WINDOW).requests == 35


def test_what_we_count_beyond_mistrals_is_nobody_elses() -> None:
    heard = Heard(at=T0, limit_requests=60, remaining_requests=55)
    assert foreign(learn(KNOWN, heard, Use(requests=9), WINDOW), T0, WINDOW) == (0, 0)


def test_limits_that_an_answer_does_not_name_stay_as_they_were() -> None:
    bucket = learn(KNOWN, Heard(at=at(1), limit_requests=90, remaining_requests=90), Use(), WINDOW)
    assert (bucket.limit_requests, bucket.limit_tokens) == (90, 50_000)


# Refusals


@pytest.mark.parametrize(
    ("heard", "use", "until"),
    [
        (refusal(0, retry_after=7), Use(), 7),
        (refusal(0, retry_after=0.1), Use(), 1),
        (refusal(0, retry_after=10**9), Use(), 3600),
        (refusal(0), Use(), 1),
        (refusal(0), Use(requests=60, oldest_start=at(-40)), 20),
        (refusal(0), Use(tokens=49_000, oldest_end=at(-50)), 10),
        (refusal(0), Use(requests=60, oldest_start=at(-60)), 1),
    ],
    ids=["as asked", "a second at least", "an hour at most", "no reason", "requests", "tokens", "any moment"],
)
def test_a_429_blocks_until_mistral_says_or_room_is_to_be_expected(heard: Heard, use: Use, until: float) -> None:
    bucket = learn(KNOWN, heard, use, WINDOW)
    assert bucket.blocked_until == at(until)
    assert room_of(bucket, use, at(until - 0.1), WINDOW).requests == 0


def test_after_a_block_two_calls_ask_before_the_others_follow() -> None:
    blocked = learn(KNOWN, refusal(0), Use(), WINDOW)
    assert room_of(blocked, Use(), at(2), WINDOW).requests == 2
    assert room_of(blocked, Use(requests=1, probes=1), at(2), WINDOW).requests == 1
    assert room_of(blocked, Use(starting=2), at(2), WINDOW).requests == 0
    answered = learn(blocked, Heard(at=at(3), limit_requests=60, remaining_requests=59), Use(requests=1), WINDOW)
    assert room_of(answered, Use(requests=1), at(3), WINDOW).requests > 25


def test_an_unexplained_429_halves_what_is_used_which_grows_back_within_a_window() -> None:
    bucket = learn(KNOWN, refusal(0), Use(requests=10), WINDOW)
    assert [round(caution(bucket, at(1 + seconds), WINDOW), 2) for seconds in (0, 30, 60, 90)] == [0.5, 0.75, 1, 1]


def test_another_429_after_the_pause_halves_again_and_the_same_news_does_not() -> None:
    once = learn(KNOWN, refusal(0), Use(requests=10), WINDOW)
    assert learn(once, refusal(0.5), Use(requests=11), WINDOW).caution == 0.5
    again = learn(once, refusal(1.5), Use(requests=11), WINDOW)
    assert 0.25 <= again.caution < 0.26
    for second in range(10, 200, 10):
        again = learn(again, refusal(second), Use(), WINDOW)
    assert again.caution >= 0.1


def test_a_429_that_our_own_count_explains_makes_nobody_cautious() -> None:
    assert learn(KNOWN, refusal(0), Use(requests=57), WINDOW).caution == 1
    assert learn(KNOWN, refusal(0), Use(tokens=40_000, reserved=6_000), WINDOW).caution == 1


def test_never_is_no_limit_to_keep_but_a_reason_to_fail_until_mistral_answers_again() -> None:
    never = learn(KNOWN, refusal(0, never=True, limit_requests=0), Use(), WINDOW)
    assert never.refuses
    assert room_of(never, Use(requests=99), T0, WINDOW).requests == math.inf
    allowed = learn(never, Heard(at=at(60), limit_requests=60, remaining_requests=59), Use(requests=1), WINDOW)
    assert (allowed.refuses, allowed.limit_requests) == (False, 60)


@given(
    st.lists(st.tuples(st.sampled_from([200, 429, 503]), st.integers(0, 200), st.integers(0, 60), st.integers(0, 90)))
)
def test_whatever_mistral_says_no_room_is_negative_or_above_the_limit(
    story: list[tuple[int, int, int, int]],
) -> None:
    bucket, now = KNOWN, 0.0
    for status, seconds, remaining, own in story:
        now += seconds
        heard = Heard(at=at(now), status=status, limit_requests=60, remaining_requests=remaining)
        bucket = learn(bucket, heard, Use(requests=own), WINDOW)
        left = room_of(bucket, Use(requests=own), at(now + 1), WINDOW)
        assert 0 <= left.requests <= 60
        assert 0 < bucket.caution <= 1
        assert 0 <= bucket.foreign_requests <= 60


# Tokens


@pytest.mark.parametrize(
    ("average", "most", "tokens"),
    [(None, None, 600), (None, 50, 150), (80.2, None, 181), (80.0, 50, 150), (80.0, 9000, 180)],
)
def test_for_an_answer_the_average_is_set_aside_or_the_most_that_is_wanted(
    average: float | None, most: int | None, tokens: int
) -> None:
    bucket = Bucket(account="*", model="m", answer_tokens=average)
    assert reservation(bucket, prompt=100, most=most) == tokens


@pytest.mark.parametrize(("tokens", "windows"), [(10, 1 / 60), (5000, 0.1), (50_000, 1.0)])
def test_a_job_costs_of_requests_or_tokens_whichever_is_more(tokens: int, windows: float) -> None:
    assert cost(KNOWN, tokens) == pytest.approx(windows)


@pytest.mark.parametrize(
    ("usage", "total", "answer"),
    [
        ('{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14,"more":{"a":[1]}}', 14, 9),
        ('{"total_tokens":"many"}', None, None),
        ('{"total_tokens":-1}', None, None),
        ('{"total_tokens":99999999999}', None, None),
        ("[]", None, None),
        (None, None, None),
    ],
)
def test_of_mistrals_usage_only_numbers_are_taken(usage: str | None, total: int | None, answer: int | None) -> None:
    assert (tokens_of(usage), answer_of(usage)) == (total, answer)

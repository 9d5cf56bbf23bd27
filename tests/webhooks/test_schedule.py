"""The decisions after an exchange, row by row, and the schedule of three days on a clock that nobody waits for."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.webhooks.health import Outcome
from tramontane.webhooks.hints import LONGEST_LOCATION, hint_for
from tramontane.webhooks.models import DeliveryState, ErrorClass, Exchange
from tramontane.webhooks.schedule import (
    ATTEMPTS,
    BLOCKED_PAUSE,
    DELAYS,
    MOST_JITTER,
    SHORT_ATTEMPTS,
    Verdict,
    judge,
    parse_retry_after,
)

NOW = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
MOST = 1.0 - 2**-53  # the highest throw of the dice
SUCCEEDED, FAILED, WAITING = DeliveryState.SUCCEEDED, DeliveryState.FAILED, DeliveryState.WAITING

_NETWORK = [
    error
    for error in ErrorClass
    if error
    not in (
        *(ErrorClass.HTTP_4XX, ErrorClass.HTTP_5XX, ErrorClass.GONE, ErrorClass.TOO_LARGE),
        *(ErrorClass.REDIRECT, ErrorClass.BLOCKED_SSRF),
    )
]


def _answer(status: int, **headers: str) -> Exchange:
    """What the transport makes of an answer with that status."""
    error: ErrorClass | None = None
    if status == 410:
        error = ErrorClass.GONE
    elif status == 413:
        error = ErrorClass.TOO_LARGE
    elif status >= 300:
        error = {3: ErrorClass.REDIRECT, 4: ErrorClass.HTTP_4XX}.get(status // 100, ErrorClass.HTTP_5XX)
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Exchange(status=status, error_class=error, headers=pairs)


def _judge(exchange: Exchange, attempt: int = 1, random: float = 0.0) -> Verdict:
    return judge(exchange, attempt=attempt, now=NOW, random=random)


def _waits(exchange: Exchange, attempt: int = 1, random: float = 0.0) -> float:
    verdict = _judge(exchange, attempt, random)
    assert verdict.state is WAITING
    assert verdict.due_at is not None
    return (verdict.due_at - NOW).total_seconds()


def _live(exchange: Exchange, random: float) -> tuple[list[datetime], Verdict]:
    """A delivery on a virtual clock, answered the same every time: when it was tried, and its end."""
    now, tried = NOW, [NOW]
    while True:
        verdict = judge(exchange, attempt=len(tried), now=now, random=random)
        if verdict.due_at is None:
            return tried, verdict
        now = verdict.due_at
        tried.append(now)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_succeeds(status: int) -> None:
    assert _judge(_answer(status)) == Verdict(state=SUCCEEDED, outcome=Outcome.SUCCESS)


@pytest.mark.parametrize("random", [0.0, 0.5, MOST])
def test_the_whole_schedule_takes_three_days_on_the_virtual_clock(random: float) -> None:
    tried, end = _live(_answer(500), random)

    steps = [(later - earlier).total_seconds() for earlier, later in pairwise(tried)]
    assert steps == pytest.approx([delay * (1 + MOST_JITTER * random) for delay in DELAYS[1:]])
    assert len(tried) == ATTEMPTS == 13
    assert end.state is FAILED


def test_the_schedule_is_as_long_as_it_is_said_to_be() -> None:
    shortest, _ = _live(_answer(500), 0.0)
    longest, _ = _live(_answer(500), MOST)

    assert shortest[-1] - shortest[0] == timedelta(hours=71, minutes=42, seconds=35)
    assert timedelta(hours=93, minutes=13) < longest[-1] - longest[0] <= timedelta(hours=93, minutes=13, seconds=21.5)


@pytest.mark.parametrize(
    ("exchange", "attempts", "outcome", "first_wait"),
    [
        *[(_answer(status), SHORT_ATTEMPTS, Outcome.FAILURE, 5) for status in (300, 301, 302, 303, 304, 307, 308)],
        *[(_answer(status), SHORT_ATTEMPTS, Outcome.FAILURE, 5) for status in (400, 401, 403, 404, 405, 413, 415)],
        *[(_answer(status), SHORT_ATTEMPTS, Outcome.FAILURE, 5) for status in (418, 422, 431, 451, 499)],
        *[(_answer(status), ATTEMPTS, Outcome.FAILURE, 5) for status in (408, 425, 500, 501, 505, 511, 599)],
        *[(_answer(status), ATTEMPTS, Outcome.PRESSURE, 60) for status in (429, 502, 503, 504)],
        *[
            (Exchange(error_class=error), ATTEMPTS, Outcome.SILENCE, 60)
            for error in (ErrorClass.CONNECT_TIMEOUT, ErrorClass.TIMEOUT_HEADERS, ErrorClass.TIMEOUT_BODY)
        ],
        *[
            (Exchange(error_class=error), ATTEMPTS, Outcome.SILENCE, 5)
            for error in (ErrorClass.DNS, ErrorClass.CONNECT_REFUSED, ErrorClass.RESET, ErrorClass.TLS_CERT_EXPIRED)
        ],
        *[
            (Exchange(error_class=error), ATTEMPTS, Outcome.SILENCE, 5)
            for error in (ErrorClass.TLS_HOSTNAME, ErrorClass.TLS_OTHER)
        ],
        (Exchange(error_class=ErrorClass.PROTOCOL), ATTEMPTS, Outcome.FAILURE, 5),
        # A 2xx whose body never ended is none.
        (Exchange(status=200, error_class=ErrorClass.TIMEOUT_BODY), ATTEMPTS, Outcome.SILENCE, 60),
        # Nor is a refusal one that was not heard to its end.
        (Exchange(status=404, error_class=ErrorClass.RESET), ATTEMPTS, Outcome.SILENCE, 5),
    ],
    ids=lambda value: f"{value.status or value.error_class}" if isinstance(value, Exchange) else str(value),
)
def test_each_failure_has_its_number_of_attempts(
    exchange: Exchange, attempts: int, outcome: Outcome, first_wait: float
) -> None:
    tried, end = _live(exchange, 0.0)

    assert len(tried) == attempts
    assert tried[1] - tried[0] == timedelta(seconds=first_wait)
    assert (end.state, end.outcome, end.counted, end.disable, end.cancel) == (FAILED, outcome, True, False, False)
    assert end.hint


@pytest.mark.parametrize("error", ErrorClass)
def test_every_error_class_is_judged_and_explained(error: ErrorClass) -> None:
    verdict = _judge(Exchange(error_class=error))

    assert verdict.state is (FAILED if error is ErrorClass.GONE else WAITING)
    assert verdict.hint
    assert verdict.hint.isprintable()
    if error in _NETWORK:
        assert _judge(Exchange(error_class=error), ATTEMPTS - 1).state is WAITING


def test_410_ends_the_delivery_and_disables_the_endpoint() -> None:
    verdict = _judge(_answer(410))

    assert (verdict.state, verdict.disable, verdict.due_at, verdict.outcome) == (FAILED, True, None, Outcome.GONE)
    assert "enables" in verdict.hint


@pytest.mark.parametrize(("status", "state"), [(200, SUCCEEDED), (404, FAILED), (503, FAILED), (301, FAILED)])
def test_the_receiver_may_disable_itself_with_any_answer(status: int, state: DeliveryState) -> None:
    verdict = _judge(_answer(status, webhook_delivery=" Disable "))

    assert (verdict.state, verdict.disable, verdict.due_at, verdict.outcome) == (state, True, None, Outcome.GONE)
    assert "disable" in verdict.hint


@pytest.mark.parametrize("status", [301, 400, 429, 500, 503])
def test_the_receiver_may_abort_one_message(status: int) -> None:
    verdict = _judge(_answer(status, webhook_delivery="abort-message", retry_after="5"))

    assert (verdict.state, verdict.cancel, verdict.disable, verdict.due_at) == (FAILED, True, False, None)
    assert verdict.outcome is Outcome.NEUTRAL
    assert "abort-message" in verdict.hint


def test_an_abort_of_what_was_taken_changes_nothing() -> None:
    assert _judge(_answer(204, webhook_delivery="abort-message")) == _judge(_answer(204))


def test_an_order_that_we_do_not_know_is_no_order() -> None:
    assert _judge(_answer(500, webhook_delivery="explode")) == _judge(_answer(500))


@pytest.mark.parametrize("attempt", [1, 5, 13, 400])
def test_a_refusal_by_our_policy_consumes_no_attempt_and_waits(attempt: int) -> None:
    blocked = Exchange(error_class=ErrorClass.BLOCKED_SSRF, detail="10.0.0.1 is private: allow it with ...")
    verdict = _judge(blocked, attempt)

    assert (verdict.state, verdict.counted, verdict.outcome) == (WAITING, False, Outcome.BLOCKED)
    assert verdict.due_at == NOW + timedelta(seconds=BLOCKED_PAUSE)
    assert verdict.hint == blocked.detail


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("1e9", 1e9),
        ("999999999999999999999", 1e21),
        ("1e999", None),
        ("inf", None),
        ("nan", None),
        ("-1", None),
        ("1_000", None),
        ("٣", None),
        ("0x10", None),
        ("", None),
        (None, None),
        ("soon", None),
        ("Sun, 22 Nov 2026 06:47:00 GMT", 60.0),
        ("Sunday, 22-Nov-26 06:47:00 GMT", 60.0),
        ("Sun Nov 22 06:47:00 2026", 60.0),
        ("Sun, 22 Nov 2026 07:47:00 +0100", 60.0),
        ("Sun, 22 Nov 2026 06:00:00 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 22 Nov 2026 06:47:00 +99999999", None),
        ("Sun, 31 Feb 2026 06:47:00 GMT", None),
        ("1 Jan 1 1:1:1 -999999999999999999999999999999", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_nonsense_is_not(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


@given(
    st.text() | st.text("0123456789.eE+-: GMTNovSun,", max_size=60) | st.text("9").map("Sun, 1 Nov 2026 0:0:0 ".__add__)
)
def test_no_retry_after_whatever_raises_or_is_negative(text: str) -> None:
    assert (parse_retry_after(text, NOW) or 0.0) >= 0.0


@pytest.mark.parametrize(
    ("retry_after", "attempt", "seconds"),
    [
        # More than our own delay, up to an hour ...
        ("10", 1, 10),
        ("600", 1, 600),
        ("3600", 1, 3600),
        ("3601", 1, 3600),
        ("1e9", 1, 3600),
        # ... or to twice our own delay where that is longer; never less than our own.
        ("1", 1, 5),
        ("10", 7, 7200),
        ("14000", 7, 14000),
        ("1e9", 7, 14400),
        ("1e9", 12, 172800),
        # What says nothing changes nothing.
        ("-7", 1, 5),
        ("soon", 1, 5),
        ("Sun, 22 Nov 2026 06:56:00 GMT", 1, 600),
        ("Sun, 22 Nov 2026 06:36:00 GMT", 1, 5),
    ],
)
def test_retry_after_is_obeyed_within_reason(retry_after: str, attempt: int, seconds: float) -> None:
    assert _waits(_answer(500, retry_after=retry_after), attempt) == seconds


@pytest.mark.parametrize("status", [301, 404, 408, 429, 500, 503])
def test_retry_after_is_obeyed_after_any_failure(status: int) -> None:
    assert _waits(_answer(status, retry_after="900")) == 900


def test_a_busy_receiver_that_asks_for_seconds_gets_its_minute() -> None:
    assert _waits(_answer(429, retry_after="2")) == 60


def test_those_who_were_told_the_same_do_not_return_as_one() -> None:
    assert _waits(_answer(503, retry_after="1000"), random=0.5) == pytest.approx(1150)


def test_a_date_is_measured_by_the_clock_of_who_wrote_it() -> None:
    theirs = NOW - timedelta(hours=5)
    until = format_datetime(theirs + timedelta(minutes=10), usegmt=True)

    assert _waits(_answer(503, retry_after=until, date=format_datetime(theirs, usegmt=True))) == 600


@given(
    status=st.sampled_from([301, 404, 408, 429, 500, 503]),
    attempt=st.integers(1, 15),
    random=st.floats(0, 1, exclude_max=True),
    asked=st.integers(0, 10**6),
)
def test_no_attempt_comes_before_its_delay_or_an_honoured_retry_after(
    status: int, attempt: int, random: float, asked: int
) -> None:
    verdict = _judge(_answer(status, retry_after=str(asked)), attempt, random)

    if verdict.due_at is not None:
        step = DELAYS[attempt]
        least = max(step, min(asked, max(2 * step, 3600)), 60 if status in (429, 503) else 0)
        waited = (verdict.due_at - NOW).total_seconds()
        assert least - 1e-6 <= waited <= least * 1.3 + 1e-6
    assert (verdict.due_at is None) == verdict.state.final == (verdict.state is not WAITING)


@pytest.mark.parametrize(
    ("location", "status", "hint"),
    [
        ("https://www.example.com/x", 301, "301 to https://www.example.com/x: register that URL"),
        ("https://www.example.com/x", 308, "308 to https://www.example.com/x: register that URL"),
        ("/x/", 301, "301 to /x/: register that URL"),
        ("HTTPS://example.com/", 301, "301 to HTTPS://example.com/: register that URL"),
        ("https://user:secret@example.com/", 301, "301 to https://example.com/: register that URL"),
        ("https://a@b@example.com/", 301, "301 to https://example.com/: register that URL"),
        ("//user@example.com/", 301, "301 to //example.com/: register that URL"),
        ("https://example.com/a\x1b[31m\u202e b", 301, "301 to https://example.com/a?[31m??b: register that URL"),
    ],
)
def test_a_redirect_is_explained_by_where_it_leads(location: str, status: int, hint: str) -> None:
    assert hint_for(_answer(status, location=location)) == hint


def test_a_passing_redirect_is_never_followed_and_says_so() -> None:
    assert "never followed" in hint_for(_answer(302, location="https://example.com/login"))


@pytest.mark.parametrize("location", ["", "javascript:alert(1)", "\x00", "file:///etc/passwd", "x/y"])
def test_a_redirect_to_nowhere_quotes_nothing(location: str) -> None:
    assert hint_for(_answer(300, location=location)).startswith("300 without a place to go")
    assert not location or location not in hint_for(_answer(300, location=location))


@given(st.text() | st.text().map("https://".__add__) | st.text(min_size=250).map("/".__add__))
def test_no_location_breaks_the_line(location: str) -> None:
    hint = hint_for(_answer(302, location=location))

    assert hint.isprintable()
    assert hint.isascii()
    assert len(hint) <= LONGEST_LOCATION + 100


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "signature or credentials"), (413, "thin format"), (429, "slow down"), (404, "route"), (499, "see its log")],
)
def test_a_refusal_says_what_to_change(status: int, words: str) -> None:
    hint = _judge(_answer(status)).hint
    assert words in hint
    assert hint.startswith(f"{status}: ")

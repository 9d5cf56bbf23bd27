import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.errors import RateLimited, TramontaneError, Truncated, Unauthorized, ZeroAllowance
from tramontane.retry import LONGEST_DELAY, LONGEST_RETRY_AFTER, Backoff, delay, may_retry

DOUBLING = Backoff(kind="exponential", delay=1.0)
STEADY = Backoff(kind="fixed", delay=5.0)


@pytest.mark.parametrize(
    ("backoff", "failures", "retry_after", "random", "seconds"),
    [
        (DOUBLING, 1, None, 0.0, 1.0),
        (DOUBLING, 2, None, 0.0, 2.0),
        (DOUBLING, 3, None, 0.0, 4.0),
        (DOUBLING, 3, None, 0.5, 4.6),
        (DOUBLING, 10, None, 0.0, 512.0),
        (DOUBLING, 11, None, 0.0, LONGEST_DELAY),
        (DOUBLING, 10_000, None, 0.0, LONGEST_DELAY),
        (STEADY, 1, None, 0.0, 5.0),
        (STEADY, 9, None, 0.0, 5.0),
        (STEADY, 9, None, 0.5, 5.75),
        # Mistral's word is the least that we wait, jitter on top of it ...
        (DOUBLING, 1, 30.0, 0.0, 30.0),
        (DOUBLING, 1, 30.0, 0.5, 34.5),
        # ... unless our own delay is longer ...
        (DOUBLING, 6, 30.0, 0.0, 32.0),
        (DOUBLING, 1, 0.0, 0.0, 1.0),
        # ... and up to an hour, past our own cap.
        (DOUBLING, 1, 900.0, 0.0, 900.0),
        (DOUBLING, 1, 86_400.0, 0.0, LONGEST_RETRY_AFTER),
    ],
)
def test_the_delay_follows_the_table(
    backoff: Backoff, failures: int, retry_after: float | None, random: float, seconds: float
) -> None:
    assert delay(backoff, failures, retry_after=retry_after, random=random) == pytest.approx(seconds)


@given(
    failures=st.integers(1, 5000),
    retry_after=st.none() | st.floats(0, LONGEST_RETRY_AFTER),
    random=st.floats(0, 1, exclude_max=True),
)
def test_jitter_only_lengthens_and_never_by_a_third(failures: int, retry_after: float | None, random: float) -> None:
    least = delay(DOUBLING, failures, retry_after=retry_after, random=0.0)
    waited = delay(DOUBLING, failures, retry_after=retry_after, random=random)
    assert least <= waited <= least * 1.3
    assert waited >= (retry_after or 0.0)


@pytest.mark.parametrize(
    ("error", "failures", "again"),
    [
        (RateLimited("wait"), 1, True),
        (RateLimited("wait"), 2, True),
        (RateLimited("wait"), 3, False),
        (Truncated("cut"), 1, True),
        (Unauthorized("no"), 1, False),
        (ZeroAllowance("never"), 1, False),
    ],
)
def test_only_what_may_pass_is_tried_again_and_only_so_often(
    error: TramontaneError, failures: int, again: bool
) -> None:
    assert may_retry(error, failures, attempts=3) is again

"""Whose job goes next."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.fairness import FLEET, PRESENT, BucketKey, Candidate, Choice, Held, Lane, Tenant, choose
from tramontane.forecast import before
from tramontane.limits import Bucket, Room
from tramontane.models import JobKey

SMALL, LARGE = ("*", "small"), ("*", "large")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def job(
    number: int, tenant: str = "a", *, bucket: BucketKey = SMALL, kind: str = "chat", **fields: object
) -> Candidate:
    """A job; those of lower numbers are older."""
    return Candidate(key=JobKey(tenant=tenant, id=UUID(int=number)), kind=kind, bucket=bucket, **fields)  # type: ignore[arg-type]


def lane(
    key: BucketKey = SMALL,
    *,
    requests: float = 1000,
    tokens: float = 1e9,
    empty: bool = False,
    limits: tuple[int, int] = (60, 50_000),
    shares: Mapping[str, float] | None = None,
) -> Lane:
    bucket = Bucket(account=key[0], model=key[1], limit_requests=limits[0], limit_tokens=limits[1])
    return Lane(bucket=bucket, room=Room(requests=requests, tokens=tokens, empty=empty), shares=shares or {})


def pick(
    candidates: Iterable[Candidate],
    *lanes: Lane,
    slots: int = 100,
    tenants: Mapping[str, Tenant] | None = None,
    fleet: Mapping[str, float] | None = None,
    most: int = 1000,
) -> Choice:
    """A choice among jobs given in any order."""
    order = sorted(candidates, key=lambda one: (one.key.tenant, one.kind, -one.priority, one.deadline or NOON.replace(year=9999), one.key.id))  # fmt: skip # noqa: E501
    known = {(one.bucket.account, one.bucket.model): one for one in lanes or (lane(),)}
    return choose(order, known, tenants or {}, slots=slots, fleet=fleet or {}, most=most)


def numbers(choice: Choice) -> list[int]:
    return [one.key.id.int for one in choice.chosen]


def tenants_of(choice: Choice) -> Counter[str]:
    return Counter(one.key.tenant for one in choice.chosen)


# Priority and deadline


@pytest.mark.parametrize(
    ("candidates", "order"),
    [
        ([job(1), job(2), job(3)], [1, 2, 3]),
        ([job(1), job(2, priority=5), job(3, priority=-1)], [2, 1, 3]),
        ([job(1), job(2, deadline=NOON)], [2, 1]),
        ([job(1, deadline=NOON + timedelta(hours=1)), job(2, deadline=NOON)], [2, 1]),
        ([job(1, deadline=NOON), job(2, priority=1)], [2, 1]),
        ([job(1, kind="batch"), job(2), job(3, kind="batch")], [1, 2, 3]),
        ([job(1, "a"), job(2, "b", priority=1), job(3, "c", deadline=NOON)], [2, 3, 1]),
    ],
    ids=["age", "priority", "deadline", "two deadlines", "priority first", "kinds of one tenant", "three tenants"],
)
def test_priority_goes_before_deadline_and_deadline_before_age(candidates: list[Candidate], order: list[int]) -> None:
    assert numbers(pick(candidates)) == order


def test_deadlines_stop_counting_for_a_tenant_that_is_a_window_ahead() -> None:
    hasty = [job(n, "hasty", deadline=NOON) for n in range(1, 301)]
    patient = [job(n, "patient") for n in range(301, 401)]
    first = pick([*hasty, *patient], slots=60)
    assert tenants_of(first) == {"hasty": 60}
    shares = {tenant: time for (key, tenant), time in first.shares.items() if key == SMALL}
    later = pick([*hasty[60:], *patient], lane(shares=shares), slots=30)
    assert abs(tenants_of(later)["patient"] - 15) <= 1, "from there on they share"


def test_a_tenant_that_is_ahead_by_priority_waits_until_the_others_have_caught_up() -> None:
    first = pick([job(n, "a", priority=9) for n in range(1, 31)] + [job(n, "b") for n in range(31, 131)], slots=30)
    assert tenants_of(first) == {"a": 30}
    shares = {tenant: time for (key, tenant), time in first.shares.items() if key == SMALL}
    later = pick([job(n, "a") for n in range(1, 101)] + [job(n, "b") for n in range(201, 301)], lane(shares=shares), slots=40)  # fmt: skip # noqa: E501
    assert 5 <= tenants_of(later)["a"] <= 6


# Shares


def test_tenants_share_a_bucket_evenly_however_many_jobs_they_bring() -> None:
    candidates = [job(n, "a") for n in range(1, 501)] + [job(n, "b") for n in range(501, 521)]
    candidates += [job(n, "c") for n in range(521, 541)]
    assert tenants_of(pick(candidates, slots=45)) == {"a": 15, "b": 15, "c": 15}


def test_a_weight_of_two_is_worth_two_shares() -> None:
    candidates = [job(n, "a") for n in range(1, 101)] + [job(n, "b") for n in range(101, 201)]
    assert tenants_of(pick(candidates, slots=30, tenants={"a": Tenant(weight=2)})) == {"a": 20, "b": 10}


def test_whoever_asks_for_more_tokens_gets_fewer_jobs() -> None:
    candidates = [job(n, "a", tokens=8000) for n in range(1, 51)] + [job(n, "b", tokens=2000) for n in range(51, 101)]
    assert tenants_of(pick(candidates, slots=25)) == {"a": 5, "b": 20}


def test_a_newcomer_starts_at_the_present_and_has_no_credit_for_the_past() -> None:
    shares = {PRESENT: 7.0, "a": 7.0}
    candidates = [job(n, "a") for n in range(1, 101)] + [job(n, "new") for n in range(101, 201)]
    assert tenants_of(pick(candidates, lane(shares=shares), slots=20)) == {"a": 10, "new": 10}


def test_a_tenant_that_was_idle_comes_back_without_credit() -> None:
    shares = {PRESENT: 7.0, "a": 7.0, "idle": 0.5}
    candidates = [job(n, "a") for n in range(1, 101)] + [job(n, "idle") for n in range(101, 201)]
    assert tenants_of(pick(candidates, lane(shares=shares), slots=20)) == {"a": 10, "idle": 10}


def test_a_tenant_that_is_alone_is_not_measured() -> None:
    assert pick([job(n) for n in range(1, 9)]).shares == {}


def test_debt_is_gone_once_a_tenant_has_waited_alone() -> None:
    alone = pick([job(1, "a")], lane(shares={PRESENT: 1.0, "a": 3.0}))
    assert alone.shares[SMALL, PRESENT] == 3.0


def test_where_slots_are_scarce_tenants_share_them_across_buckets() -> None:
    candidates = [job(n, "many", bucket=LARGE) for n in range(1, 301)]
    candidates += [job(n, "few") for n in range(301, 401)]
    lanes = lane(), lane(LARGE, limits=(10_000, 10_000_000))
    fleet: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for _ in range(20):
        choice = pick(list(candidates), *lanes, slots=1, fleet=fleet)
        fleet |= {tenant: time for (key, tenant), time in choice.shares.items() if key == FLEET}
        candidates = [one for one in candidates if one not in choice.chosen]
        counts += tenants_of(choice)
    assert counts == {"many": 10, "few": 10}


# Room


def test_a_large_job_holds_its_bucket_until_it_fits() -> None:
    choice = pick([job(1, tokens=900), *(job(n, "b", tokens=10) for n in range(2, 9))], lane(tokens=500))
    assert (numbers(choice), choice.held) == ([], {SMALL: Held.TOKENS})


def test_a_job_larger_than_the_whole_limit_goes_when_the_window_is_empty() -> None:
    candidates = [job(1, tokens=90_000), job(2, tokens=10)]
    assert numbers(pick(candidates, lane(tokens=50_000, empty=True))) == [1]
    assert numbers(pick(candidates, lane(tokens=49_990))) == []


def test_a_held_bucket_does_not_hold_the_others() -> None:
    candidates = [job(1, tokens=900, priority=9), job(2, bucket=LARGE)]
    assert numbers(pick(candidates, lane(tokens=500), lane(LARGE))) == [2]


def test_no_more_go_than_there_are_requests_left() -> None:
    choice = pick([job(n) for n in range(1, 9)], lane(requests=3))
    assert (numbers(choice), choice.held) == ([1, 2, 3], {SMALL: Held.REQUESTS})


def test_a_tenant_that_runs_as_many_as_it_may_steps_back_for_the_others() -> None:
    candidates = [job(n, "a") for n in range(1, 9)] + [job(n, "b") for n in range(9, 12)]
    assert numbers(pick(candidates, tenants={"a": Tenant(free=2)})) == [1, 9, 2, 10, 11]
    assert numbers(pick(candidates, tenants={"a": Tenant(free=0)})) == [9, 10, 11]


def test_what_lies_beyond_what_was_looked_at_is_not_passed_by() -> None:
    candidates = [job(1, priority=9), job(2, priority=9), job(3, "b")]
    choice = pick(candidates, most=2)
    assert (numbers(choice), choice.held) == ([1, 2], {SMALL: Held.MORE})


# What cannot be true

ABSURD = [math.inf, -math.inf, math.nan, 1e300]


@pytest.mark.parametrize("absurd", ABSURD)
@pytest.mark.parametrize("present", [None, 7.0])
def test_an_absurd_share_counts_as_none(absurd: float, present: float | None) -> None:
    known = {} if present is None else {PRESENT: present}
    candidates = [job(n, "a") for n in range(1, 101)] + [job(n, "b") for n in range(101, 201)]
    choice = pick(candidates, lane(shares={**known, "a": absurd}), slots=20, fleet={**known, "a": absurd})
    assert tenants_of(choice) == {"a": 10, "b": 10}
    assert all(0 <= time < 1000 for time in choice.shares.values())


@pytest.mark.parametrize("absurd", ABSURD)
@pytest.mark.parametrize("alone", [True, False])
def test_an_absurd_present_is_begun_anew(absurd: float, alone: bool) -> None:
    shares = {PRESENT: absurd, "a": absurd, "b": 3.0}
    candidates = [job(n, "a") for n in range(1, 101)] + ([] if alone else [job(n, "b") for n in range(101, 201)])
    choice = pick(candidates, lane(shares=shares), slots=20)
    assert tenants_of(choice)["a"] == (20 if alone else 10), "they begin together"
    assert all(3.0 <= time < 1000 for (key, _), time in choice.shares.items() if key == SMALL)


@pytest.mark.parametrize("weight", [5e-324, 1e-308, 1e308, math.inf, math.nan])
def test_an_absurd_weight_leads_to_no_absurd_share(weight: float) -> None:
    candidates = [job(n, "a") for n in range(1, 101)] + [job(n, "b") for n in range(101, 201)]
    choice = pick(candidates, slots=150, tenants={"a": Tenant(weight=weight)})
    assert tenants_of(choice).total() == 150
    assert all(0 <= time < 1e6 for time in choice.shares.values())


def test_an_absurd_weight_forecasts_no_more_than_wait() -> None:
    assert before(3, [(1, 10, 1.0), (0, 5, math.inf)], weight=5e-324) == 3 + 1 + 10 + 5


# Whatever comes

_JOBS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([SMALL, LARGE]), st.integers(-1, 1), st.integers(0, 3000)),
    max_size=60,
)


@given(_JOBS, st.integers(0, 30), st.integers(0, 40), st.integers(0, 40_000))
def test_no_choice_goes_beyond_its_room_or_past_the_better_of_the_same_group(
    given_jobs: list[tuple[str, BucketKey, int, int]], slots: int, requests: int, tokens: int
) -> None:
    jobs = [job(n, t, bucket=b, priority=p, tokens=k) for n, (t, b, p, k) in enumerate(given_jobs, 1)]
    choice = pick(
        jobs, lane(requests=requests, tokens=tokens), lane(LARGE, requests=requests, tokens=tokens), slots=slots
    )
    assert len(choice.chosen) <= slots
    assert len(set(choice.chosen)) == len(choice.chosen)
    for bucket in (SMALL, LARGE):
        taken = [one for one in choice.chosen if one.bucket == bucket]
        assert len(taken) <= requests
        assert sum(one.tokens for one in taken) <= tokens
    left = set(jobs) - set(choice.chosen)
    for one in choice.chosen:
        rivals = [other for other in left if (other.key.tenant, other.bucket) == (one.key.tenant, one.bucket)]
        assert all((-one.priority, one.key.id) < (-other.priority, other.key.id) for other in rivals)
    if left and len(choice.chosen) < slots:
        assert {one.bucket for one in left} <= set(choice.held)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2000)), min_size=60, max_size=200))
def test_no_tenant_that_waits_falls_behind_another_by_more_than_one_job(given_jobs: list[tuple[str, int]]) -> None:
    jobs = [job(n, tenant, tokens=tokens) for n, (tenant, tokens) in enumerate(given_jobs, 1)]
    had: Counter[str] = Counter()
    choice = pick(jobs, slots=30)
    left = Counter(one.key.tenant for one in jobs)
    for one in choice.chosen:
        for other in left:
            if left[other] and other != one.key.tenant:
                assert had[one.key.tenant] <= had[other] + 1e-9, "the least served goes next"
        had[one.key.tenant] += max(1 / 60, one.tokens / 50_000)  # type: ignore[assignment]
        left[one.key.tenant] -= 1

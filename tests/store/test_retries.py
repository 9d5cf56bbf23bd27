"""Many ended jobs tried again: those that match, each once, whoever else does the same."""

from typing import Any

import pytest
from lives import Lives, at, at_once, ending, new_job

from tramontane.database import Database
from tramontane.models import Callback, Failure, Job, JobFilter, State
from tramontane.store import RetryStore, asked_again

FAILED = JobFilter(state=State.FAILED)


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def retries(lives: Lives) -> RetryStore:
    return RetryStore(lives.pool)


async def failed(lives: Lives, code: str = "upstream_unavailable", **fields: Any) -> Job:
    attempt = await lives.running(**fields)
    failure = Failure(code=code, message="", retryable=True)
    [job] = await lives.jobs.end([ending(attempt, State.FAILED, failure=failure)])
    assert isinstance(job, Job)
    return job


async def test_each_job_is_retried_once_however_often_it_is_asked_for(lives: Lives, retries: RetryStore) -> None:
    jobs = [await failed(lives) for _ in range(3)]

    page = await retries.retry("default", FAILED, before=None, limit=2, now=at(10))
    rest = await retries.retry("default", FAILED, before=page[-1].retry_of, limit=2, now=at(10))
    again = await retries.retry("default", FAILED, before=None, limit=9, now=at(11))

    assert [job.retry_of for job in page + rest] == [job.key.id for job in reversed(jobs)]
    assert again == []


async def test_two_at_once_retry_each_job_once(lives: Lives, retries: RetryStore) -> None:
    for _ in range(6):
        await failed(lives)
    await at_once([retries.retry("default", FAILED, before=None, limit=9, now=at(10)) for _ in range(4)])
    assert await lives.pool.fetchval("SELECT count(*) FROM jobs WHERE retry_of IS NOT NULL") == 6
    assert await lives.pool.fetchval("SELECT count(DISTINCT retry_of) FROM jobs") == 6


@pytest.mark.parametrize(
    "wanted",
    [
        {"model": "mistral-large-latest"},
        {"error": "rate_limited"},
        {"metadata": (("batch", "7"),)},
        {"created_after": at(5)},
        {"kind": "embedding"},
        {"model": "\0"},
    ],
)
async def test_only_those_that_match_are_retried(lives: Lives, retries: RetryStore, wanted: dict[str, Any]) -> None:
    await failed(lives)
    await lives.running()
    completed = await lives.running()
    await lives.jobs.end([ending(completed)])
    await failed(lives, tenant="other", model="mistral-large-latest")
    expected = []
    if wanted.get("model") == "mistral-large-latest":
        expected = [await failed(lives, model="mistral-large-latest")]
    elif "error" in wanted:
        expected = [await failed(lives, code="rate_limited")]
    elif "metadata" in wanted:
        expected = [await failed(lives, metadata='{"batch":"7","more":"x"}')]
    elif "created_after" in wanted:
        expected = [await failed(lives, now=at(6))]
    found = await retries.retry("default", JobFilter(state=State.FAILED, **wanted), before=None, limit=9, now=at(10))
    assert [job.retry_of for job in found] == [job.key.id for job in expected]


async def test_a_retry_asks_the_same_and_tells_the_same_callback_but_has_no_deadline(
    lives: Lives, retries: RetryStore
) -> None:
    callback = Callback(url="https://a.example/hook", origin="https://a.example:443", events=("*.completed",))
    first = await failed(lives, callback=callback, priority=7, deadline=at(5), metadata='{"a":"b"}', max_tokens=9)

    [again] = await retries.retry("default", FAILED, before=None, limit=9, now=at(10))

    assert (again.priority, again.deadline, again.metadata, again.max_tokens) == (7, None, first.metadata, 9)
    assert await lives.jobs.callback(again.key) == callback
    assert (await lives.jobs.contents(again.key)).request == new_job().request


async def test_an_erased_job_is_not_retried(lives: Lives, retries: RetryStore) -> None:
    job = await failed(lives)
    await lives.jobs.erase(job.key, at(10))
    assert await retries.retry("default", FAILED, before=None, limit=9, now=at(11)) == []


async def test_a_retry_has_no_more_priority_than_its_tenant_may_ask_for_by_now(
    lives: Lives, retries: RetryStore
) -> None:
    alone, *_ = [await failed(lives, priority=priority) for priority in (9, 8, -3)]
    await lives.tenant(top_priority=2)

    [one] = await lives.submit(asked_again(alone, new_job().request, callback=None, now=at(10)))
    page = await retries.retry("default", FAILED, before=None, limit=9, now=at(10))

    assert (one.priority, [job.priority for job in page]) == (2, [-3, 2])

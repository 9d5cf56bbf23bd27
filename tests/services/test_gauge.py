"""The gauge: what Mistral says of its limits reaches the database, soon, together, and whatever goes wrong."""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from lives import Lives, in_the_background, new_job, until

from tramontane.database import Database
from tramontane.errors import ZeroAllowance
from tramontane.fairness import BucketKey
from tramontane.gauge import Gauge
from tramontane.ids import utc_now
from tramontane.limits import Bucket, Heard
from tramontane.store import BucketStore, TenantStore
from tramontane.tenants import Tenant

KEY = "*", "mistral-small-latest"


class Written(BucketStore):
    """The real store, that remembers what was written; writes may be made to fail."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.pool)
        self.heads: list[tuple[BucketKey, list[Heard]]] = []
        self.answers: list[int] = []
        self.failures = 0
        self.asked = 0

    async def learn(self, key: BucketKey, heard: Any, answers: Any, now: Any, window: Any, **more: Any) -> Bucket:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        bucket = await super().learn(key, heard, answers, now, window, **more)
        self.heads.append((key, list(heard)))
        self.answers += answers
        return bucket

    async def refuses(self, *args: Any) -> bool:
        self.asked += 1
        return await super().refuses(*args)


@pytest.fixture
def store(database: Database) -> Written:
    return Written(database)


@pytest.fixture
def lives(database: Database) -> Lives:
    return Lives(database)


def head(remaining: int = 59, status: int = 200, **fields: Any) -> Heard:
    return Heard(at=utc_now(), status=status, limit_requests=60, remaining_requests=remaining, **fields)


async def bucket_of(lives: Lives) -> Any:
    return await lives.pool.fetchrow("SELECT * FROM buckets")


async def test_the_first_answer_is_written_at_once_and_tells_admission(store: Written, lives: Lives) -> None:
    told = asyncio.Event()
    gauge = Gauge(store, told.set, window=3600)
    async with in_the_background(gauge.run()), asyncio.timeout(8):
        gauge.hear(KEY, head())
        await told.wait()
    assert (await bucket_of(lives))["limit_requests"] == 60


async def test_what_is_no_news_is_written_together_and_a_refusal_at_once(store: Written) -> None:
    told = asyncio.Queue[None]()
    gauge = Gauge(store, lambda: told.put_nowait(None), window=3600)
    async with in_the_background(gauge.run()), asyncio.timeout(8):
        gauge.hear(KEY, head())
        await told.get()
        for remaining in range(58, 8, -1):
            gauge.hear(KEY, head(remaining))
        await asyncio.sleep(0)
        gauge.hear(KEY, head(0, 429))
        await told.get()
    [_, (_, heads)] = store.heads
    assert [(one.remaining_requests, one.status) for one in heads] == [(9, 200), (0, 429)]


async def test_an_outage_loses_nothing_that_was_heard(store: Written, lives: Lives) -> None:
    gauge = Gauge(store, lambda: None, window=60)
    store.failures = 1
    [job] = await lives.submit()
    gauge.hear(KEY, head(status=429))
    gauge.after(job, '{"completion_tokens":30}')
    with pytest.raises(ConnectionError):
        await gauge.write()
    gauge.after(job, '{"completion_tokens":50}')
    await gauge.write()
    bucket = await bucket_of(lives)
    assert bucket["blocked_until"] is not None
    assert (store.answers, bucket["answer_tokens"]) == ([30, 50], 40)


async def test_a_failure_of_mistral_is_no_answer(store: Written) -> None:
    gauge = Gauge(store, lambda: None, window=60)
    gauge.hear(KEY, Heard(at=utc_now(), status=503))
    await gauge.write()
    assert store.heads == []


async def test_once_mistral_has_answered_nobody_asks_the_database_before_a_call(store: Written, lives: Lives) -> None:
    gauge = Gauge(store, lambda: None, window=60)
    [job] = await lives.submit(new_job())
    hear = await gauge.before(job)
    hear(head())
    for _ in range(5):
        await gauge.before(job)
    assert store.asked == 1


async def test_never_is_believed_for_a_window_by_every_worker(store: Written, lives: Lives) -> None:
    now = utc_now()
    [job] = await lives.submit(new_job())
    first, other = (Gauge(store, lambda: None, window=60, clock=lambda: now) for _ in range(2))
    (await first.before(job))(Heard(at=now, status=429, never=True))
    await first.write()
    for gauge in (first, other):
        with pytest.raises(ZeroAllowance):
            await gauge.before(job)
    now += timedelta(seconds=60)
    await first.before(job)
    with pytest.raises(ZeroAllowance):
        await other.before(job)


async def test_never_was_said_to_one_key_and_holds_for_no_other(store: Written, lives: Lives) -> None:
    await lives.tenant(id="acme", mistral_key=b"first")
    gauge = Gauge(store, lambda: None, window=60)
    [job] = await lives.submit(new_job(tenant="acme"))
    (await gauge.before(job, b"first"))(Heard(at=utc_now(), status=429, never=True))
    await gauge.write()
    with pytest.raises(ZeroAllowance):
        await gauge.before(job, b"first")

    replaced = dataclasses.replace(Tenant(id="acme"), mistral_key=b"second")
    await TenantStore(lives.pool).change("acme", lambda _: replaced, utc_now())

    hear = await gauge.before(job, b"second")
    hear(head())
    await gauge.write()
    assert (await bucket_of(lives))["limit_requests"] == 60


async def test_while_the_database_is_away_mistral_is_asked(lives: Lives) -> None:
    class Away(BucketStore):
        async def refuses(self, *_: Any) -> bool:
            raise ConnectionError

    [job] = await lives.submit(new_job())
    gauge = Gauge(Away(lives.pool), lambda: None, window=60)
    assert await gauge.before(job) is not None


async def test_a_gauge_goes_on_after_an_outage(store: Written, lives: Lives) -> None:
    store.failures = 1
    gauge = Gauge(store, lambda: None, window=60)
    async with in_the_background(gauge.run()):
        gauge.hear(KEY, head())

        async def written() -> bool:
            return bool(store.heads)

        await until(written)

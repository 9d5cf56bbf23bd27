"""What a job shows once retention has been at it."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio
from faces import Face, facing

from tramontane.ids import iso, utc_now
from tramontane.simulator import Simulator
from tramontane.store import RetentionStore


@pytest_asyncio.fixture
async def api(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url) as face:
        yield face


async def test_a_job_says_since_when_its_result_is_gone_and_shows_the_rest(api: Face) -> None:
    accepted = await api.submit()
    path = f"/api/jobs/{accepted['jobId']}"
    before = await api.ask("GET", path, headers={"Prefer": "wait=10"})
    assert "resultExpiredAt" not in before.json
    now = utc_now()
    store = RetentionStore(api.app.database.pool)
    assert await store.expire_contents(ended_before=now + timedelta(seconds=1), now=now) == 1
    after = await api.ask("GET", path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status == 200, "what was known of it is known no longer"
    assert (after.json["result"], after.json["resultExpiredAt"]) == (None, iso(now))
    for field in ("status", "usage", "attempts", "completedAt"):
        assert after.json[field] == before.json[field]
    events = await api.ask("GET", f"{path}/events")
    assert (events.status, events.json["code"]) == (410, "stream_expired")
    retry = await api.ask("POST", f"{path}/retry")
    assert (retry.status, retry.json["code"]) == (410, "result_expired")
    assert (await api.ask("DELETE", path)).status == 204


async def test_a_key_is_free_again_once_its_job_is_forgotten(api: Face) -> None:
    first = await api.submit(key="one")
    await api.job(first["jobId"], wait=10)
    later = utc_now() + timedelta(seconds=1)
    store = RetentionStore(api.app.database.pool)
    await store.expire_contents(ended_before=later, now=later)
    assert (await api.submit(key="one"))["jobId"] == first["jobId"]
    assert await store.forget_jobs(ended_before=later) == 1
    assert (await api.ask("GET", f"/api/jobs/{first['jobId']}")).status == 404
    assert (await api.submit(key="one"))["jobId"] != first["jobId"]

"""The outbox: what is told of a job is written with what happened to it, once, for those who want it, or not at all."""

import msgspec
import pytest
from lives import T0, UNAVAILABLE, at, ending, new_job, requeue
from told import FINE, ILL, ORIGIN, Told, callback, judged

from tramontane import queue
from tramontane.database import Database
from tramontane.errors import AttemptLost
from tramontane.ids import show_id
from tramontane.models import JobKey, NewJob, State
from tramontane.store import JobStore, jobs
from tramontane.store.messages import origin_id
from tramontane.webhooks.messages import EVENTS, FILTERS, LARGEST_BODY
from tramontane.webhooks.models import Exchange

COMPLETION = b'{"id":"cmpl-1",  "n": 1.0e+3, "h\\u00e9":"\\ud83d\\ude00","usage":{"prompt_tokens":1}}'


@pytest.fixture
async def told(database: Database) -> Told:
    told = Told(database)
    await told.senders()
    return told


def result_of(job: NewJob, content: str = "Hi") -> bytes:
    """A result as runners make it."""
    return (
        b'{"jobId":"%b","requestId":"%b","content":%b,"usage":{"prompt_tokens":12,"unheard_of":[1]},'
        b'"completedAt":"2026-11-22T06:46:09.000Z","finishReason":"stop","completion":%b}'
        % (
            show_id("job", job.key.id).encode(),
            job.request_id.encode(),
            msgspec.json.encode(content),
            COMPLETION,
        )
    )


# Together


async def test_a_start_and_a_completion_are_told_with_the_seq_of_their_events(told: Told) -> None:
    endpoint = await told.endpoint()
    attempt = await told.running()
    await told.jobs.end([ending(attempt)])
    job = await told.jobs.get(attempt.job.key)
    started, completed = await told.messages()
    assert [(one["event"], one["seq"], one["final"]) for one in (started, completed)] == [
        ("chat.started", 1, False),
        ("chat.completed", job.head, True),
    ]
    assert (started["at"], completed["at"]) == (T0, job.completed_at)
    rows = await told.rows()
    assert [(row["message_id"], row["endpoint_id"], row["state"]) for row in rows] == [
        (started["id"], endpoint, "waiting"),
        (completed["id"], endpoint, "waiting"),
    ]
    assert [(row["due_at"], row["origin"], row["attempts"], row["fence"]) for row in rows] == [
        (T0, "event", 0, 0),
        (job.completed_at, "event", 0, 0),
    ]


async def test_an_ending_that_is_rolled_back_tells_nothing(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await told.endpoint("*.completed")
    attempt = await told.running(callback=callback())

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(queue, "remove", fails)  # the last write of the transaction
        with pytest.raises(ZeroDivisionError):
            await told.jobs.end([ending(attempt)])
    assert (await told.jobs.get(attempt.job.key)).state == State.RUNNING
    assert await told.told() == ["chat.started"]
    assert await told.rows() == []
    await told.jobs.end([ending(attempt)])
    assert await told.told() == ["chat.started", "chat.completed"]
    assert len(await told.rows()) == 2


async def test_a_job_does_not_end_when_its_message_cannot_be_written(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    await told.endpoint("*.completed")
    attempt = await told.running()

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "publish", fails)
        with pytest.raises(ZeroDivisionError):
            await told.jobs.end([ending(attempt)])
        with pytest.raises(ZeroDivisionError):
            await told.jobs.cancel(attempt.job.key, at(1))
    assert (await told.jobs.get(attempt.job.key)).state == State.RUNNING
    assert await told.types(attempt.job.key) == ["start"]


async def test_what_is_refused_is_not_told(told: Told) -> None:
    attempt = await told.running()
    await told.endpoint()
    await told.take_over(attempt)
    [outcome] = await told.jobs.end([ending(attempt)])
    assert isinstance(outcome, AttemptLost)
    assert await told.messages() == await told.rows() == []


async def test_of_endings_written_together_only_those_that_count_are_told(told: Told) -> None:
    good, lost, bad = [await told.running() for _ in range(3)]
    await told.endpoint()
    await told.take_over(lost)
    await told.jobs.end([ending(good), ending(lost), ending(bad, State.FAILED)])
    assert await told.told(good.job.key) == ["chat.completed"]
    assert await told.told(lost.job.key) == []
    assert await told.told(bad.job.key) == ["chat.failed"]


async def test_a_repeat_after_an_unknown_outcome_tells_nothing_twice(told: Told) -> None:
    await told.endpoint()
    attempt = await told.running(callback=callback())
    entry = queue.Entry(attempt.entry_id, attempt.job.key)
    end = ending(attempt)
    for _ in range(2):
        await told.jobs.end([end])
    await told.jobs.start([entry], worker_id=told.worker_id, now=T0)
    await told.jobs.cancel(attempt.job.key, at(20))
    assert await told.told() == ["chat.started", "chat.completed"]
    assert len(await told.rows()) == 3


async def test_a_submit_that_is_repeated_keeps_its_one_callback(told: Told) -> None:
    job = new_job(callback=callback())
    await told.jobs.submit([job], T0)
    await told.jobs.submit([job], T0)
    assert await told.jobs.callback(job.key) == job.callback
    assert await told.pool.fetchval("SELECT count(*) FROM callbacks") == 1


async def test_a_job_under_a_key_that_is_taken_brings_no_callback(told: Told) -> None:
    first = new_job(idempotency_key="k", idempotency_hash=b"h", callback=callback())
    second = new_job(idempotency_key="k", idempotency_hash=b"h", callback=callback(path="/other"))
    await told.jobs.submit([first], T0)
    await told.jobs.submit([second], T0)
    [row] = await told.pool.fetch("SELECT * FROM callbacks")
    assert (row["job_id"], row["url"]) == (first.key.id, f"{ORIGIN}/told")


# Every way in which a job changes


async def test_a_failure_is_told_whoever_finds_it(told: Told) -> None:
    one, lost = await told.running(), await told.running(attempts=1)
    await told.endpoint()
    await told.jobs.end([ending(one, State.FAILED)])
    await told.take_over(lost, now=at(20))
    assert await told.told(one.job.key) == await told.told(lost.job.key) == ["chat.failed"]
    by_worker, by_take_over = [msgspec.json.decode(row["body"])["data"] for row in await told.messages()]
    assert (by_worker["status"], by_worker["error"]["code"]) == ("failed", "upstream_unavailable")
    assert (by_take_over["status"], by_take_over["error"]["code"]) == ("failed", "interrupted")


async def test_a_failure_that_the_sweep_finds_is_told(told: Told) -> None:
    attempt = await told.running(attempts=1)
    await told.endpoint()
    async with told.pool.acquire() as connection:
        await queue.remove(connection, [attempt.entry_id])
    await told.jobs.sweep(at(60), older_than=at(1) - T0)
    assert await told.told() == ["chat.failed"]


async def test_a_cancel_is_told_of_queued_and_of_running_jobs(told: Told) -> None:
    [queued] = await told.submit(new_job(run_at=at(60)))
    running = (await told.running()).job
    await told.endpoint()
    for job in (queued, running):
        assert (await told.jobs.cancel(job.key, at(2))).state == State.CANCELLED
        assert await told.told(job.key) == ["chat.cancelled"]
    first, second = await told.messages()
    assert (first["seq"], second["seq"]) == (1, 2)
    data = msgspec.json.decode(first["body"])["data"]
    assert data["error"] == {"code": "cancelled", "message": "the job was cancelled", "retryable": False}


async def test_a_retry_and_a_hand_over_are_told_to_nobody(told: Told) -> None:
    await told.endpoint()
    attempt = await told.running()
    await told.jobs.requeue(requeue(attempt, T0), T0)
    await told.limits.admit(T0)
    second = await told.start(attempt.job.key)
    await told.jobs.requeue(requeue(second, T0, None), T0)
    assert await told.told() == ["chat.started"]


# To whom


def wants(wanted: str, event: str) -> bool:
    """What the reference says of filters, word by word."""
    kind, verb = event.split(".")
    match wanted.split("."):
        case ["*"]:
            return True
        case ["*", one]:
            return one == verb
        case [one, "*"]:
            return one == kind
    return wanted == event


async def test_each_form_of_filter_lets_through_its_own_events_and_no_others(told: Told) -> None:
    filters = {await told.endpoint(wanted): wanted for wanted in sorted(FILTERS)}
    for event in EVENTS:
        message = await told.publish(event)
        got = {filters[row["endpoint_id"]] for row in await told.rows("message_id = $1", message.id)}
        assert got == {wanted for wanted in FILTERS if wants(wanted, event)}, event


async def test_an_endpoint_with_several_filters_is_told_once(told: Told) -> None:
    await told.endpoint("*", "chat.*", "*.completed", "chat.completed")
    await told.publish("chat.completed")
    assert len(await told.rows()) == 1


async def test_a_callback_and_an_endpoint_are_both_told(told: Told) -> None:
    endpoint = await told.endpoint("*.completed")
    attempt = await told.running(callback=callback())
    await told.jobs.end([ending(attempt)])
    rows = await told.rows()
    assert {(row["endpoint_id"], row["callback"]) for row in rows} == {
        (endpoint, False),
        (origin_id("default", ORIGIN), True),
    }
    assert len({row["message_id"] for row in rows}) == 1


async def test_a_callback_alone_is_told_what_it_asked_for(told: Told) -> None:
    other = await told.running()
    attempt = await told.running(callback=callback(events=("*.failed",)))
    third = await told.running(callback=callback(events=("*.started", "*.completed"), format="thin"))
    await told.jobs.end([ending(one) for one in (other, attempt, third)])
    assert [(row["event"], row["job_id"], row["format"]) for row in await told.rows()] == [
        ("chat.started", third.job.key.id, "thin"),
        ("chat.completed", third.job.key.id, "thin"),
    ]


async def test_an_origin_is_told_nothing_but_callbacks(told: Told) -> None:
    attempt = await told.running(callback=callback(events=("*.failed",)))
    await told.pool.execute("UPDATE endpoints SET events = '{*}'")
    await told.jobs.end([ending(attempt)])
    assert await told.rows() == []


async def test_where_nobody_listens_nothing_is_written(told: Told) -> None:
    await told.endpoint(tenant="other")
    attempt = await told.running()
    await told.jobs.end([ending(attempt)])
    assert await told.messages() == await told.rows() == []


async def test_a_paused_endpoint_is_told_later_and_a_disabled_one_never(told: Told) -> None:
    paused, _ = await told.endpoint(state="paused"), await told.endpoint(state="disabled")
    await told.publish()
    assert [row["endpoint_id"] for row in await told.rows()] == [paused]


async def test_no_tenant_is_told_of_another_ones_jobs(told: Told) -> None:
    mine, theirs = await told.endpoint(), await told.endpoint(tenant="other")
    attempt = await told.running(tenant="other", callback=callback())
    await told.jobs.end([ending(attempt)])
    rows = await told.rows()
    assert {(row["tenant_id"], row["endpoint_id"]) for row in rows} == {
        ("other", theirs),
        ("other", origin_id("other", ORIGIN)),
    }
    assert mine not in {row["endpoint_id"] for row in rows}


async def test_two_callbacks_to_one_origin_share_its_health(told: Told) -> None:
    await told.submit(
        new_job(callback=callback(path="/a")), new_job(callback=callback(path="/b")), new_job(callback=callback())
    )
    assert [row["id"] for row in await told.pool.fetch("SELECT id FROM endpoints")] == [origin_id("default", ORIGIN)]


# What


async def test_the_data_of_a_completed_chat_is_the_seeds_and_more(told: Told) -> None:
    job = new_job(request_id="req-9", metadata='{"user":"7"}')
    await told.submit(job)
    attempt = await told.start(job.key)
    await told.endpoint()
    await told.jobs.end([ending(attempt, result=result_of(job))])
    [message] = await told.messages()
    body = msgspec.json.decode(message["body"])
    assert list(body) == ["id", "event", "type", "timestamp", "data"]
    assert body["id"] == show_id("msg", message["id"])
    assert (body["event"], body["type"]) == ("chat.completed", "chat.completed")
    assert body["timestamp"] == "2026-11-22T06:46:09.000Z"
    data = body["data"]
    assert {name: data[name] for name in data if name not in ("usage", "completion")} == {
        "jobId": show_id("job", job.key.id),
        "requestId": "req-9",
        "kind": "chat",
        "status": "completed",
        "content": "Hi",
        "completedAt": "2026-11-22T06:46:09.000Z",
        "finishReason": "stop",
        "seq": 2,
        "metadata": {"user": "7"},
    }
    assert b'"completion":' + COMPLETION in message["body"]
    assert b'"usage":{"prompt_tokens":12,"unheard_of":[1]}' in message["body"]


async def test_the_data_of_a_start_and_of_a_failure(told: Told) -> None:
    await told.endpoint()
    attempt = await told.running()
    await told.jobs.end([ending(attempt, State.FAILED)])
    started, failed = [msgspec.json.decode(row["body"])["data"] for row in await told.messages()]
    shared = {"jobId": show_id("job", attempt.job.key.id), "requestId": "req-1", "kind": "chat", "metadata": None}
    assert started == shared | {
        "status": "running",
        "model": "mistral-small-latest",
        "startedAt": "2026-11-22T06:46:00.000Z",
        "seq": 1,
    }
    assert failed == shared | {
        "status": "failed",
        "completedAt": "2026-11-22T06:46:09.000Z",
        "seq": 2,
        "error": {"code": UNAVAILABLE.code, "message": UNAVAILABLE.message, "retryable": True},
    }


async def test_a_thin_body_names_the_result_and_does_not_bring_it(database: Database) -> None:
    told = Told(database)
    told.jobs = JobStore(database.pool, public_url="https://api.example")
    await told.senders()
    await told.endpoint("*.completed", format="thin")
    job = new_job()
    await told.submit(job)
    await told.jobs.end([ending(await told.start(job.key), result=result_of(job))])
    await told.admit(at(10))
    sendable = await told.load_one(at(10))
    assert sendable.body is not None
    data = msgspec.json.decode(sendable.body)["data"]
    assert data == {
        "jobId": show_id("job", job.key.id),
        "requestId": "req-1",
        "kind": "chat",
        "status": "completed",
        "completedAt": "2026-11-22T06:46:09.000Z",
        "seq": 2,
        "metadata": None,
        "resultUrl": f"https://api.example/api/jobs/{show_id('job', job.key.id)}",
    }


async def test_a_body_over_the_limit_gives_way_to_the_thin_one(told: Told) -> None:
    await told.endpoint("*.completed")
    for content in ("x" * (LARGEST_BODY - 2000), "x" * LARGEST_BODY):
        job = new_job()
        await told.submit(job)
        await told.jobs.end([ending(await told.start(job.key), result=result_of(job, content))])
    assert [row["format"] for row in await told.rows()] == ["default", "thin"]
    *_, message = await told.messages()
    assert message["body"] is None
    await told.admit(at(10))
    full, thin = sorted((one.body or b"" for one in await told.load(at(10))), key=len, reverse=True)
    assert LARGEST_BODY - 2000 < len(full) <= LARGEST_BODY
    assert b"resultUrl" in thin
    assert b"xxx" not in thin


async def test_the_bytes_are_the_same_on_every_attempt_and_replay(told: Told) -> None:
    await told.endpoint("*.completed")
    job = new_job()
    await told.submit(job)
    await told.jobs.end([ending(await told.start(job.key), result=result_of(job, "Sète 😀"))])
    [_, message] = await told.messages()
    [row] = await told.rows()
    bodies = []
    for seconds in (10, 100, 1000):
        await told.admit(at(seconds))
        sendable = await told.load_one(at(seconds))
        bodies.append((sendable.message_id, sendable.body))
        await told.record(judged(sendable, ILL if seconds < 1000 else FINE, at(seconds)), now=at(seconds))
    await told.copy(row["id"], at=at(2000))
    await told.admit(at(2000))
    replay = await told.load_one(at(2000))
    bodies.append((replay.message_id, replay.body))
    assert (await told.row(row["id"]))["state"] == "succeeded"
    assert set(bodies) == {(message["id"], message["body"])}


async def test_the_body_of_a_message_is_stored_once_however_many_are_told(told: Told) -> None:
    for _ in range(5):
        await told.endpoint()
    await told.publish()
    assert len(await told.rows()) == 5
    assert await told.pool.fetchval("SELECT count(*) FROM message_bodies") == 1


# Erased


async def test_an_erased_jobs_bodies_go_and_what_waits_is_cancelled(told: Told) -> None:
    await told.senders()
    endpoint = await told.endpoint("*.completed")
    await told.set_endpoint(endpoint, allowance=1)
    attempt = await told.running(callback=callback())
    await told.jobs.end([ending(attempt)])
    other = await told.running()
    await told.jobs.end([ending(other)])
    await told.set_endpoint(origin_id("default", ORIGIN), state="paused")
    [under_way] = await told.admit(at(10))
    await told.jobs.erase(attempt.job.key, at(11))
    rows = {(row["job_id"], row["callback"]): row for row in await told.rows()}
    assert rows[attempt.job.key.id, True]["state"] == "cancelled"
    assert rows[other.job.key.id, False]["state"] == "waiting"
    bodies = {(row["job_id"], row["event"]): row["body"] for row in await told.messages()}
    assert bodies[attempt.job.key.id, "chat.started"] is bodies[attempt.job.key.id, "chat.completed"] is None
    assert bodies[other.job.key.id, "chat.completed"] is not None
    assert await told.jobs.callback(attempt.job.key) is None
    # What had been let through finds nothing to send.
    assert rows[attempt.job.key.id, False]["id"] == under_way
    assert (await told.load_one(at(12))).body is None


async def test_what_receivers_answered_goes_with_an_erased_job(told: Told) -> None:
    await told.endpoint("*.completed")
    mine, other = await told.running(), await told.running()
    await told.jobs.end([ending(mine), ending(other)])
    quoting = Exchange(status=200, headers=(("x-echo", "Hi"),), body=b"You said: Hi")
    assert len(await told.send(at(10), quoting)) == 2
    await told.jobs.erase(mine.job.key, at(11))

    answers = {
        row["job_id"]: [(one["response_headers"], one["response_body"]) for one in await told.attempts(row["id"])]
        for row in await told.rows()
    }
    assert answers[mine.job.key.id] == [(None, None)]
    [(headers, body)] = answers[other.job.key.id]
    assert "x-echo" in headers
    assert body == b"You said: Hi"


async def test_an_erased_job_of_another_tenant_takes_nothing_with_it(told: Told) -> None:
    await told.endpoint()
    await told.endpoint(tenant="other")
    mine = await told.running()
    theirs = await told.running(
        tenant="other", key=JobKey(tenant="other", id=mine.job.key.id)
    )  # ids of two tenants may meet
    for attempt in (mine, theirs):
        await told.jobs.end([ending(attempt)])
    await told.jobs.erase(theirs.job.key, at(20))
    assert {(row["tenant_id"], row["body"] is None) for row in await told.messages()} == {
        ("default", False),
        ("other", True),
    }
    assert {(row["tenant_id"], row["state"]) for row in await told.rows()} == {
        ("default", "waiting"),
        ("other", "cancelled"),
    }

"""Deliveries on the store: three days in a moment, who may go next, and whose result is believed."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from lives import T0, at, at_once, ending
from told import FINE, GONE, ILL, ORIGIN, REFUSED, SILENT, Told, callback, judged

from tramontane import queue
from tramontane.database import Database
from tramontane.ids import new_id, show_id
from tramontane.models import WorkerInfo
from tramontane.store.deliveries import SQL
from tramontane.store.messages import origin_id
from tramontane.webhooks.health import LEAST_ATTEMPTS, SILENT_IN_A_ROW
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.models import DeliveryState, ErrorClass, Exchange, Tried
from tramontane.webhooks.schedule import ATTEMPTS, DELAYS, SHORT_ATTEMPTS

DAY = 86400.0
BLOCKED = Exchange(error_class=ErrorClass.BLOCKED_SSRF, detail="this machine itself")


@pytest.fixture
async def told(database: Database) -> Told:
    told = Told(database)
    await told.senders()
    return told


async def next_at(told: Told, now: datetime) -> datetime | None:
    return (await told.deliveries.admit(now)).next_at


async def run_schedule(told: Told, exchange: Exchange, *, random: float = 0.0, since: float = 0.0) -> list[float]:
    """Jump from due time to due time, as admission tells them, until nothing waits; the seconds of the attempts."""
    now, sent = at(since), list[float]()
    for _ in range(100):
        while ids := await told.send(now, exchange, random=random):
            sent += [(now - T0).total_seconds()] * len(ids)
        due = await next_at(told, now)
        if due is None:
            return sent
        assert due > now
        now = due
    raise AssertionError("it never ends")


def sums(count: int, *, factor: float = 1.0) -> list[float]:
    return [round(sum(DELAYS[: number + 1]) * factor, 3) for number in range(count)]


# Three days


async def test_a_dead_receiver_is_tried_13_times_over_three_days(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    sent = await run_schedule(told, ILL)
    assert sent == sums(ATTEMPTS)
    assert timedelta(seconds=sent[-1]) == timedelta(hours=71, minutes=42, seconds=35)
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["tries"], row["last_status"]) == ("failed", 13, 13, 500)
    assert row["ended_at"] == at(sent[-1])
    attempts = await told.attempts(row["id"])
    assert [one["number"] for one in attempts] == list(range(1, 14))
    assert [one["started_at"] for one in attempts] == [at(seconds) for seconds in sent]
    assert {(one["status"], one["counted"], one["worker_id"]) for one in attempts} == {(500, True, told.worker_id)}
    assert await told.entries() == []


async def test_jitter_only_lengthens_the_three_days(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    sent = await run_schedule(told, ILL, random=1.0)
    assert [round(seconds, 3) for seconds in sent] == sums(ATTEMPTS, factor=1.3)


async def test_a_receiver_that_never_answers_is_tried_as_often(told: Told) -> None:
    """Its breaker opens and closes meanwhile, and burns no attempt."""
    endpoint = await told.endpoint()
    await told.publish()
    sent = await run_schedule(told, SILENT)
    assert sent == sums(ATTEMPTS)
    assert (await told.health(endpoint)).trips > 0
    assert (await told.rows())[0]["attempts"] == ATTEMPTS


async def test_a_receiver_that_comes_back_gets_what_waited(told: Told) -> None:
    await told.endpoint()
    message = await told.publish()
    for seconds in sums(8)[:-1]:
        assert await told.send(at(seconds), ILL)
    assert await told.send(at(sums(8)[-1]), FINE)
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["last_status"], row["message_id"]) == ("succeeded", 8, 200, message.id)
    assert await next_at(told, at(3 * DAY)) is None


async def test_what_a_receiver_refuses_is_given_up_after_5_attempts(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    assert await run_schedule(told, REFUSED) == sums(SHORT_ATTEMPTS)
    [row] = await told.rows()
    assert (row["state"], row["attempts"]) == ("failed", 5)
    assert row["hint"]


async def test_retry_after_is_obeyed(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    busy = Exchange(status=429, error_class=ErrorClass.HTTP_4XX, headers=(("retry-after", "600"),))
    await told.send(T0, busy)
    assert (await told.rows())[0]["due_at"] == at(600)
    assert await told.send(at(599.9)) == []
    assert len(await told.send(at(600))) == 1


async def test_an_address_that_the_policy_forbids_costs_no_attempt(told: Told) -> None:
    endpoint = await told.endpoint()
    await told.publish()
    for round_ in range(20):
        now = at(round_ * 600)
        assert len(await told.send(now, BLOCKED)) == 1
        assert await next_at(told, now) == now + timedelta(seconds=600)
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["tries"]) == ("waiting", 0, 20)
    assert {one["counted"] for one in await told.attempts(row["id"])} == {False}
    assert (await told.endpoint_row(endpoint))["state"] == "active"


# An endpoint that is ill, and one that is gone


async def test_410_disables_the_endpoint_and_cancels_what_waits(told: Told) -> None:
    endpoint, other = await told.endpoint("chat.*"), await told.endpoint("chat.failed")
    for _ in range(7):
        await told.publish("chat.completed")
    await told.publish("chat.failed")
    await told.set_endpoint(endpoint, allowance=1)
    await told.set_endpoint(other, state="paused")
    await told.send(T0, GONE)
    row = await told.endpoint_row(endpoint)
    assert (row["state"], row["disabled_reason"], row["allowance"]) == ("disabled", "gone", 0)
    assert await told.admit(at(1)) == []
    assert await told.deliveries.tidy(at(2), retention=timedelta(days=30)) == 7
    rows = await told.rows("endpoint_id = $1", endpoint)
    assert [one["state"] for one in rows] == ["failed"] + ["cancelled"] * 7
    assert {one["last_error"] for one in rows} == {"gone"}
    assert [one["state"] for one in await told.rows("endpoint_id = $1", other)] == ["waiting"]
    assert await told.deliveries.tidy(at(2), retention=timedelta(days=30)) == 0


async def test_after_three_days_of_failures_the_endpoint_is_disabled_and_what_waits_is_kept(told: Told) -> None:
    endpoint, witness = await told.endpoint("chat.*"), await told.endpoint("endpoint.*")
    for quarter in range(4 * 4):
        await told.publish(at=at(quarter * DAY / 4))
        await told.send(at(quarter * DAY / 4), REFUSED)
    row = await told.endpoint_row(endpoint)
    assert (row["state"], row["disabled_reason"]) == ("disabled", "failing")
    assert "waiting" in await told.states()
    assert await told.deliveries.tidy(at(4 * DAY), retention=timedelta(days=30)) == 0
    assert await told.rows("endpoint_id = $1 AND state = 'cancelled'", endpoint) == []
    notices = await told.rows("endpoint_id = $1", witness)
    assert [one["event"] for one in notices] == ["endpoint.degraded", "endpoint.degraded", "endpoint.disabled"]
    assert [(one["created_at"] - T0) / timedelta(days=1) for one in notices] == [1, 2, 3]


async def test_an_endpoint_is_never_told_of_itself(told: Told) -> None:
    endpoint, other = await told.endpoint("chat.*", "endpoint.*"), await told.endpoint("endpoint.*")
    foreign = await told.endpoint(tenant="other")
    await told.publish()
    await told.send(T0, GONE)
    [row] = await told.rows("event = 'endpoint.disabled'")
    assert row["endpoint_id"] == other
    message = next(one for one in await told.messages() if one["event"] == "endpoint.disabled")
    assert message["about"] == endpoint
    data = msgspec.json.decode(message["body"])["data"]
    assert data == {
        "endpointId": show_id("ep", endpoint),
        "url": "https://receiver.example/told",
        "reason": "gone",
    }
    assert await told.rows("endpoint_id = $1", foreign) == []


async def test_a_recovery_is_told_to_the_others(told: Told) -> None:
    await told.endpoint("chat.*")
    await told.endpoint("endpoint.recovered")
    for quarter in range(5):
        await told.publish(at=at(quarter * DAY / 4))
        await told.send(at(quarter * DAY / 4), ILL)
    assert await told.rows("event = 'endpoint.recovered'") == []
    await told.send(at(1.25 * DAY), FINE)
    assert len(await told.rows("event = 'endpoint.recovered'")) == 1


async def test_an_origin_is_never_disabled(told: Told) -> None:
    witness = await told.endpoint("endpoint.*")
    origin = origin_id("default", ORIGIN)
    for quarter in range(4 * 4):
        now = at(quarter * DAY / 4)
        attempt = await told.running(now=now, callback=callback())
        await told.jobs.end([ending(attempt, at=now)])
        assert await told.send(now, GONE if quarter % 4 == 1 else ILL)
    row = await told.endpoint_row(origin)
    assert (row["kind"], row["state"]) == ("origin", "active")
    assert await told.rows("endpoint_id = $1", witness) == []


# Admission: the endpoint


async def make_ill(told: Told, endpoint: UUID, exchange: Exchange) -> datetime:
    """Answer so until the breaker opens; when it lets a probe through."""
    for second in range(1, 20):
        if until := (await told.endpoint_row(endpoint))["blocked_until"]:
            assert isinstance(until, datetime)
            return until
        assert await told.send(at(second), exchange)
    raise AssertionError("it stays well")


async def test_no_more_are_under_way_than_the_window_is_wide(told: Told) -> None:
    endpoint = await told.endpoint()
    for _ in range(10):
        await told.publish()
    assert len(await told.admit()) == 4
    assert await told.admit() == []
    first, *_ = await told.load()
    await told.record(judged(first, FINE, at(1)), now=at(1))
    assert (await told.endpoint_row(endpoint))["allowance"] == 4  # it grows by one a round
    assert len(await told.admit(at(1))) == 1


async def test_a_window_grows_with_success(told: Told) -> None:
    endpoint = await told.endpoint()
    for _ in range(60):
        await told.publish()
    widths = [len(await told.send(at(second))) for second in range(6)]
    assert widths == [4, 4, 5, 6, 7, 8]
    assert (await told.health(endpoint)).window > 8


async def test_while_the_breaker_is_open_nothing_goes_and_no_attempt_is_burnt(told: Told) -> None:
    endpoint = await told.endpoint()
    for number in range(20):
        await told.publish(at=at(number / 100))
    until = await make_ill(told, endpoint, SILENT)
    burnt = sum(row["attempts"] for row in await told.rows())
    assert burnt >= SILENT_IN_A_ROW
    assert await told.admit(until - timedelta(milliseconds=1)) == []
    assert await next_at(told, until - timedelta(seconds=5)) == until
    assert sum(row["attempts"] for row in await told.rows()) == burnt
    assert await told.entries() == []


async def test_an_open_breaker_lets_one_probe_through_and_its_success_starts_slowly(told: Told) -> None:
    endpoint = await told.endpoint()
    for _ in range(30):
        await told.publish()
    until = await make_ill(told, endpoint, ILL)
    [probe] = await told.admit(until)
    assert await told.admit(until + timedelta(seconds=1)) == []
    [sendable] = await told.load(until)
    assert (sendable.id, sendable.welcome) == (probe, True)
    await told.record(judged(sendable, FINE, until), now=until)
    assert (await told.endpoint_row(endpoint))["blocked_until"] is None
    later = until + timedelta(seconds=300)
    assert [len(await told.send(later + timedelta(seconds=one))) for one in range(4)] == [1, 2, 4, 4]


async def test_a_probe_that_fails_keeps_the_breaker_open_twice_as_long(told: Told) -> None:
    endpoint = await told.endpoint()
    for _ in range(30):
        await told.publish()
    await make_ill(told, endpoint, SILENT)
    pauses = []
    for _ in range(8):
        until = (await told.endpoint_row(endpoint))["blocked_until"]
        assert len(await told.send(until, SILENT)) == 1
        pauses.append(((await told.endpoint_row(endpoint))["blocked_until"] - until).total_seconds())
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]


async def test_a_paused_endpoint_waits_and_goes_on(told: Told) -> None:
    endpoint = await told.endpoint()
    await told.publish()
    await told.set_endpoint(endpoint, state="paused")
    assert await told.admit() == []
    assert await next_at(told, T0) is None
    await told.set_endpoint(endpoint, state="active")
    assert len(await told.send(at(60))) == 1
    assert await told.states() == ["succeeded"]


async def test_what_was_let_through_before_a_pause_is_not_welcome(told: Told) -> None:
    endpoint = await told.endpoint()
    await told.publish()
    await told.admit()
    for columns, welcome in (
        ({"state": "paused"}, False),
        ({"state": "disabled"}, False),
        ({"state": "active", "blocked_until": at(60)}, False),
        ({"blocked_until": at(1)}, True),
    ):
        await told.set_endpoint(endpoint, **columns)
        assert (await told.load_one(at(1))).welcome is welcome
    back = Tried(sendable=await told.load_one(), state=DeliveryState.WAITING)
    assert await told.record(back) == [True]
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["tries"], row["due_at"]) == ("waiting", 0, 0, T0)
    assert await told.entries() == []
    assert await told.attempts(row["id"]) == []


async def test_what_waits_for_a_terminal_is_not_sent(told: Told) -> None:
    await told.endpoint(kind="listener", expires_at=at(60))
    await told.publish()
    assert await told.admit() == []
    assert await told.deliveries.tidy(at(61), retention=timedelta(days=30)) == 1
    assert await told.states() == ["cancelled"]
    assert await told.pool.fetchval("SELECT count(*) FROM endpoints") == 0


# Admission: the fleet


async def places(told: Told, count: int) -> None:
    await told.pool.execute("UPDATE workers SET deliveries = $1", count)


async def test_no_more_are_under_way_than_the_fleet_has_places(told: Told) -> None:
    await places(told, 5)
    for _ in range(4):
        await told.endpoint()
    for _ in range(4):
        await told.publish()
    assert len(await told.admit()) == 5
    assert await told.admit() == []
    first, *_ = await told.load()
    await told.record(judged(first, FINE, T0))
    assert len(await told.admit()) == 1


async def test_places_of_workers_that_stopped_or_died_do_not_count(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    for worker_id in (new_id(), new_id()):
        worker = WorkerInfo(id=worker_id, concurrency=1, heartbeat_seconds=1e7, host="h", pid=1, deliveries=7)
        await told.limits.register(worker, rate=0, now=T0)
    await told.pool.execute("UPDATE workers SET stopped_at = $1 WHERE deliveries = 7", T0)
    await told.limits.stop(told.worker_id, T0)
    assert await told.admit() == []
    await told.pool.execute("UPDATE workers SET stopped_at = NULL, seen_at = $1", T0 - timedelta(seconds=3e7))
    assert await told.admit() == []
    await told.limits.beat(told.worker_id, T0)
    assert len(await told.admit()) == 1


async def test_tenants_take_turns(told: Told) -> None:
    await places(told, 6)
    for tenant, count in (("a", 40), ("b", 40), ("c", 2)):
        for _ in range(count):
            await told.endpoint(tenant=tenant)
        await told.publish(tenant=tenant, at=at({"a": 0, "b": 1, "c": 2}[tenant]))
    shares = []
    for second in (10, 11, 12):
        await told.admit(at(second))
        batch = await told.load(at(second))
        shares.append({tenant: sum(one.tenant == tenant for one in batch) for tenant in "abc"})
        await told.record(*(judged(one, FINE, at(second)) for one in batch), now=at(second))
    assert shares == [{"a": 2, "b": 2, "c": 2}, {"a": 3, "b": 3, "c": 0}, {"a": 3, "b": 3, "c": 0}]


async def test_the_longest_due_goes_first(told: Told) -> None:
    await places(told, 1)
    await told.endpoint()
    messages = [await told.publish(at=at(-second)) for second in range(4)]
    order = []
    for _ in messages:
        await told.admit()
        sendable = await told.load_one()
        order.append(sendable.message_id)
        await told.record(judged(sendable, FINE, T0))
    assert order == [message.id for message in reversed(messages)]


async def test_two_rounds_at_once_let_nothing_through_twice(told: Told) -> None:
    for _ in range(10):
        await told.endpoint()
    await told.publish()
    rounds = await at_once([told.deliveries.admit(T0) for _ in range(8)])
    admitted = [key.id for one in rounds for key in one.admitted]
    assert len(admitted) == len(set(admitted)) == 10
    assert {row["fence"] for row in await told.rows()} == {1}
    assert len(await told.entries()) == 10


async def test_rounds_at_once_do_not_fill_a_window_twice(told: Told) -> None:
    await told.endpoint()
    for _ in range(40):
        await told.publish()
    await at_once([told.deliveries.admit(T0) for _ in range(8)])
    assert (await told.states()).count("dispatched") == 4


async def test_a_round_that_is_rolled_back_lets_nothing_through(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await told.endpoint()
    await told.publish()

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(queue, "put", fails)
        with pytest.raises(ZeroDivisionError):
            await told.admit()
    [row] = await told.rows()
    assert (row["state"], row["fence"]) == ("waiting", 0)


# Order


async def test_the_end_of_a_job_waits_for_what_came_before_it(told: Told) -> None:
    await told.endpoint()
    job = new_id()
    started = await told.tell(seq=1, job_id=job)
    completed = await told.tell(seq=5, job_id=job, final=True)
    assert await told.admit() == [started]
    assert await told.admit() == []
    await told.record(judged(await told.load_one(), FINE, T0))
    assert await told.admit() == [completed]


async def test_the_end_of_a_job_supersedes_what_waits_for_another_attempt(told: Told) -> None:
    await told.endpoint()
    job, other = new_id(), new_id()
    started, others = await told.tell(seq=1, job_id=job), await told.tell(seq=1, job_id=other)
    await told.send(T0, ILL)
    replay = await told.copy(started, at=at(9))
    completed = await told.tell(seq=5, job_id=job, final=True, at=at(1))
    assert await told.admit(at(1)) == [completed]
    assert {row["id"]: row["state"] for row in await told.rows()} == {
        started: "superseded",
        others: "waiting",
        replay: "waiting",
        completed: "dispatched",
    }
    assert (await told.row(started))["ended_at"] == at(1)
    await told.record(judged(await told.load_one(at(1)), FINE, at(1)), now=at(1))
    assert await told.send(at(30)) == [others, replay]


async def test_the_end_supersedes_nothing_at_another_receiver(told: Told) -> None:
    job = new_id()
    paused = await told.endpoint()
    started = await told.tell(seq=1, job_id=job)
    await told.send(T0, ILL)
    await told.set_endpoint(paused, state="paused")
    await told.endpoint()
    await told.publish("chat.completed", at(1), seq=2, job_id=job, final=True)
    assert len(await told.admit(at(1))) == 1
    assert (await told.row(started))["state"] == "waiting"


async def test_nothing_but_the_end_itself_supersedes(told: Told) -> None:
    await told.endpoint()
    job = new_id()
    started = await told.tell(seq=1, job_id=job)
    ended = await told.tell(seq=1, job_id=new_id(), final=True)
    await told.send(T0, ILL)
    later = await told.tell(seq=2, job_id=job, at=at(1))
    assert await told.admit(at(1)) == [later]
    await told.record(judged(await told.load_one(at(1)), FINE, at(1)), now=at(1))
    end = await told.tell(seq=3, job_id=job, final=True, at=at(40))
    replay = await told.copy(end, at=at(2))
    assert await told.admit(at(2)) == [replay]
    assert {row["id"]: row["state"] for row in await told.rows()} == {
        started: "waiting",
        ended: "waiting",
        later: "succeeded",
        end: "waiting",
        replay: "dispatched",
    }


async def test_an_earlier_event_that_is_due_again_goes_before_the_end(told: Told) -> None:
    await told.endpoint()
    job = new_id()
    started = await told.tell(seq=1, job_id=job)
    await told.send(T0, ILL)
    completed = await told.tell(seq=5, job_id=job, final=True, at=at(1))
    assert await told.admit(at(6)) == [started]
    await told.record(judged(await told.load_one(at(6)), FINE, at(6)), now=at(6))
    assert await told.admit(at(6)) == [completed]


async def test_with_ordering_by_job_the_end_waits_for_retries_and_other_jobs_do_not(told: Told) -> None:
    await told.endpoint(ordering="job")
    job, other = new_id(), new_id()
    started = await told.tell(seq=1, job_id=job)
    await told.send(T0, ILL)
    completed = await told.tell(seq=5, job_id=job, final=True, at=at(1))
    others = [await told.tell(seq=seq, job_id=other, final=seq > 1, at=at(1)) for seq in (1, 2)]
    assert await told.send(at(1)) == [others[0]]
    assert await told.send(at(1)) == [others[1]]
    assert await told.send(at(4)) == []
    assert await told.send(at(5), ILL) == [started]
    assert await told.send(at(40)) == [started]
    assert await told.send(at(40)) == [completed]
    assert set(await told.states()) == {"succeeded"}


async def test_with_ordering_by_job_an_event_that_was_given_up_blocks_nobody(told: Told) -> None:
    await told.endpoint(ordering="job")
    job = new_id()
    await told.tell(seq=1, job_id=job)
    completed = await told.tell(seq=2, job_id=job, final=True)
    await run_schedule(told, REFUSED)
    assert [row["state"] for row in await told.rows()] == ["failed", "failed"]
    sent = [await told.attempts(row["id"]) for row in await told.rows()]
    assert sent[0][-1]["started_at"] <= sent[1][0]["started_at"]
    assert (await told.row(completed))["attempts"] == SHORT_ATTEMPTS


async def test_receivers_do_not_wait_for_each_other(told: Told) -> None:
    slow, quick = await told.endpoint(), await told.endpoint()
    job = new_id()
    for seq, event in ((1, "chat.started"), (2, "chat.completed")):
        await told.publish(event, seq=seq, job_id=job, final=seq == 2)
    await told.admit()
    [sendable] = [one for one in await told.load() if one.endpoint_id == quick]
    await told.record(judged(sendable, FINE, T0))
    await told.admit()
    assert [(row["endpoint_id"] == quick, row["event"], row["state"]) for row in await told.rows("state <> 'waiting'")]
    states = {(row["endpoint_id"], row["event"]): row["state"] for row in await told.rows()}
    assert states == {
        (slow, "chat.started"): "dispatched",
        (slow, "chat.completed"): "waiting",
        (quick, "chat.started"): "succeeded",
        (quick, "chat.completed"): "dispatched",
    }


# A large backlog

BACKLOG = 30_000


async def backlog(told: Told, endpoint: UUID) -> None:
    """So many waiting deliveries of messages that nobody will read."""
    await told.pool.execute(
        "INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, job_id, seq, final,"
        " origin, run_id, state, due_at, created_at)"
        " SELECT 'default', gen_random_uuid(), gen_random_uuid(), $1, false, 'default', 'chat.completed',"
        " gen_random_uuid(), 5, true, 'event', gen_random_uuid(), 'waiting', $2::timestamptz + n * interval '1 ms', $2"
        " FROM generate_series(1, $3) n",
        *(endpoint, T0, BACKLOG),
    )


async def most_rows(told: Told, statement: str, now: datetime) -> int:
    """The most rows that any step of a statement looks at; what it writes is undone."""
    async with told.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            [row] = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", now)
        finally:
            await transaction.rollback()
    return max(_rows(msgspec.json.decode(row[0])[0]["Plan"]))


def _rows(step: dict[str, Any]) -> list[int]:
    read = step["Actual Rows"] + sum(count for name, count in step.items() if name.startswith("Rows Removed"))
    return [int(read * step["Actual Loops"]), *(rows for inner in step.get("Plans", []) for rows in _rows(inner))]


async def test_a_black_hole_with_a_large_backlog_costs_a_round_little(database: Database) -> None:
    told, now = Told(database), at(100)
    await told.senders()
    for number in range(50):
        await told.endpoint("chat.started", tenant=f"tenant {number % 5}")
        await told.publish("chat.started", tenant=f"tenant {number % 5}", seq=1, job_id=new_id())
    await told.pool.execute("UPDATE deliveries SET state = 'succeeded'")
    await told.pool.execute("ANALYZE deliveries")  # when all is well: of a backlog it will know nothing
    hole = await told.endpoint("chat.failed")
    good = {await told.endpoint("chat.completed") for _ in range(99)}
    await backlog(told, hole)
    await told.publish(at=at(1))
    for ordering in ("none", "job"):
        await told.set_endpoint(hole, ordering=ordering)
        assert await most_rows(told, SQL.admit_deliveries, now) < 2000
        assert await most_rows(told, SQL.admit_deliveries, now) < 2000
    await told.pool.execute("ANALYZE deliveries")
    assert await most_rows(told, SQL.admit_deliveries, now) < 2000
    assert await most_rows(told, SQL.admit_deliveries, now) < 2000
    await told.admit(now)
    under_way = [row["endpoint_id"] for row in await told.rows("state = 'dispatched'")]
    assert set(under_way) == good | {hole}
    assert len(under_way) == len(await told.entries()) == 99 + 4
    # Its window is full; then its breaker is open.
    assert await most_rows(told, SQL.admit_deliveries, now) < 2000
    await told.set_endpoint(hole, blocked_until=at(1000))
    assert await most_rows(told, SQL.admit_deliveries, now) < 2000
    await told.set_endpoint(hole, state="paused")
    assert await most_rows(told, SQL.admit_deliveries, now) < 2000


# Whose result is believed


async def test_a_result_of_an_earlier_dispatch_is_refused(told: Told) -> None:
    endpoint = await told.endpoint()
    await told.publish()
    await told.admit()
    frozen = await told.load_one()
    async with told.pool.acquire() as connection:
        await queue.remove(connection, [frozen.entry_id])
    assert await told.deliveries.sweep(at(60), older_than=timedelta(seconds=1)) == 1
    await told.admit(at(60))
    current = await told.load_one(at(60))
    assert (frozen.fence, current.fence) == (1, 2)
    before = await told.health(endpoint)
    assert await told.record(judged(frozen, GONE, at(61)), now=at(61)) == [False]
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["tries"]) == ("dispatched", 0, 0)
    assert await told.attempts(row["id"]) == []
    assert await told.health(endpoint) == before
    assert (await told.endpoint_row(endpoint))["state"] == "active"
    assert len(await told.entries()) == 1
    assert await told.record(judged(current, FINE, at(62)), now=at(62)) == [True]
    assert await told.record(judged(frozen, ILL, at(63)), now=at(63)) == [False]
    assert await told.states() == ["succeeded"]


async def test_of_an_entry_that_was_taken_over_one_result_is_written(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    entry = queue.Entry((await told.load_one()).entry_id, (await told.delivery_entries())[0].key)
    [frozen] = await told.deliveries.load([entry], T0)
    [taker] = await told.deliveries.load([entry], at(20))
    assert frozen is not None
    assert taker is not None
    assert await told.record(judged(taker, FINE, at(21)), now=at(21)) == [True]
    assert await told.record(judged(frozen, ILL, at(22)), now=at(22)) == [False]
    [row] = await told.rows()
    assert (row["state"], row["attempts"], len(await told.attempts(row["id"]))) == ("succeeded", 1, 1)


async def test_two_results_of_one_delivery_in_one_group_are_told_apart(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    frozen = await told.load_one()
    async with told.pool.acquire() as connection:
        await queue.remove(connection, [frozen.entry_id])
    await told.deliveries.sweep(at(60), older_than=timedelta(seconds=1))
    await told.admit(at(60))
    current = await told.load_one(at(60))
    back = Tried(sendable=frozen, state=DeliveryState.WAITING)
    for tries in ((back, judged(current, FINE, at(61))),):
        assert await told.record(*tries, now=at(61)) == [False, True]
    [row] = await told.rows()
    assert (row["state"], row["attempts"], row["tries"]) == ("succeeded", 1, 1)


async def test_a_repeat_after_an_unknown_outcome_writes_nothing_twice(told: Told) -> None:
    endpoint = await told.endpoint()
    await told.publish()
    await told.admit()
    tried = judged(await told.load_one(), ILL, T0)
    assert await told.record(tried) == [True]
    health = await told.health(endpoint)
    assert await told.record(tried) == [False]
    [row] = await told.rows()
    assert (row["state"], row["attempts"], len(await told.attempts(row["id"]))) == ("waiting", 1, 1)
    assert await told.health(endpoint) == health


async def test_results_of_many_are_written_together_or_not_at_all(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await told.endpoint()
    for _ in range(4):
        await told.publish()
    await told.admit()
    tries = [judged(one, FINE, T0) for one in await told.load()]

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(queue, "remove", fails)  # the last write of the transaction
        with pytest.raises(ZeroDivisionError):
            await told.record(*tries)
    assert await told.states() == ["dispatched"] * 4
    assert (await told.health(endpoint)).window == 4.0
    assert await told.record(*tries) == [True] * 4
    assert await told.states() == ["succeeded"] * 4


async def test_results_written_at_once_lose_no_fact(told: Told) -> None:
    """Endpoints are locked in one order, so neither do the groups block each other for good."""
    endpoints = [await told.endpoint(allowance=64) for _ in range(6)]
    for _ in range(10):
        await told.publish()
    await told.admit()
    tries = [judged(one, FINE, T0) for one in await told.load()]
    assert len(tries) == 60
    groups = [tries[number::10] for number in range(10)]
    outcomes = await at_once(
        [told.record(*(group if number % 2 else group[::-1])) for number, group in enumerate(groups)]
    )
    assert outcomes == [[True] * 6] * 10
    for endpoint in endpoints:
        assert sum(one.attempts for one in (await told.health(endpoint)).slices) == 10 >= LEAST_ATTEMPTS


async def test_an_entry_without_a_delivery_is_removed(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    [entry] = await told.delivery_entries()
    await told.pool.execute("DELETE FROM deliveries")
    assert await told.deliveries.load([entry], T0) == [None]
    assert await told.entries() == []


async def test_a_sweep_takes_back_what_has_no_entry_and_only_that(told: Told) -> None:
    await told.endpoint()
    for _ in range(3):
        await told.publish()
    await told.admit()
    lost, *_ = await told.load()
    async with told.pool.acquire() as connection:
        await queue.remove(connection, [lost.entry_id])
    assert await told.deliveries.sweep(at(5), older_than=timedelta(seconds=10)) == 0
    assert await told.deliveries.sweep(at(11), older_than=timedelta(seconds=10)) == 1
    row = await told.row(lost.id)
    assert (row["state"], row["attempts"], row["fence"], row["due_at"]) == ("waiting", 0, 1, T0)
    assert await told.states() == ["waiting", "dispatched", "dispatched"]
    assert await told.admit(at(11)) == [lost.id]


async def test_a_sweep_does_not_take_back_what_ends_meanwhile(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    sendable = await told.load_one()
    without_entry = queue.without_entry

    async def ends_first(*given: Any) -> Any:
        await told.record(judged(sendable, FINE, at(60)), now=at(60))
        return await without_entry(*given)

    monkeypatch.setattr(queue, "without_entry", ends_first)
    await told.deliveries.sweep(at(60), older_than=timedelta(seconds=1))
    assert await told.states() == ["succeeded"]


async def test_the_log_keeps_what_came_back(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    odd = Exchange(
        status=503,
        error_class=ErrorClass.HTTP_5XX,
        detail="answered 503",
        headers=(("x-odd", 'ÿ"\\'), ("retry-after", "1")),
        body=b"\x00\xff" * 100,
        truncated=True,
        remote_ip="203.0.113.9",
    )
    sendable = await told.load_one()
    await told.record(judged(sendable, odd, T0))
    [attempt] = await told.attempts(sendable.id)
    assert (attempt["response_body"], attempt["truncated"]) == (odd.body, True)
    assert [tuple(pair) for pair in msgspec.json.decode(attempt["response_headers"])] == list(odd.headers)
    assert (attempt["status"], attempt["error_class"], attempt["remote_ip"]) == (503, "http_5xx", "203.0.113.9")


async def test_of_a_success_little_of_the_answer_is_kept(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.admit()
    sendable = await told.load_one()
    await told.record(judged(sendable, Exchange(status=200, body=b"x" * 5000), T0))
    [attempt] = await told.attempts(sendable.id)
    assert (len(attempt["response_body"]), attempt["truncated"]) == (2048, True)


async def test_what_is_past_its_retention_goes_with_all_that_belongs_to_it(told: Told) -> None:
    await told.endpoint()
    await told.publish()
    await told.send(at(1), ILL)
    kept = await told.publish(at=at(DAY))
    retention = timedelta(days=30)
    assert await told.deliveries.tidy(at(30 * DAY), retention=retention) == 0
    assert await told.deliveries.tidy(at(30 * DAY + 1), retention=retention) == 1
    assert [row["message_id"] for row in await told.rows()] == [kept.id]
    for table in ("messages", "message_bodies"):
        assert await told.pool.fetchval(f"SELECT count(*) FROM {table}") == 1
    assert await told.pool.fetchval("SELECT count(*) FROM delivery_attempts") == 0


async def test_a_notification_wakes_admission_once_per_commit_and_only_for_deliveries(
    told: Told, database: Database
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    connection = await database.connect()
    try:
        await connection.add_listener("tramontane_deliveries", lambda *given: heard.put_nowait(str(given[-1])))
        await told.publish("chat.started")  # nobody wants it
        await told.endpoint("chat.completed")
        await told.publish_all([new_message("chat.completed", T0, tenant="default", data={}) for _ in range(5)])
        async with asyncio.timeout(5):
            assert await heard.get() == ""
        await connection.execute("SELECT 1")
        assert heard.empty()
    finally:
        await connection.close()

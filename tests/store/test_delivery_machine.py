"""The store of deliveries, played at random on a real Postgres against a model that is too simple to be wrong.

The model is a list of rows, changed by hand as the documents say. After every step the database must say the same:
nothing lost, nothing doubled, final states final, and no attempt counted that was not made.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lives import T0
from told import FINE, GONE, ILL, REFUSED, SILENT, Told, judged

from tramontane import queue
from tramontane.database import Database, open_database
from tramontane.ids import new_id
from tramontane.settings import Settings
from tramontane.store.messages import START_ALLOWANCE, START_HEALTH
from tramontane.webhooks.models import DeliveryState, ErrorClass, Exchange, Sendable, Tried
from tramontane.webhooks.schedule import DELAYS

Result = TypeVar("Result")

BUSY = Exchange(status=503, error_class=ErrorClass.HTTP_5XX, headers=(("retry-after", "90"),))
BLOCKED = Exchange(error_class=ErrorClass.BLOCKED_SSRF)
#: What may come back, and after how many attempts it ends a delivery.
ANSWERS = {
    "fine": (FINE, 1),
    "ill": (ILL, 13),
    "busy": (BUSY, 13),
    "silent": (SILENT, 13),
    "refused": (REFUSED, 5),
    "gone": (GONE, 1),
    "blocked": (BLOCKED, 10**6),
}
PLACES = 5
FINAL = {"succeeded", "failed", "cancelled", "superseded"}


@dataclass
class Row:
    """A delivery, as the model has it."""

    endpoint: UUID
    message: UUID
    due_at: datetime
    job: UUID
    seq: int
    ends: bool
    origin: str = "event"
    state: str = "waiting"
    attempts: int = 0
    tries: int = 0
    fence: int = 0
    #: Its queue entry was lost with a machine.
    adrift: bool = False

    def waits_before(self, other: "Row") -> bool:
        """Of the same job, to the same receiver, earlier."""
        same = (self.endpoint, self.job, self.origin) == (other.endpoint, other.job, "event")
        return same and self.origin == "event" and self.seq < other.seq


class Machine(RuleBasedStateMachine):
    def __init__(self, run: asyncio.Runner, database: Database) -> None:
        super().__init__()
        self._run = run
        self.told = Told(database)
        self.now = T0
        self.rows: dict[UUID, Row] = {}
        self.endpoints: list[UUID] = []
        self.jobs: list[tuple[UUID, int]] = [(new_id(), 0) for _ in range(3)]
        self.held: list[Sendable] = []

    def do(self, verb: "Coroutine[Any, Any, Result]") -> Result:
        return self._run.run(verb)

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        await self.told.pool.execute(
            "TRUNCATE deliveries, messages, message_bodies, endpoints, endpoint_secrets, delivery_attempts, workers"
        )
        async with self.told.pool.acquire() as connection:
            await queue.remove(connection, [entry_id for entry_id, _, _ in await queue.entries(connection)])
        await self.told.senders(PLACES)
        for ordering in ("none", "job"):
            self.endpoints.append(await self.told.endpoint("chat.*", ordering=ordering))

    # What happens

    @rule(seconds=st.sampled_from([0.5, 6.0, 40.0, 700.0, 4000.0, 90000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(which=st.integers(0, 2), ends=st.booleans())
    def something_happens_to_a_job(self, which: int, ends: bool) -> None:
        job, seq = self.jobs[which]
        event = "chat.completed" if ends else "chat.started"
        states = self._states()
        message = self.do(self.told.publish(event, self.now, job_id=job, seq=seq + 1, final=ends))
        self.jobs[which] = (new_id(), 0) if ends else (job, seq + 1)
        for row in self.do(self.told.rows("message_id = $1", message.id)):
            endpoint = UUID(str(row["endpoint_id"]))
            self.rows[UUID(str(row["id"]))] = Row(endpoint, message.id, self.now, job, seq + 1, ends)
        assert {row.endpoint for row in self.rows.values() if row.message == message.id} == {
            endpoint for endpoint, state in states.items() if state != "disabled"
        }

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def somebody_replays(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.rows, key=str)))
        row = self.rows[chosen]
        copy = self.do(self.told.copy(chosen, at=self.now))
        self.rows[copy] = Row(row.endpoint, row.message, self.now, row.job, row.seq, row.ends, origin="replay")

    @rule()
    def a_round_of_admission(self) -> None:
        self._admit()

    def _admit(self) -> None:
        endpoints = {one: self.do(self.told.endpoint_row(one)) for one in self.endpoints}
        before = {id_: row.state for id_, row in self.rows.items()}
        admitted = self.do(self.told.admit(self.now))
        for one in admitted:
            row = self.rows[one]
            assert before[one] == "waiting"
            assert row.due_at <= self.now
            assert self._is_open(endpoints[row.endpoint])
            assert not any(self._stops(other, row, before[id_], endpoints) for id_, other in self.rows.items())
        for one in admitted:
            row = self.rows[one]
            row.state, row.fence = "dispatched", row.fence + 1
            if row.ends and row.origin == "event":
                for id_, other in self.rows.items():
                    if other.waits_before(row) and before[id_] == "waiting":
                        other.state = "superseded"
        free = PLACES - sum(row.state == "dispatched" for row in self.rows.values())
        assert free >= 0
        for endpoint, columns in endpoints.items():
            width = 1 if columns["blocked_until"] else columns["allowance"]
            under_way = sum(row.state == "dispatched" for row in self.rows.values() if row.endpoint == endpoint)
            assert under_way <= max(width, self._under_way(endpoint, before))
            if self._is_open(columns) and under_way < width and free:
                assert not any(
                    row.endpoint == endpoint
                    and row.state == "waiting"
                    and row.due_at <= self.now
                    and not any(self._stops(other, row, other.state, endpoints) for other in self.rows.values())
                    for row in self.rows.values()
                ), "somebody was forgotten"

    def _under_way(self, endpoint: UUID, states: dict[UUID, str]) -> int:
        return sum(state == "dispatched" for id_, state in states.items() if self.rows[id_].endpoint == endpoint)

    def _is_open(self, columns: Any) -> bool:
        blocked = columns["blocked_until"] is not None and columns["blocked_until"] > self.now
        return columns["state"] == "active" and not blocked

    def _stops(self, other: Row, row: Row, state: str, endpoints: dict[UUID, Any]) -> bool:
        """Whether `row` has to wait for `other`, which is in `state`."""
        patient = endpoints[row.endpoint]["ordering"] == "job"
        waits = state == "waiting" and (other.due_at <= self.now or patient)
        return other.waits_before(row) and (state == "dispatched" or waits)

    @rule()
    def workers_take_what_was_let_through(self) -> None:
        """And take over what others had taken: then two hold the same dispatch."""
        self._take()

    @rule(answers=st.lists(st.sampled_from([*ANSWERS, "fine", "ill", "silent"]), min_size=1, max_size=8))
    def a_fleet_at_work(self, answers: list[str]) -> None:
        self._admit()
        self._take()
        for answer in answers:
            if self.held:
                self._answer(self.held.pop(), answer)

    def _take(self) -> None:
        for sendable in self.do(self.told.load(self.now)):
            row = self.rows[sendable.id]
            assert (row.state, row.fence, row.attempts) == ("dispatched", sendable.fence, sendable.attempts)
            assert sendable.welcome is self._is_open(self.do(self.told.endpoint_row(row.endpoint)))
            self.held.append(sendable)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), answer=st.sampled_from([*ANSWERS, "fine", "ill", "silent"]))
    def an_answer_comes(self, data: st.DataObject, answer: str) -> None:
        """At once, or so late that somebody else has the delivery by now."""
        self._answer(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))), answer)

    def _answer(self, sendable: Sendable, answer: str) -> None:
        exchange, limit = ANSWERS[answer]
        if sendable.welcome:
            tried = judged(sendable, exchange, self.now)
        else:
            tried = Tried(sendable=sendable, state=DeliveryState.WAITING)
        row = self.rows[sendable.id]
        current = (row.state, row.fence) == ("dispatched", sendable.fence)
        [recorded] = self.do(self.told.record(tried, now=self.now))
        assert recorded is current
        if not current:
            return
        row.adrift = False
        if not sendable.welcome:
            row.state = "waiting"
            return
        counted = answer != "blocked"
        row.attempts, row.tries = row.attempts + counted, row.tries + 1
        row.state = "waiting" if row.attempts < limit else "succeeded" if answer == "fine" else "failed"
        if row.state == "waiting":
            assert tried.due_at is not None
            assert tried.due_at - self.now >= timedelta(seconds=DELAYS[row.attempts] if counted else 600)
            row.due_at = tried.due_at
        if answer == "gone":
            assert self._states()[row.endpoint] == "disabled"

    @rule()
    def a_machine_is_lost_with_its_entries(self) -> None:
        entries = self.do(self.told.delivery_entries())
        self.do(self._drop([entry.id for entry in entries[:2]]))
        for entry in entries[:2]:
            self.rows[entry.key.id].adrift = True

    async def _drop(self, entry_ids: list[int]) -> None:
        async with self.told.pool.acquire() as connection:
            await queue.remove(connection, entry_ids)

    @rule()
    def a_sweep(self) -> None:
        self.do(self.told.deliveries.sweep(self.now, older_than=timedelta(seconds=-1)))
        for row in self.rows.values():
            if row.adrift and row.state == "dispatched":
                row.state, row.adrift = "waiting", False

    @rule(which=st.integers(0, 1), state=st.sampled_from(["active", "active", "paused", "disabled"]))
    def somebody_turns_a_switch(self, which: int, state: str) -> None:
        columns: dict[str, Any] = {"state": state, "disabled_reason": None}
        if state == "active":
            columns |= {"health": START_HEALTH, "allowance": START_ALLOWANCE, "blocked_until": None}
        self.do(self.told.set_endpoint(self.endpoints[which], **columns))

    @rule()
    def a_tidying(self) -> None:
        gone = {one for one in self.endpoints if self.do(self.told.endpoint_row(one))["disabled_reason"] == "gone"}
        self.do(self.told.deliveries.tidy(self.now, retention=timedelta(days=1000)))
        for row in self.rows.values():
            if row.endpoint in gone and row.state == "waiting":
                row.state = "cancelled"

    def _states(self) -> dict[UUID, str]:
        return {one: self.do(self.told.endpoint_row(one))["state"] for one in self.endpoints}

    # What always holds

    @invariant()
    def the_database_says_the_same(self) -> None:
        if not self.endpoints:
            return
        found = {
            row["id"]: (row["state"], row["attempts"], row["tries"], row["fence"], row["due_at"])
            for row in self.do(self.told.rows())
        }
        known = {id_: (row.state, row.attempts, row.tries, row.fence, row.due_at) for id_, row in self.rows.items()}
        assert found == known

    @invariant()
    def what_is_under_way_has_an_entry_and_nothing_else_has(self) -> None:
        if not self.endpoints:
            return
        entries = [entry.key.id for entry in self.do(self.told.delivery_entries())]
        assert len(entries) == len(set(entries)) <= PLACES
        assert set(entries) == {id_ for id_, row in self.rows.items() if row.state == "dispatched" and not row.adrift}

    def teardown(self) -> None:
        """Every try is in the log, and those that count are counted."""
        rows = (
            self.do(
                self.told.pool.fetch(
                    "SELECT d.id, d.attempts, d.tries, d.ended_at, count(a.number) AS lines,"
                    " count(*) FILTER (WHERE a.counted) AS counted FROM deliveries d"
                    " LEFT JOIN delivery_attempts a ON a.delivery_id = d.id GROUP BY d.tenant_id, d.id"
                )
            )
            if self.endpoints
            else []
        )
        for row in rows:
            assert (row["tries"], row["attempts"]) == (row["lines"], row["counted"])
            assert (row["ended_at"] is None) is (self.rows[row["id"]].state not in FINAL)


@pytest.mark.timeout(120)
def test_deliveries_do_as_the_model_does(database_url: str) -> None:
    with asyncio.Runner() as runner:
        opening = open_database(Settings(database_url=database_url))
        database = runner.run(opening.__aenter__())

        class Here(Machine):
            def __init__(self) -> None:
                super().__init__(runner, database)

        try:
            run_state_machine_as_test(
                Here,
                settings=hypothesis.settings(
                    max_examples=25,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(hypothesis.HealthCheck),
                    derandomize=True,
                    database=None,
                ),
            )
        finally:
            runner.run(opening.__aexit__(None, None, None))

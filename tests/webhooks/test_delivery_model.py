"""Deliveries of one endpoint, played at random against a model that is too simple to be wrong.

The machine does what the store and the worker do, in memory: it admits what is due and allowed, judges what comes back,
and lets the endpoint's health learn of it. The model keeps lists of everything and decides by reading them.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tramontane.webhooks.health import Fact, Health, allowance, blocked_until, enable, notices, observe
from tramontane.webhooks.models import DELIVERY_TRANSITIONS, DeliveryState, ErrorClass, Exchange
from tramontane.webhooks.schedule import judge

START = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
_DISABLE, _ABORT = (("webhook-delivery", "disable"),), (("webhook-delivery", "abort-message"),)

#: What may come back: the exchange, and how often it may come back before the delivery has failed.
ANSWERS = {
    "taken": (Exchange(status=204), 0),
    "broken": (Exchange(status=500, error_class=ErrorClass.HTTP_5XX), 13),
    "busy": (Exchange(status=503, error_class=ErrorClass.HTTP_5XX, headers=(("retry-after", "90"),)), 13),
    "refused": (Exchange(status=404, error_class=ErrorClass.HTTP_4XX), 5),
    "moved": (Exchange(status=301, error_class=ErrorClass.REDIRECT, headers=(("location", "/x"),)), 5),
    "silent": (Exchange(error_class=ErrorClass.TIMEOUT_HEADERS), 13),
    "away": (Exchange(error_class=ErrorClass.CONNECT_REFUSED), 13),
    "gone": (Exchange(status=410, error_class=ErrorClass.GONE), 1),
    "enough": (Exchange(status=200, headers=_DISABLE), 0),
    "aborted": (Exchange(status=422, error_class=ErrorClass.HTTP_4XX, headers=_ABORT), 1),
    "blocked": (Exchange(error_class=ErrorClass.BLOCKED_SSRF, detail="private"), 0),
}
_OFTEN = ["taken", "broken", "busy", "refused", "moved", "silent", "away"]


@dataclass
class _Delivery:
    state: DeliveryState = DeliveryState.WAITING
    due_at: datetime = START
    admitted_at: datetime = START
    attempts: int = 0
    #: What the model expects.
    answers: list[str] = field(default_factory=list)
    expected: str = "waiting"

    def move(self, state: DeliveryState) -> None:
        assert state in DELIVERY_TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def expect(self, answer: str) -> None:
        self.answers.append(answer)
        tries = sum(one != "blocked" for one in self.answers)
        if answer in ("taken", "enough"):
            self.expected = "succeeded"
        elif answer != "blocked" and tries >= ANSWERS[answer][1]:
            self.expected = "failed"
        else:
            self.expected = "waiting"


@dataclass
class _Endpoint:
    """The model of a health: what is known, as lists; and the line before which an attempt is late."""

    answers: list[tuple[float, str]] = field(default_factory=list)  # since the breaker closed
    failures: list[float] = field(default_factory=list)  # since the last success
    shut: bool = False
    line: float = 0.0
    length: float = 15.0
    disabled: bool = False

    def learn(self, answer: str, admitted: float, now: float) -> None:
        if self.disabled or answer == "aborted":
            return
        if answer == "taken":
            self.failures = []
        elif answer not in ("blocked", "gone", "enough"):
            self.failures.append(now)
        long = len(self.failures) >= 10 and now - self.failures[0] >= 72 * 3600
        self.disabled = long or answer in ("gone", "enough")
        if admitted < self.line or answer in ("gone", "enough"):
            return
        if answer == "blocked":
            self._shut(now + 600)
        elif not self.shut:
            self.answers.append((now, answer))
            if self._is_sick(now):
                self.length = min(600, 2 * self.length) if now - self.line < self.length else 15
                self._shut(now + self.length)
        elif answer == "taken":
            self.shut, self.line = False, now
        else:
            self.length = min(600, 2 * self.length)
            self._shut(now + self.length)

    def _shut(self, until: float) -> None:
        self.shut, self.line, self.answers = True, until, []

    def _is_sick(self, now: float) -> bool:
        # Six slices of ten seconds, the one that runs included.
        minute = [answer for at, answer in self.answers if at // 10 > now // 10 - 6]
        failed = sum(answer != "taken" for answer in minute)
        last = [answer for _, answer in self.answers][-5:]
        return (len(minute) >= 10 and failed / len(minute) >= 0.7) or (
            len(last) == 5 and all(answer in ("silent", "away") for answer in last)
        )


class Deliveries(RuleBasedStateMachine):
    """Rules are what may happen to the deliveries of an endpoint; invariants are what is promised of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.health = Health()
        self.model = _Endpoint()
        self.deliveries = [_Delivery() for _ in range(3)]
        self.ended: list[tuple[_Delivery, DeliveryState]] = []
        self.told: list[str] = []

    def _in(self, state: DeliveryState) -> list[_Delivery]:
        return [delivery for delivery in self.deliveries if delivery.state is state]

    def _end(self, delivery: _Delivery, state: DeliveryState) -> None:
        delivery.move(state)
        delivery.expected = str(state)

    @rule()
    def submit(self) -> None:
        if len(self.deliveries) < 30:
            self.deliveries += [_Delivery(due_at=self.now) for _ in range(3)]

    @rule(seconds=st.sampled_from([0.01, 1.0, 12.0, 61.0, 600.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def wait_until_something_may_be_sent(self) -> None:
        waiting = self._in(DeliveryState.WAITING)
        if waiting and not self.health.disabled:
            due_at = min(delivery.due_at for delivery in waiting)
            self.now = max(self.now, due_at, blocked_until(self.health) or self.now)

    @rule()
    def admit(self) -> None:
        """Sends all that may be sent."""
        for delivery in self._in(DeliveryState.WAITING):
            flying = len(self._in(DeliveryState.DISPATCHED))
            if delivery.due_at <= self.now and flying < allowance(self.health, self.now):
                assert not self.model.disabled, "nothing is sent after 410, disable or three days"
                open_now = self.model.shut and self.now.timestamp() < self.model.line
                assert not open_now, "nothing is sent while the breaker is open"
                assert not (self.model.shut and flying), "one probe at a time"
                delivery.move(DeliveryState.DISPATCHED)
                delivery.admitted_at = self.now

    @rule(
        answer=st.sampled_from([*_OFTEN, *_OFTEN, *_OFTEN, *ANSWERS]),
        took=st.sampled_from([0.01, 0.5, 16.0]),
        times=st.integers(1, 4),
        last=st.booleans(),
    )
    def answer(self, answer: str, took: float, times: int, last: bool) -> None:
        """What is in flight comes back, the oldest first or the newest."""
        self.now += timedelta(seconds=took)
        for delivery in self._in(DeliveryState.DISPATCHED)[:: -1 if last else 1][:times]:
            self._come_back(delivery, answer)

    @rule(answer=st.sampled_from(_OFTEN), rounds=st.integers(1, 15), pause=st.sampled_from([0, 0, 8000, 40_000]))
    def stay_like_this(self, answer: str, rounds: int, pause: int) -> None:
        """The endpoint gives the same answer for a while; new deliveries come when the old ones have ended."""
        for _ in range(rounds):
            self.now += timedelta(seconds=pause)
            if not self._in(DeliveryState.WAITING):
                self.submit()
            self.wait_until_something_may_be_sent()
            self.admit()
            self.answer(answer, 0.1, 100, False)

    def _come_back(self, delivery: _Delivery, answer: str) -> None:
        exchange, number = ANSWERS[answer][0], delivery.attempts + 1
        verdict = judge(exchange, attempt=number, now=self.now, random=0.0)

        delivery.move(verdict.state)
        delivery.attempts += verdict.counted
        delivery.expect(answer)
        if verdict.due_at is not None:
            assert verdict.due_at > self.now
            delivery.due_at = verdict.due_at
        before, self.health = self.health, observe(self.health, [Fact(verdict.outcome, delivery.admitted_at)], self.now)
        self.told += notices(before, self.health)
        self.model.learn(answer, delivery.admitted_at.timestamp(), self.now.timestamp())
        assert not verdict.disable or self.health.disabled

    @rule()
    def lose_a_worker(self) -> None:
        for delivery in self._in(DeliveryState.DISPATCHED):
            self._end(delivery, DeliveryState.WAITING)

    @precondition(lambda self: len(self.deliveries) > 6)
    @rule(state=st.sampled_from([DeliveryState.CANCELLED, DeliveryState.SUPERSEDED]))
    def take_back(self, state: DeliveryState) -> None:
        for delivery in self._in(DeliveryState.WAITING)[:1]:
            self._end(delivery, state)

    @precondition(lambda self: self.health.disabled)
    @rule()
    def enable_it(self) -> None:
        self.health = enable(self.health, self.now)
        self.model = _Endpoint(line=self.now.timestamp())

    @invariant()
    def deliveries_are_where_the_model_says(self) -> None:
        for delivery in self.deliveries:
            if delivery.state is not DeliveryState.DISPATCHED:
                assert delivery.state == delivery.expected
            assert delivery.attempts == sum(one != "blocked" for one in delivery.answers) <= 13

    @invariant()
    def what_has_ended_stays_as_it_ended(self) -> None:
        assert all(delivery.state is state for delivery, state in self.ended)
        known = {id(delivery) for delivery, _ in self.ended}
        self.ended += [(one, one.state) for one in self.deliveries if one.state.final and id(one) not in known]

    @invariant()
    def the_breaker_is_where_the_model_says(self) -> None:
        assert self.health.disabled == self.model.disabled
        if not self.model.disabled:
            assert self.health.open == self.model.shut
            assert self.health.since == self.model.line
        assert 0 <= allowance(self.health, self.now) <= 64

    @invariant()
    def each_spell_is_told_in_order(self) -> None:
        text = " ".join(event.removeprefix("endpoint.") for event in self.told)
        for spell in text.replace("recovered", "|").replace("disabled", "|").split("|"):
            assert spell.split() in ([], ["degraded"], ["degraded", "degraded"])


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

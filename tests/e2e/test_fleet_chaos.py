"""Everything at once, in small: each fault comes once. And the checks of it can fail, each for its own reason.

TRAMONTANE_CHAOS_SEED repeats the choices of an earlier run; `make chaos` goes on for minutes.
"""

import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chaos.checks import judge
from chaos.evidence import Arrival, Asked, Evidence, Strikes, Told
from chaos.report import report
from chaos.run import Plan, run

SEED = int(os.environ.get("TRAMONTANE_CHAOS_SEED", random.randrange(2**32)))  # noqa: TID251 - a setting of the tests

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_a_fleet_that_meets_every_fault_loses_nothing_doubles_nothing_and_shows_nobody_anything() -> None:
    print(f"TRAMONTANE_CHAOS_SEED={SEED}")
    small: Any = {"workers": 2, "users": 2, "length": 0.6, "rest": 0.2}
    plan = Plan(seed=SEED, seconds=0, patience=90, clock_jump=3, request_limit=10_000, **small)
    evidence = await run(plan)
    findings = judge(evidence)
    print(report(evidence, findings, seed=SEED))
    assert all(finding.holds for finding in findings)


# The checks


def arrival(job_id: str, **changes: Any) -> Arrival:
    one = Arrival(
        id=f"msg_{job_id}", body=f"body of {job_id}", path="/fine", wrong="", job_id=job_id, event="chat.completed",
        content=f"text of {job_id}",
    )  # fmt: skip
    return replace(one, **changes)


def call(job_id: str, **changes: Any) -> dict[str, Any]:
    request = {"messages": [{"role": "user", "content": f"Say: text of {job_id}"}]}
    return {"request": request, "prompt_tokens": 5, "status": 200, "outcome": "complete"} | changes


def good() -> Evidence:
    """Three jobs of two tenants, of which all is well: one took two attempts, one was cancelled."""
    tenants = {"one": "acme", "two": "acme", "three": "boreas"}
    asked = {
        name: Asked(tenant=who, job_id=name, text=f"text of {name}", path="/fine") for name, who in tenants.items()
    }
    asked["three"].cancelled = "cancelled"
    jobs: dict[str, dict[str, Any] | str] = {
        name: {
            "jobId": name,
            "status": "completed",
            "attempt": 1,
            "attempts": [{"outcome": "completed"}],
            "head": 5,
            "error": None,
            "result": {"content": f"text of {name}"},
            "metadata": {"tenant": who},
        }
        for name, who in tenants.items()
    }
    jobs["two"] |= {"attempt": 2, "attempts": [{"outcome": "lost"}, {"outcome": "completed"}]}  # type: ignore[operator]
    jobs["three"] |= {"status": "cancelled", "result": None, "error": {"code": "cancelled"}}  # type: ignore[operator]
    told = {name: Told(text=f"text of {name}", final="complete", head=5) for name in tenants}
    told["three"] = Told(final="error", head=5)
    return Evidence(
        asked=asked,
        jobs=jobs,
        told=told,
        torn=[],
        listed={
            "acme": {"completed": [jobs["one"], jobs["two"]], "cancelled": []},  # type: ignore[list-item]
            "boreas": {"completed": [], "cancelled": [jobs["three"]]},  # type: ignore[list-item]
        },
        trespasses=Counter({404: 9}),
        calls=[call("one"), call("two", outcome="disconnected"), call("two"), call("one", prompt_tokens=0, status=429)],
        arrivals=[
            arrival("one"),
            arrival("two"),
            arrival("two"),
            arrival("three", event="chat.cancelled", content=None),
        ],
        untold={},
        strikes=Strikes(struck=2, interruptions=1),
        answers=Counter({200: 20, 202: 3, 503: 2}),
        surprises={},
        followed=2,
    )


def test_good_evidence_holds() -> None:
    findings = judge(good())
    assert all(finding.holds for finding in findings), report(good(), findings, seed=0)


def job(evidence: Evidence, name: str) -> dict[str, Any]:
    found = evidence.jobs[name]
    assert isinstance(found, dict)
    return found


def billed_twice(evidence: Evidence) -> None:
    evidence.calls += [call("two"), call("two")]
    job(evidence, "two").update(attempt=4, attempts=[{"outcome": "lost", "error": None}] * 3)
    evidence.strikes.struck = 9


REFUSED = {"outcome": "handover", "error": {"code": "rate_limited"}}


def billed_twice_in_a_storm(evidence: Evidence) -> None:
    """As above, by one interruption, and beside it many 429s."""
    evidence.calls += [call("two"), call("two")]
    attempts = [{"outcome": "lost", "error": None}] * 3 + [REFUSED] * 9
    job(evidence, "two").update(attempt=13, attempts=[*attempts, {"outcome": "completed", "error": None}])
    evidence.strikes.struck = 3


def asked_again_after_a_429(evidence: Evidence) -> None:
    evidence.calls.append(call("one", outcome="disconnected"))
    job(evidence, "one").update(attempt=2, attempts=[REFUSED, {"outcome": "completed", "error": None}])


def asked_again_of_another(evidence: Evidence) -> None:
    """A call too many where no attempt was lost, and one of another job that was lost before it called."""
    evidence.calls.append(call("one", outcome="disconnected"))
    job(evidence, "one").update(attempt=2, attempts=[{"outcome": "failed"}, {"outcome": "completed"}])
    evidence.calls.remove(call("two", outcome="disconnected"))


def late_and_paid(evidence: Evidence) -> None:
    job(evidence, "one").update(status="failed", attempt=0, error={"code": "deadline_exceeded"})
    evidence.asked["one"].deadline = True


BAD: dict[str, tuple[str, Callable[[Evidence], object]]] = {
    "a job is lost": ("acknowledged jobs", lambda e: e.jobs.update(one="HTTP 404")),
    "a job never ends": ("exactly one state", lambda e: job(e, "one").update(status="running")),
    "a job is in two states": ("exactly one state", lambda e: e.listed["acme"]["cancelled"].append(job(e, "one"))),
    "a job fails by itself": ("otherwise than asked", lambda e: job(e, "one").update(status="failed")),
    "a cancel is taken back": ("otherwise than asked", lambda e: job(e, "three").update(status="completed")),
    "a log has a gap": ("logs that are dense", lambda e: setattr(e.told["one"], "wrong", "5 came after 3")),
    "an event is twice on disk": ("logs that are dense", lambda e: e.torn.append("one")),
    "a log has no end": ("logs that are dense", lambda e: setattr(e.told["one"], "final", None)),
    "a log ends early": ("logs that are dense", lambda e: setattr(e.told["one"], "head", 4)),
    "a log has another end": ("logs that are dense", lambda e: setattr(e.told["one"], "final", "error")),
    "a word is doubled": ("to the letter", lambda e: job(e, "one")["result"].update(content="text text of one")),
    "a reader sees another text": ("to the letter", lambda e: setattr(e.told["one"], "text", "text")),
    "a live reader is misled": ("read live", lambda e: e.misread.append("one: a gap")),
    "an attempt calls twice": ("at most one an attempt", lambda e: e.calls.append(call("one"))),
    "an answer comes from nowhere": ("at most one an attempt", lambda e: e.calls.pop(0)),
    "somebody else's call": ("at most one an attempt", lambda e: e.calls.append(call("four"))),
    "a call is made again for no reason": ("attempts that were lost", lambda e: job(e, "two")["attempts"].clear()),
    "a call is made again after a 429": ("attempts that were lost", asked_again_after_a_429),
    "a call is made again of another job": ("attempts that were lost", asked_again_of_another),
    "answers are billed twice": ("in full twice", billed_twice),
    "answers are billed twice in a storm": ("in full twice", billed_twice_in_a_storm),
    "a late job was paid for": ("missed their deadline", late_and_paid),
    "a webhook is dropped": ("honest receiver", lambda e: e.arrivals.pop(0)),
    "a repeat has other bytes": ("one body each", lambda e: e.arrivals.append(arrival("one", body="other"))),
    "a repeat has another id": ("one body each", lambda e: e.arrivals.append(arrival("one", id="msg_other"))),
    "a signature is wrong": ("one body each", lambda e: e.arrivals.append(arrival("one", wrong="not signed"))),
    "a webhook says something else": ("became of the job", lambda e: e.arrivals.append(arrival("three"))),
    "a webhook has another text": ("became of the job", lambda e: e.arrivals.append(arrival("one", content="?"))),
    "a webhook goes astray": ("became of the job", lambda e: e.arrivals.append(arrival("one", path="/slow/3000"))),
    "a tenant sees another's": ("in their listings", lambda e: e.listed["boreas"]["completed"].append(job(e, "one"))),
    "a tenant sees other words": ("in their listings", lambda e: job(e, "one").update(metadata={"tenant": "boreas"})),
    "a tenant misses a job": ("in their listings", lambda e: e.listed["boreas"]["cancelled"].clear()),
    "a trespass succeeds": ("another tenant's", lambda e: e.trespasses.update({200: 1})),
    "nobody has tried": ("another tenant's", lambda e: e.trespasses.clear()),
    "a 500": ("answers of the API", lambda e: e.answers.update({500: 1})),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_checks_see(name: str) -> None:
    claim, spoil = BAD[name]
    evidence = copy.deepcopy(good())
    spoil(evidence)
    wrong = [finding.claim for finding in judge(evidence) if not finding.holds]
    assert any(claim in found for found in wrong), wrong
    assert "WRONG" in report(evidence, judge(evidence), seed=0)

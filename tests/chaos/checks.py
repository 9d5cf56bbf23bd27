"""What must be true after a run. Pure: evidence in, findings out, each with what was counted and what was expected."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from chaos.evidence import Arrival, Asked, Evidence

_FINAL = {"completed": "complete", "failed": "error", "cancelled": "error"}
_EVENTS = {"completed": "chat.completed", "failed": "chat.failed", "cancelled": "chat.cancelled"}
_SHOWN = 3  # examples of what is wrong


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    #: What was looked at.
    claim: str
    counted: str
    expected: str
    #: The first few things that contradict it.
    wrong: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.wrong


def judge(evidence: Evidence) -> list[Finding]:
    """All findings, in the order of a job's life."""
    return [
        _present(evidence),
        _one_state(evidence),
        _only_as_asked(evidence),
        _logs(evidence),
        _answers(evidence),
        _followed(evidence),
        _calls_per_attempt(evidence),
        _asked_again(evidence),
        _answered_twice(evidence),
        _unspent(evidence),
        _webhooks_arrived(evidence),
        _webhooks_same(evidence),
        _webhooks_true(evidence),
        _listings(evidence),
        _trespasses(evidence),
        _no_5xx(evidence),
    ]


def _finding(claim: str, counted: object, expected: object, wrong: Iterable[str]) -> Finding:
    return Finding(claim, str(counted), str(expected), tuple(wrong))


def _found(evidence: Evidence) -> dict[str, dict[str, Any]]:
    return {job_id: job for job_id, job in evidence.jobs.items() if isinstance(job, dict)}


def _present(evidence: Evidence) -> Finding:
    found = _found(evidence)
    lost = [f"{job_id}: {evidence.jobs.get(job_id, 'unknown')}" for job_id in evidence.asked if job_id not in found]
    return _finding("acknowledged jobs that are there", len(found), len(evidence.asked), lost)


def _one_state(evidence: Evidence) -> Finding:
    places = defaultdict[str, list[str]](list)
    for by_status in evidence.listed.values():
        for status, jobs in by_status.items():
            for job in jobs:
                places[job["jobId"]].append(status)
    wrong = [
        f"{job_id}: {job['status']}, and listed as {', '.join(places[job_id]) or 'nothing'}"
        for job_id, job in _found(evidence).items()
        if job["status"] not in _FINAL or places[job_id] != [job["status"]]
    ]
    ended = Counter(job["status"] for job in _found(evidence).values())
    counted = ", ".join(f"{number} {status}" for status, number in sorted(ended.items()))
    return _finding("… ended, each in exactly one state", counted, "none open, none twice", wrong)


def _only_as_asked(evidence: Evidence) -> Finding:
    """Nobody's job fails or is cancelled but by a deadline or a cancel of theirs; a cancel's answer stays true."""
    wrong, excused = [], 0
    for job_id, job in _found(evidence).items():
        asked = evidence.asked[job_id]
        code = (job["error"] or {}).get("code")
        if job["status"] == "failed" and not (asked.deadline and code == "deadline_exceeded"):
            wrong.append(f"{job_id}: failed by {code}")
        if job["status"] == "cancelled" and asked.cancelled is None:
            wrong.append(f"{job_id}: cancelled by nobody")
        if asked.cancelled not in (None, job["status"]):
            wrong.append(f"{job_id}: its cancel said {asked.cancelled}, now it is {job['status']}")
        excused += job["status"] != "completed"
    return _finding("… failed or cancelled otherwise than asked", len(wrong), f"0 ({excused} as asked)", wrong)


def _logs(evidence: Evidence) -> Finding:
    """Dense from 1 to the head, text that adds up, one final event that fits the state, nothing after it."""
    wrong = list(evidence.torn)
    for job_id, job in _found(evidence).items():
        told = evidence.told[job_id]
        if told.wrong:
            wrong.append(f"{job_id}: {told.wrong}")
        elif told.final != _FINAL.get(job["status"]) or told.head != job["head"]:
            wrong.append(f"{job_id}: {job['status']}, but its log ends at {told.head} of {job['head']} by {told.final}")
    events = sum(told.head for told in evidence.told.values())
    return _finding("logs that are dense, with one final event", f"{len(evidence.told)}, {events} events", "all", wrong)


def _answers(evidence: Evidence) -> Finding:
    completed = {job_id: job for job_id, job in _found(evidence).items() if job["status"] == "completed"}
    wrong = []
    for job_id, job in completed.items():
        text = evidence.asked[job_id].text
        if not ((job["result"] or {}).get("content") == evidence.told[job_id].text == text):
            wrong.append(f"{job_id}: another text than Mistral was to give")
    several = sum(job["attempt"] > 1 for job in completed.values())
    counted = f"{len(completed)}, {several} of several attempts"
    return _finding("answers that are Mistral's to the letter", counted, "all completed", wrong)


def _followed(evidence: Evidence) -> Finding:
    return _finding("streams read live, across the faults", evidence.followed, "each exact", evidence.misread)


def _billed(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Calls that Mistral bills for, by the text that was asked for."""
    calls = defaultdict[str, list[dict[str, Any]]](list)
    for call in evidence.calls:
        if call["prompt_tokens"]:
            calls[_text_of(call)].append(call)
    return calls


def _text_of(call: dict[str, Any]) -> str:
    return str(call["request"]["messages"][0]["content"]).removeprefix("Say: ")


def _jobs_and_calls(evidence: Evidence) -> Iterable[tuple[Asked, dict[str, Any], list[dict[str, Any]]]]:
    billed = _billed(evidence)
    for job_id, job in _found(evidence).items():
        asked = evidence.asked[job_id]
        yield asked, job, billed.get(asked.text, [])


def _calls_per_attempt(evidence: Evidence) -> Finding:
    rows = list(_jobs_and_calls(evidence))
    wrong = [
        f"{asked.job_id}: {len(calls)} calls, {job['attempt']} attempts"
        for asked, job, calls in rows
        if len(calls) > job["attempt"] or (job["status"] == "completed" and not calls)
    ]
    foreign = _billed(evidence).keys() - {asked.text for asked, _, _ in rows}
    # A submit of which nobody was told in time is acknowledged under its key later, so there are none of these.
    wrong += [f"a call for {text[:30]!r}, which nobody asked for" for text in foreign]
    refused = sum(call["status"] == 429 for call in evidence.calls)
    counted = f"{sum(len(calls) for _, _, calls in rows)} billed, {refused} refused (429)"
    return _finding("calls to Mistral, at most one an attempt", counted, "each of a job", wrong)


def _asked_again(evidence: Evidence) -> Finding:
    """A job is asked for again only where an attempt of its own was lost: to a kill, a freeze, an outage."""
    again, wrong = 0, []
    for asked, job, calls in _jobs_and_calls(evidence):
        more = max(0, len(calls) - 1)
        again += more
        if more > _lost_of(job):
            wrong.append(f"{asked.job_id}: {more} calls were made again, {_lost_of(job)} attempts were lost")
    expected = f"≤ {_lost(evidence)} lost ({evidence.strikes.struck} were struck)"
    return _finding("calls made again, after attempts that were lost", again, expected, wrong)


def _lost(evidence: Evidence) -> int:
    """Attempts that somebody else went on with, by the API's own history."""
    return sum(_lost_of(job) for job in _found(evidence).values())


def _lost_of(job: dict[str, Any]) -> int:
    """Those of one job. What Mistral has sent away (429) is given back as well, and has cost nothing."""
    return sum(
        attempt["outcome"] in ("lost", "handover") and (attempt.get("error") or {}).get("code") != "rate_limited"
        for attempt in job["attempts"]
    )


def _answered_twice(evidence: Evidence) -> Finding:
    """Answers that Mistral gave to their end, and gave again: at most one for each interruption.

    A machine that has too much to do freezes workers, too: what was lost without being struck is counted with them.
    However many there were, no more than attempts were lost.
    """
    twice = 0
    for _, _, calls in _jobs_and_calls(evidence):
        twice += max(0, sum(call["outcome"] == "complete" and not _continues(call) for call in calls) - 1)
    lost = _lost(evidence)
    stalls = max(0, lost - evidence.strikes.struck)
    most = min(lost, evidence.strikes.interruptions + stalls)
    wrong = [f"{twice} answers were billed twice"] if twice > most else []
    expected = f"≤ {most}" + (f", {stalls} of them stalls" if stalls else "")
    return _finding("answers billed in full twice, by interruptions", twice, expected, wrong)


def _continues(call: dict[str, Any]) -> bool:
    return bool(call["request"]["messages"][-1].get("prefix"))


def _unspent(evidence: Evidence) -> Finding:
    late = [
        (asked, job, calls)
        for asked, job, calls in _jobs_and_calls(evidence)
        if (job["error"] or {}).get("code") == "deadline_exceeded"
    ]
    wrong = [f"{asked.job_id}: {len(calls)} calls" for asked, job, calls in late if len(calls) > job["attempt"]]
    wrong += [f"{a.job_id}: never tried, yet billed" for a, job, calls in late if not job["attempt"] and calls]
    return _finding("jobs that missed their deadline, unspent", len(late), "no call without a start", wrong)


def _honest(evidence: Evidence) -> dict[str, list[Arrival]]:
    arrivals = defaultdict[str, list[Arrival]](list)
    for one in evidence.arrivals:
        arrivals[one.job_id].append(one)
    return arrivals


def _webhooks_arrived(evidence: Evidence) -> Finding:
    arrivals = _honest(evidence)
    due = [one for one in evidence.asked.values() if one.path and not one.hostile]
    wrong = [f"{one.job_id}: {evidence.untold.get(one.job_id, '')}" for one in due if not arrivals[one.job_id]]
    told = sum(len(arrivals[one.job_id]) for one in due)
    counted = f"{len(due) - len(wrong)} of {told} arrivals"
    return _finding("webhooks that arrived at the honest receiver", counted, f"{len(due)}", wrong)


def _webhooks_same(evidence: Evidence) -> Finding:
    """One message a job, whatever receiver: repeats have its id, its bytes, and a signature that is right."""
    bodies = defaultdict[str, set[str]](set)
    ids = defaultdict[str, set[str]](set)
    for one in evidence.arrivals:
        bodies[one.id].add(one.body)
        ids[one.job_id].add(one.id)
    wrong = [f"{one.id}: {one.wrong}" for one in evidence.arrivals if one.wrong]
    wrong += [f"{id_}: {len(several)} bodies" for id_, several in bodies.items() if len(several) > 1]
    wrong += [f"{job_id}: {len(several)} messages" for job_id, several in ids.items() if len(several) > 1]
    repeats = len(evidence.arrivals) - len(bodies)
    counted = f"{len(bodies)} messages, {repeats} repeats"
    return _finding("… one id and one body each, rightly signed", counted, "no other", wrong)


def _webhooks_true(evidence: Evidence) -> Finding:
    wrong = []
    for one in evidence.arrivals:
        job, asked = evidence.jobs.get(one.job_id), evidence.asked.get(one.job_id)
        if asked is None or not isinstance(job, dict):
            wrong.append(f"{one.id}: about {one.job_id or 'no job'}, which nobody asked for")
        elif one.event != _EVENTS.get(job["status"]) or (job["status"] == "completed" and one.content != asked.text):
            wrong.append(f"{one.id}: says {one.event} of a job that is {job['status']}, or another text")
        elif one.path != asked.path:
            wrong.append(f"{one.id}: at {one.path}, and was to go to {asked.path}")
    return _finding("… that say what became of the job", len(evidence.arrivals), "all, and to the right place", wrong)


def _listings(evidence: Evidence) -> Finding:
    """A tenant's listing is their own jobs, all of them, and nobody else's."""
    wrong, seen = [], 0
    for tenant, by_status in evidence.listed.items():
        listed = {job["jobId"]: job for jobs in by_status.values() for job in jobs}
        own = {job_id for job_id, asked in evidence.asked.items() if asked.tenant == tenant}
        seen += len(listed)
        wrong += [f"{tenant} sees {job_id}" for job_id in listed.keys() - own]
        wrong += [f"{tenant} misses {job_id}" for job_id in own - listed.keys()]
        wrong += [
            f"{tenant} sees what {job['metadata']['tenant']} wrote"
            for job in listed.values()
            if (job["metadata"] or {}).get("tenant", tenant) != tenant
        ]
    return _finding("jobs that tenants see in their listings", seen, f"{len(evidence.asked)}, their own", wrong)


def _trespasses(evidence: Evidence) -> Finding:
    answers = dict(sorted(evidence.trespasses.items()))
    wrong = [f"{number} × {status}" for status, number in answers.items() if status != 404]
    if not answers:
        wrong = ["nobody tried"]
    return _finding("tries at another tenant's jobs", answers, "404 to all", wrong)


def _no_5xx(evidence: Evidence) -> Finding:
    expected = {200, 202, 503}
    wrong = [
        f"{number} × {status}: {evidence.surprises.get(status, '')}"
        for status, number in sorted(evidence.answers.items())
        if status not in expected
    ]
    return _finding("answers of the API by status", dict(sorted(evidence.answers.items())), "200, 202, 503", wrong)


def summary(findings: list[Finding]) -> tuple[int, int]:
    """(findings that hold, all)."""
    return sum(finding.holds for finding in findings), len(findings)


def examples(finding: Finding) -> list[str]:
    """The first few contradictions, and how many more there are."""
    more = len(finding.wrong) - _SHOWN
    return [*finding.wrong[:_SHOWN], *([f"… and {more} more"] if more > 0 else [])]

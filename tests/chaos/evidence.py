"""What is known after a run: promises, and what everybody says became of them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Asked:
    """A job that was acknowledged, as the one who asked for it remembers it."""

    tenant: str
    job_id: str
    #: What it was to say. No two jobs say the same, and all of a tenant's begin with its name.
    text: str
    #: Path at the honest receiver or, with `hostile`, at the other one; None: nobody is told.
    path: str | None = None
    hostile: bool = False
    deadline: bool = False
    #: What the answer to its cancel said: the status. None: it was not cancelled.
    cancelled: str | None = None


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A webhook as a receiver wrote it down."""

    id: str
    body: str
    path: str
    #: Why it must not be trusted; empty when its signature is right.
    wrong: str
    job_id: str
    event: str
    content: str | None


@dataclass(kw_only=True)
class Told:
    """A job's whole log, as its stream tells it."""

    text: str = ""
    #: `complete` or `error`; None when there was no end.
    final: str | None = None
    #: Last seq.
    head: int = 0
    #: The first promise of a stream that was broken.
    wrong: str = ""


@dataclass(kw_only=True)
class Strikes:
    """What was done to the fleet."""

    #: Faults by kind.
    done: Counter[str] = field(default_factory=Counter)
    #: Kinds that could not be done here, with the reason.
    skipped: dict[str, str] = field(default_factory=dict)
    #: Attempts that were under way where a worker was killed or frozen, or anywhere when the database went.
    struck: int = 0
    #: Kills and freezes of workers, outages of the database: each may make calls that were answered be asked again.
    interruptions: int = 0


@dataclass(kw_only=True)
class Evidence:
    """Everything that the checks look at."""

    asked: dict[str, Asked]
    #: GET of each job as its tenant; a string is what came instead.
    jobs: dict[str, dict[str, Any] | str]
    told: dict[str, Told]
    #: Jobs whose events, as rows, have gaps, doubles, or not one end.
    torn: list[str]
    #: Of each tenant: its listing, by the status that was asked for.
    listed: dict[str, dict[str, list[dict[str, Any]]]]
    #: What a tenant was answered for another's jobs: HTTP statuses.
    trespasses: Counter[int]
    #: Mistral's ledger.
    calls: list[dict[str, Any]]
    arrivals: list[Arrival]
    #: Jobs of which the honest receiver was not told, and what the API says of that.
    untold: dict[str, str]
    strikes: Strikes
    #: Answers of the API by status, as clients got them.
    answers: Counter[int]
    #: The first answer of a kind that nobody expected, by status.
    surprises: dict[int, str]
    #: Streams that were read live, across faults; and what was wrong with one.
    followed: int = 0
    misread: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: From the end of the faults until all was settled (seconds).
    settled: float = 0.0

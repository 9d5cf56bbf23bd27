"""Tenants: who shares the fleet, and what each may use of it."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

#: The least and the greatest weight. Beyond them a share of the fleet is none, or all, and sums lose their sense.
LIGHTEST: Final = 0.001
HEAVIEST: Final = 1000.0

OnBudget = Literal["queue", "fail"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """What is set for a tenant. One for whom nothing is set is like all others."""

    id: str
    description: str = ""
    #: Their part of what the fleet may start, beside that of others who wait: LIGHTEST to HEAVIEST.
    weight: float = 1.0
    #: Jobs of theirs that run at a time. Here as below, None is no limit.
    concurrency: int | None = None
    #: The highest priority that their jobs may ask for: 0 or more.
    top_priority: int | None = None
    #: Jobs of theirs that may wait.
    queue_limit: int | None = None
    #: Budgets of a day (UTC): tokens, and money in the currency of the price table.
    daily_tokens: int | None = None
    daily_cost: Decimal | None = None
    #: What becomes of their jobs once that is used up: they wait for the next day, or fail.
    on_budget: OnBudget = "queue"
    #: A Mistral key of their own, sealed; None: the server's.
    mistral_key: bytes | None = None


def fair(weight: float) -> float:
    """A weight as it counts, whatever is written."""
    return 1.0 if math.isnan(weight) else min(max(weight, LIGHTEST), HEAVIEST)

"""Tenants: who shares the fleet, and what each may use of it."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

OnBudget = Literal["queue", "fail"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """What is set for a tenant. One for whom nothing is set is like all others."""

    id: str
    description: str = ""
    #: Their part of what the fleet may start, beside that of others who wait.
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

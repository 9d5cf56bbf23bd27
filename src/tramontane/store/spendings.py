"""What tenants have used in a day: written in the transaction in which an attempt ends.

It is what Mistral reported of the attempt; of one that it may have billed without saying so it is an estimate, or a
tenant that cancels its jobs in time would use what no budget knows of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

import asyncpg

from tramontane.models import Job, JobKey, Money, Tokens
from tramontane.prices import Prices, read_tokens
from tramontane.store.rows import Connection
from tramontane.store.statements import Statements

SQL = Statements("spendings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What one attempt has used."""

    tenant: str
    #: UTC, of its end.
    day: date
    model: str
    tokens: Tokens
    cost: Money | None


def spent_by(job: Job, usage: str | None, cost: Money | None, at: datetime) -> Spent | None:
    """What an attempt that ended at that time has used; None when Mistral reported nothing of it.

    usage: as Mistral reported it, JSON.
    """
    tokens = read_tokens(usage)
    if tokens is None:
        return None
    return Spent(tenant=job.key.tenant, day=at.astimezone(UTC).date(), model=job.model, tokens=tokens, cost=cost)


async def spent_unreported(
    connection: Connection, attempts: Sequence[tuple[JobKey, int]], prices: Prices
) -> list[Spent]:
    """What ended attempts have used that are marked as unreported, about: it is written down with each of them, too."""
    if not attempts:
        return []
    keys = [key for key, _ in attempts]
    numbers = [attempt for _, attempt in attempts]
    rows = await connection.fetch(SQL.count_unreported, [key.tenant for key in keys], [key.id for key in keys], numbers)
    return [_estimated(row, prices) for row in rows]


def _estimated(row: asyncpg.Record, prices: Prices) -> Spent:
    at = row["ended_at"].astimezone(UTC)
    prompt = min(row["prompt_tokens"], row["tokens"])
    tokens = Tokens(prompt=prompt, completion=row["tokens"] - prompt)
    cost = prices.price(row["model"], tokens, at)
    return Spent(tenant=row["tenant_id"], day=at.date(), model=row["model"], tokens=tokens, cost=cost)


async def spend(connection: Connection, attempts: Sequence[Spent | None]) -> None:
    """Add to the tenants' days in the caller's transaction, and last in it: all of a tenant meet at these rows."""
    spent = [attempt for attempt in attempts if attempt is not None]
    if not spent:
        return
    await connection.execute(
        SQL.spend,
        [one.tenant for one in spent],
        [one.day for one in spent],
        [one.model for one in spent],
        [one.tokens.prompt for one in spent],
        [one.tokens.completion for one in spent],
        [one.cost.amount if one.cost else Decimal(0) for one in spent],
    )

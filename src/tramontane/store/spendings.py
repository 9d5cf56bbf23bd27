"""What tenants have used in a day: written in the transaction in which an attempt ends, from its own usage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from tramontane.models import Job, Money, Tokens
from tramontane.prices import read_tokens
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

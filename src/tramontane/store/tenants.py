"""Tenants: what is set for them. A tenant exists by having a key or a job; its row holds only what was set."""

from collections.abc import Callable
from datetime import date, datetime

import asyncpg

from tramontane.models import SERVER_ACCOUNT
from tramontane.store.keys import NEWS
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements
from tramontane.tenants import Tenant

SQL = Statements("tenants")


class TenantStore:
    """Verbs about tenants."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, name: str) -> Tenant:
        """What is set for a tenant; the defaults for one that nobody has heard of."""
        row = await self._pool.fetchrow(SQL.get_tenant, name)
        return Tenant(id=name) if row is None else _tenant(row)

    async def list(self) -> list[Tenant]:
        """Tenants that have a key, a job, or something set, by name."""
        rows = await self._pool.fetch(SQL.list_tenants)
        return [Tenant(id=row["name"]) if row["id"] is None else _tenant(row) for row in rows]

    async def models_for_money(self, since: date) -> tuple[str, ...]:
        """Models that tenants with a budget of money have used since a day (UTC)."""
        return tuple(row["model"] for row in await self._pool.fetch(SQL.models_for_money, since))

    async def change(self, name: str, change: Callable[[Tenant], Tenant], now: datetime) -> Tenant:
        """Make of a tenant what `change` makes of it, while nobody else changes it.

        Jobs that have not ended go by the Mistral key that the tenant has then; what was learned of the limits of
        another is forgotten.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL.lock_tenant, name, now)
            assert row is not None
            tenant = change(_tenant(row))
            await connection.execute(
                SQL.update_tenant,
                name,
                tenant.description,
                tenant.weight,
                tenant.concurrency,
                tenant.top_priority,
                tenant.queue_limit,
                tenant.daily_tokens,
                tenant.daily_cost,
                tenant.on_budget,
                tenant.mistral_key,
            )
            if (tenant.mistral_key is None) != (row["mistral_key"] is None):
                account = SERVER_ACCOUNT if tenant.mistral_key is None else name
                await connection.execute(SQL.move_jobs, name, account)
            if tenant.mistral_key != row["mistral_key"]:
                await connection.execute(SQL.forget_limits, name)
            await connection.execute(NEWS)
            await connection.execute("SELECT pg_notify('tramontane_admission', '')")
        return tenant


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(
        id=row["id"],
        description=row["description"],
        weight=row["weight"],
        concurrency=row["concurrency"],
        top_priority=row["top_priority"],
        queue_limit=row["queue_limit"],
        daily_tokens=row["daily_tokens"],
        daily_cost=row["daily_cost"],
        on_budget=row["on_budget"],
        mistral_key=row["mistral_key"],
    )

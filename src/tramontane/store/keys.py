"""API keys: made, found by their hash, listed, revoked. Rows stay for ever; what is revoked never comes back."""

from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from tramontane.errors import NotFound
from tramontane.ids import show_id
from tramontane.keys import ApiKey
from tramontane.models import Scope
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("keys")

#: Told on this channel: forget what you know of keys and tenants.
CHANNEL: Final = "tramontane_keys"
NEWS: Final = f"SELECT pg_notify('{CHANNEL}', '')"


class KeyStore:
    """Verbs about keys. Each that changes what a key may do tells every process of the fleet."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, key: ApiKey, digest: bytes) -> ApiKey:
        """Write a new key. From the first one on, every server of this database asks for keys."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                SQL.insert_key,
                key.tenant,
                key.id,
                key.name,
                digest,
                sorted(key.scopes),
                key.created_at,
                key.expires_at,
            )
            await connection.execute(NEWS)
        assert row is not None
        return _key(row)

    async def use(self, digest: bytes, now: datetime) -> ApiKey | None:
        """The key with that hash, in whatever state; one that is active is marked as used, at most once a minute."""
        row = await self._pool.fetchrow(SQL.use_key, digest, now)
        return row and _key(row)

    async def find(self, key_id: UUID) -> ApiKey | None:
        """The key with that id, in whatever state. It is not marked as used."""
        row = await self._pool.fetchrow(SQL.find_key, key_id)
        return row and _key(row)

    async def any(self) -> bool:
        """Whether there has ever been a key."""
        return bool(await self._pool.fetchval(SQL.any_key))

    async def list(self, tenant: str | None = None) -> list[ApiKey]:
        """Keys, oldest first; those of one tenant, or all."""
        return [_key(row) for row in await self._pool.fetch(SQL.list_keys, tenant)]

    async def revoke(self, key_id: UUID, now: datetime) -> ApiKey:
        """Make a key worthless, at once and for good. Raises NotFound."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(SQL.revoke_key, key_id, now)
            if row is None:
                raise NotFound(f"no such key: {show_id('key', key_id)}")
            await connection.execute(NEWS)
        return _key(row)


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        tenant=row["tenant_id"],
        id=row["id"],
        name=row["name"],
        scopes=frozenset(Scope(scope) for scope in row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        used_at=row["used_at"],
    )

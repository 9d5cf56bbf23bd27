"""Keys for tests: made in the store itself, as the commands do."""

from datetime import datetime, timedelta
from typing import Any

from tramontane.app import App
from tramontane.ids import new_id, utc_now
from tramontane.keys import USUAL_SCOPES, ApiKey, hash_of, new_key
from tramontane.models import Scope
from tramontane.store import KeyStore


async def make_key(
    app: App,
    tenant: str = "acme",
    scopes: frozenset[Scope] = USUAL_SCOPES,
    *,
    expires_at: datetime | None = None,
) -> str:
    """A new key; servers of that database ask for keys from now on."""
    secret, _ = await make_known_key(app, tenant, scopes, expires_at=expires_at)
    return secret


async def make_known_key(
    app: App,
    tenant: str = "acme",
    scopes: frozenset[Scope] = USUAL_SCOPES,
    *,
    expires_at: datetime | None = None,
) -> tuple[str, ApiKey]:
    """The same, with what is kept of it."""
    secret = new_key()
    digest = hash_of(secret)
    assert digest is not None
    now = utc_now() - timedelta(seconds=1)
    key = ApiKey(tenant=tenant, id=new_id(), name="test", scopes=scopes, created_at=now, expires_at=expires_at)
    return secret, await KeyStore(app.database.pool).add(key, digest)


def bearer(key: str, **more: str) -> dict[str, Any]:
    """The headers of somebody who has it."""
    return {"headers": {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): more[name] for name in more}}}

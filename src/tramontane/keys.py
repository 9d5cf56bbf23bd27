"""API keys: what one looks like, and what is kept of it.

A key is `tm_` and 256 random bits. Only its SHA-256 is kept: what nobody can guess needs no slow hash, and what is
looked up by its hash is compared with nothing, so how long that takes tells nothing about it.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from tramontane.errors import InvalidInput
from tramontane.models import Scope

#: What a key may do unless it is made for something else.
USUAL_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ})

_KEY: Final = re.compile(r"tm_[A-Za-z0-9_-]{43}")
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is known: whose it is, and what it may do. The key itself is nowhere."""

    tenant: str
    id: UUID
    #: What its owner calls it.
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    #: None: it never expires.
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    #: To the minute; None while nobody has used it.
    used_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def new_key() -> str:
    """A key that nobody else has."""
    return f"tm_{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> bytes | None:
    """What is kept of a key; None for what cannot be one."""
    return hashlib.sha256(key.encode()).digest() if _KEY.fullmatch(key) else None


def tenant_named(field: str, name: str) -> str:
    """A tenant's name. Raises InvalidInput for what cannot be one, naming the field."""
    if not _TENANT.fullmatch(name):
        raise InvalidInput(field, "must be 1 to 63 lower-case letters, digits and hyphens, and begin with no hyphen")
    return name

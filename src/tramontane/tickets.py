"""Tickets: read one job's events for a while, for clients that can send no headers.

A ticket is a signature over the job it opens and the moment it expires. It is written down nowhere: every process
that has the fleet's encryption key can make one and check it, before and after a restart. It can be used until it
expires, since a browser's EventSource comes back with the address that it was given first.
"""

import base64
import hmac
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from tramontane.errors import InvalidTicket
from tramontane.models import JobKey
from tramontane.vault import Vault

_PURPOSE: Final = "tickets"
_FORM: Final = re.compile(r"tkt_([0-9]{1,11})_([A-Za-z0-9_-]{43})")


class Tickets:
    """Makes tickets and checks them."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def issue(self, key: JobKey, *, ttl: float, now: datetime) -> tuple[str, datetime]:
        """A ticket that opens one job's events for `ttl` seconds, and when it expires.

        Raises SecretsLocked where there is no key to sign with.
        """
        expires = int((now + timedelta(seconds=ttl)).timestamp())
        newest, *_ = self._vault.derive(_PURPOSE)
        return f"tkt_{expires}_{_sign(newest, key, expires)}", datetime.fromtimestamp(expires, UTC)

    def check(self, ticket: str, key: JobKey, now: datetime) -> None:
        """Raises InvalidTicket unless it opens this job now; which of the two it does not is not told apart."""
        form = _FORM.fullmatch(ticket)
        if form is not None and int(form[1]) > now.timestamp():
            # With every key that the vault can still open: a ticket outlives the change of a key.
            signatures = [_sign(secret, key, int(form[1])) for secret in self._vault.derive(_PURPOSE)]
            if any(hmac.compare_digest(signature, form[2]) for signature in signatures):
                return
        raise InvalidTicket("this ticket has expired, or was not issued for the events of this job: ask for a new one")


def _sign(secret: bytes, key: JobKey, expires: int) -> str:
    content = f"read {key.tenant} {key.id} {expires}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, content, "sha256")).rstrip(b"=").decode()

"""Tickets: read one job's events for a while, for clients that can send no headers.

A ticket names its tenant, and is a signature over that, the job it opens and the moment it expires. It is written down
nowhere: every process that has the fleet's encryption key can make one and check it, before and after a restart. It can
be used until it expires, since a browser's EventSource comes back with the address that it was given first.
"""

import base64
import hmac
import re
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from tramontane.errors import InvalidTicket
from tramontane.models import JobKey
from tramontane.vault import Vault

_PURPOSE: Final = "tickets"
_FORM: Final = re.compile(r"tkt_([0-9]{1,11})_([a-z0-9-]{1,63})_([A-Za-z0-9_-]{43})")


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
        ticket = f"tkt_{expires}_{key.tenant}_{_sign(newest, key, expires)}"
        return ticket, datetime.fromtimestamp(expires, UTC)

    def open(self, ticket: str, job_id: UUID, now: datetime) -> JobKey:
        """The job that it opens, among those of its tenant.

        Raises InvalidTicket unless it opens this one now; which of the two it does not is not told apart.
        """
        form = _FORM.fullmatch(ticket)
        if form is not None and int(form[1]) > now.timestamp():
            key = JobKey(tenant=form[2], id=job_id)
            # With every key that the vault can still open: a ticket outlives the change of a key.
            signatures = [_sign(secret, key, int(form[1])) for secret in self._vault.derive(_PURPOSE)]
            if any(hmac.compare_digest(signature, form[3]) for signature in signatures):
                return key
        raise InvalidTicket("this ticket has expired, or was not issued for the events of this job: ask for a new one")


def _sign(secret: bytes, key: JobKey, expires: int) -> str:
    content = f"read {key.tenant} {key.id} {expires}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, content, "sha256")).rstrip(b"=").decode()

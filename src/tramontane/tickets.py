"""Tickets: read one job's events for a while, for clients that can send no headers.

A ticket names its tenant and the API key it was made with, if there was one, and is a signature over these, the job it
opens and the moment it expires. It is written down nowhere: every process that has the fleet's encryption key can make
one and check it, before and after a restart. It can be used until it expires, since a browser's EventSource comes back
with the address that it was given first; whether its API key still opens anything is for the caller to ask.
"""

import base64
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from tramontane.errors import InvalidTicket
from tramontane.ids import read_id, show_id
from tramontane.models import JobKey
from tramontane.vault import Vault

_PURPOSE: Final = "tickets"
_FORM: Final = re.compile(
    r"tkt_([0-9]{1,11})_([a-z0-9-]{1,63})_(?:(key_[0-7][0-9A-HJKMNP-TV-Z]{25})_)?([A-Za-z0-9_-]{43})"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """What a ticket says that was made here."""

    job: JobKey
    #: Of the API key; None when no key was needed.
    made_with: UUID | None


class Tickets:
    """Makes tickets and checks them."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def issue(self, ticket: Ticket, *, ttl: float, now: datetime) -> tuple[str, datetime]:
        """A ticket that opens one job's events for `ttl` seconds, as a text, and when it expires.

        Raises SecretsLocked where there is no key to sign with.
        """
        expires = int((now + timedelta(seconds=ttl)).timestamp())
        newest, *_ = self._vault.derive(_PURPOSE)
        maker = "" if ticket.made_with is None else f"{show_id('key', ticket.made_with)}_"
        text = f"tkt_{expires}_{ticket.job.tenant}_{maker}{_sign(newest, ticket, expires)}"
        return text, datetime.fromtimestamp(expires, UTC)

    def open(self, text: str, job_id: UUID, now: datetime) -> Ticket:
        """What it says: the job that it opens, among those of its tenant, and with which API key it was made.

        Raises InvalidTicket unless it opens this one now; which of the two it does not is not told apart.
        """
        form = _FORM.fullmatch(text)
        if form is not None and int(form[1]) > now.timestamp():
            maker = None if form[3] is None else read_id("key", form[3])
            ticket = Ticket(job=JobKey(tenant=form[2], id=job_id), made_with=maker)
            # With every key that the vault can still open: a ticket outlives the change of a key.
            signatures = [_sign(secret, ticket, int(form[1])) for secret in self._vault.derive(_PURPOSE)]
            if any(hmac.compare_digest(signature, form[4]) for signature in signatures):
                return ticket
        raise InvalidTicket("this ticket has expired, or was not issued for the events of this job: ask for a new one")


def _sign(secret: bytes, ticket: Ticket, expires: int) -> str:
    maker = "" if ticket.made_with is None else f" {ticket.made_with}"
    content = f"read {ticket.job.tenant} {ticket.job.id} {expires}{maker}"
    return base64.urlsafe_b64encode(hmac.digest(secret, content.encode(), "sha256")).rstrip(b"=").decode()

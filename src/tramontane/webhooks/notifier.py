"""WebhookNotifier: one signed POST, for programs that only want to tell somebody something.

No database, no retry, no log of attempts: those come with jobs and endpoints. Signature, address policy and transport
are the same.
"""

import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Final

import msgspec

from tramontane.errors import InvalidInput
from tramontane.ids import iso, new_id, show_id, utc_now
from tramontane.settings import Settings, read_settings
from tramontane.telemetry import log
from tramontane.webhooks.models import Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.signatures import check_secret, signed_headers
from tramontane.webhooks.transport import Transport

_LOGGER = logging.getLogger(__name__)
_EVENT: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class WebhookNotifier:
    """Sends events signed with one secret. Alone, each call has a connection of its own:

        await WebhookNotifier("whsec_…").notify("https://example.com/hook", "chat.completed", {"jobId": "job_01K…"})

    As an async context manager, calls share a pool of connections. The addresses that it may call are those of
    `settings`, by default those of the environment: TRAMONTANE_WEBHOOK_ALLOW_CIDRS=127.0.0.0/8 opens a laptop.

    timeout: seconds for the whole exchange; that of the settings when None. ssl_context: whom to trust.
    Raises InvalidInput for a secret that cannot sign.
    """

    def __init__(
        self,
        secret: str,
        *,
        settings: Settings | None = None,
        timeout: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        check_secret(secret)
        settings = settings or read_settings()
        self._secret = secret
        self._policy = AddressPolicy.from_settings(settings)
        self._timeout = settings.webhook_timeout if timeout is None else timeout
        self._ssl_context = ssl_context
        self._shared: Transport | None = None

    async def __aenter__(self) -> "WebhookNotifier":
        self._shared = await self._new_transport().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.__aexit__(kind, error, traceback)

    async def notify(self, url: str, event: str, data: Any) -> bool:
        """POST `{id, event, type, timestamp, data}` once. True when the receiver answered 2xx.

        False for everything else: another status, no answer, or an address that the policy forbids; the log says why.
        data: whatever becomes a JSON object. Raises InvalidInput when it does not, or when `event` is no event's name.
        """
        outgoing = self._outgoing(url, event, data, now=utc_now())
        async with self._transport() as transport:
            exchange = await transport.send(outgoing)
        if not exchange.succeeded:
            fields = {"status": exchange.status, "error_class": exchange.error_class, "detail": exchange.detail}
            log(_LOGGER, logging.WARNING, "webhook.not_delivered", type=event, **fields)
        return exchange.succeeded

    def _outgoing(self, url: str, event: str, data: Any, *, now: datetime) -> Outgoing:
        if not isinstance(url, str):
            raise InvalidInput("url", "must be text")
        if not isinstance(event, str) or not _EVENT.fullmatch(event):
            raise InvalidInput("event", "must be a name such as chat.completed")
        message_id, timestamp = show_id("msg", new_id()), iso(now)
        body = msgspec.json.encode(
            {"id": message_id, "event": event, "type": event, "timestamp": timestamp, "data": _json_object(data)}
        )
        headers = signed_headers(
            body=body,
            message_id=message_id,
            timestamp=timestamp,
            attempted_at=now,
            secrets=(self._secret,),
            event=event,
            delivery_id=show_id("dlv", new_id()),
            attempt=1,
        )
        return Outgoing(url=url, headers=headers, body=body, timeout=self._timeout)

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Transport]:
        if self._shared is not None:
            yield self._shared
        else:
            async with self._new_transport() as own:
                yield own

    def _new_transport(self) -> Transport:
        return Transport(self._policy, ssl_context=self._ssl_context)


def _json_object(data: Any) -> msgspec.Raw:
    try:
        encoded = msgspec.json.encode(data)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("data", "cannot be written as JSON") from None
    if not encoded.startswith(b"{"):
        raise InvalidInput("data", "must be an object with fields")
    return msgspec.Raw(encoded)

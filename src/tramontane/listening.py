"""Listening: a terminal that no URL leads to comes for its deliveries itself, and says what came of them."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from tramontane.ids import iso, new_id, show_id, utc_now
from tramontane.listener import Listener
from tramontane.store.listeners import LEASE, ListenerStore
from tramontane.vault import Vault
from tramontane.webhooks.messages import check_filters
from tramontane.webhooks.records import Endpoint, HandedOut, Heard
from tramontane.webhooks.signatures import new_secret, signed_headers

#: Seconds until somebody who waits looks again, should a hint be lost.
_LOOK: Final = 1.0
_CHANNEL: Final = "tramontane_deliveries"


class Listeners:
    """Terminals that listen: they come for what others are sent."""

    def __init__(
        self, store: ListenerStore, vault: Vault, listener: Listener, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._vault = vault
        self._hints = listener
        self._clock = clock
        self._waiting: set[asyncio.Event] = set()
        self._draining = False

    def drain(self) -> None:
        """Answer all who wait now, and whoever comes later at once: the process is about to end."""
        self._draining = True
        for news in self._waiting:
            news.set()

    async def add(self, tenant: str, events: tuple[str, ...]) -> tuple[UUID, str, datetime]:
        """A new listener: its id, its secret, and the end of its lease. Raises InvalidInput."""
        now, secret = self._clock(), new_secret()
        listener = Endpoint(
            tenant=tenant,
            id=new_id(),
            url="listener:",
            events=check_filters(events, "events"),
            created_at=now,
            updated_at=now,
        )
        await self._store.add(listener, self._vault.seal(secret), expires_at=now + LEASE)
        return listener.id, secret, now + LEASE

    async def next(
        self, tenant: str, listener_id: UUID, results: Sequence[Heard], *, wait: float
    ) -> tuple[list[tuple[HandedOut, dict[str, str]]], datetime]:
        """Write what came of the last deliveries, and take the next, each with the headers that it is signed with.

        They come as soon as there are any, or none after `wait` seconds; and the end of the lease, which begins anew.
        Raises NotFound once the lease has ended.
        """
        if results:
            await self._store.record(tenant, listener_id, results, self._clock())
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        deadline = loop.time() + wait

        def hear(_: str) -> None:
            news.set()

        self._waiting.add(news)
        await self._hints.add(_CHANNEL, hear)
        try:
            while True:
                news.clear()
                now = self._clock()
                secret, taken = await self._store.take(tenant, listener_id, expires_at=now + LEASE, now=now)
                left = deadline - loop.time()
                if taken or left <= 0 or self._draining:
                    key = self._vault.open(secret)
                    return [(one, _signed(one, key, now)) for one in taken], now + LEASE
                await _heard(news, min(left, _LOOK))
        finally:
            self._waiting.discard(news)
            await self._hints.remove(_CHANNEL, hear)

    async def remove(self, tenant: str, listener_id: UUID) -> None:
        """End a listener before its lease does. Raises NotFound."""
        await self._store.remove(tenant, listener_id, self._clock())


async def _heard(news: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        pass


def _signed(delivery: HandedOut, secret: str, now: datetime) -> dict[str, str]:
    return dict(
        signed_headers(
            body=delivery.body,
            message_id=show_id("msg", delivery.message_id),
            timestamp=iso(delivery.event_at),
            attempted_at=now,
            secrets=(secret,),
            event=delivery.event,
            delivery_id=show_id("dlv", delivery.id),
            attempt=delivery.attempt,
            job_id=show_id("job", delivery.job_id) if delivery.job_id else None,
            job_seq=delivery.seq,
        )
    )

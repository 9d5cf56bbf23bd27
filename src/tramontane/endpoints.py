"""What owners of receivers ask: register, change, try, rotate, tell again, explain."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from tramontane.errors import CallbackBlocked, InvalidInput
from tramontane.ids import new_id, show_id, utc_now
from tramontane.store import EndpointStore, HistoryStore, RecoveryStore
from tramontane.vault import Vault
from tramontane.webhooks.certificate import certificate_end
from tramontane.webhooks.health import enable
from tramontane.webhooks.messages import ENDINGS, TEST_EVENT, check_filters, new_message
from tramontane.webhooks.models import EndpointState
from tramontane.webhooks.policy import AddressPolicy, Verdict
from tramontane.webhooks.records import (
    DeliveryRecord,
    Endpoint,
    EndpointChange,
    Explanation,
    Recovery,
    Wanted,
)
from tramontane.webhooks.resolver import Resolve
from tramontane.webhooks.signatures import check_secret, new_secret
from tramontane.webhooks.target import Target, read_target

#: Seconds that a registration waits for its host's addresses.
_LOOKUP: Final = 2.0
#: Seconds between two looks at a delivery that somebody waits for.
_LOOK: Final = 0.05

Value = TypeVar("Value")


class Endpoints:
    """Registered endpoints. What is only read, or only steered, is asked of `history` and `recoveries` themselves.

    resolve: the addresses of a host name.
    """

    def __init__(
        self,
        store: EndpointStore,
        history: HistoryStore,
        recoveries: RecoveryStore,
        policy: AddressPolicy,
        vault: Vault,
        resolve: Resolve,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self.history = history
        self.recoveries = recoveries
        self._policy = policy
        self._vault = vault
        self._resolve = resolve
        self._clock = clock

    async def add(self, tenant: str, wanted: EndpointChange, *, secret: str | None = None) -> tuple[Endpoint, str]:
        """Register a URL. The endpoint, and its secret, which is shown to nobody again.

        Raises InvalidInput, and CallbackBlocked with the rule that forbids the URL or a header.
        """
        if wanted.url is None:
            raise InvalidInput("url", "is missing")
        secret = _checked(secret)
        sealed = self._vault.seal(secret)
        await self._check_addresses(wanted.url)
        now = self._clock()
        blank = Endpoint(tenant=tenant, id=new_id(), url="", events=ENDINGS, created_at=now, updated_at=now)
        return await self._store.add(self._changed(blank, wanted), sealed), secret

    async def get(self, tenant: str, endpoint_id: UUID) -> Endpoint:
        """The endpoint. Raises NotFound."""
        return await self._store.get(tenant, endpoint_id, self._clock())

    async def find(self, tenant: str, *, before: UUID | None, limit: int) -> list[Endpoint]:
        """Endpoints, newest first."""
        return await self._store.find(tenant, before=before, limit=limit, now=self._clock())

    def header_names(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Names of the headers that the endpoint's owner added. Raises SecretsLocked."""
        return tuple(self._headers(endpoint))

    async def change(self, tenant: str, endpoint_id: UUID, wanted: EndpointChange) -> Endpoint:
        """Change the fields that are given; another URL begins with a health of its own.

        Raises NotFound, InvalidInput, CallbackBlocked.
        """
        if wanted.url is not None:
            await self._check_addresses(wanted.url)
        return await self._store.change(
            tenant, endpoint_id, lambda endpoint: self._changed(endpoint, wanted), self._clock()
        )

    async def set_state(self, tenant: str, endpoint_id: UUID, state: EndpointState) -> Endpoint:
        """Enable, pause or disable. To enable begins a new spell of health, and lets what waits go on."""
        now = self._clock()

        def set_to(endpoint: Endpoint) -> Endpoint:
            return dataclasses.replace(
                endpoint,
                state=state,
                disabled_reason="manual" if state is EndpointState.DISABLED else None,
                health=enable(endpoint.health, now) if state is EndpointState.ACTIVE else endpoint.health,
            )

        return await self._store.change(tenant, endpoint_id, set_to, now)

    async def remove(self, tenant: str, endpoint_id: UUID) -> None:
        """Forget an endpoint and its secrets; what waits for it is cancelled. Raises NotFound."""
        await self._store.remove(tenant, endpoint_id, self._clock())

    async def rotate(
        self, tenant: str, endpoint_id: UUID, *, overlap: float, at_end: bool, secret: str | None = None
    ) -> tuple[Endpoint, str]:
        """A further secret, which is shown to nobody again; the former ones sign beside it for `overlap` seconds.

        at_end: whether it becomes the primary only then. Raises NotFound, InvalidInput, Conflict.
        """
        secret, now = _checked(secret), self._clock()
        end = now + timedelta(seconds=overlap)
        endpoint = await self._store.rotate(
            tenant,
            endpoint_id,
            self._vault.seal(secret),
            primary_from=end if at_end else now,
            others_until=end,
            now=now,
        )
        return endpoint, secret

    async def test(self, tenant: str, endpoint_id: UUID, *, wait: float = 0.0) -> DeliveryRecord:
        """Send `webhook.test`; with `wait` it is over its first try on return, or so many seconds have passed.

        Raises NotFound, and Conflict unless the endpoint is active.
        """
        data = {"endpointId": show_id("ep", endpoint_id), "message": "A test, signed like everything else."}
        message = new_message(TEST_EVENT, self._clock(), tenant=tenant, data=data)
        delivery_id = await self._store.test(endpoint_id, message)
        return await self._wait(tenant, delivery_id, wait, lambda delivery: delivery.tries > 0)

    async def wait_for_end(self, tenant: str, delivery_id: UUID, wait: float) -> DeliveryRecord:
        """The delivery once it has ended, or as it is after `wait` seconds. Raises NotFound."""
        return await self._wait(tenant, delivery_id, wait, lambda _: False)

    async def replay(self, tenant: str, delivery_id: UUID) -> DeliveryRecord:
        """A new delivery of the same message, whatever became of this one. Raises NotFound, Conflict."""
        replay_id = await self._store.replay(tenant, delivery_id, self._clock())
        return await self.history.delivery(tenant, replay_id)

    async def recover(
        self,
        tenant: str,
        endpoint_id: UUID,
        *,
        since: datetime,
        until: datetime | None,
        only: Wanted,
        event: str | None,
    ) -> Recovery:
        """Tell an endpoint a stretch of time again, up to now at most. Raises NotFound, InvalidInput, Conflict."""
        now = self._clock()
        until = min(until, now) if until else now
        if since >= until:
            raise InvalidInput("since", "must be before `until`, and in the past")
        if event is not None:
            check_filters((event,), "event")
        return await self.recoveries.start(
            tenant, endpoint_id, since=since, until=until, only=only, event=event, now=now
        )

    async def explain(self, url: str) -> Explanation:
        """What the policy says of a URL now. No event is sent; an allowed address is asked for its certificate."""
        rules = self._policy.explain(url)
        if not all(rule.passed for rule in rules):
            return Explanation(url=url, rules=rules)
        target = read_target(url, "url")
        addresses = await self._addresses(target)
        if not addresses:
            nowhere = Verdict(rule="dns", passed=False, detail="the name leads to no address now")
            return Explanation(url=target.url, rules=(*rules, nowhere))
        judged = Explanation(url=target.url, rules=rules, addresses=self._judged(target, addresses))
        if not target.secure or not judged.allowed:
            return judged
        return dataclasses.replace(judged, certificate_ends=await certificate_end(target, addresses[0]))

    def _changed(self, endpoint: Endpoint, wanted: EndpointChange) -> Endpoint:
        changed = dataclasses.replace(
            endpoint,
            description=_or(wanted.description, endpoint.description),
            format=_or(wanted.format, endpoint.format),
            ordering=_or(wanted.ordering, endpoint.ordering),
            timeout=_or(wanted.timeout, endpoint.timeout) or None,
            events=endpoint.events if wanted.events is None else check_filters(wanted.events, "events"),
            headers=self._sealed_headers(endpoint, wanted),
        )
        if wanted.url is None:
            return changed
        url = self._policy.check_url(wanted.url, "url").url
        moved = endpoint.url not in ("", url)
        return dataclasses.replace(
            changed, url=url, health=enable(endpoint.health, self._clock()) if moved else endpoint.health
        )

    def _sealed_headers(self, endpoint: Endpoint, wanted: EndpointChange) -> bytes | None:
        if wanted.headers is None and wanted.authorization is None:
            return endpoint.headers
        headers = self._headers(endpoint) if wanted.headers is None else dict(wanted.headers)
        if wanted.authorization is not None:
            own = next((name for name in headers if name.lower() == "authorization"), None)
            if own and wanted.headers is not None:
                raise InvalidInput("auth", "`headers` has an Authorization already: give one of them")
            headers.pop(own or "", None)
            headers |= {"Authorization": wanted.authorization} if wanted.authorization else {}
        self._policy.check_headers(headers, "headers")
        return self._vault.seal(msgspec.json.encode(headers).decode()) if headers else None

    def _headers(self, endpoint: Endpoint) -> dict[str, str]:
        if endpoint.headers is None:
            return {}
        return msgspec.json.decode(self._vault.open(endpoint.headers), type=dict[str, str])

    async def _check_addresses(self, url: str) -> None:
        """Refuse a name that leads to a forbidden address now. Where it leads later is judged again."""
        target = self._policy.check_url(url, "url")
        for _, verdict in self._judged(target, await self._addresses(target)):
            if not verdict.passed:
                raise CallbackBlocked("url", verdict.detail, rule=verdict.rule, hint=verdict.hint)

    def _judged(self, target: Target, addresses: Sequence[str]) -> tuple[tuple[str, Verdict], ...]:
        judge = self._policy.judge_address
        return tuple((one, judge(one, target.host, secure=target.secure)) for one in addresses)

    async def _addresses(self, target: Target) -> Sequence[str]:
        """Where the target leads now; nowhere if that cannot be found out at once."""
        if target.address is not None:
            return (target.address,)
        try:
            async with asyncio.timeout(_LOOKUP):
                return await self._resolve(target.host)
        except OSError:  # a timeout is one
            return ()

    async def _wait(
        self, tenant: str, delivery_id: UUID, seconds: float, enough: Callable[[DeliveryRecord], bool]
    ) -> DeliveryRecord:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            delivery = await self.history.delivery(tenant, delivery_id)
            if delivery.state.final or enough(delivery) or loop.time() >= deadline:
                return delivery
            await asyncio.sleep(_LOOK)


def _checked(secret: str | None) -> str:
    """The secret that was given, or a new one."""
    if secret is None:
        return new_secret()
    check_secret(secret)
    return secret


def _or(given: Value | None, known: Value) -> Value:
    return known if given is None else given

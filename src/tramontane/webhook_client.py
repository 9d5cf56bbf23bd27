"""The verbs of `/api/webhooks` for the terminal: each is one request, and answers with the server's own JSON object.

They raise what an ApiClient raises. Lists are `{things, next}`, their filters those of the API.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from tramontane.client import ApiClient

#: What can be listed.
Things: TypeAlias = Literal["endpoints", "messages", "deliveries", "attempts", "recoveries"]

_ROOT: Final = "/api/webhooks"
#: Seconds that an answer may take beyond what it was asked to wait.
_SLACK: Final = 15.0


class WebhookClient:
    """Webhooks of the server that a client is connected to."""

    def __init__(self, client: "ApiClient") -> None:
        self._client = client

    async def find(self, things: Things, **filters: str | int | None) -> dict[str, Any]:
        """`{things, next}`, newest first. A filter that is None is left out."""
        given = {name: str(value) for name, value in filters.items() if value is not None}
        return await self._client.ask("GET", f"{_ROOT}/{things}", params=given)

    async def get(self, things: Things, thing_id: str, *, wait: int = 0) -> dict[str, Any]:
        """One of them; with `wait`, a delivery once it has ended, or after so many seconds (60 at most)."""
        return await self._ask("GET", f"{things}/{thing_id}", wait=wait)

    async def add_endpoint(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A new endpoint, with its `secret`: no other answer shows it."""
        return await self._ask("POST", "endpoints", fields)

    async def update_endpoint(self, endpoint_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change the fields that are given; the endpoint as it is then."""
        return await self._ask("PATCH", f"endpoints/{endpoint_id}", fields)

    async def remove_endpoint(self, endpoint_id: str) -> None:
        """Remove an endpoint. What waits for it is cancelled; its log stays."""
        await self._ask("DELETE", f"endpoints/{endpoint_id}")

    async def steer_endpoint(self, endpoint_id: str, verb: Literal["enable", "disable", "pause"]) -> dict[str, Any]:
        """The endpoint as it is then."""
        return await self._ask("POST", f"endpoints/{endpoint_id}/{verb}")

    async def rotate(self, endpoint_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Give an endpoint a further `secret`; the former ones sign as well until `overlap` is over."""
        return await self._ask("POST", f"endpoints/{endpoint_id}/rotate", fields)

    async def test(self, endpoint_id: str, *, wait: int = 0) -> dict[str, Any]:
        """A delivery of `webhook.test`; with `wait` once it has been tried, or after so many seconds."""
        return await self._ask("POST", f"endpoints/{endpoint_id}/test", wait=wait)

    async def replay(self, delivery_id: str) -> dict[str, Any]:
        """A new delivery of the same message."""
        return await self._ask("POST", f"deliveries/{delivery_id}/replay")

    async def recover(self, endpoint_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Have what an endpoint missed sent again; the recovery that does it."""
        return await self._ask("POST", f"endpoints/{endpoint_id}/recover", fields)

    async def steer_recovery(self, recovery_id: str, verb: Literal["pause", "resume", "cancel"]) -> dict[str, Any]:
        """The recovery as it is then."""
        return await self._ask("POST", f"recoveries/{recovery_id}/{verb}")

    async def explain(self, url: str) -> dict[str, Any]:
        """What the server's policy says of an address. Nothing is sent there."""
        return await self._ask("POST", "explain", {"url": url})

    async def open_listener(self, events: Sequence[str]) -> dict[str, Any]:
        """A listener `{listenerId, secret, expiresAt}`, which lives as long as somebody asks for its next ones."""
        return await self._ask("POST", "listeners", {"events": events})

    async def next_heard(
        self, listener_id: str, results: Sequence[Mapping[str, Any]], *, wait: int
    ) -> list[dict[str, Any]]:
        """Report what came of the last ones, and get the next, as soon as there are any or after `wait` seconds.

        Raises NotFound for a listener whose lease is over.
        """
        fields = {"results": results, "wait": wait}
        answer = await self._client.ask(
            "POST", f"{_ROOT}/listeners/{listener_id}/next", json=fields, silence=wait + _SLACK
        )
        heard: list[dict[str, Any]] = answer["deliveries"]
        return heard

    async def close_listener(self, listener_id: str) -> None:
        """End a listener before its lease does."""
        await self._ask("DELETE", f"listeners/{listener_id}")

    async def _ask(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None, *, wait: int = 0
    ) -> dict[str, Any]:
        how: dict[str, Any] = {"json": fields} if fields is not None else {}
        if wait:
            how |= {"headers": {"prefer": f"wait={wait}"}, "silence": wait + _SLACK}
        return await self._client.ask(method, f"{_ROOT}/{path}", **how)

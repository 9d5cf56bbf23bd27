"""Callbacks: where a job's own events go, checked when the job is submitted, and sealed."""

from collections.abc import Mapping

import msgspec

from tramontane.errors import ConfigurationError, InvalidInput
from tramontane.models import Callback
from tramontane.settings import Settings
from tramontane.vault import Vault
from tramontane.webhooks.messages import ENDINGS, check_filters
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.signatures import check_secret


class Callbacks:
    """Makes callbacks of what callers send. Raises ConfigurationError for a default secret that cannot sign."""

    def __init__(self, policy: AddressPolicy, vault: Vault, settings: Settings) -> None:
        self._policy = policy
        self._vault = vault
        self._settings = settings
        try:
            if settings.webhook_secret:
                check_secret(settings.webhook_secret, "TRAMONTANE_WEBHOOK_SECRET")
        except InvalidInput as error:
            raise ConfigurationError(error.message) from None

    def make(
        self,
        url: str,
        *,
        events: tuple[str, ...] = ENDINGS,
        secret: str | None = None,
        headers: Mapping[str, str] | None = None,
        format: str = "default",  # noqa: A002 - the wire's name
    ) -> Callback:
        """A callback. Raises CallbackBlocked and InvalidInput, naming the rule and what to change."""
        target = self._policy.check_url(url, "callback.url")
        if secret is not None:
            check_secret(secret, "callback.secret")
        elif not self._settings.webhook_secret:
            raise InvalidInput(
                "callback.secret", "is missing, and TRAMONTANE_WEBHOOK_SECRET, which would sign instead, is not set"
            )
        if headers:
            self._policy.check_headers(headers, "callback.headers")
        return Callback(
            url=target.url,
            origin=f"{target.scheme}://{target.host}:{target.port}",
            events=check_filters(events, "callback.events", aliases=True),
            format=format,
            secret=self._vault.seal(secret) if secret is not None else None,
            headers=self._vault.seal(msgspec.json.encode(dict(headers)).decode()) if headers else None,
        )

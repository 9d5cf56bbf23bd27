"""Callbacks: what the server's own secret must be, before anything is promised to be signed with it."""

import pytest

from tramontane.callbacks import Callbacks
from tramontane.errors import ConfigurationError
from tramontane.settings import Settings
from tramontane.vault import Vault
from tramontane.webhooks.policy import AddressPolicy


def callbacks(secret: str) -> Callbacks:
    settings = Settings(webhook_secret=secret)
    return Callbacks(AddressPolicy.from_settings(settings), Vault(()), settings)


@pytest.mark.parametrize("secret", ["whsec_not base64", "whsec_c2hvcnQ=", "short", "with\nline"])
def test_a_default_secret_that_cannot_sign_is_refused_at_the_start_by_its_name(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="TRAMONTANE_WEBHOOK_SECRET") as refused:
        callbacks(secret)
    assert secret not in str(refused.value)


def test_a_good_default_secret_signs_what_brings_none() -> None:
    assert callbacks("a-good-secret").make("https://example.com/hook").secret is None

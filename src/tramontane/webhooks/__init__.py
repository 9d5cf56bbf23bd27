"""Webhooks as a protocol: signatures, addresses, one exchange, and the decisions that follow from it. No database.

What a receiver needs is offered here by name, and imported when it is first asked for:

    from tramontane.webhooks import verify, InvalidSignature
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tramontane.errors import InvalidSignature
    from tramontane.webhooks.notifier import WebhookNotifier
    from tramontane.webhooks.receiver import verified
    from tramontane.webhooks.signatures import Verified, new_secret, verify, verify_hex

__all__ = ["InvalidSignature", "Verified", "WebhookNotifier", "new_secret", "verified", "verify", "verify_hex"]

_HOMES = {
    "InvalidSignature": "tramontane.errors",
    "Verified": "tramontane.webhooks.signatures",
    "WebhookNotifier": "tramontane.webhooks.notifier",
    "new_secret": "tramontane.webhooks.signatures",
    "verified": "tramontane.webhooks.receiver",
    "verify": "tramontane.webhooks.signatures",
    "verify_hex": "tramontane.webhooks.signatures",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)

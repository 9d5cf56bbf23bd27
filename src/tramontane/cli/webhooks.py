"""`tramontane webhooks …`: the tree of its commands."""

from collections.abc import Callable
from typing import Final

from tramontane.cli import (
    webhook_deliveries,
    webhook_endpoints,
    webhook_explain,
    webhook_listen,
    webhook_recovery,
    webhook_verify,
)

COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "deliveries": webhook_deliveries.deliveries,
    "attempts": webhook_deliveries.attempts,
    "test": webhook_deliveries.send_test,
    "replay": webhook_deliveries.replay,
    "recover": webhook_recovery.recover,
    "recoveries": webhook_recovery.recoveries,
    "rotate": webhook_endpoints.rotate,
    "listen": webhook_listen.listen,
    "verify": webhook_verify.check,
    "secret": webhook_verify.secret,
    "explain": webhook_explain.explain,
}

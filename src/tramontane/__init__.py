"""Background jobs that survive crashes, event streams that resume exactly, signed webhooks: for the Mistral API."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tramontane.blocking import JobSync, TramontaneSync
    from tramontane.client import (
        Job,
        Result,
        StreamAttempt,
        StreamChunk,
        StreamComplete,
        StreamError,
        StreamEvent,
        StreamStart,
        StreamTool,
    )
    from tramontane.emitter import ChatChunk, ChatComplete, ChatError, ChatEvent, ChatStart, MistralEvents
    from tramontane.engine import Tramontane
    from tramontane.errors import MistralError, TramontaneError
    from tramontane.mistral import MistralClient, Timeouts
    from tramontane.prompts import process_batch
    from tramontane.webhooks.notifier import WebhookNotifier

__version__ = "0.1.0"

__all__ = [
    "ChatChunk",
    "ChatComplete",
    "ChatError",
    "ChatEvent",
    "ChatStart",
    "Job",
    "JobSync",
    "MistralClient",
    "MistralError",
    "MistralEvents",
    "Result",
    "StreamAttempt",
    "StreamChunk",
    "StreamComplete",
    "StreamError",
    "StreamEvent",
    "StreamStart",
    "StreamTool",
    "Timeouts",
    "Tramontane",
    "TramontaneError",
    "TramontaneSync",
    "WebhookNotifier",
    "__version__",
    "process_batch",
]

# Where each name lives. It is imported when it is first asked for, so that who needs one part does not load them all.
_HOMES = {
    "ChatChunk": "emitter",
    "ChatComplete": "emitter",
    "ChatError": "emitter",
    "ChatEvent": "emitter",
    "ChatStart": "emitter",
    "Job": "client",
    "JobSync": "blocking",
    "MistralClient": "mistral",
    "MistralError": "errors",
    "MistralEvents": "emitter",
    "Result": "client",
    "StreamAttempt": "client",
    "StreamChunk": "client",
    "StreamComplete": "client",
    "StreamError": "client",
    "StreamEvent": "client",
    "StreamStart": "client",
    "StreamTool": "client",
    "Timeouts": "mistral",
    "Tramontane": "engine",
    "TramontaneError": "errors",
    "TramontaneSync": "blocking",
    "WebhookNotifier": "webhooks.notifier",
    "process_batch": "prompts",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

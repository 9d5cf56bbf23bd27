"""A process of ours under test: `python process_main.py serve|api|worker`, with settings from the environment.

It prints one line of JSON once it works, `{"pid": …, "url": …}`, and ends in good order at SIGTERM, or when its
standard input closes: whoever started it is gone then. Fault points are for those who kill: `DIE_AT=` names a place
where the process kills itself as `kill -9` would.
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

from tramontane import telemetry
from tramontane.api import bind, serving, url_of
from tramontane.app import open_app
from tramontane.mistral import MistralClient
from tramontane.settings import read_settings
from tramontane.store import JobStore


async def main(role: str) -> None:
    settings = read_settings()
    telemetry.configure(settings.log_level)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    async with open_app(settings, worker=role != "api") as app:
        if role == "worker":
            tell(None)
            await stop.wait()
            return
        bound = bind(settings.host, settings.port)
        async with serving(app, bound):
            tell(url_of(bound))
            await stop.wait()


def tell(url: str | None) -> None:
    print(json.dumps({"pid": os.getpid(), "url": url}), flush=True)


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str) -> None:
    """Make a place deadly: `called`, when Mistral is about to be called; `ended`, when an ending is committed."""
    if place == "called":
        MistralClient.stream = die  # type: ignore[method-assign]
    elif place == "ended":
        end = JobStore.end

        async def end_and_die(*given: Any) -> Any:
            await end(*given)
            die()

        JobStore.end = end_and_die  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    arm(os.environ.get("DIE_AT", ""))  # noqa: TID251 - no setting of the product
    asyncio.run(main(sys.argv[1]))

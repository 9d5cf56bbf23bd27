"""A process of ours under test: `python process_main.py serve|api|worker`, with settings from the environment.

It prints one line of JSON once it works, `{"pid": …, "url": …}`, and ends in good order at SIGTERM, or when its
standard input closes: whoever started it is gone then. Fault points are for those who kill: `DIE_AT=` names a place
where the process kills itself as `kill -9` would. At SIGUSR1 its clock jumps by `CLOCK_JUMP` seconds, at SIGUSR2 it is
right again.

Two roles are other people's. A `receiver` takes webhooks, and writes each into the file `RECEIVER_LOG` before it
answers. `mistral` is a simulator that refuses every call (429) from SIGUSR1 to SIGUSR2.
"""

import asyncio
import json
import os
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import web

from tramontane import ids, telemetry
from tramontane.api import serving
from tramontane.app import open_app
from tramontane.mistral import MistralClient
from tramontane.ports import listen_on, url_of
from tramontane.settings import read_settings
from tramontane.simulator import Behaviour, Simulator
from tramontane.simulator.ledger import Ledger
from tramontane.store import DeliveryStore, JobStore
from tramontane.webhooks.transport import Transport


async def main(role: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    if role == "receiver":
        await receive(Path(os.environ["RECEIVER_LOG"]), stop)  # noqa: TID251 - no setting of the product
        return
    if role == "mistral":
        await be_mistral(stop)
        return
    loop.add_signal_handler(signal.SIGUSR1, set_clock, float(os.environ.get("CLOCK_JUMP", "0")))  # noqa: TID251
    loop.add_signal_handler(signal.SIGUSR2, set_clock, 0.0)
    settings = read_settings()
    telemetry.configure(settings.log_level)
    async with open_app(settings, worker=role != "api") as app:
        if role == "worker":
            tell(None)
            await stop.wait()
            return
        bound = listen_on(settings.host, settings.port)
        async with serving(app, bound):
            tell(url_of(bound))
            await stop.wait()


def set_clock(ahead: float) -> None:
    """Let all of this process take it for so many seconds later than it is."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=ahead)  # noqa: TID251 - an edge

    later = SimpleNamespace(time_ns=lambda: time.time_ns() + int(ahead * 1e9))
    vars(ids).update(datetime=Clock, time=later)


async def be_mistral(stop: asyncio.Event) -> None:
    """A simulator of the limits REQUEST_LIMIT and TOKEN_LIMIT that remembers every call."""
    given = os.environ  # noqa: TID251 - no setting of the product
    calm = Behaviour(latency=0.05, tokens_per_second=float(given.get("TOKENS_PER_SECOND", "100")))
    requests, tokens = int(given["REQUEST_LIMIT"]), int(given["TOKEN_LIMIT"])
    loop = asyncio.get_running_loop()
    async with Simulator(port=0, behaviour=calm, request_limit=requests, token_limit=tokens) as simulator:
        simulator._ledger = Ledger(keep=10**7)
        storm = calm.but("status=429, retry_after=1")
        loop.add_signal_handler(signal.SIGUSR1, setattr, simulator, "behaviour", storm)
        loop.add_signal_handler(signal.SIGUSR2, setattr, simulator, "behaviour", calm)
        tell(simulator.url)
        await stop.wait()


async def receive(path: Path, stop: asyncio.Event) -> None:
    """A receiver by its paths.

    `/fine` is answered 204 at once, `/slow/20` after 20 ms, `/hole` never, `/endless` by a body that goes on and on,
    `/reset` by a connection that is cut, `/redirect` by one to an address of the inside, `/broken` by 500.
    """
    with path.open("ab", buffering=0) as log:

        async def take(request: web.Request) -> web.StreamResponse:
            line = {
                "at": time.time(),  # noqa: TID251 - an edge
                "path": request.path,
                "headers": dict(request.headers),
                "body": (await request.read()).decode(),
            }
            log.write(json.dumps(line).encode() + b"\n")
            match request.path:
                case "/hole":
                    await asyncio.Event().wait()
                case "/endless":
                    return await go_on_and_on(request)
                case "/reset" if request.transport is not None:
                    request.transport.abort()
                case "/redirect":
                    return web.Response(status=307, headers={"location": "http://169.254.169.254/latest"})
                case "/broken":
                    return web.Response(status=500, text="no")
            await asyncio.sleep(int(request.match_info.get("ms", 0)) / 1000)
            return web.Response(status=204)

        application = web.Application()
        application.router.add_post("/slow/{ms}", take)
        application.router.add_post("/{tail}", take)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        port = int(os.environ.get("RECEIVER_PORT", "0"))  # noqa: TID251 - no setting of the product
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        tell(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await stop.wait()
        await runner.cleanup()


async def go_on_and_on(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"and on " * 1000)
        await asyncio.sleep(0.01)


def tell(url: str | None) -> None:
    print(json.dumps({"pid": os.getpid(), "url": url}), flush=True)


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str) -> None:
    """Make a place deadly.

    called: Mistral is about to be called. ended: an ending is committed. admitted: deliveries were let through, and
    nobody has picked them up. sending: a webhook is about to be sent. sent: it was answered, and nobody knows yet.
    recorded: its outcome is committed.
    """
    if place == "called":
        MistralClient.stream = die  # type: ignore[method-assign]
    elif place == "ended":
        end = JobStore.end

        async def end_and_die(*given: Any) -> Any:
            await end(*given)
            die()

        JobStore.end = end_and_die  # type: ignore[assignment,method-assign]
    elif place == "admitted":
        admit = DeliveryStore.admit

        async def admit_and_die(*given: Any) -> Any:
            admission = await admit(*given)
            return die() if admission.admitted else admission

        DeliveryStore.admit = admit_and_die  # type: ignore[assignment,method-assign]
    elif place == "sending":
        Transport.send = die  # type: ignore[method-assign]
    elif place == "sent":
        send = Transport.send

        async def send_and_die(*given: Any) -> Any:
            await send(*given)
            die()

        Transport.send = send_and_die  # type: ignore[assignment,method-assign]
    elif place == "recorded":
        record = DeliveryStore.record

        async def record_and_die(*given: Any, **fields: Any) -> Any:
            await record(*given, **fields)
            die()

        DeliveryStore.record = record_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(os.environ.get("DIE_AT", ""))  # noqa: TID251 - no setting of the product
    asyncio.run(main(sys.argv[1]))

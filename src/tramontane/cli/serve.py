"""The commands that stay: `serve`, `api`, `worker`, `simulator`."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane import telemetry
from tramontane.address import read_address, remove_address, write_address
from tramontane.cli import exits
from tramontane.cli.options import (
    Concurrency,
    DataDir,
    Host,
    LogJson,
    Port,
    RateLimit,
    Simulate,
    number,
    setting,
    settings_from,
)
from tramontane.cli.reach import require_key
from tramontane.cli.screen import say
from tramontane.cli.signals import Signals, run
from tramontane.errors import ConfigurationError, InvalidInput
from tramontane.ids import utc_now
from tramontane.settings import Settings, seconds

if TYPE_CHECKING:
    from tramontane.app import App

_KEYS: Final = "needed: tramontane keys list"
_NO_KEYS: Final = "none: open to every program of this machine, until tramontane keys create"
_KEY: Final = '-H "Authorization: Bearer $TRAMONTANE_API_KEY" '
_TRY: Final = """curl -N {url}/api/chat/stream {key}-d '{{"messages":[{{"role":"user","content":"Hello!"}}]}}'"""
_LOGGER = logging.getLogger("tramontane.cli")


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    simulator: Simulate = False,
    concurrency: Concurrency = None,
    rate_limit: RateLimit = None,
    log_json: LogJson = False,
) -> int:
    """Serve the API and run jobs, in one process."""
    settings = settings_from(host=host, port=port, data_dir=data_dir, concurrency=concurrency, rate_limit=rate_limit)
    telemetry.configure(settings.log_level, json=log_json)
    if not simulator:
        require_key(settings, "tramontane serve --simulator")
    free = port is None and settings.port == Settings.port
    return run(lambda signals: _serve(signals, settings, simulator, free, greet=not log_json), server=True)


def api(host: Host = None, port: Port = None, data_dir: DataDir = None, log_json: LogJson = False) -> int:
    """Serve the API; jobs run in `tramontane worker` processes."""
    settings = settings_from(host=host, port=port, data_dir=data_dir)
    telemetry.configure(settings.log_level, json=log_json)
    free = port is None and settings.port == Settings.port
    return run(lambda signals: _api(signals, settings, free, greet=not log_json), server=True)


def worker(
    data_dir: DataDir = None, concurrency: Concurrency = None, rate_limit: RateLimit = None, log_json: LogJson = False
) -> int:
    """Run jobs; needs no port."""
    settings = settings_from(data_dir=data_dir, concurrency=concurrency, rate_limit=rate_limit)
    telemetry.configure(settings.log_level, json=log_json)
    require_key(settings, "tramontane simulator, and MISTRAL_SERVER_URL=http://127.0.0.1:8788 for the worker")
    return run(lambda signals: _worker(signals, settings, greet=not log_json), server=True)


def simulator(
    port: Annotated[str | None, setting("simulator_port", "PORT", "--port")] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="the same seed gives the same answers")] = "1",
    latency: Annotated[str, typer.Option(metavar="SECONDS", help="before the first byte of an answer")] = "0.2",
    tokens_per_second: Annotated[str, typer.Option(metavar="N", help="pace of an answer; `none`: at once")] = "60",
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="any other behaviour, such as `cut_after=3`; may be repeated"),
    ] = None,
    request_limit: Annotated[str | None, typer.Option(metavar="N", help="requests per minute, key and model")] = None,
    token_limit: Annotated[str | None, typer.Option(metavar="N", help="tokens per minute, key and model")] = None,
    window: Annotated[str | None, typer.Option(metavar="TIME", help="how long that minute is; 60 s")] = None,
) -> int:
    """Serve a simulated Mistral API."""
    from tramontane.simulator import Behaviour

    bind_to = settings_from(simulator_port=port).simulator_port
    telemetry.configure("warning")
    words = ",".join([f"latency={latency}", f"tokens_per_second={tokens_per_second}", *(fault or [])])
    limits = {
        "request_limit": number("--request-limit", request_limit),
        "token_limit": number("--token-limit", token_limit),
        "window": _duration("--window", window),
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    behaviour = Behaviour().but(words)
    start = number("--seed", seed) or 0
    return run(lambda signals: _simulate(signals, bind_to, start, behaviour, **given), server=True)


def _duration(flag: str, text: str | None) -> float | None:
    try:
        return seconds(text) if text is not None else None
    except ValueError as error:
        raise InvalidInput(flag, str(error)) from None


async def _serve(signals: Signals, settings: Settings, simulator: bool, free: bool, *, greet: bool) -> int:
    with bound_socket(settings, free) as (bound, beside):
        async with AsyncExitStack() as stack:
            if simulator:
                settings = await stack.enter_async_context(_simulated(settings))
            app = await stack.enter_async_context(_served(settings, bound, worker=True))
            keys = await app.authentication.needed(utc_now())
            _greet(settings, _url(bound), beside, keys=keys, simulator=simulator, worker=True, greet=greet)
            await signals.wait()
            if greet:
                say("stopping; once more to stop at once")
            await _drain_api(app)
    return exits.OK


async def _api(signals: Signals, settings: Settings, free: bool, *, greet: bool) -> int:
    with bound_socket(settings, free) as (bound, beside):
        async with _served(settings, bound, worker=False) as app:
            keys = await app.authentication.needed(utc_now())
            _greet(settings, _url(bound), beside, keys=keys, simulator=False, worker=False, greet=greet)
            await signals.wait()
            await _drain_api(app)
    return exits.OK


async def _worker(signals: Signals, settings: Settings, *, greet: bool) -> int:
    from tramontane.app import open_app
    from tramontane.ports import listen_on

    with ExitStack() as sockets:
        port, bound = settings.metrics_port, None
        if port:
            bound = sockets.enter_context(listen_on(settings.host, port))
        async with open_app(settings, worker=True) as app, _observed(app, bound):
            if greet:
                say(f"tramontane worker: {_pace(settings)}, on {app.database.describe}")
            await signals.wait()
            # Seen from outside, it drains until its last job is done or handed back.
            app.drain()
            assert app.worker is not None
            await app.worker.ended.wait()
    return exits.OK


async def _drain_api(app: "App") -> None:
    """Take requests while balancers notice that this process is about to end."""
    app.drain()
    await asyncio.sleep(app.settings.drain_delay)


def _observed(app: "App", bound: socket.socket | None) -> "AbstractAsyncContextManager[None]":
    """A worker's own small face, if it was given a socket."""
    if bound is None:
        return nullcontext()
    from tramontane.api import serving
    from tramontane.api.operations_routes import create_operations_api

    return serving(app, bound, api=create_operations_api(app))


async def _simulate(signals: Signals, port: int, seed: int, behaviour: Any, **limits: Any) -> int:
    from tramontane.simulator import Simulator

    async with Simulator(port=port, seed=seed, behaviour=behaviour, **limits) as running:
        say(f"tramontane simulator: {running.url}")
        say(f"  use     MISTRAL_SERVER_URL={running.url} tramontane serve")
        say(f"  ledger  curl {running.url}/simulator/ledger")
        await signals.wait()
    return exits.OK


@asynccontextmanager
async def _served(settings: Settings, bound: socket.socket, *, worker: bool) -> "AsyncIterator[App]":
    """The API on a bound socket, and its address where the commands look for it."""
    from tramontane.api import serving
    from tramontane.app import open_app

    async with open_app(settings, worker=worker) as app, serving(app, bound):
        # With DATABASE_URL nobody else has made the directory.
        await asyncio.to_thread(settings.data_dir.mkdir, parents=True, exist_ok=True)
        write_address(settings.data_dir, _url(bound))
        try:
            yield app
        finally:
            remove_address(settings.data_dir)


@asynccontextmanager
async def _simulated(settings: Settings) -> AsyncIterator[Settings]:
    """A simulator on its usual port or, when that is taken, on a free one."""
    from tramontane.cli.reach import simulated

    async with AsyncExitStack() as stack:
        try:
            with_simulator = await stack.enter_async_context(simulated(settings, port=settings.simulator_port))
        except ConfigurationError:
            with_simulator = await stack.enter_async_context(simulated(settings))
        yield with_simulator


@contextmanager
def bound_socket(settings: Settings, free: bool) -> Iterator[tuple[socket.socket, str | None]]:
    """A socket that listens, and the address of the server beside which it does so on another port.

    free: a port was not asked for by name, so that beside a server of the same directory any other will do.
    """
    from tramontane.ports import listen_on

    beside = read_address(settings.data_dir)
    try:
        bound = listen_on(settings.host, settings.port)
    except ConfigurationError:
        if not free or beside is None:
            raise
        bound = listen_on(settings.host, 0)
    with bound:
        yield bound, beside


def _greet(
    settings: Settings, url: str, beside: str | None, *, keys: bool, simulator: bool, worker: bool, greet: bool
) -> None:
    if not greet:
        telemetry.log(_LOGGER, logging.INFO, "serve.ready", url=url, mistral=settings.mistral_server_url, keys=keys)
        return
    say(f"tramontane {'serve' if worker else 'api'}: {url}")
    if beside is not None:
        say(f"  beside   {beside}, on the same database")
    if worker:
        say(f"  mistral  {settings.mistral_server_url}{' (simulated)' if simulator else ''}")
        say(f"  worker   {_pace(settings)}")
    say(f"  data     {_data(settings)}")
    say(f"  keys     {_KEYS if keys else _NO_KEYS}")
    say(f"  try      {_TRY.format(url=url, key=_KEY if keys else '')}")


def _pace(settings: Settings) -> str:
    rate = f"{settings.rate_limit:g} starts per second" if settings.rate_limit else "no limit of starts"
    return f"{settings.concurrency} at a time, {rate}"


def _data(settings: Settings) -> str:
    return "the Postgres of DATABASE_URL" if settings.database_url else str(settings.data_dir.absolute())


def _url(bound: socket.socket) -> str:
    from tramontane.ports import url_of

    return url_of(bound)

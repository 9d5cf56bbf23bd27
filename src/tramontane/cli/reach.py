"""The server that a command talks to: the one of TRAMONTANE_URL, else the one that runs on the data directory, else
one that the command opens in its own process, on a free port of the loopback, for as long as it needs it.

In all three cases the command speaks HTTP, so there is one way through the code, and what works here works remotely.
"""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tramontane import telemetry
from tramontane.address import read_address
from tramontane.cli import screen
from tramontane.cli.options import settings_from
from tramontane.cli.signals import run
from tramontane.errors import ConfigurationError
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.client import ApiClient

#: A command that is leaving does not make its user wait for the running jobs as long as a server would.
_GRACE: Final = 1.0

#: A pace that is pleasant to watch.
SIMULATED: Final[dict[str, Any]] = {"latency": 0.15, "tokens_per_second": 60.0}


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A server that answers."""

    client: "ApiClient"
    #: It belongs to this command and ends with it.
    own: bool


def with_server(data_dir: str | None, ask: Callable[[Reached], Awaitable[int]], *, works: bool = False) -> int:
    """Reach a server and ask it; the exit code. `works`: one that has to be opened here runs jobs as well."""
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    return run(lambda _: _reach_and_ask(settings, ask, works=works))


async def _reach_and_ask(settings: Settings, ask: Callable[[Reached], Awaitable[int]], *, works: bool) -> int:
    async with reach(settings, worker=works) as reached:
        return await ask(reached)


@asynccontextmanager
async def reach(settings: Settings, *, worker: bool) -> AsyncIterator[Reached]:
    """A client of whichever server there is. `worker`: one of our own also runs jobs.

    Raises ConfigurationError, and DatabaseError when a server of our own cannot have its database.
    """
    async with find_server(settings) as found:
        if found is not None:
            yield Reached(client=found, own=False)
            return
    async with own_server(settings, worker=worker) as client:
        yield Reached(client=client, own=True)


@asynccontextmanager
async def find_server(settings: Settings) -> "AsyncIterator[ApiClient | None]":
    """A client of a server that runs already, or None."""
    url = settings.url or read_address(settings.data_dir)
    if url is None:
        yield None
        return
    from tramontane.client import ApiClient

    async with ApiClient(url, api_key=settings.api_key) as client:
        # A server that was named is talked to, and its absence is an error; a file may be out of date.
        yield client if settings.url or await client.answers() else None


@asynccontextmanager
async def own_server(settings: Settings, *, worker: bool) -> "AsyncIterator[ApiClient]":
    """A server in this process. It ends properly, whatever the block raises: running jobs are handed back."""
    raised: BaseException | None = None
    async with AsyncExitStack() as stack:
        with screen.waiting("starting the engine"):
            from tramontane.api import serving
            from tramontane.app import open_app
            from tramontane.client import ApiClient
            from tramontane.ports import listen_on, url_of

            settings = dataclasses.replace(settings, grace=min(settings.grace, _GRACE))
            app = await stack.enter_async_context(open_app(settings, worker=worker))
        bound = listen_on("127.0.0.1", 0)
        await stack.enter_async_context(serving(app, bound))
        key = app.authentication.own_key()
        client = await stack.enter_async_context(ApiClient(url_of(bound), api_key=key))
        try:
            yield client
        except BaseException as error:  # noqa: BLE001 - raised again once everything is closed
            raised = error
    if raised is not None:
        raise raised


@asynccontextmanager
async def simulated(settings: Settings, *, port: int = 0) -> AsyncIterator[Settings]:
    """The settings with a simulated Mistral of this process in them."""
    from tramontane.simulator import Behaviour, Simulator

    async with Simulator(port=port, behaviour=Behaviour(**SIMULATED)) as simulator:
        yield dataclasses.replace(settings, mistral_server_url=simulator.url, mistral_api_key="simulator")


def can_work(settings: Settings) -> bool:
    """Whether jobs could be run here. Another address than Mistral's own may do without a key."""
    return bool(settings.mistral_api_key) or settings.mistral_server_url != Settings.mistral_server_url


def require_key(settings: Settings, otherwise: str) -> None:
    """Raise ConfigurationError, with the way to go on without a key, when there is none."""
    if not can_work(settings):
        raise ConfigurationError(f"MISTRAL_API_KEY is not set; export it, or try without a key: {otherwise}")

"""The simulator as a server: `async with Simulator() as simulator: …simulator.url…`."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Self

import msgspec
from aiohttp import web

from tramontane.ports import listen_on
from tramontane.simulator.accounts import Accounts
from tramontane.simulator.behaviour import Behaviour
from tramontane.simulator.exchange import Exchange
from tramontane.simulator.ledger import Call, Ledger, Totals
from tramontane.simulator.models import MODELS
from tramontane.simulator.refusals import Refusal
from tramontane.simulator.windows import SECONDS

# Whatever may stand before /v1: a gateway, a tenant.
_ANY = "/{before:(?:.*/)?}"
_BODY_LIMIT = 64 * 2**20
#: What stands for no limit.
_NO_LIMIT_REQUESTS, _NO_LIMIT_TOKENS = 1_000_000, 1_000_000_000


class Simulator:
    """A faithful fake of the Mistral API on a socket of its own.

    seed: of the answers; the same seed and request give the same answer.
    port: 0 for any free one. The server listens from `async with` on.
    behaviour: of calls that neither a script nor a header says more about; may be replaced at any time.
    request_limit, token_limit: per minute, key and model. 0 is Mistral's "never": 429 with a limit of 0.
    window: how long that minute is, in seconds.
    api_keys: the keys that are let in; None lets any in.
    now: the clock of limits and ledger, in seconds.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        behaviour: Behaviour | None = None,
        request_limit: int = _NO_LIMIT_REQUESTS,
        token_limit: int = _NO_LIMIT_TOKENS,
        window: float = SECONDS,
        api_keys: Collection[str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self._seed = seed
        self._host = host
        self._port = port
        self._now = now
        self._accounts = Accounts(
            api_keys=api_keys, request_limit=request_limit, token_limit=token_limit, window=window
        )
        self._ledger = Ledger()
        self._scripted: deque[Behaviour] = deque()
        self._running: dict[asyncio.Task[object], Exchange] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        bound = listen_on(self._host, self._port, remedy="free the simulator's port or choose another one")
        self._runner = web.AppRunner(
            self._application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0, handle_signals=False
        )
        await self._runner.setup()
        await web.SockSite(self._runner, bound).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task, exchange in list(self._running.items()):
            exchange.stop()
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """Where it listens, as the SDKs want it: without `/v1`."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    def script(self, *behaviours: Behaviour) -> None:
        """Say how the next calls go, one behaviour each, in the order the calls come."""
        self._scripted.extend(behaviours)

    @property
    def ledger(self) -> list[Call]:
        """All calls so far, the running ones included, in the order they came."""
        return self._ledger.calls()

    def totals(self) -> Totals:
        """The sum of all calls so far."""
        return self._ledger.totals()

    async def wait_for_calls(self, count: int, *, timeout: float = 5.0) -> list[Call]:
        """The ledger, once `count` calls have come. Raises TimeoutError, as all waits do."""
        async with asyncio.timeout(timeout):
            await self._ledger.wait_for_calls(count)
        return self.ledger

    async def wait_for_ends(self, count: int, outcome: str | None = None, *, timeout: float = 5.0) -> list[Call]:
        """The ledger, once `count` calls have ended (in that way, such as `disconnected`)."""
        async with asyncio.timeout(timeout):
            await self._ledger.wait_for_ends(count, outcome)
        return self.ledger

    async def wait_for_chunks(self, number: int, count: int, *, timeout: float = 5.0) -> list[Call]:
        """The ledger, once the call of that number has sent `count` chunks."""
        async with asyncio.timeout(timeout):
            await self._ledger.wait_for_chunks(number, count)
        return self.ledger

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_LIMIT)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/simulator/ledger", self._show_ledger)
        application.router.add_post(f"{_ANY}v1/chat/completions", self._chat)
        application.router.add_get(f"{_ANY}v1/models", self._models)
        application.router.add_route("*", "/{path:.*}", self._nothing)
        return application

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        exchange = Exchange(
            request,
            accounts=self._accounts,
            ledger=self._ledger,
            behaviour=self._behaviour_of_next,
            seed=self._seed,
            now=self._now,
        )
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = exchange
        try:
            return await exchange.run()
        finally:
            del self._running[task]

    def _behaviour_of_next(self, header: str | None) -> Behaviour:
        """The header's behaviour; else the next one of the script, else the default."""
        if header is not None:
            return self.behaviour.but(header)
        return self._scripted.popleft() if self._scripted else self.behaviour

    async def _models(self, request: web.Request) -> web.Response:
        try:
            self._accounts.authenticate(request.headers.get("authorization", ""))
        except Refusal as refusal:
            return _json(refusal.body, refusal.status)
        return _json({"object": "list", "data": [model.card() for model in MODELS]})

    async def _show_ledger(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        calls = [call for call in self.ledger if call.number > (int(after) if after.isdecimal() else 0)]
        return _json({"totals": self.totals(), "calls": calls})

    async def _nothing(self, _: web.Request) -> web.Response:
        return _json({"detail": "Not Found"}, 404)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8788,
    seed: int = 1,
    behaviour: Behaviour | None = None,
    request_limit: int = _NO_LIMIT_REQUESTS,
    token_limit: int = _NO_LIMIT_TOKENS,
    window: float = SECONDS,
    ready: Callable[[Simulator], None] | None = None,
) -> None:
    """Run a simulator until cancelled. `ready` is told once it listens.

    Raises ConfigurationError, in one line, when it cannot listen there.
    """
    async with Simulator(
        host=host,
        port=port,
        seed=seed,
        behaviour=behaviour,
        request_limit=request_limit,
        token_limit=token_limit,
        window=window,
    ) as simulator:
        if ready is not None:
            ready(simulator)
        await asyncio.Event().wait()

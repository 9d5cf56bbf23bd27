"""`tramontane webhooks listen`: webhooks in the terminal, with their signatures checked; behind a NAT, too.

The command asks the server for what there is to hear, so that nothing has to reach this machine. With `--forward`
each webhook is POSTed to a program here, byte for byte and with all the headers that were signed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import Annotated, Any, Final

import typer

from tramontane import telemetry
from tramontane.cli import exits
from tramontane.cli.options import DataDir, Json, settings_from, words
from tramontane.cli.reach import find_server
from tramontane.cli.signals import Signals, run
from tramontane.cli.webhook_endpoints import Events
from tramontane.cli.webhook_view import Heard, JsonView, PeopleView, View
from tramontane.errors import ConfigurationError, InternalError, InvalidSignature, NotFound, TramontaneError
from tramontane.settings import Settings
from tramontane.tasks import beside, task_group
from tramontane.webhook_client import WebhookClient
from tramontane.webhooks.models import ErrorClass, Exchange, Outgoing
from tramontane.webhooks.signatures import verify

#: Seconds that one request for the next ones may stay open; the lease of a listener is three times as long.
_WAIT: Final = 20
#: Seconds between two tries when the server is away.
_PAUSE: Final = 0.5
#: Seconds for the answer of the program that is forwarded to; well within the lease.
_FORWARD_TIMEOUT: Final = 15.0
#: Seconds that the farewell may take.
_FAREWELL: Final = 2.0


def listen(
    forward: Annotated[
        str | None, typer.Option(metavar="URL", help="POST each one there too, e.g. http://localhost:3000/hook")
    ] = None,
    events: Events = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Watch webhooks arrive on this machine, even behind a NAT; Ctrl-C ends it."""
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    view: View = JsonView() if json else PeopleView()
    return run(lambda signals: _listen(signals, settings, words(events) or ["*"], forward, view))


async def _listen(signals: Signals, settings: Settings, events: list[str], forward: str | None, view: View) -> int:
    async with AsyncExitStack() as stack:
        forwarding = await stack.enter_async_context(Forwarding(forward)) if forward else None
        listener = Listener(settings, events, view, forwarding)
        async with beside(listener.run()):
            await signals.wait()
        await listener.close()
    return exits.OK


class Listener:
    """Hears webhooks until cancelled. It outlives the server: what was heard and not yet answered is answered later."""

    def __init__(self, settings: Settings, events: Sequence[str], view: View, forwarding: "Forwarding | None") -> None:
        self._settings = settings
        self._events = events
        self._view = view
        self._forwarding = forwarding
        #: `{listenerId, secret}`; None when there is none, or when the server has forgotten it.
        self._registered: dict[str, Any] | None = None
        self._results: list[dict[str, Any]] = []
        self._away = False
        self._met = False

    async def run(self) -> None:
        """Listen. Raises ConfigurationError when there is no server at the beginning; later it is waited for."""
        while True:
            try:
                # Found anew each time: a server that was restarted may have another port.
                async with find_server(self._settings) as client:
                    if client is None:
                        raise ConfigurationError(
                            "no server runs here: start one (tramontane serve), or set TRAMONTANE_URL"
                        )
                    await self._hear(WebhookClient(client))
            except NotFound:
                self._registered, self._results = None, []
                continue
            except (ConfigurationError, InternalError) as error:
                if not self._met:
                    raise
                if not self._away:
                    self._away = True
                    self._view.away(error.message)
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Tell the server what came of the last ones, and that nobody listens any more."""
        if self._registered is None:
            return
        with suppress(TimeoutError, TramontaneError):
            async with asyncio.timeout(_FAREWELL), find_server(self._settings) as client:
                if client is None:
                    return
                webhooks, listener_id = WebhookClient(client), self._registered["listenerId"]
                if self._results:
                    await webhooks.next_heard(listener_id, self._results, wait=0)
                await webhooks.close_listener(listener_id)

    async def _hear(self, webhooks: WebhookClient) -> None:
        if self._registered is None:
            registered = await webhooks.open_listener(self._events)
            again, self._registered, self._met = self._met, registered, True
            forward = self._forwarding.url if self._forwarding else None
            self._view.listening(registered, self._events, forward, again=again)
            self._away = False
        while True:
            # After an absence the first request asks for nothing to wait for, so that its end is seen at once.
            wait = 0 if self._away else _WAIT
            asked_at = monotonic()
            heard = await webhooks.next_heard(self._registered["listenerId"], self._results, wait=wait)
            self._results = []
            if self._away:
                self._away = False
                self._view.back()
            await self._take(heard, self._registered["secret"])
            if not heard and monotonic() - asked_at < _PAUSE:
                # A server that is about to end lets nobody wait.
                await asyncio.sleep(_PAUSE)

    async def _take(self, deliveries: Sequence[dict[str, Any]], secret: str) -> None:
        """Check, forward and show what came; those of one job one after the other, as they happened."""
        by_job: dict[str, list[dict[str, Any]]] = {}
        for delivery in deliveries:
            by_job.setdefault(_job_of(delivery) or delivery["deliveryId"], []).append(delivery)
        async with task_group() as tasks:
            for line in by_job.values():
                tasks.create_task(self._take_in_order(line, secret))

    async def _take_in_order(self, deliveries: Sequence[dict[str, Any]], secret: str) -> None:
        for delivery in deliveries:
            body: bytes = delivery["body"].encode()
            problem = _problem(body, delivery["headers"], secret)
            exchange = await self._forwarding.send(body, delivery["headers"]) if self._forwarding else None
            heard = Heard(delivery=delivery, job_id=_job_of(delivery), size=len(body), problem=problem, answer=exchange)
            self._view.heard(heard)
            self._results.append(_result(heard))


class Forwarding:
    """POSTs what was heard to one address, wherever that is: the user of this terminal has named it."""

    def __init__(self, url: str) -> None:
        from tramontane.webhooks.policy import AddressPolicy
        from tramontane.webhooks.target import read_target
        from tramontane.webhooks.transport import Transport

        target = read_target(url if "://" in url else f"http://{url}", "--forward")
        self.url = target.url
        policy = AddressPolicy(allow_hosts=frozenset({target.host}), allowed_ports=((1, 65535),))
        self._transport = Transport(policy)

    async def __aenter__(self) -> "Forwarding":
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__(None, None, None)

    async def send(self, body: bytes, headers: dict[str, str]) -> Exchange:
        """One POST, and what came of it."""
        outgoing = Outgoing(url=self.url, headers=tuple(headers.items()), body=body, timeout=_FORWARD_TIMEOUT)
        return await self._transport.send(outgoing)


def _job_of(delivery: dict[str, Any]) -> str | None:
    return next((value for name, value in delivery["headers"].items() if name.lower() == "x-webhook-job"), None)


def _problem(body: bytes, headers: dict[str, str], secret: str) -> str:
    """What is wrong with the signature; empty when it is good."""
    try:
        verify(body, headers, secret)
    except InvalidSignature as error:
        return error.message
    return ""


def _result(heard: Heard) -> dict[str, Any]:
    """What the server writes into its log."""
    answer = heard.answer
    if answer is None:
        answer = Exchange()
        if heard.problem:
            answer = Exchange(error_class=ErrorClass.PROTOCOL, detail=heard.problem)
    result: dict[str, Any] = {"deliveryId": heard.delivery["deliveryId"], "status": answer.status}
    if answer.error_class:
        result |= {"errorClass": answer.error_class, "detail": answer.detail}
    return result | ({"totalMs": answer.timings.total} if heard.answer else {})

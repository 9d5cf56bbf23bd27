"""Serving the API: it binds first, so that a taken port is one clear line, and ends streams before it ends."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address

import uvicorn
from fastapi import FastAPI

from tramontane.api.application import create_api
from tramontane.api.connection import Connection
from tramontane.app import App
from tramontane.tasks import task_group

#: Once streams have been told to end, requests under way get this long (seconds).
_LAST_REQUESTS = 2.0


@contextlib.asynccontextmanager
async def serving(app: App, bound: socket.socket, *, api: FastAPI | None = None) -> AsyncIterator[None]:
    """Serve the API, or another one of the app, on a bound socket until the block is left.

    Raises ConfigurationError where others reach the API while nobody has a key.
    """
    if api is None:
        await _ask_for_keys(app, bound)
    config = uvicorn.Config(
        api or create_api(app),
        loop="none",
        http=Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        forwarded_allow_ips=trusted_hosts(app.settings.trusted_proxies),
        timeout_graceful_shutdown=round(_LAST_REQUESTS),
    )
    server = _Server(config)
    async with task_group() as tasks:
        tasks.create_task(server.serve(sockets=[bound]))
        try:
            yield
        finally:
            app.streams.drain()
            app.listeners.drain()
            server.end()


async def _ask_for_keys(app: App, bound: socket.socket) -> None:
    if not ip_address(bound.getsockname()[0]).is_loopback:
        await app.authentication.insist("TRAMONTANE_HOST is an address that others reach", "listen on 127.0.0.1")
    elif app.settings.behind_proxy:
        await app.authentication.insist(
            "TRAMONTANE_ALLOWED_HOSTS names a proxy through which others come", "allow loopback's names alone"
        )


def trusted_hosts(proxies: Iterable[IPv4Network | IPv6Network]) -> list[str]:
    """Proxies as uvicorn takes them. A socket that hears both families shows IPv4's addresses as IPv6's."""
    hosts = []
    for network in proxies:
        hosts.append(str(network))
        if network.version == 4:
            hosts.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return hosts


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Take no more connections, and end."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """Until it is to end. uvicorn's own looks ten times a second whether it is."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's business."""
        yield

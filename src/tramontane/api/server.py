"""Serving the API: it binds first, so that a taken port is one clear line, and ends streams before it ends."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from tramontane.api.application import create_api
from tramontane.app import App
from tramontane.errors import ConfigurationError
from tramontane.tasks import task_group

#: Once streams have been told to end, requests under way get this long (seconds).
_LAST_REQUESTS = 2.0


@contextlib.asynccontextmanager
async def serving(app: App, bound: socket.socket) -> AsyncIterator[None]:
    """Serve the API on a bound socket until the block is left."""
    config = uvicorn.Config(
        create_api(app),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
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
            server.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 is any free port. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and each small write would wait 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What a slow reader has not taken waits here and not in our memory; the default would hide megabytes.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port or TRAMONTANE_PORT"
        ) from None
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """The address that clients use."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's business."""
        yield

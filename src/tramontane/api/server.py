"""Serving the API: it binds first, so that a taken port is one clear line, and ends streams before it ends."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from tramontane.api.application import create_api
from tramontane.app import App
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


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's business."""
        yield

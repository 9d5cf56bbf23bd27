"""The way to a server of this very process: its ASGI application is called as a function, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from tramontane.client.transport import Answer, Lost, Request

_Message: TypeAlias = MutableMapping[str, Any]
_Application: TypeAlias = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]

_HOST: Final = "localhost"


class InProcess:
    """Requests as calls of an application, each in a task of the caller's group."""

    where = "this process"

    def __init__(self, application: _Application, tasks: asyncio.TaskGroup) -> None:
        self._application = application
        self._tasks = tasks

    @asynccontextmanager
    async def exchange(self, request: Request) -> AsyncIterator[Answer]:
        """Ask the application. Leaving tells it that its caller has gone, as the end of a connection would."""
        call = _Call(request)
        self._tasks.create_task(call.run(self._application))
        try:
            await call.began
            yield call
        finally:
            call.leave()


class _Call:
    """One request on its way through the application; it is the answer, too."""

    def __init__(self, request: Request) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        #: Done when there is a status, or when there will be none.
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._asked = False
        self._left = asyncio.Event()
        # One place: the application goes on when its last block has been taken. None: it broke off.
        self._blocks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._over = False

    async def run(self, application: _Application) -> None:
        try:
            with suppress(Exception):  # the application has logged it; to its caller it is a broken connection
                await application(_scope(self._request), self._receive, self._send)
        finally:
            if not self.began.done():
                self.began.set_exception(Lost("the server broke off"))
            if not self._over:
                # What nobody has taken yet is not whole either.
                while not self._blocks.empty():
                    self._blocks.get_nowait()
                self._blocks.put_nowait(None)

    async def block(self) -> bytes:
        """The next bytes of the body; none at its end. Raises Lost."""
        if self._over and self._blocks.empty():
            return b""
        block = await self._blocks.get()
        if block is None:
            raise Lost("the server broke off")
        return block

    def leave(self) -> None:
        """Want no more."""
        self._left.set()
        self.began.cancel()
        while not self._blocks.empty():  # so that nobody waits for the place
            self._blocks.get_nowait()

    async def _receive(self) -> _Message:
        if self._asked:
            await self._left.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": self._request.body or b"", "more_body": False}

    async def _send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            if not self.began.done():
                self.began.set_result(None)
            return
        block, more = message.get("body", b""), message.get("more_body", False)
        if block and not self._left.is_set():
            await self._blocks.put(block)
        if not more:
            self._over = True
            if not block and not self._left.is_set():
                await self._blocks.put(b"")


def _scope(request: Request) -> _Message:
    path, _, query = request.path.partition("?")
    headers = {"host": _HOST, "content-length": str(len(request.body or b"")), **request.headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": (_HOST, 0),
        "server": (_HOST, 80),
    }

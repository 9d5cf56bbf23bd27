"""A TCP proxy that cuts connections: after so many bytes of an answer, wherever that is."""

import asyncio
import random
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

#: What the server says of coming back, and the same in so short a time that a test need not wait.
_PAUSE = (b"retry: 500\n", b"retry: 001\n")


class Cutter:
    """Passes connections on to `target`, which may change, and cuts each one that its dice pick.

    most: bytes of a stream that go through at most, head included: enough for any one frame, so that whoever comes back
    gets on. Of other answers one in ten is cut. None: nothing is cut.
    """

    def __init__(self, target: str, *, most: int | None, seed: int = 1) -> None:
        self.target = target
        self.most = most
        self.cuts = 0
        self._chance = random.Random(seed)
        self._server: asyncio.Server
        self._open: set[asyncio.StreamWriter] = set()
        self._over = asyncio.Event()
        self._over.set()

    async def __aenter__(self) -> "Cutter":
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._over.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._over.clear()
        target = urlsplit(self.target)
        try:
            with suppress(OSError):
                there, back = await asyncio.open_connection(target.hostname, target.port)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        asking = tasks.create_task(_copy(reader, back))
                        await self._answer(there, writer)
                        asking.cancel()
                finally:
                    back.transport.abort()
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            if not self._open:
                self._over.set()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: int | None = None
        with suppress(OSError):
            while block := (await there.read(65536)).replace(*_PAUSE):
                if block.startswith(b"HTTP/1.1 "):  # of several on one connection, each is a new chance
                    left = self._allowance(block)
                writer.write(block if left is None else block[:left])
                await writer.drain()
                if left is not None and (left := left - len(block)) <= 0:
                    self.cuts += 1
                    return

    def _allowance(self, head: bytes) -> int | None:
        if self.most is None:
            return None
        if b"text/event-stream" not in head:
            return self._chance.randrange(len(head)) if self._chance.random() < 0.1 else None
        return self._chance.randrange(self.most)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    writer.transport.abort()  # whoever has gone wants no answer

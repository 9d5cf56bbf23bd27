"""A gate in front of Postgres: closed, it is as if the database were gone, for one app and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Gate:
    """Passes bytes on between a port of its own and the database's socket, as long as it is open."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        query = parse_qs(parts.query)
        self._target = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self._name = parts.path
        self._port = 0
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.StreamWriter] = set()

    @classmethod
    @asynccontextmanager
    async def to(cls, database_url: str) -> AsyncIterator[Self]:
        gate = cls(database_url)
        await gate.open()
        try:
            yield gate
        finally:
            await gate.close()

    @property
    def url(self) -> str:
        return f"postgresql://tramontane@127.0.0.1:{self._port}{self._name}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            for writer in self._passing:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_unix_connection(self._target)
        self._passing |= {writer, to_there}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, to_there))
                tasks.create_task(_pump(there, writer))
        finally:
            self._passing -= {writer, to_there}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while block := await reader.read(2**16):
            writer.write(block)
            await writer.drain()
    writer.close()

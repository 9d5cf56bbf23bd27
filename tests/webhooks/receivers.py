"""Receivers as they may be: raw servers on the loopback that answer as told, byte by byte."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from tramontane.webhooks.models import Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.resolver import Resolve

#: A laptop's policy: the loopback may be called.
LAPTOP = AddressPolicy(allow_cidrs=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Visit:
    """One connection to a receiver, from its side. `number` counts them from 1."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request, head and body. Raises IncompleteReadError when there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        return head + await self.reader.readexactly(length)

    async def write(self, answer: bytes) -> None:
        self.writer.write(answer)
        await self.writer.drain()

    def reset(self) -> None:
        """End with RST in place of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Visit], Awaitable[None]]


@dataclass
class Receiver:
    """A running receiver: where it is, and what came."""

    port: int
    scheme: str = "http"
    host: str = "127.0.0.1"
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.at(self.host)

    def at(self, host: str, path: str = "/hook") -> str:
        """The address of this receiver under another name."""
        return f"{self.scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def receiving(
    behave: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """A receiver that behaves so towards every connection, and closes it afterwards."""
    tasks = set[asyncio.Task[Any]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        visit = Visit(receiver.connections, reader, writer)
        try:
            # What a caller does to us when he has had enough is no failure of the test.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await behave(visit)
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, 0, ssl=tls, limit=2**20, backlog=1024)
    receiver = Receiver(port=server.sockets[0].getsockname()[1], scheme="https" if tls else "http")
    try:
        yield receiver
    finally:
        server.close()
        left = set(tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        await server.wait_closed()


def answering(*answers: bytes) -> Behaviour:
    """Answer request after request on one connection, the last answer for ever."""

    async def behave(visit: Visit) -> None:
        for number in range(1_000_000):
            await visit.request()
            await visit.write(answers[min(number, len(answers) - 1)])

    return behave


def answering_once(*pieces: bytes) -> Behaviour:
    """One answer in pieces, and the connection is closed."""

    async def behave(visit: Visit) -> None:
        await visit.request()
        for piece in pieces:
            await visit.write(piece)

    return behave


def status(code: int, *headers: str) -> bytes:
    """A whole answer without a body."""
    lines = [f"HTTP/1.1 {code} Words", *headers, *([] if code in (204, 304) else ["content-length: 0"])]
    return "\r\n".join([*lines, "", ""]).encode()


def names(**addresses: Sequence[str]) -> Resolve:
    """A resolver that knows these names, with `_` for a dot: `names(hooks_example=["127.0.0.1"])`."""
    known = {name.replace("_", "."): answer for name, answer in addresses.items()}

    async def resolve(host: str) -> Sequence[str]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return known[host]

    return resolve


def outgoing(url: str, *, body: bytes = b'{"a":1}', timeout: float = 5.0) -> Outgoing:
    """A delivery; `timeout` in seconds."""
    return Outgoing(url=url, headers=(("content-type", "application/json"),), body=body, timeout=timeout)

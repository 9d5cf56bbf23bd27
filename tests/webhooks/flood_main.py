"""A receiver in a process of its own: every other answer is endless, the rest are bombs. It prints its URL."""

import asyncio
import gzip
import itertools
from typing import cast

ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WAVE = (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 4
BOMB = gzip.compress(bytes(50 * 2**20), compresslevel=1)
BOMBS = itertools.cycle([False, True])


class Flood(asyncio.Protocol):
    """Writes for as long as somebody reads."""

    transport: asyncio.Transport
    full = flowing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.flowing:
            return
        self.flowing = True
        if next(BOMBS):
            head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB)
            self.transport.write(head + BOMB)
        else:
            self.transport.write(ENDLESS)
            self.resume_writing()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        while not self.full and not self.transport.is_closing():
            self.transport.write(WAVE)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Flood, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

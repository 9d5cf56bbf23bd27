"""What a relayed chunk costs: from Mistral's socket through the log to one reader per stream, at a human pace.

100 streams of 50 chunks per second. The simulator and the readers are processes of their own, so what is counted is the
engine's process (API and worker), and, beside it, its Postgres.
"""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from bench.engine import cpu_seconds, engine
from bench.processes import simulator_process
from tramontane.api import serving
from tramontane.ports import listen_on

STREAMS, PACE, TOKENS = 100, 50, 400

_READERS = """
import asyncio, sys
port, streams, tokens = map(int, sys.argv[1:4])
messages = b'[{"role":"user","content":"Tell me of the wind."}]'
body = b'{"model":"mistral-small-latest","max_tokens":%d,"messages":%s}' % (tokens, messages)
async def read():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /api/chat/stream HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n"
                 b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
    text = await reader.read()
    writer.close()
    assert b"event: complete" in text, text[-300:]
    return text.count(b"event: chunk")
async def main():
    print(sum(await asyncio.gather(*(read() for _ in range(streams)))), flush=True)
asyncio.run(main())
"""


async def run() -> dict[str, float]:
    """Microseconds of CPU per chunk of Mistral's."""
    async with simulator_process(tokens=TOKENS, tokens_per_second=PACE) as upstream:
        bare = await _bare(upstream)
        figures = await _relayed(upstream)
    ratio = bare / figures["engine CPU us per relayed chunk"]
    return {"bare relay without a log CPU us": bare, **figures, "bare relay / engine": ratio}


async def _bare(upstream: str) -> float:
    """The same way without a log: aiohttp's read, a line, a socket's write."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
        body = body[:-1] + b',"stream":true}'
        async with session.post(f"{upstream}/v1/chat/completions", data=body) as response:
            async for line in response.content:
                if b'"content"' in line:
                    writer.write(b"event: chunk\n%b\n" % line)
        writer.write(b"event: complete\n")
        writer.close()

    headers = {"authorization": "Bearer bench", "accept-encoding": "identity"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await _read(port, 10)
            before = cpu_seconds()
            await _read(port, TOKENS)
            return (cpu_seconds() - before) / (STREAMS * TOKENS) * 1e6


async def _relayed(upstream: str) -> dict[str, float]:
    async with engine(upstream, concurrency=STREAMS) as app:
        bound = listen_on("127.0.0.1", 0)
        async with serving(app, bound):
            await _read(bound.getsockname()[1], 10)
            ours, database = cpu_seconds(), _postgres_cpu()
            frames = await _read(bound.getsockname()[1], TOKENS)
            ours, database = cpu_seconds() - ours, _postgres_cpu() - database
    chunks = STREAMS * TOKENS
    return {
        "engine CPU us per relayed chunk": ours / chunks * 1e6,
        "Postgres CPU us per relayed chunk": database / chunks * 1e6,
        "chunks merged into one frame": chunks / frames,
    }


async def _read(port: int, tokens: int) -> int:
    arguments = ("-c", _READERS, str(port), str(STREAMS), str(tokens))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return int(out)


def _postgres_cpu() -> float:
    """CPU seconds of all postgres processes of this machine; benches run alone."""
    ticks = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (directory / "stat").read_text().partition(") ")
        except OSError:
            continue
        if name.endswith("(postgres"):
            fields = rest.split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    import uvloop

    for name, value in uvloop.run(run()).items():
        print(f"{name:40} {value:10.2f}")

"""Webhooks: the wire beside a bare aiohttp loop; the engine's durable rate, its latency, recovery, and black holes.

The receiver is a process of its own on the same two cores; it answers 204 at once and notes when each request began.
"""

import asyncio
import contextlib
import ipaddress
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import trustme

from tramontane.app import App, open_app
from tramontane.ids import new_id, show_id, utc_now
from tramontane.settings import Settings
from tramontane.store.messages import publish
from tramontane.vault import open_vault
from tramontane.webhooks.messages import new_message
from tramontane.webhooks.models import Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.signatures import new_secret, signed_headers
from tramontane.webhooks.transport import Transport

COUNT = 5000
RECOVERED = 20_000
ENDPOINTS = 10
_DATA = {"jobId": "job_0", "content": "x" * 700, "usage": {"total_tokens": 12}}

_RECEIVER = """
import asyncio, ssl, sys, time
import httptools
seen = []
context = None
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
class Receiver(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
        self.began = None
    def data_received(self, data):
        self.now = time.time()
        self.parser.feed_data(data)
    def on_message_begin(self):
        self.began, self.id = self.now, ""
    def on_header(self, name, value):
        if name.lower() == b"webhook-id": self.id = value.decode()
    def on_message_complete(self):
        seen.append(f"{self.id} {self.began!r}")
        self.transport.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Receiver, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(" ".join(seen), flush=True)
        seen.clear()
try:
    import uvloop; uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""


class Receiver:
    """The receiver's process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def seen(self) -> dict[str, float]:
        """Message ids, and the Unix time of the first byte; forgets them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        words = (await self._process.stdout.readline()).decode().split()
        return dict(zip(words[::2], map(float, words[1::2]), strict=True))


@contextlib.asynccontextmanager
async def receiver_process(*certificate: str) -> AsyncIterator[Receiver]:
    """Start a receiver; with the file of a certificate and its key it speaks TLS."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _RECEIVER,
        *certificate,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Receiver(process, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


@contextlib.asynccontextmanager
async def telling(ports: list[int]) -> AsyncIterator[App]:
    """An engine with an endpoint for each port."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        os.chmod(directory, 0o711)  # as root, Postgres runs under another account
        settings = Settings(
            data_dir=Path(directory) / "data",
            mistral_api_key="bench",
            rate_limit=0.0,
            log_level="error",
            webhook_allow_cidrs=(ipaddress.ip_network("127.0.0.0/8"),),
        )
        async with open_app(settings, worker=True) as app:
            vault = open_vault(settings)
            for number, port in enumerate(ports):
                await _register(app, f"http://127.0.0.1:{port}/{number}", vault.seal(new_secret()))
            yield app


async def _register(app: App, url: str, secret: bytes) -> None:
    key, now = new_id(), utc_now()
    await app.database.pool.execute(
        "INSERT INTO endpoints (tenant_id, id, kind, url, events, allowance, health, created_at, updated_at) "
        "VALUES ('default', $1, 'registered', $2, '{*}', 4, '{}', $3, $3)",
        key, url, now,
    )  # fmt: skip
    await app.database.pool.execute(
        "INSERT INTO endpoint_secrets (tenant_id, endpoint_id, id, secret, primary_from) "
        "VALUES ('default', $1, $1, $2, $3)",
        key, secret, now,
    )  # fmt: skip


async def tell(app: App, count: int, *, held: bool = False) -> dict[str, float]:
    """Publish so many messages in one transaction; their ids, and when it was committed. held: let none leave."""
    now = utc_now()
    messages = [new_message("chat.completed", now, tenant="default", data=_DATA) for _ in range(count)]
    async with app.database.pool.acquire() as connection, connection.transaction():
        await publish(connection, messages)
        if held:
            await connection.execute("UPDATE deliveries SET state = 'cancelled' WHERE state = 'waiting'")
    committed = time.time()
    return {msgspec.json.decode(message.body)["id"]: committed for message in messages}


async def durable(receiver: Receiver, endpoints: int) -> float:
    """Deliveries per second to so many endpoints, from a backlog to the last recorded success."""
    async with telling([receiver.port] * endpoints) as app:
        await tell(app, 200)
        await _settled(app)
        began = time.perf_counter()
        for _ in range(COUNT // 500):
            await tell(app, 500 // endpoints)
        await _settled(app)
        return COUNT / (time.perf_counter() - began)


async def _settled(app: App, besides: str = "false") -> None:
    """Wait until all has arrived, but for deliveries to endpoints of that condition."""
    left = (
        "SELECT EXISTS (SELECT FROM deliveries d JOIN endpoints e ON e.id = d.endpoint_id "
        f"WHERE d.state <> 'succeeded' AND NOT ({besides}))"
    )
    while await app.database.pool.fetchval(left):  # noqa: ASYNC110 - only the database knows
        await asyncio.sleep(0.02)


async def idle(receiver: Receiver, count: int = 200) -> list[float]:
    """Milliseconds from the commit of an event to the first byte at the receiver, one at a time."""
    async with telling([receiver.port]) as app:
        await tell(app, 1)
        await _settled(app)
        await receiver.seen()
        told: dict[str, float] = {}
        for _ in range(count):
            told |= await tell(app, 1)
            await asyncio.sleep(0.03)
        await _settled(app)
        seen = await receiver.seen()
        return [(seen[key] - committed) * 1000 for key, committed in told.items()]


async def recovered(receiver: Receiver, count: int) -> float:
    """Deliveries per second of a recovery of so many messages, to the last recorded success."""
    async with telling([]) as app:
        pool = app.database.pool
        # Somebody is registered, else nothing would be told at all.
        await _register(app, "http://127.0.0.1:9/off", open_vault(app.settings).seal(new_secret()))
        await pool.execute("UPDATE endpoints SET state = 'disabled'")
        since = utc_now()
        for _ in range(count // 1000):
            await tell(app, 1000)
        await pool.execute("DELETE FROM endpoints")
        await _register(app, f"http://127.0.0.1:{receiver.port}/", open_vault(app.settings).seal(new_secret()))
        key = await pool.fetchval("SELECT id FROM endpoints")
        await pool.execute("ANALYZE")
        began = time.perf_counter()
        recovery = await app.endpoints.recover("default", key, since=since, until=utc_now(), only="missing", event=None)
        assert recovery.total == count, recovery
        while (await app.endpoints.recoveries.get("default", recovery.id)).state != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.25)
        rate = count / (time.perf_counter() - began)
        assert len(await receiver.seen()) == count
        return rate


async def lateness(receiver: Receiver, count: int = 300) -> list[float]:
    """Milliseconds after its due time that a delivery reaches the receiver, one falling due every 10 ms."""
    async with telling([receiver.port]) as app:
        await tell(app, 1)
        await _settled(app)
        await receiver.seen()
        told = await tell(app, count, held=True)
        await app.database.pool.execute(
            "UPDATE deliveries d SET state = 'waiting', due_at = now() + n * interval '10 ms' FROM "
            "(SELECT id, row_number() OVER () AS n FROM deliveries WHERE state = 'cancelled') AS o WHERE o.id = d.id"
        )
        await app.database.pool.execute("NOTIFY tramontane_deliveries")
        due = {
            show_id("msg", row["message_id"]): row["due_at"].timestamp()
            for row in await app.database.pool.fetch("SELECT message_id, due_at FROM deliveries")
        }
        await _settled(app)
        seen = await receiver.seen()
        return [(seen[key] - due[key]) * 1000 for key in told]


async def beside_black_holes(receiver: Receiver, holes: int, count: int = 150) -> float:
    """p99 in ms, commit to first byte, of 18 healthy endpoints beside so many that accept and never answer."""
    hole = await asyncio.start_server(_swallow, "127.0.0.1", 0)
    async with hole, telling([receiver.port] * 18) as app:
        port = hole.sockets[0].getsockname()[1]
        for number in range(holes):
            await _register(app, f"http://127.0.0.1:{port}/{number}", open_vault(app.settings).seal(new_secret()))
        besides = f"e.url LIKE 'http://127.0.0.1:{port}/%'"
        await tell(app, 20)
        await _settled(app, besides)
        await receiver.seen()
        told: dict[str, float] = {}
        for _ in range(count):
            told |= await tell(app, 1)
            await asyncio.sleep(0.05)
        await _settled(app, besides)
        seen = await receiver.seen()
        return statistics.quantiles([(seen[key] - committed) * 1000 for key, committed in told.items()], n=100)[98]


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()


async def wire(
    receiver: Receiver, context: ssl.SSLContext | None = None, count: int = 6000
) -> tuple[float, float, float, float]:
    """Deliveries per second and CPU in microseconds: of a bare aiohttp loop, and of ours, signature included."""
    scheme = "https" if context else "http"
    url, body, secret = f"{scheme}://127.0.0.1:{receiver.port}/", b"x" * 1024, new_secret()
    policy = AddressPolicy(allow_cidrs=(ipaddress.ip_network("127.0.0.0/8"),))
    plain = {f"x-header-{number}": "value" * 6 for number in range(9)}
    connector = aiohttp.TCPConnector(ssl=context or True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        Transport(policy, ssl_context=context) as transport,
    ):

        async def bare() -> None:
            async with session.post(url, data=body, headers=plain) as response:
                await response.read()

        async def ours() -> None:
            headers = signed_headers(
                body=body, message_id="msg_0", timestamp="2026-11-22T06:46:00.123Z", attempted_at=utc_now(),
                secrets=[secret], event="chat.completed", delivery_id="dlv_0", attempt=1,
            )  # fmt: skip
            assert (await transport.send(Outgoing(url=url, headers=headers, body=body))).succeeded

        pairs = [(await _rate(bare, count), await _rate(ours, count)) for _ in range(4)]
    await receiver.seen()
    return (*max(bare for bare, _ in pairs[1:]), *max(ours for _, ours in pairs[1:]))


async def _rate(call: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
    numbers = iter(range(count))

    async def client() -> None:
        for _ in numbers:
            await call()

    began, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(32):
            tasks.create_task(client())
    return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6


async def secure_wire() -> tuple[float, float, float, float]:
    """The same over TLS, connections kept."""
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.tempfile() as certificate:
        async with receiver_process(certificate) as receiver:
            return await wire(receiver, context)


async def run() -> dict[str, float]:
    """The figures."""
    bare_tls, _, ours_tls, _ = await secure_wire()
    async with receiver_process() as receiver:
        bare, bare_cpu, ours, ours_cpu = await wire(receiver)
        rate, alone_rate = await durable(receiver, ENDPOINTS), await durable(receiver, 1)
        await receiver.seen()
        recovery = await recovered(receiver, RECOVERED)
        times = statistics.quantiles(await idle(receiver), n=100)
        late = statistics.quantiles(await lateness(receiver), n=100)
        alone = await beside_black_holes(receiver, 0)
        beside = await beside_black_holes(receiver, 2)
    return {
        "bare aiohttp loop, /s": bare,
        "ours without database, signed, /s": ours,
        "ours / bare": ours / bare,
        "bare aiohttp loop over TLS, /s": bare_tls,
        "ours over TLS, signed, /s": ours_tls,
        "ours / bare, over TLS": ours_tls / bare_tls,
        "bare aiohttp loop, CPU us": bare_cpu,
        "ours without database, signed, CPU us": ours_cpu,
        f"deliveries to {ENDPOINTS} endpoints, durable, /s": rate,
        "deliveries to one endpoint, durable, /s": alone_rate,
        f"recovery of {RECOVERED:,} by one endpoint, /s": recovery,
        "recovery / durable, one endpoint": recovery / alone_rate,
        "event commit to first byte, idle, p50 ms": times[49],
        "event commit to first byte, idle, p99 ms": times[98],
        "schedule lateness, p99 ms": late[98],
        "18 healthy endpoints, p99 ms": alone,
        "the same beside 2 black holes, p99 ms": beside,
    }

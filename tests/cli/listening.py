"""What the tests of `webhooks listen` talk to: the command itself, and a server of listeners that obeys a test."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from tramontane.address import write_address
from tramontane.ids import utc_now
from tramontane.webhooks.signatures import new_secret, signed_headers

AT = "2026-11-22T06:46:00.123Z"


class Listening:
    """A running `webhooks listen`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        async with asyncio.timeout(20):
            line = (await self.process.stdout.readline()).decode()
        if not line:
            assert self.process.stderr
            raise AssertionError(f"it ended: {(await self.process.stderr.read()).decode()}")
        return line.rstrip("\n")

    async def told(self, kind: str) -> dict[str, Any]:
        """The next line of that type, of a command that prints JSON."""
        while (told := msgspec.json.decode(await self.line(), type=dict[str, Any]))["type"] != kind:
            pass
        return told

    async def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C; the exit code, and what else it says on both outputs."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def listening(data_dir: Path, *words: str) -> AsyncIterator[Listening]:
    """The command, on the server of a data directory. It is gone after the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tramontane", "webhooks", "listen", *words,
        env={"PATH": os.defpath, "LANG": "C.UTF-8", "TRAMONTANE_DATA_DIR": str(data_dir)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Listening(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


class Desk:
    """The part of a server that listeners see. It outlives what serves it, as the database would."""

    def __init__(self, data_dir: Path) -> None:
        self.secrets: dict[str, str] = {}
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed: list[str] = []
        self._data_dir = data_dir
        self._number = 0
        self._ready: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def tell(self, *, job: str = "job_1", event: str = "chat.completed", forged: bool = False) -> str:
        """Have something to hear, for the one listener there is; the body."""
        [secret] = self.secrets.values()
        self._number += 1
        body = msgspec.json.encode({"id": "msg_1", "event": event, "timestamp": AT, "data": {"content": "Où ça ?"}})
        headers = signed_headers(
            body=body, message_id="msg_1", timestamp=AT, attempted_at=utc_now(), event=event,
            secrets=[new_secret() if forged else secret], delivery_id=f"dlv_{self._number}", attempt=1,
            job_id=job, job_seq=7,
        )  # fmt: skip
        heard = {"deliveryId": f"dlv_{self._number}", "messageId": "msg_1", "event": event, "attempt": 1}
        self._ready.put_nowait(heard | {"headers": dict(headers), "body": body.decode()})
        return body.decode()

    def forget(self) -> None:
        """Know no listener any more, and say so to the one that waits."""
        self.secrets.clear()
        self._ready.put_nowait({})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer, on a free port, and be found by the data directory."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", _healthy),
                web.post("/api/webhooks/listeners", self._open),
                web.post("/api/webhooks/listeners/{id}/next", self._next),
                web.delete("/api/webhooks/listeners/{id}", self._close),
            ]
        )
        runner = web.AppRunner(application, shutdown_timeout=0.05, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._data_dir.mkdir(exist_ok=True)
            assert write_address(self._data_dir, f"http://127.0.0.1:{runner.addresses[0][1]}")
            yield
        finally:
            await runner.cleanup()

    async def _open(self, request: web.Request) -> web.Response:
        events = (await request.json())["events"]
        if events == ["nonsense"]:
            problem = {"code": "invalid_request", "field": "events", "detail": "events: there is no such event"}
            return web.json_response(problem, status=422)
        self._number += 1
        listener_id = f"ep_{self._number}"
        self.secrets[listener_id] = new_secret()
        opened = {"listenerId": listener_id, "secret": self.secrets[listener_id], "expiresAt": AT}
        return web.json_response(opened, status=201)

    async def _next(self, request: web.Request) -> web.Response:
        asked = await request.json()
        for result in asked["results"]:
            self.results.put_nowait(result)
        heard = []
        try:
            async with asyncio.timeout(asked["wait"] or 0.01):
                heard.append(await self._ready.get())
        except TimeoutError:
            pass
        while not self._ready.empty():
            heard.append(self._ready.get_nowait())
        if request.match_info["id"] not in self.secrets:
            return web.json_response({"code": "not_found", "detail": "no such listener"}, status=404)
        return web.json_response({"deliveries": heard, "expiresAt": AT})

    async def _close(self, request: web.Request) -> web.Response:
        self.closed.append(request.match_info["id"])
        return web.Response(status=204)


async def _healthy(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@asynccontextmanager
async def application(
    status: int = 200, gate: asyncio.Event | None = None
) -> AsyncIterator[tuple[str, "asyncio.Queue[tuple[CIMultiDictProxy[str], bytes]]"]]:
    """A program that takes webhooks: its URL, and what it has been POSTed. It answers once its gate is open."""
    came: asyncio.Queue[tuple[CIMultiDictProxy[str], bytes]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        came.put_nowait((request.headers, await request.read()))
        if gate is not None:
            await gate.wait()
        return web.Response(status=status, headers={"location": "/elsewhere"})

    serving = web.Application()
    serving.add_routes([web.post("/hook", take)])
    runner = web.AppRunner(serving, shutdown_timeout=0.05)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", came
    finally:
        await runner.cleanup()

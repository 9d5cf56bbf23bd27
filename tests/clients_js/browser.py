"""A real Chromium over its DevTools protocol: `async with browser(dir) as chromium: await chromium.open(url)`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from served import required

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
#: Seconds that a page gets for what a test waits for, on a busy machine.
_PATIENCE: Final = 20.0


class Page:
    """A tab in a window of its own, so that it counts as shown."""

    def __init__(self, chromium: "Chromium", target: str, session: str) -> None:
        self._chromium = chromium
        self._target = target
        self._session = session

    @property
    def errors(self) -> list[str]:
        """What the console was told as an error, refusals of the page's own policy included."""
        return self._chromium.errors.setdefault(self._session, [])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol."""
        return await self._chromium.call(method, self._session, **params)

    async def go(self, url: str) -> None:
        """Load a page."""
        await self.call("Page.navigate", url=url)
        await self.holds(f"document.readyState == 'complete' && location.href == {msgspec.json.encode(url).decode()}")

    async def reload(self) -> None:
        """What F5 does."""
        await self.run("void (globalThis.before = true)")
        await self.call("Page.reload")
        await self.holds("!globalThis.before && document.readyState == 'complete'")

    async def run(self, script: str) -> Any:
        """The value of an expression; a promise is awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def holds(self, condition: str) -> Any:
        """Return once an expression is true, whatever page is there then."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                # A page that is being left takes its promises along.
                with suppress(ProtocolError):
                    if value := await self.run(condition):
                        return value
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close the tab as a user does. A second call does nothing."""
        with suppress(ProtocolError):
            await self._chromium.call("Target.closeTarget", targetId=self._target)


class ProtocolError(Exception):
    """The browser refused a command."""


class Chromium:
    """The connection to a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: dict[str, list[str]] = {}
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self, url: str = "about:blank") -> Page:
        """A new page."""
        target = (await self.call("Target.createTarget", url="about:blank", newWindow=True))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        if url != "about:blank":
            await page.go(url)
        return page

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command of the protocol, to a page or to the browser."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": params}
        command |= {"sessionId": session} if session else {}
        await self._socket.send_str(msgspec.json.encode(command).decode())
        async with asyncio.timeout(_PATIENCE):
            result: dict[str, Any] = await answer
        return result

    async def listen(self) -> None:
        """Take what the browser says, until it is gone."""
        async for message in self._socket:
            said = msgspec.json.decode(message.data)
            if (answer := self._answers.pop(said.get("id"), None)) is None:
                self._note(said)
            elif not answer.done():
                if "error" in said:
                    answer.set_exception(ProtocolError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])

    def _note(self, said: dict[str, Any]) -> None:
        method, params = said.get("method"), said.get("params", {})
        errors = self.errors.setdefault(said.get("sessionId", ""), [])
        if method == "Runtime.exceptionThrown":
            errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            errors.append(str(params["args"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Chromium]:
    """A Chromium with an empty profile in that directory."""
    program = required("chromium", "chromium", "chromium-browser", "google-chrome")
    process = await asyncio.create_subprocess_exec(
        *(program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(_PATIENCE):
            while b"DevTools listening on " not in (line := await process.stderr.readline()):
                assert line, "chromium did not start"
        address = line.decode().split(" on ", 1)[1].strip()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
            asyncio.TaskGroup() as tasks,
        ):
            chromium = Chromium(socket)
            reading = tasks.create_task(process.stderr.read())
            listening = tasks.create_task(chromium.listen())
            yield chromium
            with suppress(ProtocolError):
                await chromium.call("Browser.close")
            for task in (reading, listening):
                task.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

"""A plain client for the simulator: what came over the wire, before anybody interprets it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from tramontane.simulator import Simulator


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    #: What the connection raised instead of an end.
    broken: Exception | None

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def lines(self) -> list[bytes]:
        """The payloads of all `data:` lines."""
        return [line[6:] for line in self.body.splitlines() if line.startswith(b"data: ")]

    @property
    def chunks(self) -> list[Any]:
        return [msgspec.json.decode(line) for line in self.lines if line != b"[DONE]"]

    @property
    def deltas(self) -> list[Any]:
        return [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        """The text of the answer, streamed or not."""
        if self.headers["content-type"] == "application/json":
            return str(self.json["choices"][0]["message"]["content"])
        return "".join(delta["content"] for delta in self.deltas if isinstance(delta["content"], str))


class Chat:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def __call__(self, question: str = "Hello", *, how: str | None = None, **fields: Any) -> Reply:
        """Ask a question; `how` is the `x-simulator` header. A field set to `...` is left out."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "mistral-small-latest", "messages": messages, **fields}
        return await self.post({name: value for name, value in body.items() if value is not ...}, how=how)

    async def post(self, body: Any, *, how: str | None = None, headers: dict[str, str] | None = None) -> Reply:
        headers = {**(headers or {}), **({} if how is None else {"x-simulator": how})}
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        received, broken = bytearray(), None
        async with self.session.post(f"{self.url}/v1/chat/completions", data=raw, headers=headers) as response:
            try:
                async for block in response.content.iter_any():
                    received += block
            except aiohttp.ClientError as error:
                broken = error
        return Reply(response.status, response.headers, bytes(received), broken)


@asynccontextmanager
async def chatting(simulator: Simulator, *, key: str = "a-key") -> AsyncIterator[Chat]:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    async with aiohttp.ClientSession(headers=headers) as session:
        yield Chat(session, simulator.url)

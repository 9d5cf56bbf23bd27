"""The API of a running app on a real socket, in the process of the test."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from clients import Client

from tramontane.api import serving
from tramontane.app import App, open_app
from tramontane.ports import listen_on, url_of
from tramontane.settings import Settings
from tramontane.simulator import Simulator


class Face(Client):
    """A client, the app behind it, and the Mistral behind that."""

    app: App
    simulator: Simulator

    async def ask(self, method: str, path: str, **request: Any) -> "Answer":
        """One request, read to its end."""
        async with self.session.request(method, self.url + path, **request) as response:
            return Answer(response.status, response.headers, await response.read())


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@asynccontextmanager
async def facing(
    simulator: Simulator, database_url: str, *, worker: bool = True, **changes: Any
) -> AsyncIterator[Face]:
    """An app without a rate limit and with two seconds' patience, served until the block is left."""
    defaults: dict[str, Any] = {
        "database_url": database_url,
        "mistral_server_url": simulator.url,
        "mistral_api_key": "a-key",
        "rate_limit": 0.0,
        "heartbeat": 1.0,
        "poll": 0.2,
        "grace": 0.1,
        "backoff": 0.01,
    }
    settings = Settings(**(defaults | changes))
    async with open_app(settings, worker=worker) as app:
        bound = listen_on("127.0.0.1", 0)
        async with serving(app, bound), Face.to(url_of(bound)) as face:
            face.app, face.simulator = app, simulator
            yield face

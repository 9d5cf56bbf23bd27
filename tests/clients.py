"""Clients of the API that believe nothing: frames are parsed strictly, and every promise of a stream is checked.

`Client` is a session with one server; a `Reader` is what somebody knows of one job's stream, across connections.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import msgspec

QUESTION = [{"role": "user", "content": "Hello!"}]


class Away(Exception):
    """503: the server has no database at the moment."""


#: What a client meets when a server or its database dies: it comes back.
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError, Away)


@dataclass(frozen=True)
class Frame:
    """An event of a stream, as three lines said it."""

    event: str
    data: dict[str, Any]
    id: int

    @property
    def start(self) -> int:
        """seq of the first event that it covers."""
        start: int = self.data.get("from", self.id)
        return start


class Frames:
    """A parser of what we send, stricter than any browser: every block has one of the three forms there are."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.retries: list[int] = []
        #: Kind of each block, in order: `retry`, `comment`, or the event's name.
        self.order: list[str] = []
        self._rest = b""

    def feed(self, block: bytes) -> list[Frame]:
        """The frames that a piece of the body completes."""
        *whole, self._rest = (self._rest + block).split(b"\n\n")
        return [frame for text in whole if (frame := self._block(text.decode()))]

    @property
    def unfinished(self) -> bytes:
        return self._rest

    def _block(self, text: str) -> Frame | None:
        assert "\r" not in text
        lines = text.split("\n")
        if lines[0].startswith("event: "):
            event, data, identity = lines
            assert data.startswith("data: ")
            assert identity.startswith("id: ")
            frame = Frame(event[7:], msgspec.json.decode(data[6:]), int(identity[4:]))
            self.order.append(frame.event)
            return frame
        for line in lines:
            if line.startswith("retry: "):
                self.order.append("retry")
                self.retries.append(int(line[7:]))
            else:
                assert line.startswith(": "), f"no line of ours: {line!r}"
                self.order.append("comment")
                self.comments.append(line[2:])
        return None


class Reader:
    """What one client knows of one stream. Each frame must be the next one, and the text must add up."""

    def __init__(self, *, after: int = 0) -> None:
        #: The cursor: seq of the last frame.
        self.seq = after
        self.frames: list[Frame] = []
        self.final: Frame | None = None
        #: Connections that brought something.
        self.visits = 0
        self._whole = after == 0
        self._pieces: list[str] = []
        #: Length of the visible text as a browser counts it: in UTF-16 units.
        self._length = 0

    @property
    def text(self) -> str:
        """The visible text."""
        return "".join(self._pieces)

    @property
    def events(self) -> list[str]:
        return [frame.event for frame in self.frames]

    def take(self, frame: Frame) -> None:
        """Take in the next frame. Fails at the first gap, repetition, wrong offset, or word after the end."""
        data = frame.data
        assert self.final is None, f"{frame} follows the final event"
        assert frame.id == data["seq"] >= frame.start, frame
        assert frame.start == self.seq + 1, f"{frame} came after {self.seq}"
        assert data["type"] == f"chat:{frame.event}"
        self.seq = frame.id
        self.frames.append(frame)
        match frame.event:
            case "start":
                assert frame.id == 1
            case "attempt" if self._whole:
                self._cut(data["keep"])
            case "chunk" if self._whole:
                assert data["off"] == self._length
                self._pieces.append(data["content"])
                self._length += _units(data["content"])
            case "complete" if self._whole:
                assert data["len"] == self._length
                assert data["sha256"] == hashlib.sha256(self.text.encode()).hexdigest()
            case "error" if self._whole:
                assert data["len"] == self._length
        if frame.event in ("complete", "error"):
            self.final = frame

    def _cut(self, keep: int) -> None:
        assert keep <= self._length
        self._pieces = [self.text.encode("utf-16-le")[: 2 * keep].decode("utf-16-le")]
        self._length = keep


class Client:
    """One server of ours, and the few calls that tests make of it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Self]:
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            yield cls(session, url)

    async def submit(self, content: str = "Hello!", *, key: str | None = None, **options: Any) -> dict[str, Any]:
        """Submit a chat; options are those of the long form. Fails unless the answer is 202."""
        body = {"kind": "chat", "request": {"messages": [{"role": "user", "content": content}]}, **options}
        headers = {"Idempotency-Key": key} if key else {}
        async with self.session.post(f"{self.url}/api/jobs", json=body, headers=headers) as response:
            return await _answer(response, 202)

    async def job(self, job_id: str, *, wait: int = 0) -> dict[str, Any]:
        """The job; with `wait`, once it has ended or after so many seconds."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        async with self.session.get(f"{self.url}/api/jobs/{job_id}", headers=headers) as response:
            return await _answer(response, 200)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/api/jobs/{job_id}/cancel") as response:
            return await _answer(response, 200)

    def events(self, job_id: str, *, after: int | None = None) -> "AbstractAsyncContextManager[aiohttp.ClientResponse]":
        """A request for the job's stream."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        return self.session.get(f"{self.url}/api/jobs/{job_id}/events", headers=headers)

    async def read(self, job_id: str, *, after: int | None = None) -> list[Frame]:
        """All frames after a cursor, in one connection, up to its end."""
        async with self.events(job_id, after=after) as response:
            assert response.status == 200, await response.text()
            return Frames().feed(await response.read())


async def visit(client: Client, job_id: str, reader: Reader) -> None:
    """One connection: take what comes after the reader's cursor, until the connection ends or breaks."""
    frames = Frames()
    async with client.events(job_id, after=reader.seq or None) as response:
        if response.status != 200:
            await _answer(response, 200)
        reader.visits += 1
        async for block in response.content.iter_any():
            for frame in frames.feed(block):
                reader.take(frame)


async def follow(client_of: Callable[[], Client], job_id: str, reader: Reader, *, until: float = 60.0) -> Reader:
    """Read to the final event, coming back with the cursor whenever a connection breaks, as a browser does."""
    async with asyncio.timeout(until):
        while reader.final is None:
            with suppress(*BROKEN):
                await visit(client_of(), job_id, reader)
            await asyncio.sleep(0 if reader.final else 0.1)  # the `retry` of a stream, in small
    return reader


def browse(body: bytes) -> list[tuple[str, str, str]]:
    """(type, data, lastEventId) of each event that an EventSource would dispatch: HTML 9.2.6, line by line."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events: list[tuple[str, str, str]] = []
    kind, data, last_id, buffered_id = "", "", "", ""
    for line in text.split("\n")[:-1]:
        if not line:
            last_id = buffered_id
            if data:
                events.append((kind or "message", data.removesuffix("\n"), last_id))
            kind, data = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "data":
                data += value + "\n"
            case "id" if "\0" not in value:
                buffered_id = value
    return events


async def _answer(response: aiohttp.ClientResponse, expected: int) -> dict[str, Any]:
    answer: dict[str, Any] = await response.json(content_type=None)
    if response.status == 503:
        raise Away(answer)
    assert response.status == expected, answer
    return answer


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2

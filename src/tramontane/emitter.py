"""MistralEvents: a chat told as events to handlers in this process. No database, no server.

events = MistralEvents()

@events.on("chat:chunk")
def show(event): print(event.content, end="")

text = await events.chat("req-123", [{"role": "user", "content": "Hello!"}])
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from inspect import isawaitable
from typing import Any, ClassVar, TypeVar, overload

import msgspec
from msgspec import Struct

from tramontane.errors import Cancelled, InternalError, InvalidInput, TramontaneError
from tramontane.ids import iso, utc_now
from tramontane.mistral import MistralClient
from tramontane.settings import Settings, read_settings

Handler = Callable[[Any], object]
_H = TypeVar("_H", bound=Handler)

#: After a cancel, slow handlers get this long (seconds) to see what was said, the end included.
GRACE = 1.0

_log = logging.getLogger(__name__)


class ChatEvent(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a handler is given."""

    type: ClassVar[str]
    #: The caller's name for this chat.
    request_id: str

    def to_json(self) -> dict[str, Any]:
        """The event as JSON has it: `type`, and the fields in camelCase."""
        fields = ((field.encode_name, getattr(self, field.name)) for field in msgspec.structs.fields(self))
        return {"type": self.type} | {
            name: iso(value) if isinstance(value, datetime) else value for name, value in fields
        }


class ChatStart(ChatEvent, frozen=True, kw_only=True):
    """`chat:start`: Mistral is about to be asked."""

    type: ClassVar[str] = "chat:start"
    model: str
    timestamp: datetime


class ChatChunk(ChatEvent, frozen=True, kw_only=True):
    """`chat:chunk`: a piece of the answer. `index` counts the pieces from 0."""

    type: ClassVar[str] = "chat:chunk"
    content: str
    index: int


class ChatComplete(ChatEvent, frozen=True, kw_only=True):
    """`chat:complete`: the whole answer, and the usage that Mistral reported (None when it reported none)."""

    type: ClassVar[str] = "chat:complete"
    full_response: str
    usage: dict[str, Any] | None


class ChatError(ChatEvent, frozen=True, kw_only=True):
    """`chat:error`: why there is no answer, for people, and the stable code of it, for programs."""

    type: ClassVar[str] = "chat:error"
    error: str
    code: str


EVENTS: tuple[type[ChatEvent], ...] = (ChatStart, ChatChunk, ChatComplete, ChatError)


class MistralEvents:
    """Chats with Mistral, told to whoever listens. One value serves any number of chats at a time.

    client: the caller's, who also closes it. Without one each chat opens its own from `settings`, and without those
    from the environment. buffer: events that wait for a slow handler before the reading from Mistral waits as well.
    """

    def __init__(
        self, client: MistralClient | None = None, *, settings: Settings | None = None, buffer: int = 256
    ) -> None:
        if buffer < 1:
            raise InvalidInput("buffer", "must be 1 or more")
        self._client = client
        self._settings = settings
        self._buffer = buffer
        self._handlers: dict[str, list[_Registration]] = {event.type: [] for event in EVENTS}

    @overload
    def on(self, event: str) -> Callable[[_H], _H]: ...
    @overload
    def on(self, event: str, handler: _H) -> _H: ...
    def on(self, event: str, handler: Handler | None = None) -> Any:
        """Call `handler` with every such event; without a handler, a decorator that does so.

        It may be a plain function or an async one. An async one gets its events in order, one at a time, while the
        answer goes on. One that fails is reported to the log and disturbs nobody.

        Raises InvalidInput for a name that is no event's.
        """
        return self._add(event, handler, once=False)

    @overload
    def once(self, event: str) -> Callable[[_H], _H]: ...
    @overload
    def once(self, event: str, handler: _H) -> _H: ...
    def once(self, event: str, handler: Handler | None = None) -> Any:
        """Like `on`, for the next such event only, of whichever chat."""
        return self._add(event, handler, once=True)

    def off(self, event: str, handler: Handler) -> None:
        """Call `handler` no longer. One that is not there is none to take away."""
        self._registered(event)[:] = [one for one in self._registered(event) if one.handler != handler]

    async def chat(
        self,
        request_id: str,
        messages: Sequence[Mapping[str, Any]],
        model: str = "mistral-small-latest",
        **parameters: Any,
    ) -> str:
        """Ask Mistral; the text of its answer, after every handler has seen the last event.

        parameters: Mistral's other chat fields, such as `temperature`.

        Raises InvalidInput for empty messages, before anything is told. What goes wrong later is told as `chat:error`
        and then raised: a MistralError, or the CancelledError of a cancel (code `cancelled`).
        """
        request = _request(messages, model, parameters)
        outcome: str | Exception
        async with asyncio.TaskGroup() as tasks:
            audience = _Audience(self._handlers, tasks, self._buffer)
            try:
                try:
                    outcome = await self._tell(audience, request_id, request)
                except Exception as error:  # noqa: BLE001 - raised below: in here, the group would wrap it
                    outcome = error
                    await audience.hear(_error(request_id, error))
                await audience.leave()
            except asyncio.CancelledError:
                await audience.hear_out(_error(request_id, Cancelled("the chat was cancelled")))
                raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _tell(self, audience: "_Audience", request_id: str, request: dict[str, Any]) -> str:
        await audience.hear(ChatStart(request_id=request_id, model=request["model"], timestamp=utc_now()))
        async with self._open() as client, client.stream(request) as stream:
            index = 0
            async for delta in stream:
                if delta.content and delta.choice == 0:
                    await audience.hear(ChatChunk(request_id=request_id, content=delta.content, index=index))
                    index += 1
        usage = None if stream.usage is None else msgspec.json.decode(stream.usage)
        await audience.hear(ChatComplete(request_id=request_id, full_response=stream.content, usage=usage))
        return stream.content

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[MistralClient]:
        if self._client is not None:
            yield self._client
            return
        # One per chat: a client that outlived it would belong to a loop that may be gone by the next one.
        async with MistralClient.from_settings(self._settings or read_settings()) as client:
            yield client

    def _add(self, event: str, handler: Handler | None, *, once: bool) -> Any:
        registered = self._registered(event)

        def add(handler: Handler) -> Handler:
            registered.append(_Registration(handler, once))
            return handler

        return add if handler is None else add(handler)

    def _registered(self, event: str) -> "list[_Registration]":
        try:
            return self._handlers[event]
        except KeyError:
            raise InvalidInput("event", f"there is no {event!r}: use one of {', '.join(self._handlers)}") from None


@dataclass(frozen=True, eq=False)
class _Registration:
    handler: Handler
    once: bool


class _Audience:
    """The handlers of one chat. Async ones each have a lane, so that a slow one delays no other until it is full."""

    def __init__(self, handlers: "Mapping[str, list[_Registration]]", tasks: asyncio.TaskGroup, buffer: int) -> None:
        self._handlers = handlers
        self._tasks = tasks
        self._buffer = buffer
        self._lanes: dict[Handler, _Lane] = {}
        self._heard_end = False

    async def hear(self, event: ChatEvent) -> None:
        """Tell the event to all who listen now; comes back when it is said, or waits in a lane."""
        self._heard_end = isinstance(event, ChatComplete | ChatError)
        registered = self._handlers[event.type]
        for one in tuple(registered):
            if one.once:
                if one not in registered:
                    continue  # another chat was quicker
                registered.remove(one)
            try:
                answer = one.handler(event)
            except Exception as error:  # noqa: BLE001 - a stranger's code
                _report(event.type, one.handler, error)
                continue
            if isawaitable(answer):
                await self._lane(one.handler).put(event.type, answer)

    async def leave(self) -> None:
        """Wait until every handler has seen everything."""
        for lane in self._lanes.values():
            await lane.put("", None)
        if self._lanes:
            await asyncio.wait([lane.task for lane in self._lanes.values()])

    async def hear_out(self, end: ChatEvent) -> None:
        """After a cancel: the end, unless one was told already, and a moment for the slow."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                if not self._heard_end:
                    await self.hear(end)
                await self.leave()

    def _lane(self, handler: Handler) -> "_Lane":
        # By handler, not by event: one that listens to several events gets them in their order as well.
        lane = self._lanes.get(handler)
        if lane is None:
            lane = self._lanes[handler] = _Lane(handler, self._tasks, self._buffer)
        return lane


class _Lane:
    """The way to one async handler: in order, one at a time, a bounded number waiting."""

    def __init__(self, handler: Handler, tasks: asyncio.TaskGroup, buffer: int) -> None:
        self._handler = handler
        self._waiting: asyncio.Queue[tuple[str, Awaitable[object] | None]] = asyncio.Queue(buffer)
        self.task = tasks.create_task(self._run())

    async def put(self, event: str, answer: Awaitable[object] | None) -> None:
        """Add what a handler has begun, or None for the end."""
        try:
            await self._waiting.put((event, answer))
        except asyncio.CancelledError:
            _drop(answer)
            raise

    async def _run(self) -> None:
        try:
            while True:
                event, answer = await self._waiting.get()
                if answer is None:
                    return
                await self._finish(event, answer)
        finally:
            while not self._waiting.empty():
                _drop(self._waiting.get_nowait()[1])

    async def _finish(self, event: str, answer: Awaitable[object]) -> None:
        try:
            await answer
        except Exception as error:  # noqa: BLE001 - a stranger's code
            _report(event, self._handler, error)
        except asyncio.CancelledError as error:
            # Either this lane is being cancelled, or the handler awaited something that was: its own affair.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _report(event, self._handler, error)


def _drop(answer: Awaitable[object] | None) -> None:
    # A coroutine that was never begun warns of it unless it is closed.
    if isinstance(answer, Coroutine):
        answer.close()


def _report(event: str, handler: Handler, error: BaseException) -> None:
    # Neither the error's text nor its traceback: both may hold what was said.
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    _log.error("handler.failed to=%s handler=%s error=%s", event, name, type(error).__qualname__)


def _error(request_id: str, error: Exception) -> ChatError:
    known = error if isinstance(error, TramontaneError) else InternalError(f"unexpected {type(error).__qualname__}")
    return ChatError(request_id=request_id, error=known.message, code=known.code)


def _request(messages: object, model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidInput("messages", "must be a list of one message or more")
    if "stream" in parameters:
        raise InvalidInput("stream", "is always on: a chat is told while it is written")
    return {"model": model, "messages": messages, **parameters}

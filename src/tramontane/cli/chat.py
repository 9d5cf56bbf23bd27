"""`tramontane chat`: an answer in the terminal while it is written, through a server or without one."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane import telemetry
from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, Model, Prompt, Simulate, messages_from, prompt_from, settings_from
from tramontane.cli.reach import find_server, require_key, simulated
from tramontane.cli.signals import run
from tramontane.errors import TramontaneError
from tramontane.seam import cut
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.client import ApiClient, EventStream, ServerEvent
    from tramontane.emitter import ChatEvent

DEFAULT_MODEL: Final = "mistral-small-latest"
#: What a cancel may take when the user has pressed Ctrl-C, in seconds.
_CANCEL: Final = 2.0


def chat(
    prompt: Prompt,
    model: Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="instructions that come first")] = None,
    json: Json = False,
    simulator: Simulate = False,
    data_dir: DataDir = None,
) -> int:
    """Ask, and read the answer while it is written.

    Through the server of TRAMONTANE_URL or of the data directory, as a durable job; without one, straight to Mistral.
    """
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    messages = messages_from(prompt_from(prompt), system)
    return run(lambda _: _chat(settings, messages, model, simulator=simulator, json=json))


async def _chat(settings: Settings, messages: list[dict[str, str]], model: str, *, simulator: bool, json: bool) -> int:
    async with AsyncExitStack() as stack:
        if simulator:
            settings = await stack.enter_async_context(simulated(settings))
        elif server := await stack.enter_async_context(find_server(settings)):
            return await _ask_server(server, {"model": model, "messages": messages}, json=json)
        require_key(settings, "tramontane chat --simulator")
        return await _ask_mistral(settings, messages, model, json=json)


async def _ask_server(client: "ApiClient", body: dict[str, Any], *, json: bool) -> int:
    async with client.chat_stream(body) as events:
        try:
            return await tell(events, json=json)
        except asyncio.CancelledError:
            if events.job_id:
                # Whoever stops reading a chat wants no more of it; other jobs go on without their readers.
                with suppress(TimeoutError, TramontaneError):
                    async with asyncio.timeout(_CANCEL):
                        await client.cancel(events.job_id)
            raise


async def _ask_mistral(settings: Settings, messages: list[dict[str, str]], model: str, *, json: bool) -> int:
    from tramontane.emitter import ChatChunk, ChatComplete, MistralEvents

    began = monotonic()
    answer = Answer(shown=not json)
    emitter = MistralEvents(settings=settings)

    def show(event: "ChatEvent") -> None:
        if json:
            screen.show_json(event.to_json())
        if isinstance(event, ChatChunk):
            answer.add(event.content)
        elif isinstance(event, ChatComplete):
            answer.end()
            _footnote(model, event.usage, monotonic() - began)

    with _while_read() as guarded:
        for name in ("chat:start", "chat:chunk", "chat:complete", "chat:error"):
            emitter.on(name, guarded(show))
        try:
            await emitter.chat("terminal", messages, model)
        finally:
            answer.end()
    return exits.OK


@contextmanager
def _while_read() -> "Iterator[Callable[[Callable[[ChatEvent], None]], Callable[[ChatEvent], None]]]":
    """Handlers made by this end the block when nobody reads our output; the emitter would only report them."""
    task = asyncio.current_task()
    assert task is not None
    gone: list[BrokenPipeError] = []

    def guarded(handler: "Callable[[ChatEvent], None]") -> "Callable[[ChatEvent], None]":
        def handle(event: "ChatEvent") -> None:
            try:
                if not gone:
                    handler(event)
            except BrokenPipeError as error:
                gone.append(error)
                task.cancel()

        return handle

    try:
        yield guarded
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise gone[0] from None


async def tell(events: "EventStream", *, json: bool) -> int:
    """Show a job's events as they come, to the last one; the exit code that it asks for."""
    began = monotonic()
    answer = Answer(shown=not json)
    model = ""
    try:
        async for event in events:
            if json:
                screen.show_json(event.data)
            model = event.data.get("model", model)
            if event.type == "chunk":
                answer.add(event.data["content"])
            elif event.type == "attempt":
                answer.go_on(event.data)
            elif event.type == "complete":
                answer.end()
                _footnote(f"{model}  {events.job_id}", event.data.get("usage"), monotonic() - began)
            elif event.type == "error":
                answer.end()
                return _failed(event, json=json)
    finally:
        answer.end()
    return exits.OK


@dataclasses.dataclass
class Answer:
    """The text on the screen: what is valid of it, and whether its last line is complete."""

    shown: bool
    _text: str = ""
    _open: bool = False

    def add(self, text: str) -> None:
        """Show a piece."""
        self._text += text
        if self.shown and text:
            screen.stream(text)
            self._open = not text.endswith("\n")

    def end(self) -> None:
        """Complete the last line."""
        if self._open:
            screen.stream("\n")
            self._open = False

    def go_on(self, attempt: dict[str, Any]) -> None:
        """Another attempt. What is on the screen cannot be taken back: if some is void, the rest is shown once more."""
        kept = cut(self._text, attempt["keep"])
        if not self.shown or kept == self._text:
            return
        self.end()
        what = "goes back" if kept else "begins again"
        screen.note(f"attempt {attempt['attempt']} {what} ({attempt.get('reason', 'interrupted')})")
        self._text = ""
        self.add(kept)


def _failed(event: "ServerEvent", *, json: bool) -> int:
    if not json:
        exits.report(str(event.data.get("error", "the job failed")))
    return exits.FAILED


def _footnote(what: str, usage: Any, seconds: float) -> None:
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens  " if usage else ""
    screen.note(f"{what.strip()}  {tokens}{screen.span(seconds)}")

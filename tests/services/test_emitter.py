import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import pytest

from tramontane import emitter
from tramontane.emitter import ChatChunk, ChatComplete, ChatError, ChatEvent, ChatStart, MistralEvents
from tramontane.errors import (
    ConnectFailed,
    GenerationFailed,
    InvalidInput,
    MalformedAnswer,
    MistralError,
    RateLimited,
    RequestRefused,
    Truncated,
    Unauthorized,
    UpstreamTimeout,
    UpstreamUnavailable,
    ZeroAllowance,
)
from tramontane.mistral import MistralClient, Timeouts
from tramontane.settings import Settings
from tramontane.simulator import Behaviour, Simulator

HELLO = [{"role": "user", "content": "Hello! My secret is 4711."}]
SHORT = Timeouts(first_token=0.1, silence=0.1)


def said(value: object) -> str:
    """A behaviour by what is not its default; an error by its name."""
    if isinstance(value, type):
        return value.__name__
    changed = (field.name for field in fields(Behaviour) if getattr(value, field.name) != field.default)
    return " ".join(changed)


@asynccontextmanager
async def telling(
    simulator: Simulator, timeouts: Timeouts | None = None, **options: Any
) -> AsyncIterator[tuple[MistralEvents, list[ChatEvent]]]:
    """Events of that simulator, and the list that a plain handler fills with all of them."""
    async with MistralClient(api_key="key", server_url=simulator.url, timeouts=timeouts) as client:
        events = MistralEvents(client, **options)
        heard: list[ChatEvent] = []
        for event in emitter.EVENTS:
            events.on(event.type, heard.append)
        yield events, heard


async def test_a_chat_is_told_from_start_to_end(simulator: Simulator) -> None:
    async with telling(simulator) as (events, heard):
        text = await events.chat("req-123", HELLO, model="mistral-small-latest", temperature=0.1)

    start, *chunks, end = heard
    assert isinstance(start, ChatStart)
    assert (start.request_id, start.model) == ("req-123", "mistral-small-latest")
    assert [chunk.index for chunk in chunks if isinstance(chunk, ChatChunk)] == list(range(len(chunks)))
    assert "".join(chunk.content for chunk in chunks if isinstance(chunk, ChatChunk)) == text
    assert isinstance(end, ChatComplete)
    assert end.full_response == text
    assert end.usage is not None
    assert end.usage["completion_tokens"] == simulator.ledger[0].completion_tokens


async def test_usage_that_mistral_does_not_report_is_not_made_up(simulator: Simulator) -> None:
    simulator.script(Behaviour(usage=False))
    async with telling(simulator) as (events, heard):
        await events.chat("r", HELLO)
    assert isinstance(heard[-1], ChatComplete)
    assert heard[-1].usage is None


async def test_an_event_has_the_names_of_the_wire_as_json(simulator: Simulator) -> None:
    async with telling(simulator) as (events, heard):
        await events.chat("r", HELLO)
    assert [list(heard[n].to_json()) for n in (0, 1, -1)] == [
        ["type", "requestId", "model", "timestamp"],
        ["type", "requestId", "content", "index"],
        ["type", "requestId", "fullResponse", "usage"],
    ]
    assert json.loads(json.dumps(heard[0].to_json()))["timestamp"].endswith("Z")
    assert ChatError(request_id="r", error="e", code="c").to_json() == {
        "type": "chat:error",
        "requestId": "r",
        "error": "e",
        "code": "c",
    }


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (Behaviour(status=401), Unauthorized),
        (Behaviour(status=422), RequestRefused),
        (Behaviour(status=429, retry_after=3), RateLimited),
        (Behaviour(zero_allowance=True), ZeroAllowance),
        (Behaviour(status=503, error_body="html"), UpstreamUnavailable),
        (Behaviour(cut_after=0), ConnectFailed),
        (Behaviour(cut_after=5), Truncated),
        (Behaviour(end_after=5), Truncated),
        (Behaviour(malformed_after=5), MalformedAnswer),
        (Behaviour(error_after=5), GenerationFailed),
        (Behaviour(finish_reason="error"), GenerationFailed),
        (Behaviour(content_type="application/json"), MalformedAnswer),
    ],
    ids=said,
)
async def test_each_fault_is_told_and_then_raised(
    simulator: Simulator, behaviour: Behaviour, kind: type[MistralError]
) -> None:
    simulator.script(behaviour)
    async with telling(simulator) as (events, heard):
        with pytest.raises(kind) as caught:
            await events.chat("r", HELLO)
    end = heard[-1]
    assert isinstance(end, ChatError)
    assert (end.error, end.code) == (str(caught.value), caught.value.code)
    assert not any(isinstance(event, ChatComplete) for event in heard)


@pytest.mark.parametrize("behaviour", [Behaviour(silence_after=5), Behaviour(latency=60)], ids=said)
async def test_a_mistral_that_falls_silent_is_told_as_a_timeout(simulator: Simulator, behaviour: Behaviour) -> None:
    simulator.script(behaviour)
    async with telling(simulator, SHORT) as (events, heard):
        with pytest.raises(UpstreamTimeout):
            await events.chat("r", HELLO)
    assert isinstance(heard[-1], ChatError)
    assert heard[-1].code == "upstream_timeout"


async def test_only_the_first_of_several_choices_is_told(simulator: Simulator) -> None:
    async with telling(simulator) as (events, heard):
        text = await events.chat("r", HELLO, n=2)
    assert "".join(event.content for event in heard if isinstance(event, ChatChunk)) == text


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(crlf=True, comments=True, split_frames=True),
        Behaviour(done=False),
        Behaviour(content="parts"),
        Behaviour(deprecated=True),
    ],
    ids=said,
)
async def test_the_manners_of_a_stream_do_not_change_its_text(simulator: Simulator, behaviour: Behaviour) -> None:
    async with telling(simulator) as (events, _):
        plain = await events.chat("r", HELLO)
        simulator.script(behaviour)
        assert await events.chat("r", HELLO) == plain


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": HELLO, "stream": False}, "stream"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_told(
    simulator: Simulator, call: dict[str, Any], field: str
) -> None:
    async with telling(simulator) as (events, heard):
        with pytest.raises(InvalidInput) as caught:
            await events.chat("r", **call)
    assert caught.value.field == field
    assert heard == []
    assert simulator.ledger == []


def test_an_unknown_event_is_refused_with_the_names_that_there_are() -> None:
    events = MistralEvents()
    for register in (events.on, events.once):
        with pytest.raises(InvalidInput, match="chat:start, chat:chunk, chat:complete, chat:error"):
            register("chat:chunks", print)
    with pytest.raises(InvalidInput):
        events.off("chunk", print)
    with pytest.raises(InvalidInput):
        MistralEvents(buffer=0)


async def test_handlers_are_added_by_method_and_by_decorator_and_taken_away(simulator: Simulator) -> None:
    heard: list[str] = []
    async with telling(simulator) as (events, _):

        @events.on("chat:start")
        def plain(event: ChatStart) -> None:
            heard.append("plain")

        @events.once("chat:start")
        async def async_once(event: ChatStart) -> None:
            heard.append("async once")

        second = events.once("chat:start", lambda event: heard.append("once"))
        events.once("chat:start", second)
        await events.chat("r", HELLO)
        assert sorted(heard) == ["async once", "once", "once", "plain"]

        heard.clear()
        await events.chat("r", HELLO)
        assert heard == ["plain"]

        heard.clear()
        events.off("chat:start", plain)
        events.off("chat:start", plain)
        await events.chat("r", HELLO)
        assert heard == []


async def test_once_means_once_over_all_chats_at_a_time(simulator: Simulator) -> None:
    heard: list[ChatChunk] = []
    async with telling(simulator) as (events, _):
        events.once("chat:chunk", heard.append)
        async with asyncio.TaskGroup() as tasks:
            for n in range(5):
                tasks.create_task(events.chat(f"r{n}", HELLO))
    assert len(heard) == 1


async def test_a_handler_that_fails_disturbs_neither_the_stream_nor_others(
    simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    async with telling(simulator) as (events, heard):

        def plain(event: ChatChunk) -> None:
            raise ValueError(event.content)

        async def awaited(event: ChatChunk) -> None:
            raise KeyError(event.content)

        async def cancelling(event: ChatStart) -> None:
            raise asyncio.CancelledError

        events.on("chat:chunk", plain)
        events.on("chat:chunk", awaited)
        events.on("chat:start", cancelling)
        late: list[ChatEvent] = []
        events.on("chat:chunk", late.append)
        with caplog.at_level(logging.ERROR):
            text = await events.chat("r", HELLO)

    chunks = [event.content for event in heard if isinstance(event, ChatChunk)]
    assert "".join(chunks) == text
    assert len(late) == len(chunks)
    assert len(caplog.records) == 2 * len(chunks) + 1
    said = {record.getMessage().split(".<locals>.")[-1] for record in caplog.records}
    assert said == {"plain error=ValueError", "awaited error=KeyError", "cancelling error=CancelledError"}
    assert not any(record.exc_info for record in caplog.records)
    assert all(
        "chat:chunk" in record.getMessage() for record in caplog.records if "cancelling" not in record.getMessage()
    )


async def test_an_async_handler_hears_all_its_events_in_order_before_chat_returns(simulator: Simulator) -> None:
    heard: list[ChatEvent] = []
    async with telling(simulator, buffer=3) as (events, all_heard):

        async def slow(event: ChatEvent) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            heard.append(event)

        for event in emitter.EVENTS:
            events.on(event.type, slow)
        await events.chat("r", HELLO)
    assert heard == all_heard
    assert isinstance(heard[-1], ChatComplete)


async def test_a_plain_handler_may_return_something_to_await(simulator: Simulator) -> None:
    heard: list[ChatEvent] = []

    async def hear(event: ChatEvent) -> None:
        heard.append(event)

    async with telling(simulator) as (events, _):
        events.on("chat:start", lambda event: hear(event))  # noqa: PLW0108  a plain function is what is tested
        await events.chat("r", HELLO)
    assert len(heard) == 1


async def test_a_handler_that_waits_slows_the_reading_down_once_its_buffer_is_full(simulator: Simulator) -> None:
    let_go = asyncio.Event()
    waiting = asyncio.Event()
    seen: list[ChatChunk] = []
    heard: list[ChatChunk] = []

    async def slow(event: ChatChunk) -> None:
        waiting.set()
        await let_go.wait()
        seen.append(event)

    async with telling(simulator, buffer=4) as (events, _):
        events.on("chat:chunk", heard.append)
        events.on("chat:chunk", slow)
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(events.chat("r", HELLO))
            await waiting.wait()
            await simulator.wait_for_ends(1)
            # One in the handler's hands, four in the buffer, one at its door: then the reading stops.
            assert len(heard) == 6
            assert not chat.done()
            let_go.set()
    assert seen == heard
    assert "".join(event.content for event in seen) == chat.result()


async def test_a_slow_handler_does_not_delay_another(simulator: Simulator) -> None:
    let_go = asyncio.Event()
    done = asyncio.Event()

    async def slow(event: ChatEvent) -> None:
        await let_go.wait()

    async def quick(event: ChatComplete) -> None:
        done.set()

    async with telling(simulator) as (events, _):
        events.on("chat:chunk", slow)
        events.on("chat:complete", quick)
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(events.chat("r", HELLO))
            await done.wait()
            assert not chat.done()
            let_go.set()


async def test_a_cancel_is_told_closes_the_call_and_passes_on(simulator: Simulator) -> None:
    simulator.script(Behaviour(silence_after=5))
    heard: list[ChatEvent] = []

    async def hear(event: ChatEvent) -> None:
        heard.append(event)

    async with telling(simulator) as (events, plain):
        events.on("chat:error", hear)
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(events.chat("r", HELLO))
            await simulator.wait_for_chunks(1, 5)
            chat.cancel()
        await simulator.wait_for_ends(1, "disconnected")
    assert chat.cancelled()
    assert isinstance(heard[-1], ChatError)
    assert heard[-1].code == "cancelled"
    assert plain[-1] == heard[-1]


async def test_a_cancel_waits_only_a_moment_for_a_handler_that_is_stuck(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "GRACE", 0.02)
    stuck = asyncio.Event()

    async def never(event: ChatChunk) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async with telling(simulator, buffer=1) as (events, heard):
        events.on("chat:chunk", never)
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(events.chat("r", HELLO))
            await stuck.wait()
            chat.cancel()
    assert chat.cancelled()
    assert isinstance(heard[-1], ChatError)


async def test_a_cancel_after_the_end_tells_no_second_one(simulator: Simulator) -> None:
    ended, let_go = asyncio.Event(), asyncio.Event()

    async def slow(event: ChatComplete) -> None:
        ended.set()
        await let_go.wait()

    async with telling(simulator) as (events, heard):
        events.on("chat:complete", slow)
        async with asyncio.TaskGroup() as tasks:
            chat = tasks.create_task(events.chat("r", HELLO))
            await ended.wait()
            chat.cancel()
            let_go.set()
    assert chat.cancelled()
    assert isinstance(heard[-1], ChatComplete)


async def test_a_chat_within_a_handler_is_a_chat_of_its_own(simulator: Simulator) -> None:
    async with telling(simulator) as (events, heard):

        async def ask_again(event: ChatComplete) -> None:
            await events.chat("second", HELLO)

        events.once("chat:complete", ask_again)
        await events.chat("first", HELLO)
    assert [event.request_id for event in heard if isinstance(event, ChatComplete)] == ["first", "second"]


async def test_an_error_of_ours_is_told_without_its_words(simulator: Simulator) -> None:
    async with telling(simulator) as (events, heard):
        with pytest.raises(InvalidInput):
            await events.chat("r", HELLO, metadata=object())
        await events._client.aclose()  # type: ignore[union-attr]
        with pytest.raises(RuntimeError):
            await events.chat("r", HELLO)
    assert [(event.error, event.code) for event in heard if isinstance(event, ChatError)][1:] == [
        ("unexpected RuntimeError", "internal")
    ]


async def test_without_a_client_each_chat_opens_its_own(simulator: Simulator) -> None:
    events = MistralEvents(settings=Settings(mistral_api_key="key", mistral_server_url=simulator.url))
    assert await events.chat("r", HELLO)


def test_one_value_serves_several_event_loops() -> None:
    async def chat(events: MistralEvents) -> None:
        with pytest.raises(ConnectFailed):
            await events.chat("r", HELLO)

    events = MistralEvents(settings=Settings(mistral_server_url="http://127.0.0.1:9"))
    asyncio.run(chat(events))
    asyncio.run(chat(events))

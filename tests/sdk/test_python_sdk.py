"""The official Python SDK, unmodified, against the simulator: what it answers and what it raises."""

import asyncio
from typing import Any

import httpx2
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError, MistralError, ResponseValidationError, SDKError

from tramontane.simulator import Behaviour, Simulator

SMALL = "mistral-small-latest"
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": f"Say: {text}"}]


async def stream(client: Mistral, **fields: Any) -> list[Any]:
    """All chunks of a streamed answer."""
    async with await client.chat.stream_async(**{"model": SMALL, "messages": say("one two three"), **fields}) as events:
        return [event.data async for event in events]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content for chunk in chunks)


async def test_the_async_client_completes_and_streams_the_same_answer(simulator: Simulator) -> None:
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        whole = await client.chat.complete_async(model=SMALL, messages=say("one two three"))
        chunks = await stream(client)

    assert whole.choices[0].message is not None
    assert whole.choices[0].message.content == text_of(chunks) == "one two three"
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert whole.usage == chunks[-1].usage
    assert whole.usage.completion_tokens == 3


async def test_the_sync_client_completes_and_streams_the_same_answer(simulator: Simulator) -> None:
    def both() -> tuple[Any, str]:
        with Mistral(api_key="k", server_url=simulator.url) as client:
            whole = client.chat.complete(model=SMALL, messages=say("one two three"))
            with client.chat.stream(model=SMALL, messages=say("one two three")) as events:
                return whole, text_of([event.data for event in events])

    whole, text = await asyncio.to_thread(both)

    assert whole.choices[0].message.content == text == "one two three"


async def test_a_path_before_v1_is_kept(simulator: Simulator) -> None:
    async with Mistral(api_key="k", server_url=f"{simulator.url}/gateway") as client:
        assert text_of(await stream(client)) == "one two three"


@pytest.mark.parametrize("manner", ["whole", "fragments"])
async def test_a_tool_call_is_merged_from_what_comes(simulator: Simulator, manner: str) -> None:
    simulator.behaviour = Behaviour(tool_calls=manner)
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        whole = await client.chat.complete_async(model=SMALL, messages=say("x"), tools=[TOOL], tool_choice="any")
        chunks = await stream(client, messages=say("x"), tools=[TOOL], tool_choice="any")

    assert whole.choices[0].message is not None
    (call,) = whole.choices[0].message.tool_calls or []
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert pieces[0].function.name == call.function.name == "get_weather"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"


async def test_thinking_comes_as_think_chunks(simulator: Simulator) -> None:
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        chunks = await stream(client, model="magistral-medium-latest")

    contents = [chunk.choices[0].delta.content for chunk in chunks]
    thoughts = [part.type for content in contents if isinstance(content, list) for part in content]
    assert set(thoughts) == {"thinking"}
    assert "".join(content for content in contents if isinstance(content, str)) == "one two three"


async def test_a_prefix_is_echoed_and_continued(simulator: Simulator) -> None:
    messages = [*say("one two three"), {"role": "assistant", "content": "one two", "prefix": True}]
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        chunks = await stream(client, messages=messages)

    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "one two", " three", ""]


async def test_structured_answers_are_parsed(simulator: Simulator) -> None:
    schema = {"type": "object", "properties": {"knots": {"type": "integer"}}, "required": ["knots"]}
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        whole = await client.chat.complete_async(
            model=SMALL,
            messages=[{"role": "user", "content": "How strong is the wind? JSON, please."}],
            response_format={"type": "json_schema", "json_schema": {"name": "Wind", "schema": schema}},
        )

    assert whole.choices[0].message is not None
    assert str(whole.choices[0].message.content).startswith('{"knots": ')


async def test_models_are_listed(simulator: Simulator) -> None:
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        models = await client.models.list_async()

    aliases = {alias for card in models.data or [] for alias in getattr(card, "aliases", None) or []}
    assert SMALL in aliases


# The fault, what a stream raises, what a whole answer raises; None where the SDK notices nothing.
FAULTS: list[tuple[str, type[Exception] | None, type[Exception] | None]] = [
    ("end_after=3", None, None),
    ("done=false", None, None),
    ("usage=false", None, None),
    ("finish_reason=tempest", None, None),
    ("crlf, comments, split_frames", None, None),
    ("tokens_per_second=200, latency=0.05", None, None),
    ("cut_after=0", httpx2.RemoteProtocolError, httpx2.RemoteProtocolError),
    ("cut_after=2", httpx2.RemoteProtocolError, httpx2.RemoteProtocolError),
    ("silence_after=2", httpx2.ReadTimeout, httpx2.ReadTimeout),
    ("latency=60", httpx2.ReadTimeout, httpx2.ReadTimeout),
    ("malformed_after=2", ResponseValidationError, ResponseValidationError),
    ("error_after=2", ResponseValidationError, ResponseValidationError),
    ("content_type=text/plain", SDKError, SDKError),
    ("deprecated", httpx2.ResponseNotRead, None),
    ("status=400", SDKError, SDKError),
    ("status=401", SDKError, SDKError),
    ("status=403", SDKError, SDKError),
    ("status=404", SDKError, SDKError),
    ("status=422", HTTPValidationError, HTTPValidationError),
    ("status=422, error_body=envelope", HTTPValidationError, HTTPValidationError),
    ("status=422, error_body=string", ResponseValidationError, ResponseValidationError),
    ("status=429, retry_after=1", SDKError, SDKError),
    ("status=429, error_body=gateway", SDKError, SDKError),
    ("zero_allowance", SDKError, SDKError),
    ("status=500", SDKError, SDKError),
    ("status=503, error_body=html", SDKError, SDKError),
]


@pytest.mark.parametrize(("how", "streamed", "whole"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_a_fault_raises_what_it_raises_against_the_real_api(
    simulator: Simulator, how: str, streamed: type[Exception] | None, whole: type[Exception] | None
) -> None:
    timeout_ms = 300 if streamed is httpx2.ReadTimeout else 10_000
    fields: dict[str, Any] = {"http_headers": {"x-simulator": how}, "timeout_ms": timeout_ms}
    raised: list[type[Exception] | None] = [None, None]
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        try:
            await stream(client, **fields)
        except (MistralError, httpx2.HTTPError, httpx2.StreamError) as error:
            raised[0] = type(error)
        try:
            await client.chat.complete_async(model=SMALL, messages=say("one two three"), **fields)
        except (MistralError, httpx2.HTTPError) as error:
            raised[1] = type(error)

    assert raised == [streamed, whole]


async def test_a_clean_end_without_finish_reason_is_silently_short(simulator: Simulator) -> None:
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        chunks = await stream(client, http_headers={"x-simulator": "end_after=3"})

    assert text_of(chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason is None


async def test_rough_framing_leaves_the_text_as_it_is(simulator: Simulator) -> None:
    text = "Sète — été ☀️ 日本語"
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        chunks = await stream(client, messages=say(text), http_headers={"x-simulator": "crlf, comments, split_frames"})

    assert text_of(chunks) == text


async def test_errors_carry_status_body_and_headers(simulator: Simulator) -> None:
    simulator.script(Behaviour(status=429, retry_after=2), Behaviour(status=503, error_body="html"))
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        with pytest.raises(SDKError) as limited:
            await client.chat.complete_async(model=SMALL, messages=say("x"))
        with pytest.raises(SDKError) as down:
            await stream(client)
        with pytest.raises(HTTPValidationError) as invalid:
            await client.chat.complete_async(model=SMALL, messages=say("x"), n=0)

    assert (limited.value.status_code, limited.value.headers["retry-after"]) == (429, "2")
    assert limited.value.headers["x-ratelimit-remaining-req-minute"] == "0"
    assert down.value.body.startswith("<html>")
    assert invalid.value.data.detail is not None
    assert invalid.value.data.detail[0].loc == ["body", "n"]


async def test_a_wrong_key_is_refused_with_401() -> None:
    async with Simulator(api_keys=["right"]) as simulator, Mistral(api_key="wrong", server_url=simulator.url) as client:
        with pytest.raises(SDKError) as refused:
            await client.models.list_async()

    assert refused.value.status_code == 401


async def test_leaving_a_stream_stops_the_bill(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(tokens=1000, tokens_per_second=100)
    messages: Any = [{"role": "user", "content": "A long story"}]
    async with Mistral(api_key="k", server_url=simulator.url) as client:
        async with await client.chat.stream_async(model=SMALL, messages=messages) as events:
            async for _ in events:
                break
        (call,) = await simulator.wait_for_ends(1, "disconnected")

    assert call.completion_tokens < 100

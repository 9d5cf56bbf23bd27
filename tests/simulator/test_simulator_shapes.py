"""The wire, as section by section the real one was seen: key order included."""

import re
from typing import Any

import pytest
from chatting import chatting

from tramontane.simulator import Behaviour, Simulator

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"properties": {"city": {}}}}}


async def test_a_stream_is_chunks_in_order_then_done(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat("Say: A light wind", stream=True)

    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.lines[-1] == b"[DONE]"
    first, *middle, last = reply.chunks
    assert list(first) == ["id", "object", "created", "model", "choices", "p"]
    assert list(last) == ["id", "object", "created", "model", "choices", "usage", "p"]
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == ["A", " light", " wind"]
    assert last["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert list(last["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"]
    assert last["usage"]["completion_tokens"] == 3


async def test_ids_are_32_hex_digits_and_padding_has_a_random_length(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True)
        other = await chat(stream=True)

    (identity,) = {chunk["id"] for chunk in reply.chunks}
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert identity != other.chunks[0]["id"]
    assert len({len(chunk["p"]) for chunk in reply.chunks}) > 5
    assert all("abcdefghijklmnopqrstuvwxyz0123456789".startswith(chunk["p"]) for chunk in reply.chunks)


async def test_a_whole_answer_has_the_text_of_the_stream(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        whole = await chat("Tell me about Sète")
        streamed = await chat("Tell me about Sète", stream=True)

    assert list(whole.json) == ["id", "object", "created", "model", "usage", "choices"]
    assert list(whole.json["choices"][0]) == ["index", "finish_reason", "message"]
    assert list(whole.json["choices"][0]["message"]) == ["role", "tool_calls", "content"]
    assert whole.headers["content-type"] == "application/json"
    assert whole.text == streamed.text
    assert whole.json["usage"] == streamed.chunks[-1]["usage"]


async def test_reasoning_comes_as_thinking_parts_and_then_as_text(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        streamed = await chat(stream=True, model="magistral-small-latest")
        whole = await chat(model="magistral-small-latest")

    thoughts = [delta["content"] for delta in streamed.deltas if isinstance(delta["content"], list)]
    assert {part["type"] for parts in thoughts for part in parts} == {"thinking"}
    thinking, text = whole.json["choices"][0]["message"]["content"]
    assert thinking["thinking"][0]["text"] == "".join(parts[0]["thinking"][0]["text"] for parts in thoughts)
    assert text == {"type": "text", "text": streamed.text}


async def test_a_tool_call_arrives_whole_or_in_fragments_that_make_the_same_call(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        whole = await chat(stream=True, tools=[TOOL], tool_choice="any")
        pieces = await chat(stream=True, tools=[TOOL], tool_choice="any", how="tool_calls=fragments")

    (call,) = whole.deltas[-1]["tool_calls"]
    fragments = [delta["tool_calls"][0] for delta in pieces.deltas if "tool_calls" in delta]
    assert fragments[0] == {**call, "function": {"name": "get_weather", "arguments": ""}}
    assert "".join(fragment["function"]["arguments"] for fragment in fragments) == call["function"]["arguments"]
    assert {fragment.get("id") for fragment in fragments[1:]} == {None, "null"}
    assert pieces.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_several_choices_take_turns_and_the_last_chunk_has_the_usage_of_all(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        streamed = await chat(stream=True, n=2)
        whole = await chat(n=2)

    texts = ["", ""]
    for chunk in streamed.chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"]["content"]
    assert texts == [choice["message"]["content"] for choice in whole.json["choices"]]
    assert texts[0] != texts[1]
    assert ["usage" in chunk for chunk in streamed.chunks].count(True) == 1
    assert streamed.chunks[-1]["usage"] == whole.json["usage"]


async def test_models_are_listed_without_rate_limit_headers(simulator: Simulator) -> None:
    async with chatting(simulator) as chat, chat.session.get(f"{chat.url}/v1/models") as response:
        models = await response.json()

    assert models["object"] == "list"
    assert {"id", "object", "capabilities", "aliases", "deprecation", "type"} <= set(models["data"][0])
    assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]


async def test_any_path_may_stand_before_v1_and_other_paths_are_not_found(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        root, chat.url = chat.url, f"{chat.url}/gateway/tenant-7"
        answered = await chat()
        async with chat.session.get(f"{root}/v1/nothing") as response:
            missing = await response.json()

    assert answered.status == 200
    assert (response.status, missing) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("fields", "where", "kind"),
    [
        ({"messages": ...}, ["body", "messages"], "missing"),
        ({"model": ...}, ["body", "model"], "missing"),
        ({"model": None}, ["body", "model"], "string_type"),
        ({"messages": "Hello"}, ["body", "messages"], "list_type"),
        ({"messages": ["Hello"]}, ["body", "messages", 0], "model_attributes_type"),
        ({"messages": [{"role": "pilot", "content": "x"}]}, ["body", "messages", 0, "role"], "union_tag_invalid"),
        ({"messages": [{"role": "user"}]}, ["body", "messages", 0, "user", "content"], "missing"),
        ({"messages": [{"role": "user", "content": 7}]}, ["body", "messages", 0, "user", "content"], "string_type"),
        ({"max_tokens": True}, ["body", "max_tokens"], "int_type"),
        ({"n": 0}, ["body", "n"], "greater_than_equal"),
        ({"temperature": 2}, ["body", "temperature"], "less_than_equal"),
        ({"tools": [{}]}, ["body", "tools", 0, "function", "name"], "missing"),
        ({"tools": [TOOL] * 129}, ["body", "tools"], "too_long"),
        ({"wind": "north"}, ["body", "wind"], "extra_forbidden"),
    ],
)
async def test_a_wrong_shape_is_a_422_that_names_the_field(
    simulator: Simulator, fields: dict[str, Any], where: list[Any], kind: str
) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(**fields)

    assert reply.status == 422
    assert list(reply.json["detail"][0]) == ["type", "loc", "msg", "input"]
    assert [(item["loc"], item["type"]) for item in reply.json["detail"]] == [(where, kind)]


@pytest.mark.parametrize("body", [b"{", b'"text"', b"\xff", b""])
async def test_a_body_that_is_no_object_is_a_422(simulator: Simulator, body: bytes) -> None:
    async with chatting(simulator) as chat:
        reply = await chat.post(body)

    assert reply.status == 422
    assert reply.json["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": "windy-7b"}, "1500", "Invalid model: windy-7b"),
        ({"messages": []}, "3230", "at least one message"),
        ({"messages": [USER, {"role": "assistant", "content": "Hi"}]}, "3230", "but got assistant"),
        ({"messages": [{"role": "system", "content": "Be brief"}]}, "3230", "but got system"),
        ({"messages": [USER, {"role": "tool", "content": "7"}]}, "3230", "Unexpected role 'tool' after role 'user'"),
        ({"messages": [USER, {"role": "assistant", "content": "A", "prefix": True}, USER]}, "3230", "Only the last"),
        ({"messages": [USER, {"role": "assistant", "content": "A", "prefix": True}], "tools": [TOOL]}, "3350", "tools"),
    ],
)
async def test_a_request_that_makes_no_sense_is_a_400_in_mistrals_envelope(
    simulator: Simulator, fields: dict[str, Any], code: str, words: str
) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(**fields)

    assert reply.status == 400
    assert list(reply.json) == ["object", "message", "type", "param", "code", "raw_status_code"]
    assert reply.json["code"] == code
    assert words in reply.json["message"]


async def test_a_key_is_asked_for_and_any_will_do(simulator: Simulator) -> None:
    async with chatting(simulator, key="") as chat:
        nobody = await chat()
        empty = await chat.post({}, headers={"authorization": "Bearer "})
        async with chat.session.get(f"{chat.url}/v1/models") as response:
            listed = response.status
    async with chatting(simulator, key="any") as chat:
        somebody = await chat()

    assert (nobody.status, nobody.json) == (401, {"detail": "Unauthorized"})
    assert (empty.status, listed, somebody.status) == (401, 401, 200)


async def test_given_keys_are_the_only_ones_let_in() -> None:
    async with Simulator(api_keys=["good"]) as simulator:
        async with chatting(simulator, key="bad") as chat:
            refused = await chat()
        async with chatting(simulator, key="good") as chat:
            answered = await chat()

    assert refused.status == 401
    assert list(refused.json) == ["message", "request_id"]
    assert answered.status == 200


async def test_every_answer_has_a_correlation_id_of_its_own(simulator: Simulator) -> None:
    simulator.script(Behaviour(), Behaviour(status=500))
    async with chatting(simulator) as chat:
        replies = [await chat(), await chat()]

    assert len({reply.headers["mistral-correlation-id"] for reply in replies}) == 2

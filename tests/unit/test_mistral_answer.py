import json
from typing import Any

import msgspec
import pytest

from tramontane.errors import GenerationFailed, MalformedAnswer
from tramontane.mistral import Delta, answer
from tramontane.mistral.answer import Answer


def chunk(delta: dict[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    """A payload of Mistral's; `more` stands beside `choices`."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    fields = {"id": "cb17", "object": "chat.completion.chunk", "created": 1763795000, "model": "m", "choices": [choice]}
    return json.dumps(fields | {"p": "abc"} | more).encode()


def told(*payloads: bytes, expected: int = 1) -> Answer:
    whole = Answer(expected)
    for payload in payloads:
        whole.feed(payload)
    return whole


def message(whole: Answer, choice: int = 0) -> Any:
    return json.loads(whole.completion())["choices"][choice]["message"]


def test_text_comes_as_deltas_and_in_the_end_whole() -> None:
    whole = Answer(1)
    opening = whole.feed(chunk({"role": "assistant", "content": ""}))
    first = whole.feed(chunk({"content": "The"}))
    second = whole.feed(chunk({"content": " wind"}, finish="stop"))

    assert (list(opening), list(first), list(second)) == ([], [Delta("The")], [Delta(" wind")])
    assert whole.choices[0].content == "The wind"
    assert whole.complete


def test_null_content_adds_nothing() -> None:
    assert list(Answer(1).feed(chunk({"content": None}))) == []


def test_the_completion_is_the_object_that_mistral_sends_unstreamed() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    whole = told(chunk({"content": "The"}), chunk({"content": " wind"}), chunk(finish="stop", usage=usage))

    assert json.loads(whole.completion()) == {
        "id": "cb17",
        "object": "chat.completion",
        "created": 1763795000,
        "model": "m",
        "usage": usage,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "tool_calls": None, "content": "The wind"},
            }
        ],
    }


def test_unknown_fields_of_the_last_chunk_survive_byte_for_byte() -> None:
    last = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"guardrails":[ {"x" :1.50} ],"usage":{"a":  1}}'
    whole = told(chunk({"content": "a"}), last)
    assert b'"guardrails":[ {"x" :1.50} ]' in whole.completion()
    assert b'"usage":{"a":  1}' in whole.completion()


def test_usage_is_what_mistral_reports_or_none() -> None:
    assert told(chunk(finish="stop")).usage is None
    assert told(chunk(finish="stop", usage=None)).usage is None
    reported = told(chunk(finish="stop"), b'{"choices":[],"usage":{"total_tokens": 9}}').usage
    assert reported is not None
    assert bytes(reported) == b'{"total_tokens": 9}'


def test_typed_parts_are_kept_as_parts_and_neighbours_merged() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    reference = {"type": "reference", "reference_ids": [1, 2]}
    unknown = {"type": "hologram", "text": 5, "thinking": {}}
    whole = Answer(1)
    first = whole.feed(chunk({"content": [thought("Let me ")]}))
    whole.feed(chunk({"content": [thought("see."), {"type": "text", "text": "It "}]}))
    whole.feed(chunk({"content": "is"}))
    last = whole.feed(chunk({"content": [{"type": "text", "text": " so"}, reference, unknown]}, finish="stop"))

    assert list(first) == [Delta(thinking="Let me ")]
    assert list(last) == [Delta(" so")]
    assert (whole.choices[0].thinking, whole.choices[0].content) == ("Let me see.", "It is so")
    assert message(whole)["content"] == [
        thought("Let me see."),
        {"type": "text", "text": "It is so"},
        reference,
        unknown,
    ]


def test_thoughts_may_be_a_string() -> None:
    whole = told(chunk({"content": [{"type": "thinking", "thinking": "hm"}]}, finish="stop"))
    assert whole.choices[0].thinking == "hm"


def test_a_thought_with_a_signature_or_a_reference_is_kept_as_it_came() -> None:
    signed = {"type": "thinking", "thinking": [{"type": "text", "text": "a"}], "signature": "s"}
    quoting = {"type": "thinking", "thinking": [{"type": "text", "text": "b"}, {"type": "reference", "id": 1}]}
    whole = told(chunk({"content": [signed]}), chunk({"content": [quoting]}, finish="stop"))
    assert message(whole)["content"] == [signed, quoting]
    assert whole.choices[0].thinking == "ab"


def call(arguments: Any, *, name: str = "", **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


PARIS = {"id": "AbC", "type": "function", "function": {"name": "f", "arguments": '{"city":"Paris"}'}, "index": 0}
ROME = {"id": "DeF", "type": "function", "function": {"name": "f", "arguments": '{"city":"Rome"}'}, "index": 0}


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        ([[call('{"city":"Paris"}', name="f", id="AbC", index=0)]], [PARIS]),
        (
            [
                [call("", name="f", id="AbC", index=0)],
                [call('{"ci', index=0)],
                [call('ty":"Pa', id="null", index=0)],
                [call('ris"}', id=None, index=0)],
            ],
            [PARIS],
        ),
        ([[call('{"city":', name="f", id="AbC")], [call('"Paris"}')]], [PARIS]),
        ([[call('{"ci', id="null", name="f", index=0)], [call('ty":"Paris"}', id="AbC", index=0)]], [PARIS]),
        (
            [
                [call('{"city":"Paris"}', name="f", id="AbC", index=0)],
                [call('{"city":"Rome"}', name="f", id="DeF", index=0)],
            ],
            [PARIS, ROME],
        ),
        (
            [
                [call('{"city":', name="f", id="AbC", index=0), call('{"city":', name="f", id="DeF", index=1)],
                [call('"Rome"}', index=1), call('"Paris"}', index=0)],
            ],
            [PARIS, ROME | {"index": 1}],
        ),
        (
            [[call('{"city":"Paris"}', name="f", id="AbC"), call('{"city":"Rome"}', name="f", id="DeF")]],
            [PARIS, ROME | {"index": 1}],
        ),
    ],
    ids=["whole", "pieces", "no index", "late id", "two ids under one index", "interleaved", "whole without index"],
)
def test_tool_calls_are_merged_from_their_fragments(fragments: list[list[Any]], calls: list[Any]) -> None:
    whole = told(*(chunk({"tool_calls": pieces}) for pieces in fragments), chunk(finish="tool_calls"))
    assert whole.choices[0].tool_calls == calls
    assert message(whole)["tool_calls"] == calls


def test_arguments_that_come_as_an_object_stay_one() -> None:
    whole = told(chunk({"tool_calls": [call({"city": "Paris"}, name="f", id="AbC")]}, finish="tool_calls"))
    assert message(whole)["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}


def test_fragments_are_given_out_as_they_came() -> None:
    fragment = b'{"index":0,  "id":"AbC","function":{"name":"f","arguments":""},"new":1}'
    (delta,) = Answer(1).feed(b'{"choices":[{"index":0,"delta":{"tool_calls":[' + fragment + b"]}}]}")
    assert [bytes(raw) for raw in delta.tool_calls] == [fragment]


def test_the_answer_is_complete_when_every_choice_is() -> None:
    whole = told(chunk({"content": "a"}, index=1, finish="stop"), expected=2)
    before = whole.complete
    (delta,) = whole.feed(chunk({"content": "b"}, index=0, finish="length"))

    assert (before, whole.complete) == (False, True)
    assert delta == Delta("b", choice=0)
    assert [message(whole, index)["content"] for index in (0, 1)] == ["b", "a"]


def test_logprobs_of_all_chunks_are_joined() -> None:
    def spoken(token: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": token}, "finish_reason": finish}
        return json.dumps({"choices": [choice | {"logprobs": {"content": [{"token": token}]}}]}).encode()

    whole = told(spoken("a"), spoken("b", "stop"))
    (choice,) = json.loads(whole.completion())["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_done_alone_does_not_make_an_answer_complete() -> None:
    whole = told(chunk({"content": "a"}), b" [DONE]\r")
    assert whole.done
    assert not whole.complete


def test_nothing_after_done_is_read() -> None:
    whole = told(chunk({"content": "a"}, finish="stop"), b"[DONE]")
    assert list(whole.feed(b"garbage")) == []
    assert whole.complete


@pytest.mark.parametrize(
    "payload",
    [
        b'{"object":"error","message":"secret words","type":"internal_server_error","code":"1000"}',
        b'{"error":{"message":"secret words","type":"internal_server_error","code":1000}}',
        chunk({"content": "a"}, finish="error"),
    ],
)
def test_a_failure_that_mistral_reports_in_the_stream_is_a_failed_generation(payload: bytes) -> None:
    with pytest.raises(GenerationFailed) as caught:
        told(payload)
    assert "secret" not in str(caught.value)
    if b"error" in payload[:20]:
        assert (caught.value.upstream_type, caught.value.upstream_code) == ("internal_server_error", "1000")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b'{"choices":{}}',
        b'{"model":"m"}',
        b'{"choices":[{"delta":{"content":5}}]}',
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[{"delta":{"content":[{"type":"text","text":5}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":"x"}]}}]}',
    ],
)
def test_what_is_no_chunk_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        told(payload)


def test_an_answer_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "LONGEST_ANSWER", 1000)
    with pytest.raises(MalformedAnswer):
        told(*[chunk({"content": " "})] * 100)


def test_an_answer_that_broke_off_can_still_be_told() -> None:
    assert json.loads(Answer(1).completion())["choices"][0]["finish_reason"] is None
    assert msgspec.json.decode(told(chunk({"content": "The"})).completion())["id"] == "cb17"

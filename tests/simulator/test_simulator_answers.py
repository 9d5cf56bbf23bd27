"""Answers are a function of seed, request and behaviour."""

from typing import Any

import msgspec
import pytest
from chatting import chatting

from tramontane.simulator import Behaviour, Simulator
from tramontane.simulator.answers import Answer, compose
from tramontane.simulator.requests import parse_request

TOOLS = [
    {"type": "function", "function": {"name": "get_tide"}},
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    },
]


def ask(
    question: str = "Hello",
    *,
    behaviour: Behaviour | None = None,
    seed: int = 1,
    index: int = 0,
    prefix: str | None = None,
    **fields: Any,
) -> Answer:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if prefix is not None:
        messages.append({"role": "assistant", "content": prefix, "prefix": True})
    body = {"model": "mistral-small-latest", "messages": messages, **fields}
    return compose(parse_request(body), behaviour or Behaviour(), seed, index)


def test_the_same_seed_and_request_give_the_same_answer() -> None:
    assert ask() == ask()


def test_a_new_seed_question_model_or_choice_gives_a_new_answer() -> None:
    answers = [
        ask(),
        ask(seed=2),
        ask("Hello?"),
        ask(model="mistral-large-latest"),
        ask(index=1),
        ask(random_seed=7),
        ask(behaviour=Behaviour(seed=9)),
    ]

    assert len({answer.content for answer in answers}) == len(answers)


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_has_some_forty_tokens_or_more_and_ends_with_a_sentence(seed: int) -> None:
    answer = ask(seed=seed)

    assert 40 <= answer.tokens <= 150
    assert answer.content.rstrip("”").endswith(".")
    assert answer.finish_reason == "stop"


def test_a_length_is_kept_to_the_token() -> None:
    assert ask(behaviour=Behaviour(tokens=10)).tokens == 10
    assert ask(behaviour=Behaviour(tokens=1000)).tokens == 1000
    assert ask(min_tokens=300).tokens >= 300


def test_max_tokens_cuts_the_same_answer_short() -> None:
    answer = ask(max_tokens=7)

    assert (answer.tokens, answer.finish_reason) == (7, "length")
    assert ask().content.startswith(answer.content)


def test_max_tokens_counts_thinking_too() -> None:
    answer = ask(model="magistral-small-latest", max_tokens=3)

    assert (len(answer.thinking), answer.text, answer.finish_reason) == (3, (), "length")


def test_the_first_stop_word_ends_the_answer_before_it() -> None:
    answer = ask("Say: one two three four", stop=["four", "three"])

    assert (answer.content, answer.finish_reason) == ("one two ", "stop")
    assert ask("Say: one two", stop="two").content == "one "


@pytest.mark.parametrize(
    "text", ["exactly this", " two  spaces ", "été ☀️ 日本語のとても長い一つの単語です", "a\n\nb", "x" * 100]
)
def test_say_is_answered_to_the_letter(text: str) -> None:
    assert ask(f"Please.\nSay: {text}").content == text


def test_a_question_may_come_in_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Say: parts"}]}]

    assert ask(messages=messages).content == "parts"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": ["object"], "properties": 7}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"stop": [7, "", None]},
        {"tools": [{"function": {"name": "f", "parameters": "x"}}], "tool_choice": "any"},
        {"tools": TOOLS, "tool_choice": {"function": None}},
        {"messages": [{"role": "user", "content": [7, {"type": "image_url"}]}]},
    ],
)
def test_nonsense_in_a_field_is_survived(fields: dict[str, Any]) -> None:
    assert ask(**fields).tokens > 0


def test_json_is_answered_when_json_is_asked_for() -> None:
    anything = ask(response_format={"type": "json_object"})
    schema = {
        "type": "object",
        "properties": {
            "winds": {"type": "array", "items": {"$ref": "#/$defs/Wind"}},
            "kind": {"enum": ["calm", "storm"]},
            "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "$defs": {"Wind": {"type": "object", "properties": {"name": {"type": "string"}, "knots": {"type": "number"}}}},
    }
    shaped = ask(response_format={"type": "json_schema", "json_schema": {"name": "Winds", "schema": schema}})

    assert isinstance(msgspec.json.decode(anything.content), dict)
    value = msgspec.json.decode(shaped.content)
    assert isinstance(value["winds"][0]["knots"], float)
    assert value["kind"] in ("calm", "storm")
    assert value["note"] is None


@pytest.mark.parametrize(
    ("choice", "question", "name"),
    [
        ("any", "Hello", "get_tide"),
        ("required", "Hello", "get_tide"),
        ({"type": "function", "function": {"name": "get_weather"}}, "Hello", "get_weather"),
        ("auto", "Call: get_weather", "get_weather"),
        (None, "Call: get_weather", "get_weather"),
        ("auto", "Hello", None),
        ("auto", "Call: unknown", None),
        ("none", "Call: get_weather", None),
    ],
)
def test_a_function_is_called_when_it_must_be_or_is_asked_for(choice: Any, question: str, name: str | None) -> None:
    answer = ask(question, tools=TOOLS, tool_choice=choice)

    assert (answer.tool_call.name if answer.tool_call else None) == name
    assert answer.finish_reason == ("tool_calls" if name else "stop")


def test_arguments_fit_the_parameters() -> None:
    call = ask("Call: get_weather", tools=TOOLS).tool_call

    assert call is not None
    assert len(call.id) == 9
    arguments = msgspec.json.decode(call.arguments)
    assert [type(value) for value in arguments.values()] == [str, int]


def test_text_follows_the_result_of_a_tool() -> None:
    messages = [
        {"role": "user", "content": "Call: get_tide"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "123456789"}]},
        {"role": "tool", "content": "low", "tool_call_id": "123456789"},
    ]

    assert ask(messages=messages, tools=TOOLS).tool_call is None


@pytest.mark.parametrize("cut", [1, 5, 30, 60])
def test_a_prefix_of_the_answer_is_continued_where_it_ends(cut: int) -> None:
    whole = ask()
    prefix = "".join(whole.text[:cut])

    continued = ask(prefix=prefix)

    assert continued.echo == (prefix,)
    assert continued.content == whole.content


def test_a_prefix_may_end_anywhere_even_at_the_end() -> None:
    whole = ask("Say: one two three").content

    for size in range(len(whole) + 1):
        assert ask("Say: one two three", prefix=whole[:size]).content == whole


def test_another_prefix_is_followed_by_the_answer() -> None:
    assert ask("Say: one two", prefix="Well,").content == "Well, one two"


def test_the_callers_beginning_and_ours_are_continued_as_one() -> None:
    whole = ask(prefix="Arr,")
    so_far = whole.content[:60]

    assert ask(prefix=so_far).content == whole.content


def test_an_echo_is_whole_split_altered_or_missing() -> None:
    prefix = ask().content[:50]
    echoes = {
        manner: ask(prefix=prefix, behaviour=Behaviour(echo=manner)).echo
        for manner in ("whole", "split", "altered", "none")
    }

    assert echoes["whole"] == (prefix,)
    assert len(echoes["split"]) > 5
    assert "".join(echoes["split"]) == prefix
    assert echoes["altered"][0] != prefix
    assert len(echoes["altered"][0]) == len(prefix)
    assert echoes["none"] == ()


def test_the_echo_is_paid_for_and_does_not_count_against_max_tokens() -> None:
    whole = ask()
    prefix = "".join(whole.text[:20])

    answer = ask(prefix=prefix, max_tokens=5)

    assert (answer.tokens, len(answer.text), answer.finish_reason) == (25, 5, "length")


def test_a_finish_reason_can_be_dictated() -> None:
    assert ask(behaviour=Behaviour(finish_reason="model_length")).finish_reason == "model_length"


async def test_a_prompt_cache_key_saves_blocks_of_64_tokens(simulator: Simulator) -> None:
    question = "Say: ok" + " and the wind" * 100
    async with chatting(simulator) as chat:
        replies = [
            await chat(question, prompt_cache_key="one"),
            await chat(question, prompt_cache_key="one"),
            await chat(question, prompt_cache_key="two"),
            await chat(question),
        ]

    cached = [reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies]
    assert cached == [0, 320, 0, 0]


def test_a_stop_string_that_is_noticed_late_has_been_begun() -> None:
    late = Behaviour(stops="late")

    assert ask("Say: one two three four", stop="two three").content == "one "
    assert ask("Say: one two three four", stop="two three", behaviour=late).content == "one two"
    assert ask("Say: one two three four", stop="thr", behaviour=late).content == "one two"
    assert ask("Say: one two three four", stop="five", behaviour=late).content == "one two three four"


def test_what_follows_a_prefix_does_not_show_the_stop_string_that_began_before_it() -> None:
    answer = ask("Say: one two three four", stop="two three", prefix="one two")
    assert answer.content == "one two three four"

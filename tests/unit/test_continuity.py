"""What a new attempt does with half an answer: one table, and a seam that holds wherever it is cut."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tramontane.continuity import SHORTEST, Plan, Said, add_up, joint, plan, said, whole
from tramontane.models import Event
from tramontane.seam import Joint, common, cut

USER = {"role": "user", "content": "Tell me of the wind."}
TEXT = "The tramontane comes down from the mountains, cold and dry."
LONG = len(TEXT)
PART = {"type": "text", "text": "The"}
RESULT = {"role": "tool", "content": "x"}
TOOL = {"type": "function", "function": {"name": "wind"}}
SEED = 7


def request(**fields: Any) -> dict[str, Raw]:
    body = {"model": "mistral-small-latest", "messages": [USER], **fields}
    return {name: Raw(msgspec.json.encode(value)) for name, value in body.items()}


def planned(
    text: str = TEXT, *, resume: str = "auto", prefix: bool = True, so_far: Said | None = None, **fields: Any
) -> Plan:
    return plan(request(**fields), so_far or Said(text=text, tokens=12), resume=resume, seed=SEED, prefix=prefix)


def asked(made: Plan) -> dict[str, Any]:
    """What Mistral is asked, as it reads it."""
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made.request))
    return body


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


# Plans


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "continue"),
        (
            {"temperature": 0.2, "top_p": 1, "metadata": {"a": 1}, "prompt_cache_key": "k", "safe_prompt": True},
            "continue",
        ),
        ({"tools": None, "n": None, "response_format": None, "reasoning_effort": None, "prediction": None}, "continue"),
        ({"tools": [], "tool_choice": "auto", "n": 1, "logprobs": False, "reasoning_effort": "none"}, "continue"),
        ({"response_format": {"type": "text"}}, "continue"),
        ({"messages": [{"role": "system", "content": [PART]}, USER]}, "continue"),
        ({"model": "ministral-8b-latest"}, "continue"),
        ({"model": "open-mistral-nemo"}, "continue"),
        ({"model": "codestral-latest"}, "continue"),
        ({"tools": [TOOL]}, "replay"),
        ({"tools": [TOOL], "tool_choice": "none"}, "replay"),
        ({"response_format": {"type": "json_object"}}, "replay"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "replay"),
        ({"n": 2}, "replay"),
        ({"logprobs": True}, "replay"),
        ({"top_logprobs": 3}, "replay"),
        ({"prompt_mode": "reasoning"}, "replay"),
        ({"reasoning_effort": "low"}, "replay"),
        ({"prediction": {"type": "content", "content": "x"}}, "replay"),
        ({"guardrails": [{"moderation": {}}]}, "replay"),
        ({"of_tomorrow": 1}, "replay"),
        ({"model": "magistral-medium-latest"}, "replay"),
        ({"model": "some-other-model"}, "replay"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "replay"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}, RESULT]}, "replay"),
        ({"messages": [USER, {"role": "assistant", "prefix": True, "content": [PART]}]}, "replay"),
        ({"messages": [USER, {"role": "assistant", "prefix": True, "content": "The"}], "max_tokens": 90}, "replay"),
    ],
    ids=str,
)
def test_plain_text_is_continued_and_anything_else_is_said_again_under_the_same_seed(
    fields: dict[str, Any], mode: str
) -> None:
    made = planned(**fields)
    assert (made.mode, made.keep) == (mode, LONG)
    if mode == "continue":
        assert asked(made)["messages"][-1] == {"role": "assistant", "content": TEXT, "prefix": True}
        assert "random_seed" not in made.request
    else:
        assert asked(made) == asked(Plan(mode="replay", request=request(**fields))) | {"random_seed": SEED}


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL]}, {"stop": "cold"}, {"max_tokens": 3}], ids=str)
def test_a_job_that_is_never_resumed_asks_again_for_exactly_what_it_asked(fields: dict[str, Any]) -> None:
    assert planned(resume="never", **fields) == Plan(mode="restart", request=request(**fields))


def test_the_first_attempt_of_what_may_need_a_replay_sets_a_seed_unless_the_caller_did() -> None:
    assert planned("") == Plan(mode="restart", request=request())
    assert asked(planned("", n=2))["random_seed"] == SEED
    assert asked(planned("", n=2, random_seed=None))["random_seed"] == SEED
    assert asked(planned("", n=2, random_seed=0))["random_seed"] == 0


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL]}, {"random_seed": 1}], ids=str)
def test_a_short_text_starts_again(fields: dict[str, Any]) -> None:
    assert planned("x" * (SHORTEST - 1), **fields).mode == "restart"
    assert planned("x" * (SHORTEST - 1), **fields).keep == 0
    assert planned("x" * SHORTEST, **fields).mode != "restart"
    # Length is counted as readers count it.
    assert planned("😀" * (SHORTEST // 2), **fields).keep == SHORTEST


def test_a_prefix_that_mistral_refuses_is_given_up() -> None:
    assert planned(prefix=False).mode == "restart"
    assert planned(prefix=False, random_seed=3).mode == "replay"


def test_neither_thoughts_nor_tool_calls_can_be_given_back() -> None:
    assert planned(so_far=Said(text=TEXT, thinking=True)).mode == "restart"
    assert planned(so_far=Said(text=TEXT, thinking=True), random_seed=1).mode == "replay"
    assert planned(so_far=Said(text=TEXT, tools=True), random_seed=1).mode == "restart"


def test_trailing_white_space_is_not_sent_and_stays() -> None:
    made = planned(TEXT + " \n")
    assert asked(made)["messages"][-1]["content"] == made.expected == TEXT
    assert (made.mode, made.keep, made.space) == ("continue", LONG + 2, " \n")


def test_white_space_alone_makes_no_text_longer() -> None:
    assert planned("x" + " " * 40).mode == "restart"


def test_a_text_that_begins_with_white_space_may_be_echoed_without_it_and_is_not_continued() -> None:
    assert planned(" " + TEXT).mode == "restart"


def test_limits_are_lowered_by_what_was_said() -> None:
    body = asked(planned(max_tokens=20, min_tokens=5))
    assert (body["max_tokens"], body["min_tokens"]) == (8, 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 12}, "length"),
        ({"max_tokens": 3}, "length"),
        ({"stop": "cold"}, "stop"),
        ({"stop": ["hot", "", "dry."]}, "stop"),
        ({"stop": ["hot", ""], "max_tokens": 13}, None),
    ],
    ids=str,
)
def test_an_answer_that_has_reached_its_end_is_finished(fields: dict[str, Any], reason: str | None) -> None:
    made = planned(**fields)
    assert made.finish_reason == reason
    assert (made.mode, made.keep) == ("finished" if reason else "continue", LONG)


def test_a_short_text_that_has_reached_its_end_is_finished_too() -> None:
    assert planned("dry.", stop="dry").mode == "finished"


@pytest.mark.parametrize(
    ("given", "text", "sent"),
    [
        ("Arr, ", "Arr, " + TEXT, "Arr, " + TEXT),  # it was echoed
        ("Arr, ", TEXT, "Arr, " + TEXT),  # it was not
        (TEXT, TEXT[:40], None),  # cut within the echo
        (TEXT, TEXT[:40] + "~" + TEXT[41:] + " More.", None),  # altered
        (TEXT[:40] + "stop", TEXT[:40] + "stop and so on", TEXT[:40] + "stop and so on"),  # a stop word of the caller's
    ],
)
def test_a_callers_own_prefix_and_the_text_become_one(given: str, text: str, sent: str | None) -> None:
    prefix = {"role": "assistant", "content": given, "prefix": True, "extra": 1}
    made = planned(text, messages=[USER, prefix], stop="stop" if "stop" in given else None)
    if sent is None:
        assert made.mode == "restart"
    else:
        assert asked(made)["messages"] == [USER, prefix | {"content": sent}]
        assert made.keep == units(text)


# What was said


def event(kind: str, attempt: Any = 1, **body: Any) -> Event:
    return Event(seq=1, attempt=attempt, type=kind, body=msgspec.json.encode(body))


def chunk(off: int, content: str, tokens: int, **more: str) -> Event:
    return event("chunk", off=off, content=content, tokenCount=tokens, **more)


def test_the_text_is_what_the_attempts_have_left_of_it() -> None:
    log = [chunk(0, "a😀", 2), chunk(3, "bc", 3), event("attempt", 2, mode="continue", keep=5), chunk(5, "d", 4)]
    assert said(log) == Said(text="a😀bcd", tokens=4)
    assert said([*log, event("attempt", 3, mode="restart", keep=4)]) == Said(text="a😀b", tokens=3)
    assert said([*log, event("attempt", 3, mode="restart", keep=0)]) == Said()
    assert said([*log, event("attempt", 3, mode="restart", keep=3), chunk(3, "x", 2)]) == Said(text="a😀x", tokens=2)


def test_thoughts_and_calls_are_void_after_a_restart_and_stay_otherwise() -> None:
    log = [chunk(0, "", 0, thinking="hm"), event("tool", toolCalls=[])]
    assert said(log) == Said(thinking=True, tools=True)
    assert said([*log, event("attempt", mode="replay", keep=0)]) == Said(thinking=True, tools=True)
    assert said([*log, event("attempt", mode="restart", keep=0)]) == Said()


# The seam


def fed(meeting: Joint, pieces: list[str]) -> str:
    """All that is told of some pieces of output, to their end."""
    told = "".join(meeting.feed(piece) for piece in pieces if not meeting.over)
    if meeting.holding and not meeting.over:
        told += meeting.end()
    return told


def shown(made: Plan, text: str, pieces: list[str]) -> tuple[str, Joint]:
    """The visible text in the end."""
    meeting = joint(made, text)
    assert meeting is not None
    told = fed(meeting, pieces)
    return (text if meeting.keep is None else cut(text, meeting.keep)) + told, meeting


MORE = " It was never late."


@pytest.mark.parametrize(
    ("text", "output", "expected", "keep"),
    [
        (TEXT, TEXT + MORE, TEXT + MORE, None),  # whole echo
        (TEXT, MORE, TEXT + MORE, None),  # none
        (TEXT, TEXT, TEXT, None),  # an echo and nothing more
        (TEXT, "", TEXT, None),
        (TEXT, TEXT[:31] + "~", TEXT + TEXT[:31] + "~", None),  # a likeness too short for an echo
        (TEXT, TEXT[:32] + "~", TEXT[:32] + "~", 32),  # an altered echo
        (TEXT, TEXT[:31], TEXT + TEXT[:31], None),  # ended within a likeness, too short
        (TEXT, TEXT[:40], TEXT[:40], 40),  # ended within an echo: that is the answer now
        (TEXT + " ", TEXT + MORE, TEXT + MORE, None),  # white space is dropped once
        (TEXT + " ", MORE, TEXT + MORE, None),
        (TEXT + "\n\n", "\n\n\nNext", TEXT + "\n\n\nNext", None),
        (TEXT + "\n", " Next", TEXT + "\n Next", None),
        (TEXT + "\n\n", "\nNext", TEXT + "\n\nNext", None),
        (TEXT + "\n\n", "\n", TEXT + "\n\n", None),
        (TEXT + " ", TEXT[:40] + "~", TEXT[:40] + "~", 40),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_continuation_meets_the_text_without_gap_or_repeat(
    text: str, output: str, expected: str, keep: int | None, size: int
) -> None:
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    visible, meeting = shown(planned(text), text, pieces)
    assert (visible, meeting.keep, meeting.over) == (expected, keep, False)


@pytest.mark.parametrize(
    ("text", "output", "expected", "over"),
    [
        (TEXT + " EN", "D of it", TEXT + " EN", True),
        (TEXT + " E", "ND of it", TEXT + " E", True),
        (TEXT + " E", "nd of it", TEXT + " End of it", False),
        (TEXT + " E", "N", TEXT + " EN", False),
        (TEXT + " E", "NE END", TEXT + " ENE END", False),  # the rest is Mistral's to notice
        (TEXT + "\n", "\n## More", TEXT + "\n## More", False),
        (TEXT + "\n", "\n\n##", TEXT + "\n", True),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("echo", [False, True])
def test_a_stop_string_is_found_across_the_seam(
    text: str, output: str, expected: str, over: bool, size: int, echo: bool
) -> None:
    made = planned(text, stop=["END", "\n\n##"])
    output = made.expected + output if echo else output
    visible, meeting = shown(made, text, [output[at : at + size] for at in range(0, len(output), size)])
    assert (visible, meeting.over) == (expected, over)


@pytest.mark.parametrize(
    ("output", "keep"),
    [(TEXT + MORE, None), (TEXT, None), (TEXT[:10] + "~", 10), ("~", 0), (TEXT[:10], 10), ("", 0)],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_replay_is_silent_as_long_as_it_says_the_same(output: str, keep: int | None, size: int) -> None:
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    visible, meeting = shown(planned(n=2), TEXT, pieces)
    assert (visible, meeting.keep) == (output, keep)


def test_nothing_is_told_before_it_is_decided() -> None:
    meeting = joint(planned(), TEXT)
    assert meeting is not None
    assert [meeting.feed(letter) for letter in TEXT] == [""] * LONG
    assert meeting.feed(" Then") == " Then"


ALPHABET = st.text("ab é😀\n", max_size=8)


@given(st.data())
def test_however_the_output_is_split_the_visible_text_is_the_same(data: st.DataObject) -> None:
    text = data.draw(st.text("ab é😀\n", min_size=1, max_size=60))
    kind = data.draw(st.sampled_from(["echo", "none", "altered", "free"]))
    body = text.rstrip()
    beginning = {"echo": body, "none": "", "altered": body[:-2] + "~", "free": body[: data.draw(st.integers(0, 60))]}[
        kind
    ]
    output = beginning + data.draw(ALPHABET)
    stop = tuple(data.draw(st.lists(st.text("ab \n", min_size=2, max_size=3), max_size=2)))
    made = Plan(mode="continue", expected=body, space=text[len(body) :], stop=stop) if body else None
    if data.draw(st.booleans()) or made is None:
        made = Plan(mode="replay", expected=text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=6)))
    pieces = [output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    visible, meeting = shown(made, text, pieces)
    at_once, other = shown(made, text, [output])
    assert (visible, meeting.keep, meeting.over) == (at_once, other.keep, other.over)
    if made.mode == "replay" or meeting.keep is not None:
        assert visible == output
    else:
        assert visible.startswith(text)
    if made.mode == "replay" and not output.startswith(text):
        assert meeting.keep == units(output[: common(output, text)])


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_two_texts_have_in_common(one: str, other: str) -> None:
    length = common(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or len(one) == len(other) == length
    assert common(one + other, one) == len(one)


# Accounts


def test_usage_is_summed_at_any_depth_and_one_report_keeps_its_bytes() -> None:
    assert add_up([]) is None
    assert bytes(add_up([b'{"total_tokens" : 7}']) or b"") == b'{"total_tokens" : 7}'
    first = b'{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":1},"service_tier":"standard","audio":null}'
    second = b'{"prompt_tokens":6,"prompt_tokens_details":{"cached_tokens":4},"service_tier":"auto","more":2}'
    assert msgspec.json.decode(add_up([first, second, second]) or b"") == {
        "prompt_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 9},
        "service_tier": "auto",
        "audio": None,
        "more": 4,
    }


def test_a_completion_gets_the_whole_text_and_keeps_the_rest() -> None:
    start, end = b'{"id":"x","created":1e3,"choices":[{"index":0,"finish_reason":', b'"}}]}'
    completion = start + b'null,"message":{"role":"assistant","content":"b' + end
    assert whole(completion, "ab", "stop") == start + b'"stop","message":{"role":"assistant","content":"ab' + end

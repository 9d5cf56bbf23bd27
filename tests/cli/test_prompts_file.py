"""Reading a file of prompts: what each kind of line becomes, and what is said of bad ones."""

from typing import Any

import msgspec
import pytest

from tramontane.api.schemas import new_job
from tramontane.cli.prompts_file import BadLine, PromptLine, read_prompts
from tramontane.ids import utc_now
from tramontane.settings import Settings


def read(content: bytes, *, json_lines: bool = False) -> tuple[list[PromptLine], list[BadLine]]:
    def check(body: bytes) -> None:
        new_job(body, Settings(), tenant="default", idempotency_key=None, now=utc_now())

    return read_prompts(content, json_lines=json_lines, model="the-model", check=check)


def body_of(line: dict[str, Any]) -> dict[str, Any]:
    good, bad = read(msgspec.json.encode(line), json_lines=True)
    assert not bad
    return good[0].body


def test_each_line_of_text_is_a_prompt_and_blank_ones_are_none() -> None:
    good, bad = read("\ufeffOne?\r\n\n  Deux mâts?  \n\nThree".encode())

    assert [(line.line, line.text) for line in good] == [(1, "One?"), (3, "Deux mâts?"), (5, "Three")]
    assert good[0].body == {"messages": [{"role": "user", "content": "One?"}], "model": "the-model"}
    assert bad == []


def test_a_line_that_is_no_text_is_bad_and_the_others_are_read() -> None:
    good, bad = read(b"One\n\xff\xfe\nTwo\nbell \x07\n")

    assert [line.text for line in good] == ["One", "Two"]
    assert [(line.line, line.reason) for line in bad] == [
        (2, "is not UTF-8 (byte 1)"),
        (4, "holds control characters"),
    ]


def test_a_prompt_in_json_may_bring_mistrals_other_fields() -> None:
    assert body_of({"prompt": "Hi", "temperature": 0.5, "model": "other"}) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "model": "other",
    }


def test_messages_in_json_are_the_short_form() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    assert body_of({"messages": messages}) == {"messages": messages, "model": "the-model"}


def test_a_request_in_json_is_the_long_form() -> None:
    request = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}

    good, _ = read(msgspec.json.encode({"kind": "chat", "request": request, "priority": 3}), json_lines=True)

    assert good[0].body["priority"] == 3
    assert good[0].body["request"]["model"] == "the-model"
    assert good[0].text == "Hi"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'"Hi"', "is not a JSON object"),
        (b"\xff", "is not UTF-8"),
        (b"{}", "neither `prompt` nor `messages` nor `request`"),
        (b'{"prompt": " "}', "prompt: must be a text"),
        (b'{"prompt": 5}', "prompt: must be a text"),
        (b'{"prompt": "Hi", "messages": []}', "one of them"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "pirate", "content": "Hi"}]}', "messages.0.role"),
        (b'{"prompt": "Hi", "temprature": 1}', "temprature"),
        (b'{"prompt": "Hi", "temperature": "hot"}', "temperature"),
        (b'{"kind": "chat", "request": 5}', "request: must be an object"),
        (b'{"kind": "chat"}', "request"),
        (b'{"kind": "song", "request": {"messages": [{"role": "user", "content": "x"}]}}', "kind"),
        (b'{"prompt": "Hi", "deadline": "1h"}', "deadline: goes with the long form"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(line: bytes, reason: str) -> None:
    good, bad = read(b'{"prompt": "fine"}\n' + line + b"\n", json_lines=True)

    assert [each.text for each in good] == ["fine"]
    assert bad[0].line == 2
    assert reason in bad[0].reason


def test_the_examples_are_good() -> None:
    from pathlib import Path

    examples = Path(__file__).parents[2] / "examples"

    text, bad_text = read((examples / "prompts.txt").read_bytes())
    objects, bad_objects = read((examples / "prompts.jsonl").read_bytes(), json_lines=True)

    assert (len(text), bad_text, bad_objects) == (8, [], [])
    assert len(objects) == 4

"""A transcript turns deltas into events; lengths are UTF-16 units, tokens are content deltas."""

import hashlib
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tramontane.mistral import Delta
from tramontane.models import NewEvent
from tramontane.runner import Transcript


def text(content: str, *, choice: int = 0) -> Delta:
    return Delta(content, "", (), choice)


def bodies(events: list[NewEvent]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.body) for event in events]


def test_deltas_between_two_looks_are_one_chunk() -> None:
    transcript = Transcript()
    for word in ("a", "b😀", "c"):
        transcript.add(text(word))
    [event] = transcript.events()
    assert (event.type, event.body) == ("chunk", '{"off":0,"content":"ab😀c","tokenCount":3}'.encode())
    assert transcript.events() == []
    transcript.add(text("d"))
    assert bodies(transcript.events()) == [{"off": 5, "content": "d", "tokenCount": 4}]
    assert transcript.length == 6


def test_only_the_first_choice_is_told() -> None:
    transcript = Transcript()
    assert transcript.add(text("other", choice=1)) == 0
    assert transcript.events() == []


def test_thinking_has_no_length_and_is_no_token() -> None:
    transcript = Transcript()
    transcript.add(Delta("", "hm", (), 0))
    assert bodies(transcript.events()) == [{"off": 0, "content": "", "tokenCount": 0, "thinking": "hm"}]
    assert (transcript.length, transcript.tokens) == (0, 0)


def test_tool_calls_are_an_event_after_the_text_byte_for_byte() -> None:
    transcript = Transcript()
    call = Raw(b'{"id" : "a","function":{"name":"f","arguments":"{}"}}')
    assert transcript.add(Delta("x", "", (call,), 0)) == 1 + len(bytes(call))
    chunk, tool = transcript.events()
    assert (chunk.type, tool.type) == ("chunk", "tool")
    assert tool.body == b'{"toolCalls":[%s]}' % bytes(call)
    assert transcript.events() == []


@given(st.lists(st.tuples(st.text(max_size=5), st.booleans()), max_size=30))
def test_however_it_is_cut_chunks_join_to_the_text_and_its_hash(parts: list[tuple[str, bool]]) -> None:
    transcript, seen, digest = Transcript(), "", hashlib.sha256()
    for content, look in [*parts, ("", True)]:
        transcript.add(text(content))
        for body in bodies(transcript.events()) if look else []:
            assert body["off"] == len(seen.encode("utf-16-le")) // 2
            seen += body["content"]
            digest.update(body["content"].encode())
    assert seen == "".join(content for content, _ in parts)
    assert transcript.length == len(seen.encode("utf-16-le")) // 2
    assert transcript._hash.hexdigest() == digest.hexdigest()

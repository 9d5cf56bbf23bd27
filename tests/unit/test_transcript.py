"""A transcript turns deltas into events; lengths are UTF-16 units, tokens are content deltas."""

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tramontane.continuity import Plan, Said
from tramontane.mistral import Delta
from tramontane.models import NewEvent
from tramontane.transcript import Transcript


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


# Of later attempts

TEXT = "It was so very quiet that nobody heard the wind."
MORE = " Then it came."


def later(mode: Any, text: str = TEXT, **fields: Any) -> Transcript:
    plan = Plan(mode=mode, keep=len(text), expected=text, **fields)
    return Transcript(Said(text=text, tokens=11), plan, reason="worker_lost")


def told(transcript: Transcript, *deltas: Delta) -> list[dict[str, Any]]:
    sizes = [transcript.add(delta) for delta in deltas]
    sizes.append(transcript.end())
    made = bodies(transcript.events())
    assert bool(made) == any(sizes) or made[0].get("reason") == "worker_lost"
    return made


def final(transcript: Transcript) -> dict[str, Any]:
    event = transcript.complete("stop", attempts=2, usage=None, unreported=1)
    body: dict[str, Any] = msgspec.json.decode(event.body)
    return body


def test_a_later_attempt_says_first_how_it_goes_on() -> None:
    [event] = later("continue").events()
    assert (event.type, event.body) == ("attempt", b'{"mode":"continue","keep":48,"reason":"worker_lost"}')
    [event] = later("finished").events()
    assert event.body == b'{"mode":"continue","keep":48,"reason":"worker_lost"}'


@pytest.mark.parametrize("echo", [[TEXT], [TEXT[:5], TEXT[5:]], []], ids=["whole", "split", "none"])
def test_a_continuation_counts_on_from_the_text(echo: list[str]) -> None:
    transcript = later("continue")
    _, chunk = told(transcript, *map(text, echo), text(MORE), text("!"))
    assert chunk == {"off": 48, "content": MORE + "!", "tokenCount": 13}
    whole = TEXT + MORE + "!"
    assert (transcript.content, transcript.continued) == (whole, True)
    assert final(transcript) == {
        "finishReason": "stop",
        "len": len(whole),
        "sha256": hashlib.sha256(whole.encode()).hexdigest(),
        "totalTokens": 13,
        "attempts": 2,
        "usage": None,
        "unreportedAttempts": 1,
    }


def test_an_echo_whose_last_piece_goes_on_counts_once() -> None:
    _, chunk = told(later("continue"), text(TEXT[:9]), text(TEXT[9:] + MORE))
    assert chunk == {"off": 48, "content": MORE, "tokenCount": 12}


def test_an_altered_echo_is_a_fresh_answer_after_what_it_has_in_common() -> None:
    transcript = later("continue")
    _, attempt, chunk = told(transcript, text(TEXT[:36]), text("silence"), text("."))
    assert attempt == {"mode": "restart", "keep": 36, "reason": "diverged"}
    assert chunk == {"off": 36, "content": "silence.", "tokenCount": 3}
    whole = TEXT[:36] + "silence."
    assert (transcript.content, transcript.continued) == (whole, False)
    assert final(transcript)["sha256"] == hashlib.sha256(whole.encode()).hexdigest()


def test_a_replay_tells_only_what_is_new_and_no_thought_twice() -> None:
    transcript = later("replay")
    attempt, chunk = told(transcript, Delta("", "hm"), text(TEXT), text(MORE))
    assert attempt["mode"] == "replay"
    assert chunk == {"off": 48, "content": MORE, "tokenCount": 2}
    assert transcript.content == TEXT + MORE


def test_a_replay_that_diverges_tells_its_thoughts_since_a_restart_voids_the_others() -> None:
    transcript = later("replay")
    _, attempt, chunk = told(transcript, Delta("", "hm"), Delta("", "no"), text(TEXT[:7]), text("windy"))
    assert attempt == {"mode": "restart", "keep": 7, "reason": "diverged"}
    assert chunk == {"off": 7, "content": "windy", "tokenCount": 2, "thinking": "hmno"}


def test_a_replay_that_ends_early_is_cut_there() -> None:
    transcript = later("replay")
    _, attempt = told(transcript, text(TEXT[:7]))
    assert (attempt["mode"], attempt["keep"], final(transcript)["len"]) == ("restart", 7, 7)


def test_a_replay_that_calls_a_tool_instead_is_another_answer() -> None:
    transcript = later("replay")
    call = Raw(b'{"id":"a"}')
    _, attempt, tool = told(transcript, text(TEXT[:7]), Delta("", "", (call,)))
    assert (attempt["keep"], tool) == (7, {"toolCalls": [{"id": "a"}]})


def test_a_stop_string_across_the_seam_ends_the_answer() -> None:
    transcript = later("continue", stop=("wind. Then",))
    told(transcript, text(TEXT), text(" The"), text("n it"))
    assert (transcript.over, transcript.content, transcript.tokens) == (True, TEXT, 11)


def test_a_restart_begins_with_nothing() -> None:
    transcript = Transcript(Said(text=TEXT, tokens=11), Plan(mode="restart"), reason="stall")
    attempt, chunk = told(transcript, text("Hm"))
    assert attempt == {"mode": "restart", "keep": 0, "reason": "stall"}
    assert chunk == {"off": 0, "content": "Hm", "tokenCount": 1}

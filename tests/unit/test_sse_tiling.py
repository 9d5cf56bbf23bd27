"""However a log is cut into frames: they tile it, and the text that they tell is the same."""

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane import sse, tiling
from tramontane.models import Event
from tramontane.tiling import Restart, Write, framing, joined, single
from tramontane.wire import utf16_length

FRAME = framing("job_" + "0" * 26, 15.0)


def chunks(*texts: str, first: int = 1, off: int = 0, attempt: int = 1, thoughts: Sequence[str] = ()) -> list[Event]:
    events = []
    for seq, text in enumerate(texts, first):
        body: dict[str, object] = {"off": off, "content": text, "tokenCount": seq}
        if thoughts:
            body["thinking"] = thoughts[seq - first]
        events.append(Event(seq=seq, attempt=attempt, type="chunk", body=msgspec.json.encode(body)))
        off += utf16_length(text)
    return events


def told(write: Write) -> list[dict[str, object]]:
    return [msgspec.json.decode(message.data) for message in sse.Parser().feed(write.block)]


def whole(events: list[Event], restarts: Sequence[Restart] = ()) -> list[Write]:
    """All writes that tell of the events."""
    writes, last = [], 0
    while events:
        writes.append(joined(events, last, FRAME, restarts=restarts))
        events, last = events[writes[-1].taken :], writes[-1].told
    return writes


def test_adjacent_chunks_are_one_frame_with_what_the_last_of_them_says() -> None:
    write = joined(chunks("Le ", "🌬️", "."), 0, FRAME)
    assert write.block == (
        b'event: chunk\ndata: {"type":"chat:chunk","jobId":"job_%s","seq":3,"from":1,"attempt":1,'
        b'"off":0,"content":"Le %s.","tokenCount":3}\nid: 3\n\n' % (b"0" * 26, "🌬️".encode())
    )
    assert (write.taken, write.told) == (3, 3)


def test_thoughts_are_merged_beside_the_text() -> None:
    [frame] = told(joined(chunks("", "a", "b", thoughts=("hm ", "so", "")), 0, FRAME))
    assert (frame["content"], frame["thinking"]) == ("ab", "hm so")


def test_one_chunk_alone_keeps_its_own_bytes() -> None:
    [event] = chunks("a")
    odd = Event(seq=1, attempt=1, type="chunk", body=event.body.replace(b":0", b": 0"))
    assert joined([odd], 0, FRAME).block == FRAME(odd, 1)


MORE = b'{"off":1,"content":"b","tokenCount":2,"more":1}'
APART = {
    "of another attempt": chunks("b", first=2, off=1, attempt=2),
    "that does not follow on": chunks("b", first=2, off=2),
    "that has more in it": [Event(seq=2, attempt=1, type="chunk", body=MORE)],
    "that is no chunk": [Event(seq=2, attempt=1, type="tool", body=b'{"toolCalls":[]}')],
}


@pytest.mark.parametrize("other", APART.values(), ids=APART)
def test_nothing_is_merged_with_an_event(other: list[Event]) -> None:
    write = joined([*chunks("a"), *other], 0, FRAME)
    assert write.block == FRAME(chunks("a")[0], 1) + FRAME(other[0], 2)


@given(st.lists(st.text(max_size=40)), st.integers(200, 2000), st.randoms())
def test_frames_tile_the_log_and_tell_its_text(texts: list[str], limit: int, chance: random.Random) -> None:
    events = chunks(*texts)
    for event in chance.sample(events, len(events) // 5):  # events of another kind here and there
        events[event.seq - 1] = Event(seq=event.seq, attempt=1, type="tool", body=b"{}")
        texts[event.seq - 1] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "WRITE", limit)
        writes = whole(events)
    frames = [frame for write in writes for frame in told(write)]
    last, end = 0, 0
    for frame in frames:
        assert frame.get("from", frame["seq"]) == last + 1
        last = int(str(frame["seq"]))
        if frame["type"] == "chat:chunk":
            assert int(str(frame["off"])) >= end
            end = int(str(frame["off"])) + utf16_length(str(frame["content"]))
    assert last == len(events)
    assert "".join(str(frame.get("content", "")) for frame in frames) == "".join(texts)
    assert all(len(write.block) <= limit or len(told(write)) == 1 for write in writes)


@pytest.mark.parametrize("text", ["\n" * 30_000, "é" * 20_000, "\x01" * 9000, "😀" * 8000])
def test_a_write_of_merged_chunks_is_bounded_whatever_the_text(text: str) -> None:
    events = chunks(*(text[i : i + 10] for i in range(0, len(text), 10)))
    writes = whole(events)
    assert max(len(write.block) for write in writes) <= tiling.WRITE
    assert len(writes) < 8


def test_what_a_restart_voids_is_left_out_and_the_next_frame_covers_it() -> None:
    log = [
        *chunks("aaaa", "bb", "cc"),
        Event(seq=4, attempt=2, type="attempt", body=b'{"mode":"restart","keep":5}'),
        *chunks("x", first=5, off=5, attempt=2),
        Event(seq=6, attempt=3, type="attempt", body=b'{"mode":"restart","keep":0}'),
        *chunks("y", first=7, off=0, attempt=3),
    ]
    frames = told(joined(log, 0, FRAME, restarts=[Restart(4, 5)]))
    assert [(f.get("from"), f["seq"]) for f in frames] == [(1, 2), (3, 4), (None, 5), (None, 6), (None, 7)]
    frames = told(joined(log, 0, FRAME, restarts=[Restart(4, 5), Restart(6, 0)]))
    assert [(f.get("from"), f["seq"]) for f in frames] == [(1, 4), (5, 6), (None, 7)]


def test_a_write_of_nothing_but_void_chunks_is_empty_and_told_later() -> None:
    events = chunks("a", "b")
    first = joined(events, 0, FRAME, restarts=[Restart(3, 0)])
    assert first == Write(b"", 2, 0)
    restart = Event(seq=3, attempt=2, type="attempt", body=b'{"mode":"restart","keep":0}')
    [frame] = told(joined([restart], first.told, FRAME, restarts=[Restart(3, 0)]))
    assert (frame["from"], frame["seq"]) == (1, 3)


def test_single_frames_are_never_merged() -> None:
    events = chunks("a", "b")
    assert single(events, 0, FRAME).block == FRAME(events[0], 1) + FRAME(events[1], 2)

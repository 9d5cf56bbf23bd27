"""Reading: however frames are cut, repeated or kept back, the text is the one that was sent, or there is an error."""

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.client import ProtocolGap
from tramontane.client.frames import ServerEvent
from tramontane.client.reading import Reading

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def event(kind: str, seq: int, **data: Any) -> ServerEvent:
    return ServerEvent(seq, kind, {"seq": seq, **data})


def chunk(seq: int, off: int, content: str, **data: Any) -> ServerEvent:
    return event("chunk", seq, off=off, content=content, **data)


def complete(seq: int, text: str, **data: Any) -> ServerEvent:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return event("complete", seq, **({"len": units(text), "sha256": digest} | data))


class Log:
    """A job's log as a server could have it, and the text at its end."""

    def __init__(self, pieces: list[str | int]) -> None:
        """pieces: text is a chunk; a number n is an attempt that keeps so many characters of the text so far."""
        self.text = ""
        self.events = [event("start", 1)]
        for seq, piece in enumerate(pieces, 2):
            if isinstance(piece, int):
                self.text = self.text[:piece]
                self.events.append(event("attempt", seq, keep=units(self.text)))
            else:
                self.events.append(chunk(seq, units(self.text), piece))
                self.text += piece
        self.events.append(complete(len(self.events) + 1, self.text))

    def frame(self, first: int, last: int) -> ServerEvent:
        """The events `first` to `last` as one frame, as far as they are chunks."""
        merged = self.events[first - 1]
        for following in self.events[first:last]:
            if merged.type != "chunk" or following.type != "chunk":
                break
            content = merged.data["content"] + following.data["content"]
            merged = chunk(following.seq, merged.data["off"], content, **{"from": first})
        return merged


LOGS = st.lists(WORDS | st.integers(0, 20), max_size=12).map(Log)


@given(LOGS, st.integers())
def test_any_tiling_with_any_repetition_gives_the_text(log: Log, seed: int) -> None:
    chance = random.Random(seed)
    reading = Reading()
    taken = ""
    while not reading.ended:
        first = chance.randint(max(1, reading.cursor - 2), reading.cursor + 1)
        last = chance.randint(first, len(log.events))
        new = reading.take(log.frame(first, last))
        if new and new.type == "chunk":
            taken += new.data["content"]
            assert taken.endswith(new.data["content"])
            assert new.first <= new.seq == reading.cursor
        elif new and new.type == "attempt":
            taken = taken.encode("utf-16-le")[: 2 * new.data["keep"]].decode("utf-16-le")
        assert reading.text == taken

    assert reading.text == log.text
    assert reading.cursor == len(log.events)


@given(LOGS, st.data())
def test_a_frame_that_is_left_out_is_a_gap_and_changes_nothing(log: Log, data: st.DataObject) -> None:
    missing = data.draw(st.integers(1, len(log.events) - 1))
    reading = Reading()
    for told in log.events[: missing - 1]:
        reading.take(told)
    text = reading.text
    with pytest.raises(ProtocolGap, match=f"skips from event {missing - 1} to {missing + 1}"):
        reading.take(log.events[missing])

    assert (reading.cursor, reading.text) == (missing - 1, text)
    for told in log.events[missing - 1 :]:
        assert reading.take(told) is told
    assert reading.text == log.text


@given(LOGS, st.data())
def test_a_reading_that_begins_later_has_the_end_of_the_text(log: Log, data: st.DataObject) -> None:
    reading = Reading(data.draw(st.integers(1, len(log.events) - 1)))
    for told in log.events:
        reading.take(told)

    assert reading.ended
    assert log.text.endswith(reading.text)


def test_a_copy_goes_its_own_way() -> None:
    first = Reading()
    for told in (event("start", 1), chunk(2, 0, "Le vent ")):
        first.take(told)
    second = first.copy()
    first.take(chunk(3, 8, "souffle"))

    assert second.take(chunk(3, 8, "tourne"))
    assert second.take(complete(4, "Le vent tourne"))
    assert (first.text, second.text) == ("Le vent souffle", "Le vent tourne")
    assert not first.ended


def test_a_frame_that_is_known_in_part_is_cut_to_what_is_new() -> None:
    reading = Reading()
    reading.take(event("start", 1))
    reading.take(chunk(2, 0, "a𝄞"))
    new = reading.take(chunk(4, 0, "a𝄞b☀️", **{"from": 2}))

    assert new
    assert new.data == {"seq": 4, "off": 3, "content": "b☀️", "from": 3}
    assert reading.text == "a𝄞b☀️"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ([], event("attempt", 4, keep=0, **{"from": 2})),
        ([chunk(2, 0, "Le ")], event("attempt", 4, keep=0, **{"from": 3})),
        ([chunk(2, 0, "Le "), chunk(3, 3, "vent")], event("attempt", 4, keep=0, **{"from": 2})),
    ],
)
def test_an_attempt_may_cover_chunks_that_nobody_needs_any_more(known: list[ServerEvent], told: ServerEvent) -> None:
    reading = Reading()
    for one in (event("start", 1), *known, told, chunk(5, 0, "Le mistral")):
        assert reading.take(one)

    assert reading.take(complete(6, "Le mistral"))
    assert reading.text == "Le mistral"


def test_an_attempt_that_covers_too_little_is_a_gap() -> None:
    reading = Reading()
    reading.take(event("start", 1))
    with pytest.raises(ProtocolGap, match="from event 1 to 3"):
        reading.take(event("attempt", 4, keep=0, **{"from": 3}))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (chunk(3, 9, "!"), "begins at 9, and 8 are here"),
        (event("attempt", 3, keep=9), "9 are to be kept, and 8 are here"),
        (complete(3, "Le vent "[:-1]), "is 7 long, and 8 are here"),
        (complete(3, "Le vent!"), "SHA-256"),
        (event("error", 3, len=7), "is 7 long"),
    ],
)
def test_what_does_not_add_up_is_a_gap(wrong: ServerEvent, reason: str) -> None:
    reading = Reading()
    for told in (event("start", 1), chunk(2, 0, "Le vent ")):
        reading.take(told)
    with pytest.raises(ProtocolGap, match=reason):
        reading.take(wrong)

    assert (reading.cursor, reading.text, reading.ended) == (2, "Le vent ", False)


def test_a_reading_that_began_later_checks_what_it_can() -> None:
    reading = Reading(7)
    reading.take(chunk(8, 100, "vent"))
    with pytest.raises(ProtocolGap, match="is 105 long, and 104 are here"):
        reading.take(complete(9, "", len=105))
    assert reading.take(complete(9, "of another text", len=104))

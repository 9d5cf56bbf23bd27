"""The parser against the battery that all our clients share: whole, byte by byte, and cut anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.sse import Message, Parser

_CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent.parent / "vectors" / "sse.json").read_text())


def _bytes(case: dict[str, Any]) -> bytes:
    """In the file one character is one byte."""
    return str(case["input"]).encode("latin-1")


def _expected(case: dict[str, Any]) -> list[Message]:
    return [Message(*one) for one in case["expected"]]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_a_stream_is_read_as_the_rules_say_when_it_comes_whole(case: dict[str, Any]) -> None:
    assert Parser().feed(_bytes(case)) == _expected(case)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_a_stream_is_read_the_same_byte_by_byte(case: dict[str, Any]) -> None:
    parser = Parser()

    messages = [message for byte in _bytes(case) for message in parser.feed(bytes([byte]))]

    assert messages == _expected(case)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_a_stream_is_read_the_same_cut_in_two_anywhere(case: dict[str, Any]) -> None:
    stream, expected = _bytes(case), _expected(case)
    for cut in range(0, len(stream), max(1, len(stream) // 100)):
        parser = Parser()
        assert parser.feed(stream[:cut]) + parser.feed(b"") + parser.feed(stream[cut:]) == expected, cut


@given(st.binary(max_size=200).map(lambda noise: noise.replace(b"x", b"data:x\n\nid:1\r\r")), st.integers(1, 7))
def test_no_bytes_whatever_raise_and_their_cutting_does_not_matter(stream: bytes, size: int) -> None:
    parser = Parser()

    cut = [message for at in range(0, len(stream), size) for message in parser.feed(stream[at : at + size])]

    assert cut == Parser().feed(stream)


def test_the_cursor_moves_at_the_blank_line_and_not_before() -> None:
    parser = Parser()

    parser.feed(b"data: 1\nid: 1\n\ndata: 2\nid: 2\n")
    before = parser.last_id
    parser.feed(b"\n")

    assert (before, parser.last_id) == ("1", "2")


def test_an_id_alone_moves_the_cursor_and_dispatches_nothing() -> None:
    parser = Parser()

    assert parser.feed(b"id: 7\n\n") == []
    assert parser.last_id == "7"


def test_two_carriage_returns_dispatch_without_waiting_for_another_byte() -> None:
    parser = Parser()

    first = parser.feed(b"data: a\r\r")
    second = parser.feed(b"\ndata: b\r\n\r\n")

    assert [message.data for message in first + second] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "milliseconds"), [(b"retry: 500", 500), (b"retry: 5s", None), (b"retry", None), (b"retry:-1", None)]
)
def test_retry_is_digits_or_nothing(line: bytes, milliseconds: int | None) -> None:
    parser = Parser()

    parser.feed(line + b"\n\n")

    assert parser.retry == milliseconds

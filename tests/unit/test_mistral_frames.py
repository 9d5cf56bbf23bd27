from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.errors import MalformedAnswer
from tramontane.mistral import frames
from tramontane.mistral.frames import Frames

STREAM = (
    ': ping\n\nretry: 500\nid: 1\nevent: message\ndata: {"a":"né🌬"}\n\n'
    'data:{"b":1}\r\n\r\n: pong\r\nid: 2\r\ndata: {"c":"data: x"}\r\n\r\ndata\n\ndata: [DONE]\n\n'
).encode()
PAYLOADS = ['{"a":"né🌬"}', '{"b":1}', '{"c":"data: x"}', "[DONE]"]


def read(*blocks: bytes) -> list[str]:
    lines = Frames()
    return [payload.decode().strip() for block in blocks for payload in lines.feed(block)]


def test_all_frames_of_one_block_are_read() -> None:
    assert read(STREAM) == PAYLOADS


def test_frames_that_come_byte_by_byte_are_read() -> None:
    assert read(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == PAYLOADS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_wherever_a_stream_is_cut_the_same_frames_are_read(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[a:b] for a, b in pairwise(edges))) == PAYLOADS


def test_a_line_without_its_end_is_no_frame() -> None:
    assert read(b'data: {"a":1}') == []


def test_a_line_over_the_limit_is_refused_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LONGEST_LINE", 100)
    lines = Frames()
    for _ in range(10):
        lines.feed(b"data: aaaa")
    with pytest.raises(MalformedAnswer):
        lines.feed(b"a")

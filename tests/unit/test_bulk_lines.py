"""Many values in one body: told apart wherever the blocks are cut, with bounded memory."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tramontane.api.bulk_lines import Elements, Item, Lines
from tramontane.errors import BodyTooLarge, InvalidJSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(reader: Lines | Elements, blocks: Iterable[bytes]) -> list[Item]:
    items = [item for block in blocks for item in reader.feed(block)]
    return [*items, *reader.end()]


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places})
    return [body[start:end] for start, end in zip([0, *ends], [*ends, len(body)], strict=True)]


def values(items: list[Item]) -> list[object]:
    return [json.loads(item) if isinstance(item, bytes) else type(item) for item in items]


@given(st.lists(VALUES, max_size=5), st.lists(st.integers(0), max_size=8), st.sampled_from([None, 2]))
def test_the_elements_of_an_array_are_the_same_however_it_is_cut(
    given: list[object], places: list[int], indent: int | None
) -> None:
    body = json.dumps(given, ensure_ascii=False, indent=indent).encode()
    assert values(read(Elements(10_000), cut(body, places))) == given


@given(st.lists(VALUES, max_size=5), st.lists(st.integers(0), max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines_are_the_same_however_they_are_cut(given: list[object], places: list[int], end: str) -> None:
    body = end.join(json.dumps(value) for value in given).encode()
    assert values(read(Lines(10_000), cut(body, places))) == given


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[1,2", [1, InvalidJSON]),
        (b"[1,]", [1, InvalidJSON]),
        (b"[,1]", [InvalidJSON, 1]),
        (b"[1] x", [1, InvalidJSON]),
        (b" [ ] ", []),
        (b'["a]", "\\"]"]', ["a]", '"]']),
    ],
)
def test_an_array_that_is_none_says_where_it_breaks(body: bytes, found: list[object]) -> None:
    assert values(read(Elements(100), [body])) == found


@pytest.mark.parametrize("body", [b"{}", b"", b"  ", b'"x"'])
def test_a_body_that_is_no_array_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        read(Elements(100), [body])


def test_what_is_too_large_is_passed_over_and_not_kept() -> None:
    array, lines = Elements(10), Lines(10)
    blocks = [b"[1,", *[b'"' + b"x" * 1000 + b'",'] * 3, b"2]"]
    assert values(read(array, blocks)) == [1, BodyTooLarge, BodyTooLarge, BodyTooLarge, 2]
    assert values(read(lines, [b"1\n", b"x" * 1000, b"x" * 1000, b"\n2"])) == [1, BodyTooLarge, 2]
    for _ in array.feed(b"x" * 1000):
        pass
    assert len(array._element) <= 10

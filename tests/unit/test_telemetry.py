import ast
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

import tramontane
from tramontane.errors import NotFound
from tramontane.telemetry import REFUSED, configure, log

LOGGER = logging.getLogger("tramontane.worker")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tramontane")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before


def line(as_json: bool, event: str, **fields: object) -> str:
    stream = io.StringIO()
    configure("info", stream, json=as_json)
    log(LOGGER, logging.INFO, event, **fields)
    written = stream.getvalue()
    assert written.count("\n") == 1
    return written.rstrip("\n")


def test_an_event_is_one_line_of_words_for_people() -> None:
    words = line(False, "job.started", job="job_01", attempt=1, kind="", note='a "b"\nc', seconds=0.25)
    time, rest = words.split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert rest == r'info    worker job.started job=job_01 attempt=1 kind="" note="a \"b\"\nc" seconds=0.25'


def test_an_event_is_one_json_object_for_machines() -> None:
    fields = json.loads(line(True, "job.started", job="jöb", attempt=1))
    assert datetime.fromisoformat(fields.pop("time")).tzinfo is not None
    assert fields == {
        "level": "info",
        "logger": "tramontane.worker",
        "event": "job.started",
        "job": "jöb",
        "attempt": 1,
    }


def test_a_field_cannot_replace_the_time() -> None:
    assert json.loads(line(True, "e", time="never"))["time"] != "never"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_named_like_content_or_a_secret_is_refused(name: str) -> None:
    stream = io.StringIO()
    configure("info", stream)
    with pytest.raises(ValueError, match=f"job.started: {name} may not be logged"):
        log(LOGGER, logging.INFO, "job.started", **{name: "hunter2"})
    assert stream.getvalue() == ""


def test_no_call_in_the_package_names_a_refused_field() -> None:
    called = set()
    for file in Path(tramontane.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log":
                called |= {f"{file.name}: {key.arg}" for key in node.keywords if key.arg in REFUSED}
    assert called == set()


class Secretive:
    def __repr__(self) -> str:
        raise AssertionError("nobody may ask")

    __str__ = __repr__


class Word(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("nobody may ask")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Secretive(), "<Secretive>"),
        ({"role": "user"}, "<dict>"),
        (Word("a"), "a"),
        (b"abc", "<3 bytes>"),
        (float("nan"), "nan"),
        (None, None),
        (True, True),
        (10**30, 10**30),
        ("\ud800", "?"),
        ("x" * 600, "x" * 500),
        ((1, "b", Secretive()), [1, "b", "<Secretive>"]),
        (Path("/a b"), "/a b"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 11, 22, tzinfo=UTC), "2026-11-22T00:00:00.000Z"),
        (datetime(2026, 11, 22), "2026-11-22 00:00:00"),  # noqa: DTZ001 - a naive time is a value too
    ],
)
def test_any_value_is_shown_or_named_and_never_raises(value: object, shown: object) -> None:
    assert json.loads(line(True, "e", value=value))["value"] == shown
    assert "value=" in line(False, "e", value=value)


def test_a_ring_of_values_ends() -> None:
    ring: list[object] = [1]
    ring.append(ring)
    assert json.loads(line(True, "e", value=ring))["value"] == [1]


def fail(error: Exception) -> Exception:
    try:
        hidden = "hunter2"
        raise error
    except (NotFound, ValueError) as raised:
        assert hidden
        return raised


def test_our_exception_shows_its_words_and_where_it_was_raised() -> None:
    fields = json.loads(line(True, "job.failed", error=fail(NotFound("no such job"))))
    assert fields["error"] == "NotFound: no such job"
    assert fields["error_at"].startswith("test_telemetry.py:")
    assert fields["error_at"].endswith(" fail")


def test_a_foreign_exception_shows_neither_its_words_nor_locals() -> None:
    for as_json in (True, False):
        written = line(as_json, "job.failed", error=fail(ValueError("tell nobody: open sesame")))
        assert "ValueError" in written
        assert "sesame" not in written
        assert "hunter2" not in written


def test_the_traceback_of_another_library_is_one_line_without_its_words() -> None:
    stream = io.StringIO()
    configure("info", stream)
    try:
        raise ValueError("open sesame")
    except ValueError:
        logging.getLogger("elsewhere").exception("it\nbroke")
    (written,) = stream.getvalue().splitlines()
    assert "elsewhere it broke error=ValueError error_at=" in written
    assert "sesame" not in written


def test_others_are_heard_from_warnings_up_and_we_from_the_level_asked() -> None:
    stream = io.StringIO()
    configure("debug", stream)
    logging.getLogger("elsewhere").info("chatter")
    log(LOGGER, logging.DEBUG, "ours")
    assert len(stream.getvalue().splitlines()) == 1
    configure("error", stream)
    log(LOGGER, logging.WARNING, "ours")
    assert len(stream.getvalue().splitlines()) == 1


def test_configuring_again_replaces_the_stream() -> None:
    first = io.StringIO()
    configure("info", first)
    assert "once" in line(False, "once")
    assert first.getvalue() == ""

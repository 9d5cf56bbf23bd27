"""Logs: one line per event, a name and its fields, for people (`key=value`) or for machines (JSON).

    log(logger, logging.INFO, "job.started", job="job_01K…", attempt=1)
    2026-11-22T06:46:00.123Z info  worker job.started job=job_01K… attempt=1

Message content and secrets reach no log line. Fields named like them are refused, values of unknown types show their
type alone, and an exception shows its type and where it was raised, never its locals; its words only if it is
one of ours, since those of other libraries may quote what they choked on.
"""

import json
import logging
import math
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import PurePath
from typing import Any, TextIO
from uuid import UUID

from tramontane.errors import TramontaneError
from tramontane.ids import iso

REFUSED = frozenset(
    {"content", "messages", "prompt", "api_key", "secret", "authorization", "password", "text", "body"}
)  # fmt: skip
_LONGEST = 500  # characters of one value; a line stays readable


def configure(level: str, stream: TextIO | None = None, *, json: bool = False) -> None:
    """Send our logs from `level` up, and everybody else's warnings, to `stream` (standard error when None).

    A second call replaces the first. `level` is debug, info, warning or error.
    """
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(earlier)
    lines = _Lines(stream or sys.stderr)
    lines.setFormatter(_ForMachines() if json else _ForPeople())
    root.addHandler(lines)
    root.setLevel(logging.WARNING)
    logging.getLogger("tramontane").setLevel(level.upper())


def log(logger: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Log `event`, a dotted name, with its fields. Any value is accepted; an exception is a value too.

    Raises ValueError for a field whose name promises content or a secret: that is a mistake in the code.
    """
    if refused := REFUSED.intersection(fields):
        raise ValueError(f"{event}: {', '.join(sorted(refused))} may not be logged")
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields | _trace()})


def _trace() -> dict[str, str]:
    """The trace that this is part of, if any: by it a line is found from a span, and back."""
    if (tracing := sys.modules.get("opentelemetry.trace")) is None:
        return {}
    span = tracing.get_current_span().get_span_context()
    return {"trace": f"{span.trace_id:032x}"} if span.is_valid else {}


class _Lines(logging.StreamHandler[TextIO]):
    """Our handler, known by its type when it is replaced."""


class _ForPeople(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("tramontane.")
        fields = "".join(f" {key}={_word(value)}" for key, value in _fields(record).items())
        return _printable(f"{_time(record)} {record.levelname.lower():7} {name} {_event(record)}{fields}")


class _ForMachines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        return _printable(json.dumps(_fields(record) | line | {"event": _event(record)}, ensure_ascii=False))


def _time(record: logging.LogRecord) -> str:
    return iso(datetime.fromtimestamp(record.created, UTC))


def _event(record: logging.LogRecord) -> str:
    """The name of our event; what another library says is cut to one line."""
    return " ".join(record.getMessage()[:_LONGEST].split())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The record's fields as JSON can hold them, those of an exception last."""
    fields: dict[str, Any] = {}
    given: Mapping[str, object] = getattr(record, "fields", {})
    raised = [(key, value) for key, value in given.items() if isinstance(value, BaseException)]
    for key, value in given.items():
        fields[key] = _plain(value)
    if record.exc_info and record.exc_info[1]:
        raised.append(("error", record.exc_info[1]))
    for key, error in raised:
        fields |= {key: _named(error), f"{key}_at": _where(error)}
    return fields


def _plain(value: object) -> Any:  # noqa: PLR0911 - a table of types
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return str.__str__(value)[:_LONGEST]
        case datetime() if value.tzinfo:
            return iso(value)
        case date() | UUID() | PurePath():
            return str(value)[:_LONGEST]
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in list(value)[:20] if not isinstance(item, (list, tuple, set, frozenset))]
        case bytes():
            return f"<{len(value)} bytes>"
    return f"<{type(value).__name__}>"


def _named(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}"[:_LONGEST] if isinstance(error, TramontaneError) else name


def _where(error: BaseException) -> str:
    """`worker.py:88 run > runner.py:40 attempt`: the way to the error, outermost first, no locals, no source."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return " > ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)


def _word(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    plain = text.isprintable() and not set(text) & set(' "=')
    return text if text and (plain or not isinstance(value, str)) else json.dumps(text, ensure_ascii=False)


def _printable(line: str) -> str:
    """`line` with `?` for lone surrogates, which no stream can write."""
    return line.encode("utf-8", "replace").decode()

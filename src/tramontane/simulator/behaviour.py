"""How the simulator treats a call: its pace, its manners and its faults.

One frozen value, said in Python (`Behaviour(cut_after=3)`), in a request header (`x-simulator: cut_after=3,
latency=0.1`) or by flags of the command line, which are built from the fields below and their `help`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tramontane.errors import InvalidInput

#: The request header that changes the behaviour of its own call.
HEADER = "x-simulator"

#: An answer can go wrong in one place only, so at most one of these is set.
FAULTS = ("cut_after", "torn_after", "end_after", "silence_after", "malformed_after", "error_after")

_FLAGS = {"true": True, "yes": True, "1": True, "": True, "false": False, "no": False, "0": False}


def _number(*, zero: bool) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"must be a number, not {value!r}") from None
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise ValueError(f"must be {'0 or more' if zero else 'more than 0'}, not {value!r}")
        return number

    return read


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError(f"must be a whole number, not {value!r}") from None
        if not low <= number <= high:
            raise ValueError(f"must be between {low} and {high}, not {number}")
        return number

    return read


def _flag(value: Any) -> bool:
    try:
        return value if isinstance(value, bool) else _FLAGS[str(value).lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {value!r}") from None


def _word(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}, not {value!r}")
        return str(value)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"must be one line of text, not {value!r}")
    return value


_COUNT = _integer(0, 1_000_000)


def _knob(default: Any, read: Callable[[Any], Any], help: str) -> Any:  # noqa: A002
    return field(default=default, metadata={"read": read, "help": help})


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How one call goes. The default is a prompt, complete, faithful answer.

    A fault `…_after=n` strikes after `n` chunks (`data:` frames, the first one with the role included); an
    answer of fewer chunks is complete. Raises InvalidInput naming the field that makes no sense.
    """

    latency: float = _knob(0.0, _number(zero=True), "seconds before the first byte")
    tokens_per_second: float | None = _knob(None, _number(zero=False), "pace of the answer; unset: at once")
    tokens: int | None = _knob(None, _integer(1, 1_000_000), "length of the text; unset: 40 to 120 tokens")
    seed: int | None = _knob(None, _integer(0, 2**63 - 1), "another answer than the simulator's seed would give")

    status: int | None = _knob(None, _integer(400, 599), "refuse with this HTTP status")
    error_body: str = _knob(
        "standard",
        _word("standard", "gateway", "envelope", "detail", "string", "html"),
        "the shape of the refusal: standard is what Mistral sends for that status",
    )
    retry_after: float | None = _knob(None, _number(zero=True), "Retry-After of a 429 or 5xx, in seconds")
    zero_allowance: bool = _knob(False, _flag, "429 with a limit of 0: this key may never use this model")

    cut_after: int | None = _knob(None, _COUNT, "abort the connection after n chunks; 0: before the headers")
    torn_after: int | None = _knob(None, _COUNT, "abort the connection within the chunk that follows n chunks")
    end_after: int | None = _knob(None, _COUNT, "end the body cleanly after n chunks, without finish_reason and [DONE]")
    silence_after: int | None = _knob(None, _COUNT, "send n chunks, then nothing more")
    malformed_after: int | None = _knob(None, _COUNT, "send n chunks, then half a JSON object")
    error_after: int | None = _knob(None, _COUNT, "send n chunks, then an error object on the stream")

    finish_reason: str | None = _knob(None, _text, "say this finish_reason, whatever happened")
    usage: bool = _knob(True, _flag, "report usage in the last chunk")
    done: bool = _knob(True, _flag, "close a stream with [DONE]")
    content_type: str | None = _knob(None, _text, "content type of a success")
    deprecated: bool = _knob(False, _flag, "send x-model-deprecation-timestamp")

    echo: str = _knob("whole", _word("whole", "split", "none", "altered"), "how a prefix is said again")
    stops: str = _knob(
        "whole", _word("whole", "late"), "a stop string is noticed before its first token is sent, or at its last one"
    )
    tool_calls: str = _knob("whole", _word("whole", "fragments"), "how a stream brings a tool call")
    content: str = _knob("text", _word("text", "parts"), "content of chunks: strings, or lists of typed parts")

    crlf: bool = _knob(False, _flag, "end lines with CR LF")
    comments: bool = _knob(False, _flag, "put comments and empty events between the frames")
    split_frames: bool = _knob(False, _flag, "write frames in pieces, inside characters too")

    def __post_init__(self) -> None:
        for knob in dataclasses.fields(self):
            value = getattr(self, knob.name)
            if value is None and knob.default is None:
                continue
            try:
                object.__setattr__(self, knob.name, knob.metadata["read"](value))
            except ValueError as error:
                raise InvalidInput(knob.name, str(error)) from None
        faults = [name for name in FAULTS if getattr(self, name) is not None]
        if len(faults) > 1:
            raise InvalidInput(faults[1], f"an answer goes wrong once: {faults[0]} is set too")

    def but(self, text: str) -> "Behaviour":
        """This behaviour with other fields: `"cut_after=3, latency=0.1, crlf"`; `none` unsets one.

        A fault takes the place of another. Raises InvalidInput for an unknown field or a wrong value.
        """
        changes: dict[str, Any] = {}
        knobs = {knob.name: knob for knob in dataclasses.fields(self)}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (side.strip() for side in part.partition("="))
            if name not in knobs:
                near = difflib.get_close_matches(name, knobs, n=1)
                raise InvalidInput(name, f"no such behaviour{f'; did you mean {near[0]}?' if near else ''}")
            changes[name] = None if value == "none" and knobs[name].default is None else value
        if any(name in FAULTS for name in changes):
            changes = dict.fromkeys(FAULTS) | changes
        return dataclasses.replace(self, **changes)

    @property
    def fault(self) -> tuple[str, int] | None:
        """The fault and after how many chunks it strikes, None when all goes well."""
        for name in FAULTS:
            after = getattr(self, name)
            if after is not None:
                return name, after
        return None

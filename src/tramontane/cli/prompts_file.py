"""A file of prompts, one per line: as text or, when its name ends in `.jsonl`, as JSON objects.

{"prompt": "What is a wind?", "temperature": 0.2}         short for a message of the user
{"messages": [{"role": "user", "content": "…"}], …}       Mistral's request
{"kind": "chat", "request": {…}, "priority": 5, …}        the whole body of a job
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from tramontane.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLine:
    """A good line: its number in the file, what it asks, and the body of its job."""

    line: int
    text: str
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLine:
    """A line that cannot be run, and why not."""

    line: int
    reason: str


def read_prompts(
    content: bytes, *, json_lines: bool, model: str, check: Callable[[bytes], object]
) -> tuple[list[PromptLine], list[BadLine]]:
    """The good lines and the bad ones, each in order. Blank lines are neither.

    model: of lines that name none. check: given the body as it will be sent; raises InvalidInput as the API would.
    """
    good: list[PromptLine] = []
    bad: list[BadLine] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            body = _body_of_object(line) if json_lines else _body_of_text(line)
            (body.get("request", body)).setdefault("model", model)
            check(msgspec.json.encode(body))
        except InvalidInput as error:
            bad.append(BadLine(line=number, reason=error.message))
        else:
            good.append(PromptLine(line=number, text=_question(body), body=body))
    return good, bad


def _body_of_text(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise InvalidInput("", f"is not UTF-8 (byte {error.start + 1})") from None
    if not text.replace("\t", " ").isprintable():
        raise InvalidInput("", "holds control characters")
    return {"messages": [{"role": "user", "content": text}]}


def _body_of_object(line: bytes) -> dict[str, Any]:
    try:
        line.decode()
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except UnicodeDecodeError as error:
        raise InvalidInput("", f"is not UTF-8 (byte {error.start + 1})") from None
    except msgspec.ValidationError:
        raise InvalidInput("", "is not a JSON object") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput("", f"is not JSON: {error}") from None
    if "prompt" in fields:
        return _with_messages(fields)
    if "request" in fields and not isinstance(fields["request"], dict):
        raise InvalidInput("request", "must be an object")
    if not fields.keys() & {"messages", "kind", "request"}:
        raise InvalidInput("", "has neither `prompt` nor `messages` nor `request`")
    return fields


def _with_messages(fields: dict[str, Any]) -> dict[str, Any]:
    prompt = fields.pop("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidInput("prompt", "must be a text that is not empty")
    if fields.keys() & {"messages", "request", "kind"}:
        raise InvalidInput("prompt", "and `messages` or `request`: one of them")
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def _question(body: dict[str, Any]) -> str:
    """The last thing that the user says, for people to recognise the line by."""
    for message in reversed(body.get("request", body)["messages"]):
        if message.get("role") == "user":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    return ""

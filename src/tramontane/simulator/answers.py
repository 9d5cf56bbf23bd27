"""What the simulator answers: a pure function of the seed, the request and the behaviour.

- `Say: …` in the last user message is answered by exactly what follows it.
- `Call: name` there, or a `tool_choice` that demands it, is answered by a call of that function.
- A JSON response format is answered by JSON that fits it; everything else by prose about winds, seas and code.
- A prefix is continued where it breaks off, if its end is the beginning of the answer; else the answer follows it.
"""

import random
import re
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import msgspec

from tramontane.simulator import prose, schemas
from tramontane.simulator.behaviour import Behaviour
from tramontane.simulator.requests import ChatRequest

_SAY = re.compile(r"(?:^|\n)Say: (.*)", re.DOTALL)
_CALL = re.compile(r"(?:^|\n)Call: (\w+)")
_SHORTEST, _LONGEST = 40, 120
# A shorter overlap of a prefix with the answer would be chance.
_OVERLAP = 12
_ID = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_ANYTHING = {"type": "object", "properties": {"wind": {}, "place": {}, "beaufort": {"type": "integer"}}}


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of one of the caller's functions; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One choice of a completion, in tokens (of the echo: in the pieces it is said in)."""

    echo: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    tool_call: ToolCall | None = None
    finish_reason: str = "stop"

    @property
    def content(self) -> str:
        """All text that is not thinking."""
        return "".join(self.echo) + "".join(self.text)

    @property
    def tokens(self) -> int:
        """Completion tokens. The echo is paid for as well."""
        said = sum(len(prose.tokens_of(piece)) for piece in self.echo)
        called = len(prose.tokens_of(self.tool_call.arguments)) if self.tool_call else 0
        return said + called + len(self.thinking) + len(self.text)


def compose(request: ChatRequest, behaviour: Behaviour, seed: int, index: int) -> Answer:
    """The answer for choice `index`. A second attempt at the same conversation gets the same one."""
    chance = _chance(request, seed if behaviour.seed is None else behaviour.seed, index)
    name = _function(request)
    if name:
        answer = Answer(tool_call=_tool_call(name, request, chance), finish_reason="tool_calls")
    else:
        answer = _said(request, behaviour, chance)
        answer = _limited(_stopped(answer, request.stop, late=behaviour.stops == "late"), request.max_tokens)
    return replace(answer, finish_reason=behaviour.finish_reason or answer.finish_reason)


def _chance(request: ChatRequest, seed: int, index: int) -> random.Random:
    # Neither the prefix nor a limit is part of it: what is continued must be what was begun.
    facts = [seed, index, request.random_seed, request.model, request.messages, request.response_format]
    return random.Random(msgspec.json.encode(facts))  # noqa: S311  # repeatable is the point


def _said(request: ChatRequest, behaviour: Behaviour, chance: random.Random) -> Answer:
    text = _text(request, behaviour, chance)
    thinking = prose.write(chance, chance.randrange(8, 24)) if request.reasoning else []
    if request.prefix is None:
        return Answer(thinking=tuple(thinking), text=tuple(text))
    rest = _continuation(request.prefix, "".join(text))
    return Answer(echo=_echo(request.prefix, behaviour.echo), text=tuple(prose.tokens_of(rest)))


def _text(request: ChatRequest, behaviour: Behaviour, chance: random.Random) -> list[str]:
    say = _SAY.search(request.question)
    if say:
        return prose.tokens_of(say[1])
    schema = _schema(request.response_format)
    if schema is not None:
        value = schemas.fill(schemas.resolve(schema), chance)
        return prose.tokens_of(msgspec.json.format(msgspec.json.encode(value), indent=0).decode())
    length = max(behaviour.tokens or chance.randrange(_SHORTEST, _LONGEST), request.min_tokens)
    tokens = prose.write(chance, length)
    return tokens[:length] if behaviour.tokens else tokens


def _schema(response_format: dict[str, Any]) -> Any:
    match response_format.get("type"):
        case "json_object":
            return _ANYTHING
        case "json_schema":
            named = response_format.get("json_schema")
            return named.get("schema", _ANYTHING) if isinstance(named, dict) else _ANYTHING
        case _:
            return None


def _continuation(prefix: str, answer: str) -> str:
    if answer.startswith(prefix):
        return answer[len(prefix) :]
    # The caller may have begun the answer itself, and now sends its beginning and ours as one prefix.
    for size in range(min(len(prefix), len(answer)), _OVERLAP - 1, -1):
        if prefix.endswith(answer[:size]):
            return answer[size:]
    return answer if prefix[-1:].isspace() else f" {answer}"


def _echo(prefix: str, manner: str) -> tuple[str, ...]:
    match manner:
        case "none":
            return ()
        case "split":
            return tuple(prose.tokens_of(prefix))
        case "altered":
            middle = len(prefix) // 2
            other = "-" if prefix[middle : middle + 1] == "~" else "~"
            return (prefix[:middle] + other + prefix[middle + 1 :],)
        case _:
            return (prefix,) if prefix else ()


def _stopped(answer: Answer, stop: tuple[str, ...], *, late: bool) -> Answer:
    text = "".join(answer.text)
    found = [(at, at + len(word)) for word in stop if (at := text.find(word)) >= 0]
    if not found:
        return answer
    start, end = min(found)
    if not late:
        return replace(answer, text=tuple(prose.tokens_of(text[:start])))
    ends = accumulate(len(token) for token in answer.text)
    return replace(answer, text=tuple(token for token, at in zip(answer.text, ends, strict=True) if at < end))


def _limited(answer: Answer, max_tokens: int | None) -> Answer:
    if max_tokens is None or len(answer.thinking) + len(answer.text) <= max_tokens:
        return answer
    thinking = answer.thinking[:max_tokens]
    text = answer.text[: max_tokens - len(thinking)]
    return replace(answer, thinking=thinking, text=text, finish_reason="length")


def _function(request: ChatRequest) -> str | None:
    """The name of the function to call, None when the answer is text."""
    if not request.tools or request.tool_choice == "none":
        return None
    names = [str(tool["function"]["name"]) for tool in request.tools]
    if request.tool_choice == "any":
        return names[0]
    if request.tool_choice != "auto":
        return request.tool_choice
    asked = _CALL.search(request.question) if request.messages[-1]["role"] == "user" else None
    return asked[1] if asked and asked[1] in names else None


def _tool_call(name: str, request: ChatRequest, chance: random.Random) -> ToolCall:
    functions = [tool["function"] for tool in request.tools]
    schema = next((function.get("parameters") for function in functions if function["name"] == name), None)
    arguments = msgspec.json.format(msgspec.json.encode(schemas.fill(schemas.resolve(schema or {}), chance)), indent=0)
    return ToolCall(id="".join(chance.choices(_ID, k=9)), name=name, arguments=arguments.decode())

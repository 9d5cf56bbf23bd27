"""How a new attempt goes on with a half-finished answer. Decisions only: no clock, no call, no database.

    continue   Mistral is given the text as the beginning of its answer and writes on. The text never goes backwards.
    replay     Mistral answers anew under the same seed; as long as it says the same, nothing of it is told.
    restart    Mistral answers anew, and readers cut their text.
    finished   there is nothing left to ask for.

What Mistral then says is compared with what is there by a `Joint` of seam.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from tramontane.models import Event
from tramontane.seam import Joint, common, cut
from tramontane.wire import utf16_length

Mode = Literal["continue", "replay", "restart", "finished"]

#: UTF-16 units. A shorter text costs next to nothing to say again; a shorter likeness may be chance, and is no echo.
SHORTEST: Final = 32

#: Models that are known to go on from a prefix, by how their names begin.
_FAMILIES: Final = ("mistral-", "ministral-", "open-mistral-", "open-mixtral-", "codestral-", "devstral-")
#: Fields that say nothing against a prefix, whatever their value. What is not known here does.
_HARMLESS: Final = frozenset(
    {
        "model",
        "messages",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "min_tokens",
        "stop",
        "random_seed",
        "metadata",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "parallel_tool_calls",
        "prompt_cache_key",
        "service_tier",
        "safe_prompt",
        "stream",
    }
)
#: Fields that say nothing against it with one of these values, or null.
_HARMLESS_AS: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (False, 0),
    "top_prompt_logprobs": (0,),
    "reasoning_effort": ("none",),
    "guardrails": ([],),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What readers have seen of an answer so far."""

    text: str = ""
    #: Mistral's content deltas in that text.
    tokens: int = 0
    #: A model that thinks, and one that has called a tool: neither can be given back as a prefix.
    thinking: bool = False
    tools: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an attempt does. `request` is what Mistral is asked; nothing when the answer is `finished`."""

    mode: Mode
    request: Mapping[str, Any] = field(default_factory=dict)
    #: UTF-16 units of the text that stay.
    keep: int = 0
    #: Of a finished answer: `stop` or `length`.
    finish_reason: str | None = None
    #: What Mistral is expected to say first: the prefix once more, or the same answer.
    expected: str = ""
    #: White space at the end of the text, which was left out of the prefix.
    space: str = ""
    stop: tuple[str, ...] = ()


def said(events: Iterable[Event]) -> Said:
    """What the `chunk`, `tool` and `attempt` events of a log, in their order, have left visible."""
    chunks: list[tuple[str, int, int]] = []  # text, length up to its end, tokens up to its end
    thinking = tools = False
    for event in events:
        body = msgspec.json.decode(event.body)
        if event.type == "tool":
            tools = True
        elif event.type == "attempt":
            chunks = _cut_chunks(chunks, body["keep"])
            if body["mode"] == "restart":
                thinking = tools = False
        elif event.type == "chunk":
            chunks = _cut_chunks(chunks, body["off"])
            thinking = thinking or bool(body.get("thinking"))
            chunks.append((body["content"], body["off"] + utf16_length(body["content"]), body["tokenCount"]))
    text = "".join(content for content, _, _ in chunks)
    return Said(text=text, tokens=chunks[-1][2] if chunks else 0, thinking=thinking, tools=tools)


def _cut_chunks(chunks: list[tuple[str, int, int]], keep: int) -> list[tuple[str, int, int]]:
    while chunks and chunks[-1][1] > keep:
        content, end, tokens = chunks.pop()
        start = end - utf16_length(content)
        if start < keep:
            chunks.append((cut(content, keep - start), keep, tokens))
    return chunks


def plan(request: Mapping[str, Raw], so_far: Said, *, resume: str, seed: int, prefix: bool = True) -> Plan:
    """How an attempt answers `request`, of which `so_far` is there. A first attempt is a `restart` of nothing.

    resume: `auto`, or `never`: then every attempt starts from nothing and asks exactly what the caller asked.
    seed: of our own, the same for all attempts of a job; used where a replay may be needed and the caller set none.
    prefix: False once Mistral has refused this one.
    """
    if resume == "never":
        return Plan(mode="restart", request=request)
    plain = _is_plain(request)
    if not plain and _value(request, "random_seed") is None:
        request = {**request, "random_seed": Raw(b"%d" % seed)}
    restart = Plan(mode="restart", request=request)
    if not so_far.text or so_far.tools:
        return restart
    if plain and prefix and not so_far.thinking:
        return _go_on(request, so_far) or _replay(request, so_far.text) or restart
    return _replay(request, so_far.text) or restart


def _go_on(request: Mapping[str, Raw], so_far: Said) -> Plan | None:
    """Continue the text, or end it where it stands. None when it cannot be told how."""
    text, stop = so_far.text, _stop(request)
    messages = _messages(request)
    given = messages[-1] if _value(messages[-1], "prefix") else {"role": Raw(b'"assistant"')}
    own, sent = _after_prefix(_value(given, "content") or "", text)
    finish_reason = _finish_reason(request, own, so_far.tokens, stop)
    if finish_reason is not None:
        return Plan(mode="finished", keep=utf16_length(text), finish_reason=finish_reason)
    expected = sent.rstrip()
    # An echo that leaves out white space at its beginning would look like none.
    if utf16_length(expected) < SHORTEST or expected[0].isspace():
        return None
    if "content" in given:
        messages = messages[:-1]
    return Plan(
        mode="continue",
        request={
            **request,
            **_lowered(request, so_far.tokens),
            "messages": [*messages, {**given, "content": expected, "prefix": True}],
        },
        keep=utf16_length(text),
        expected=expected,
        space=sent[len(expected) :],
        stop=stop,
    )


def _after_prefix(given: str, text: str) -> tuple[str, str]:
    """Of a text that follows a caller's prefix: what Mistral itself has said, and what to send as the new prefix.

    Nothing is sent of a text that breaks off within, or departs from, what may be an echo.
    """
    if text.startswith(given):
        return text[len(given) :], text
    if given.startswith(text) or utf16_length(given[: common(given, text)]) >= SHORTEST:
        return "", ""
    return text, given + text


def _finish_reason(request: Mapping[str, Raw], own: str, tokens: int, stop: tuple[str, ...]) -> str | None:
    if any(word in own for word in stop):
        return "stop"
    limit = _value(request, "max_tokens")
    return "length" if limit is not None and tokens >= limit else None


def _lowered(request: Mapping[str, Raw], tokens: int) -> dict[str, int]:
    """What is left of the limits.

    A content delta counts as one token. Where Mistral puts several into one the whole answer may come out longer than
    asked, never shorter: what is missing could not be mended.
    """
    limits = ((name, _value(request, name)) for name in ("max_tokens", "min_tokens"))
    return {name: max(0, limit - tokens) for name, limit in limits if limit is not None}


def _replay(request: Mapping[str, Any], text: str) -> Plan | None:
    length = utf16_length(text)
    if length < SHORTEST or _value(request, "random_seed") is None:
        return None
    return Plan(mode="replay", request=request, keep=length, expected=text)


def _is_plain(request: Mapping[str, Raw]) -> bool:
    """Text is asked for and nothing else, of a model that is known to go on from a prefix."""
    if not str(_value(request, "model")).startswith(_FAMILIES):
        return False
    for name in request.keys() - _HARMLESS:
        value = _value(request, name)
        # 1 == True in Python, not in JSON; neither is harmful where the other is not.
        if value is not None and value not in _HARMLESS_AS.get(name, ()):
            return False
    return all(_is_text(message) for message in _messages(request)) and not _limited_prefix(request)


def _is_text(message: Mapping[str, Raw]) -> bool:
    if _value(message, "role") == "tool" or _value(message, "tool_calls"):
        return False
    content = _value(message, "content")
    if isinstance(content, list):
        return not _value(message, "prefix") and all(part.get("type") == "text" for part in content)
    return True


def _limited_prefix(request: Mapping[str, Raw]) -> bool:
    """A limit on what follows a caller's own prefix, of whose echo nobody knows whether it counts."""
    return bool(_value(_messages(request)[-1], "prefix")) and _value(request, "max_tokens") is not None


def _messages(request: Mapping[str, Raw]) -> list[dict[str, Raw]]:
    return msgspec.json.decode(request["messages"], type=list[dict[str, Raw]])


def _stop(request: Mapping[str, Raw]) -> tuple[str, ...]:
    stop = _value(request, "stop") or ()
    return tuple(word for word in ([stop] if isinstance(stop, str) else stop) if word)


def _value(fields: Mapping[str, Any], name: str) -> Any:
    raw = fields.get(name)
    return msgspec.json.decode(raw) if isinstance(raw, Raw) else raw


def joint(plan: Plan, text: str) -> Joint | None:
    """What compares the output of that plan with the text; None where there is nothing to compare."""
    if plan.mode == "continue":
        return Joint(text, plan.expected, shortest=SHORTEST, space=plan.space, stop=plan.stop)
    return Joint(text, plan.expected) if plan.mode == "replay" else None


def add_up(usages: Iterable[bytes]) -> Raw | None:
    """Mistral's reports of several attempts as one: numbers are summed, at any depth. One alone keeps its bytes."""
    reports = list(usages)
    if len(reports) < 2:
        return Raw(reports[0]) if reports else None
    total: Any = {}
    for report in reports:
        total = _sum(total, msgspec.json.decode(report))
    return Raw(msgspec.json.encode(total))


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {name: _sum(one.get(name), value) for name, value in other.items()}
    if _is_number(one) and _is_number(other):
        return one + other
    return one if other is None else other


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(completion: bytes, content: str, finish_reason: str) -> bytes:
    """Mistral's completion of a continued answer, with the whole text as the message of its first choice."""
    fields = msgspec.json.decode(completion, type=dict[str, Raw])
    choices = msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])
    message = msgspec.json.decode(choices[0]["message"], type=dict[str, Raw])
    told: dict[str, object] = {**message, "content": content}
    first: dict[str, object] = {**choices[0], "finish_reason": finish_reason, "message": told}
    return msgspec.json.encode({**fields, "choices": [first, *choices[1:]]})

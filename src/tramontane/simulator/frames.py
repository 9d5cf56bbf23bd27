"""The bytes of an answer: the JSON of a whole completion, or the frames of a stream.

Key order, the `p` padding and the place of `usage` are those of the real API.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from tramontane.simulator.answers import Answer, ToolCall
from tramontane.simulator.behaviour import Behaviour
from tramontane.simulator.prose import tokens_of

encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"
# Half an object, as a connection through a broken proxy may bring it.
MALFORMED = b'data: {"id":"cmpl","object":"chat.completion.chunk","choices":[{"ind\n\n'
_COMMENTS = b": the wind is up\n\nid: 7\nretry: 1000\n\n"
_PADDING = b"abcdefghijklmnopqrstuvwxyz0123456789"
_FRAGMENT = 5


class Frame(NamedTuple):
    """One chunk of a stream, and how many completion tokens were made once it is sent."""

    data: bytes
    tokens: int


class _Delta(NamedTuple):
    """What one chunk adds to its choice: JSON, its tokens, and `finish_reason` as JSON."""

    data: bytes
    tokens: int = 0
    finish: bytes = b"null"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Everything about an answer that its frames and its JSON have in common."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    cached_tokens: int
    answers: tuple[Answer, ...]

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices together."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def usage(self) -> dict[str, Any]:
        """What the whole answer costs."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def whole(completion: Completion, behaviour: Behaviour) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "usage": completion.usage,
        "choices": [_choice(index, answer, behaviour) for index, answer in enumerate(completion.answers)],
    }
    if not behaviour.usage:
        # The SDKs insist on the key, so what may be missing is what is in it.
        body["usage"] = {}
    return encode(body)


def _choice(index: int, answer: Answer, behaviour: Behaviour) -> dict[str, Any]:
    content: Any = answer.content
    parts = [_text_part(content), *_OTHER_PARTS] if behaviour.content == "parts" else [_text_part(content)]
    if answer.thinking:
        content = [_thinking_part("".join(answer.thinking)), *parts]
    elif behaviour.content == "parts":
        content = parts
    calls = [_tool_call(answer.tool_call)] if answer.tool_call else None
    message = {"role": "assistant", "tool_calls": calls, "content": content}
    return {"index": index, "finish_reason": answer.finish_reason, "message": message}


def stream(completion: Completion, behaviour: Behaviour, chance: random.Random) -> list[Frame]:
    """The chunks of an answer, `[DONE]` not included. Several choices take turns."""
    head = encode({"id": completion.id, "object": "chat.completion.chunk", "created": completion.created})[:-1]
    head = b"data: " + head + b',"model":' + encode(completion.model) + b',"choices":[{"index":'
    if behaviour.comments:
        head = _COMMENTS + head
    turns = zip_longest(*(list(_deltas(answer, behaviour)) for answer in completion.answers))
    deltas = [(index, delta) for turn in turns for index, delta in enumerate(turn) if delta is not None]
    usage = b',"usage":' + encode(completion.usage) if behaviour.usage else b""
    frames: list[Frame] = []
    tokens = 0
    for index, delta in deltas:
        tokens += delta.tokens
        tail = usage if len(frames) == len(deltas) - 1 else b""
        padding = _PADDING[: 1 + int(chance.random() * len(_PADDING))]
        data = b'%b%d,"delta":%b,"finish_reason":%b}]%b,"p":"%b"}\n\n'
        frames.append(Frame(data % (head, index, delta.data, delta.finish, tail, padding), tokens))
    return frames


def _deltas(answer: Answer, behaviour: Behaviour) -> Iterator[_Delta]:
    finish = encode(answer.finish_reason)
    yield _Delta(b'{"role":"assistant","content":""}')
    for token in answer.thinking:
        yield _Delta(encode({"content": [_thinking_part(token)]}), 1)
    for piece in answer.echo:
        yield _Delta(_content(piece, behaviour), len(tokens_of(piece)))
    for token in answer.text:
        yield _Delta(_content(token, behaviour), 1)
    if behaviour.content == "parts":
        yield _Delta(encode({"content": _OTHER_PARTS}))
    if answer.tool_call is None:
        yield _Delta(b'{"content":""}', 0, finish)
        return
    call = _tool_call(answer.tool_call)
    tokens = len(tokens_of(answer.tool_call.arguments))
    if behaviour.tool_calls == "whole":
        yield _Delta(encode({"content": "", "tool_calls": [call]}), tokens, finish)
        return
    for fragment in _fragments(call):
        yield _Delta(encode({"content": "", "tool_calls": [fragment]}))
    yield _Delta(b'{"content":""}', tokens, finish)


def _content(text: str, behaviour: Behaviour) -> bytes:
    return b'{"content":%b}' % encode(text if behaviour.content == "text" else [_text_part(text)])


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking_part(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [_text_part(text)]}


# A part that is no text, and one of a type that nobody knows yet.
_OTHER_PARTS: list[dict[str, Any]] = [
    {"type": "reference", "reference_ids": [0, 1]},
    {"type": "weather", "beaufort": 7},
]


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}, "index": 0}


def _fragments(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The call in pieces: the first has id and name, later ones an id of `"null"` or none at all."""
    arguments = call["function"]["arguments"]
    yield {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
    for at in range(0, len(arguments), _FRAGMENT):
        piece = {"function": {"name": "", "arguments": arguments[at : at + _FRAGMENT]}, "index": 0}
        yield {"id": "null", **piece} if at else piece

"""One choice of an answer, put together again from the pieces in which it came."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

_NOTHING = Raw()


class Delta(Struct, frozen=True):
    """What one chunk adds to one choice. At least one of `content`, `thinking`, `tool_calls` is not empty.

    tool_calls: fragments as Mistral sent them, one JSON object each.
    """

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[Raw, ...] = ()
    choice: int = 0


class _Part(Struct):
    type: str = ""
    text: Raw = _NOTHING
    thinking: Raw = _NOTHING
    signature: str | None = None


class _Function(Struct):
    name: str | None = None
    arguments: Raw = _NOTHING


class _Fragment(Struct):
    id: str | None = None
    index: int | None = None
    function: _Function | None = None


class _Logprobs(Struct):
    content: list[Raw] | None = None


_decode_text = msgspec.json.Decoder(str).decode
_decode_thinking = msgspec.json.Decoder(str | list[Raw]).decode
_decode_part = msgspec.json.Decoder(_Part).decode
_decode_fragment = msgspec.json.Decoder(_Fragment).decode
_decode_logprobs = msgspec.json.Decoder(_Logprobs | None).decode


class Choice:
    """One choice as far as it has come. Whatever is fed to it and is not of Mistral's shapes raises ValueError."""

    __slots__ = ("_calls", "_content", "_logprobs", "_runs", "_thinking", "_typed", "finish_reason")

    def __init__(self) -> None:
        #: None until Mistral gives it, with the last chunk of this choice.
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[_ToolCall] = []
        self._logprobs: list[Raw] | None = None
        # Content as typed parts: neighbouring texts make one run, and so do thoughts; any other part stands alone.
        self._runs: list[tuple[str, list[Any]]] = []
        self._typed = False

    @property
    def content(self) -> str:
        """The text, without thoughts and other parts."""
        return "".join(self._content)

    @property
    def thinking(self) -> str:
        """The text of the thoughts."""
        return "".join(self._thinking)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls, merged: `{id, type, function: {name, arguments}, index}`, in the order they began."""
        return [call.fields() for call in self._calls]

    def add_text(self, text: str) -> None:
        """Take in content that came as a plain string."""
        self._content.append(text)
        self._run("text", text)

    def add_parts(self, parts: Iterable[Raw]) -> tuple[str, str]:
        """Take in content that came as typed parts; what they add to `content` and to `thinking`."""
        self._typed = True
        content = thinking = ""
        for raw in parts:
            part = _decode_part(raw)
            if part.type == "text":
                text = _decode_text(part.text)
                content += text
                self.add_text(text)
            elif part.type == "thinking":
                thought, plain = _thought(part)
                thinking += thought
                self._thinking.append(thought)
                if plain:
                    self._run("thinking", thought)
                else:
                    self._runs.append(("", [raw]))
            else:
                self._runs.append(("", [raw]))
        return content, thinking

    def add_calls(self, fragments: Iterable[Raw]) -> None:
        """Take in fragments of tool calls: ids and names once, arguments glued together."""
        for raw in fragments:
            fragment = _decode_fragment(raw)
            call = self._call(fragment)
            if fragment.function is not None:
                call.add(fragment.function)

    def add_logprobs(self, raw: Raw) -> None:
        """Take in the log probabilities of a chunk; those of the whole are their concatenation."""
        logprobs = _decode_logprobs(raw)
        if logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += logprobs.content or ()

    def fields(self, index: int) -> dict[str, Any]:
        """This choice as an answer that is not streamed has it."""
        content: Any = [_part(kind, pieces) for kind, pieces in self._runs] if self._typed else self.content
        message = {"role": "assistant", "tool_calls": self.tool_calls or None, "content": content}
        logprobs = {} if self._logprobs is None else {"logprobs": {"content": self._logprobs}}
        return {"index": index, "finish_reason": self.finish_reason, "message": message, **logprobs}

    def _run(self, kind: str, text: str) -> None:
        if self._runs and self._runs[-1][0] == kind:
            self._runs[-1][1].append(text)
        else:
            self._runs.append((kind, [text]))

    def _call(self, fragment: _Fragment) -> "_ToolCall":
        """The call that a fragment belongs to: by its index, or without one the latest.

        From the second fragment on some models send no id, or `"null"`. A new id makes a new call even under a used
        index: arguments glued to those of another call would be no JSON.
        """
        name = fragment.id if fragment.id != "null" else None
        known = [call for call in self._calls if fragment.index in (None, call.index)]
        if not known or (name and known[-1].id and name != known[-1].id):
            known = [_ToolCall(len(self._calls) if fragment.index is None else fragment.index)]
            self._calls += known
        known[-1].id = known[-1].id or name
        return known[-1]


class _ToolCall:
    """One call of a tool, growing from its fragments."""

    __slots__ = ("_object", "_pieces", "id", "index", "name")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.name = ""
        self._pieces: list[str] = []
        # Mistral may also send arguments as an object, which then comes whole.
        self._object: Raw | None = None

    def add(self, function: _Function) -> None:
        self.name += function.name or ""
        arguments = bytes(function.arguments)
        if arguments.startswith(b'"'):
            self._pieces.append(_decode_text(arguments))
        elif arguments.startswith(b"{"):
            self._object = function.arguments

    def fields(self) -> dict[str, Any]:
        arguments = "".join(self._pieces) if self._object is None else self._object
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id or "null", "type": "function", "function": function, "index": self.index}


def _thought(part: _Part) -> tuple[str, bool]:
    """The text of a thinking part, and whether that text is all there is to it: no reference, no signature."""
    thinking = _decode_thinking(part.thinking)
    if isinstance(thinking, str):
        return thinking, part.signature is None
    inner = [_decode_part(raw) for raw in thinking]
    texts = [_decode_text(one.text) for one in inner if one.type == "text"]
    return "".join(texts), part.signature is None and len(texts) == len(inner)


def _part(kind: str, pieces: list[Any]) -> Any:
    if kind == "thinking":
        return {"type": "thinking", "thinking": [{"type": "text", "text": "".join(pieces)}]}
    return {"type": "text", "text": "".join(pieces)} if kind == "text" else pieces[0]

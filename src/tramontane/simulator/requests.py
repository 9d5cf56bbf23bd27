"""What a chat request asks for, or why it is refused, judged as the Mistral API judges it."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from tramontane.simulator import shapes
from tramontane.simulator.models import find_model
from tramontane.simulator.refusals import Refusal, bad_request, invalid

_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A chat request that makes sense."""

    model: str
    #: All messages but a prefix.
    messages: list[dict[str, Any]]
    #: The beginning of the answer, given by the caller; None when the answer starts afresh.
    prefix: str | None
    stream: bool
    max_tokens: int | None
    min_tokens: int
    stop: tuple[str, ...]
    n: int
    random_seed: int | None
    response_format: dict[str, Any]
    tools: list[dict[str, Any]]
    #: `auto`, `none`, `any`, or the name of the one function that must be called.
    tool_choice: str
    prompt_cache_key: str | None
    reasoning: bool

    @property
    def question(self) -> str:
        """The text of the last user message, empty when there is none."""
        return next((text_of(m.get("content")) for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def prompt(self) -> bytes:
        """Everything that is read before the answer, as the bytes that stand for it."""
        return msgspec.json.encode([self.messages, self.tools, self.prefix])

    @property
    def prompt_tokens(self) -> int:
        """An estimate that never changes: a token per four bytes of text, and a few per message."""
        texts = [text_of(m.get("content")) for m in self.messages] + [self.prefix or ""]
        tools = len(msgspec.json.encode(self.tools)) if self.tools else 0
        size = sum(len(text.encode()) for text in texts) + tools
        return -(-size // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(self.messages)


def text_of(content: Any) -> str:
    """The text in a message's content, which is a string, null, or a list of typed parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def parse_body(raw: bytes) -> dict[str, Any]:
    """The object in a request body. Raises Refusal (422) when there is none."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        item = {**invalid("json_invalid", [0], "JSON decode error", {}), "ctx": {"error": str(error)}}
        raise Refusal(422, {"detail": [item]}) from None
    if not isinstance(body, dict):
        item = invalid("model_attributes_type", [], "Input should be a valid dictionary or object", body)
        raise Refusal(422, {"detail": [item]})
    return body


def parse_request(body: dict[str, Any]) -> ChatRequest:
    """What `body` asks for.

    Raises Refusal: 422 for a wrong shape, 400 for a shape that makes no sense (model, order of messages, prefix).
    """
    detail = shapes.faults(body)
    if detail:
        raise Refusal(422, {"detail": detail})
    model = find_model(body["model"])
    if model is None:
        raise bad_request(f"Invalid model: {body['model']}", "invalid_model", "1500")
    messages, tools = body["messages"], body.get("tools") or []
    _judge_order(messages)
    prefix = text_of(messages[-1].get("content")) if messages[-1]["role"] == "assistant" else None
    if prefix is not None and tools:
        raise bad_request("Cannot use tools with an assistant prefix", "invalid_request_prefix", "3350")
    stop = body.get("stop") or ()
    return ChatRequest(
        model=body["model"],
        messages=messages if prefix is None else messages[:-1],
        prefix=prefix,
        stream=bool(body.get("stream")),
        max_tokens=body.get("max_tokens"),
        min_tokens=body.get("min_tokens") or 0,
        stop=(stop,) if isinstance(stop, str) else tuple(word for word in stop if word and isinstance(word, str)),
        n=body.get("n") or 1,
        random_seed=body.get("random_seed"),
        response_format=body.get("response_format") or {},
        tools=tools,
        tool_choice=_tool_choice(body.get("tool_choice")),
        prompt_cache_key=body.get("prompt_cache_key"),
        reasoning=prefix is None and (model.reasoning or body.get("prompt_mode") == "reasoning"),
    )


def _tool_choice(choice: Any) -> str:
    if isinstance(choice, dict):
        function = choice.get("function")
        return str(function.get("name", "any")) if isinstance(function, dict) else "any"
    return "any" if choice == "required" else choice or "auto"


def _judge_order(messages: list[dict[str, Any]]) -> None:
    """Raise Refusal (400, code 3230) when the roles do not make a conversation that can be answered."""
    if not messages:
        raise _order("Conversation must have at least one message")
    for before, message in pairwise(messages):
        role, previous = message["role"], before["role"]
        if before.get("prefix"):
            raise _order("Only the last message may be an assistant message with prefix True")
        if role == "tool" and previous not in ("tool", "assistant"):
            raise _order(f"Unexpected role '{role}' after role '{previous}'")
    last = messages[-1]
    if last["role"] not in ("user", "tool") and not (last["role"] == "assistant" and last.get("prefix")):
        expected = "Expected last role User or Tool (or Assistant with prefix True) for serving"
        raise _order(f"{expected} but got {last['role']}")


def _order(message: str) -> Refusal:
    return bad_request(message, "invalid_request_message_order", "3230")

"""The shape of a chat request, judged field by field into the `detail` of a 422."""

from collections.abc import Iterator
from typing import Any

from tramontane.simulator.refusals import invalid

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "list": (list,),
    "dict": (dict,),
    "string or list": (str, list),
    "string or dict": (str, dict),
}
#: Every field that Mistral knows. null is allowed for all but the first two.
_FIELDS = {
    "model": "string",
    "messages": "list",
    "stream": "bool",
    "temperature": "float",
    "top_p": "float",
    "top_k": "int",
    "max_tokens": "int",
    "min_tokens": "int",
    "stop": "string or list",
    "n": "int",
    "random_seed": "int",
    "metadata": "dict",
    "response_format": "dict",
    "tools": "list",
    "tool_choice": "string or dict",
    "parallel_tool_calls": "bool",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "repetition_penalty": "float",
    "logprobs": "bool",
    "top_logprobs": "int",
    "prompt_logprobs": "int",
    "top_prompt_logprobs": "int",
    "prediction": "dict",
    "reasoning_effort": "string",
    "prompt_mode": "string",
    "guardrails": "list",
    "prompt_cache_key": "string",
    "service_tier": "string",
    "safe_prompt": "bool",
}
_REQUIRED = ("model", "messages")
_RANGES = {"max_tokens": (0, 2**31), "min_tokens": (0, 100_000), "n": (1, 64), "temperature": (0, 1.5)}
_MOST_TOOLS = 128
_ROLES = ("system", "user", "assistant", "tool")


def faults(body: dict[str, Any]) -> list[dict[str, Any]]:
    """All that is wrong with the shape of a request; empty when nothing is."""
    detail = [invalid("missing", [name], "Field required", body) for name in _REQUIRED if name not in body]
    for name, value in body.items():
        if value is not None or name in _REQUIRED or name not in _FIELDS:
            detail += _field(name, value)
    return detail


def _field(name: str, value: Any) -> Iterator[dict[str, Any]]:
    kind = _FIELDS.get(name)
    if kind is None:
        yield invalid("extra_forbidden", [name], "Extra inputs are not permitted", value)
    elif not _is_a(kind, value):
        yield invalid(f"{kind.split()[0]}_type", [name], f"Input should be a valid {kind}", value)
    elif name in _RANGES and value < _RANGES[name][0]:
        yield invalid(
            "greater_than_equal", [name], f"Input should be greater than or equal to {_RANGES[name][0]}", value
        )
    elif name in _RANGES and value > _RANGES[name][1]:
        yield invalid("less_than_equal", [name], f"Input should be less than or equal to {_RANGES[name][1]}", value)
    elif name == "messages":
        for at, message in enumerate(value):
            yield from _message(at, message)
    elif name == "tools":
        yield from _tools(value)


def _is_a(kind: str, value: Any) -> bool:
    # In Python True is an int; in JSON it is not.
    return isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))


def _message(at: int, message: Any) -> Iterator[dict[str, Any]]:
    where: list[str | int] = ["messages", at]
    if not isinstance(message, dict):
        yield invalid("model_attributes_type", where, "Input should be a valid dictionary or object", message)
        return
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        yield invalid("union_tag_invalid", [*where, "role"], f"Input should be one of {', '.join(_ROLES)}", role)
    elif content is None and role != "assistant":
        yield invalid("missing", [*where, role, "content"], "Field required", message)
    elif content is not None and not _is_a("string or list", content):
        yield invalid("string_type", [*where, role, "content"], "Input should be a valid string", content)


def _tools(tools: list[Any]) -> Iterator[dict[str, Any]]:
    if len(tools) > _MOST_TOOLS:
        yield invalid("too_long", ["tools"], f"List should have at most {_MOST_TOOLS} items", len(tools))
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield invalid("missing", ["tools", at, "function", "name"], "Field required", tool)

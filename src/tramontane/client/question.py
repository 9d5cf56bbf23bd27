"""What a caller asks, as the body of a submit. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from tramontane.errors import InvalidInput
from tramontane.ids import iso

#: A question, or a whole conversation in Mistral's form.
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]


def job_body(
    prompt: Prompt | None, request: Mapping[str, Any] | None, parameters: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """The long form: Mistral's request, and our options beside it, as far as they are given.

    Raises InvalidInput; what the server is to judge, it judges.
    """
    if (prompt is None) == (request is None):
        raise InvalidInput("messages", "give either `messages` or a whole `request`")
    asked = {**(request or {}), **parameters}
    if prompt is not None:
        asked["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    named = {_camel(name): _plain(name, value) for name, value in options.items() if value is not None}
    return {"kind": "chat", "request": asked, **named}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _plain(name: str, value: Any) -> Any:
    match value:
        case datetime():
            if value.tzinfo is None:
                raise InvalidInput(name, "needs a time zone")
            return iso(value)
        case timedelta():
            return value.total_seconds()
        case _:
            return value

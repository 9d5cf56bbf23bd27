"""An answer that was not streamed."""

from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from tramontane.errors import GenerationFailed
from tramontane.mistral.choice import Choice
from tramontane.mistral.failures import failure_in
from tramontane.mistral.headers import CORRELATION_ID, RateHeaders, rate_headers


class Completion(Struct, frozen=True, kw_only=True):
    """The answer: `content` and `finish_reason` are those of its first choice."""

    #: The body as it came, byte for byte.
    raw: bytes
    content: str
    finish_reason: str
    #: What Mistral reports, None when it reports nothing.
    usage: Raw | None
    rate: RateHeaders
    correlation_id: str | None


class _Message(Struct):
    content: str | list[Raw] | None = None


class _WholeChoice(Struct):
    finish_reason: str
    message: _Message


class _Whole(Struct):
    choices: list[_WholeChoice]
    usage: Raw = Raw()


_decode_whole = msgspec.json.Decoder(_Whole).decode


def read_completion(raw: bytes, headers: Mapping[str, str]) -> Completion:
    """The answer in `raw`.

    Raises GenerationFailed when it is Mistral's report of a failure, MalformedAnswer when it is no answer at all.
    """
    try:
        whole = _decode_whole(raw)
        first = whole.choices[0]
        parts = first.message.content or ""
        content = parts if isinstance(parts, str) else Choice().add_parts(parts)[0]
    except (ValueError, IndexError):
        raise failure_in(raw) from None
    if first.finish_reason == "error":
        raise GenerationFailed('Mistral ended the answer with finish_reason "error"')
    return Completion(
        raw=raw,
        content=content,
        finish_reason=first.finish_reason,
        usage=whole.usage if whole.usage and bytes(whole.usage) != b"null" else None,
        rate=rate_headers(headers),
        correlation_id=headers.get(CORRELATION_ID),
    )

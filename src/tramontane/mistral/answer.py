"""The payloads of a stream into deltas, and in the end into the answer as Mistral would have given it whole."""

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from tramontane.errors import GenerationFailed, MalformedAnswer
from tramontane.mistral.choice import Choice, Delta
from tramontane.mistral.failures import failure_in

#: An answer is kept in memory up to this many bytes of payloads, padding included. A longer one has no end.
LONGEST_ANSWER = 128 * 2**20

_NOTHING = Raw()


# Only what is used is declared: msgspec skips the rest, the padding `p` included, without making objects of it.
class _DeltaFields(Struct):
    content: str | list[Raw] | None = None
    tool_calls: list[Raw] | None = None


class _ChoiceFields(Struct):
    index: int = 0
    delta: _DeltaFields | None = None
    finish_reason: str | None = None
    logprobs: Raw = _NOTHING


class _Chunk(Struct):
    choices: list[_ChoiceFields]
    usage: Raw = _NOTHING


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class Answer:
    """All choices of one answer, from payloads in their order."""

    __slots__ = ("_expected", "_first", "_last", "_size", "choices", "complete", "done", "usage")

    def __init__(self, expected: int) -> None:
        #: `[DONE]` has come. It proves nothing about the answer; `complete` does.
        self.done = False
        #: Every choice that was asked for has its `finish_reason`: the one proof that the answer is whole.
        self.complete = False
        #: What Mistral reports, None until then. Never a guess.
        self.usage: Raw | None = None
        self.choices: dict[int, Choice] = {0: Choice()}
        self._expected = expected
        self._first = self._last = b"{}"
        self._size = 0

    def feed(self, payload: bytes) -> Sequence[Delta]:
        """What one payload adds, most often one delta or none.

        Raises GenerationFailed when Mistral says so, MalformedAnswer for what is no chunk and for an endless answer.
        """
        if self.done:
            return ()
        try:
            chunk = _decode_chunk(payload)
            deltas = [delta for fields in chunk.choices if (delta := self._add(fields)) is not None]
        except ValueError:  # msgspec's errors, and the codec's for what is no UTF-8
            self.done = payload.strip() == b"[DONE]"
            if not self.done:
                raise failure_in(payload) from None
            return ()
        self._remember(payload, chunk)
        return deltas

    def completion(self) -> bytes:
        """The answer as one `chat.completion` object.

        What stands beside `choices` comes from the first chunk and the last (`usage`, `guardrails` and whatever
        Mistral may add), byte for byte.
        """
        fields: dict[str, object] = {"id": "", "object": "", "created": 0, "model": ""}
        fields |= _decode_fields(self._first) | _decode_fields(self._last)
        fields["object"] = "chat.completion"
        for name in ("p", "usage", "choices"):
            fields.pop(name, None)
        if self.usage is not None:
            fields["usage"] = self.usage
        fields["choices"] = [choice.fields(index) for index, choice in sorted(self.choices.items())]
        return msgspec.json.encode(fields)

    def _add(self, fields: _ChoiceFields) -> Delta | None:
        choice = self.choices.get(fields.index)
        if choice is None:
            choice = self.choices[fields.index] = Choice()
            self.complete = False
        content = thinking = ""
        calls: tuple[Raw, ...] = ()
        delta = fields.delta
        if delta is not None:
            if isinstance(delta.content, str):
                content = delta.content
                if content:
                    choice.add_text(content)
            elif delta.content:
                content, thinking = choice.add_parts(delta.content)
            if delta.tool_calls:
                choice.add_calls(delta.tool_calls)
                calls = tuple(delta.tool_calls)
        if fields.logprobs:
            choice.add_logprobs(fields.logprobs)
        if fields.finish_reason is not None:
            self._finish(choice, fields.finish_reason)
        return Delta(content, thinking, calls, fields.index) if content or thinking or calls else None

    def _finish(self, choice: Choice, reason: str) -> None:
        if reason == "error":
            raise GenerationFailed('Mistral ended the answer with finish_reason "error"')
        choice.finish_reason = reason
        choices = self.choices.values()
        self.complete = len(choices) >= self._expected and all(one.finish_reason is not None for one in choices)

    def _remember(self, payload: bytes, chunk: _Chunk) -> None:
        if not self._size:
            self._first = payload
        self._size += len(payload)
        if self._size > LONGEST_ANSWER:
            raise MalformedAnswer(f"Mistral's answer has no end: more than {LONGEST_ANSWER} bytes came")
        self._last = payload
        if chunk.usage and bytes(chunk.usage) != b"null":
            self.usage = chunk.usage

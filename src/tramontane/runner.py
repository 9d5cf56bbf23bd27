"""One attempt of a job: a streamed call to Mistral whose text goes to the log while it comes."""

import asyncio
import hashlib
from dataclasses import dataclass

import anyio
import msgspec
from msgspec import Raw

from tramontane.appender import Appender, Draft
from tramontane.errors import AttemptLost, JobTimeout, TramontaneError
from tramontane.ids import iso, show_id, utc_now
from tramontane.mistral import ChatStream, Delta, MistralClient
from tramontane.models import Attempt, Ending, NewEvent, State
from tramontane.wire import ResultShape, encode, utf16_length

_NULL = Raw(b"null")


class Transcript:
    """The visible text of an attempt, and the events that tell of it. Offsets count UTF-16 units."""

    def __init__(self) -> None:
        #: Units of text that events tell of so far.
        self.length = 0
        #: Content deltas of Mistral so far: the seed's count.
        self.tokens = 0
        self._hash = hashlib.sha256()
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Raw] = []

    def add(self, delta: Delta) -> int:
        """Take in a delta of the first choice; returns about how many characters it adds to what waits."""
        if delta.choice != 0:
            return 0
        if delta.content:
            self.tokens += 1
            self._text.append(delta.content)
        if delta.thinking:
            self._thinking.append(delta.thinking)
        self._calls.extend(delta.tool_calls)
        return len(delta.content) + len(delta.thinking) + sum(len(bytes(call)) for call in delta.tool_calls)

    def events(self) -> list[NewEvent]:
        """All that came since the last time, as events: at most one `chunk` and one `tool`."""
        made = []
        if self._text or self._thinking:
            made.append(NewEvent("chunk", encode(self._chunk())))
        if self._calls:
            made.append(NewEvent("tool", encode({"toolCalls": self._calls})))
            self._calls = []
        return made

    def complete(self, stream: ChatStream, attempts: int) -> NewEvent:
        """The final event of a whole answer; `len` and `sha256` let a client prove that it has every character."""
        fields = {
            "finishReason": stream.finish_reason,
            "len": self.length,
            "sha256": self._hash.hexdigest(),
            "totalTokens": self.tokens,
            "attempts": attempts,
            "usage": stream.usage,
        }
        return NewEvent("complete", encode(fields))

    def _chunk(self) -> dict[str, object]:
        text, thinking = "".join(self._text), "".join(self._thinking)
        self._text, self._thinking = [], []
        fields: dict[str, object] = {"off": self.length, "content": text, "tokenCount": self.tokens}
        if thinking:
            fields["thinking"] = thinking
        self.length += utf16_length(text)
        self._hash.update(text.encode())
        return fields


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that did not get there, and why; the text that is not yet in the log, and how much there is in all."""

    error: TramontaneError
    rest: tuple[NewEvent, ...]
    length: int


class Runner:
    """Makes attempts. It decides nothing about retries: that is the worker's."""

    def __init__(self, mistral: MistralClient, appender: Appender) -> None:
        self._mistral = mistral
        self._appender = appender

    async def run(self, attempt: Attempt) -> Ending | Failed:
        """Call Mistral and log what it says. Returns the job's ending, or why there is none.

        Raises AttemptLost when the log refuses the attempt, which also closes the call to Mistral.
        """
        job = attempt.job
        transcript = Transcript()
        with anyio.CancelScope() as scope:
            draft = Draft(job.key, job.attempt, self._appender, scope.cancel)
            try:
                async with asyncio.timeout(job.timeout_seconds):
                    stream = await self._read(attempt, transcript, draft)
                # Past the limit from here on: the answer is there, and the log takes as long as it takes.
                rest = await draft.settle()
                return _ending(attempt, stream, (*rest, transcript.complete(stream, job.failures + 1)))
            except TimeoutError:
                error = JobTimeout(f"the attempt took over {job.timeout_seconds:g} s")
            except TramontaneError as failure:
                return await _failed(draft, transcript, failure)
            return await _failed(draft, transcript, error)
        raise AttemptLost(f"attempt {job.attempt} of {show_id('job', job.key.id)} was overtaken")

    async def _read(self, attempt: Attempt, transcript: Transcript, draft: Draft) -> ChatStream:
        request = msgspec.json.decode(attempt.request, type=dict[str, Raw])
        async with self._mistral.stream(request) as stream:
            async for delta in stream:
                if size := transcript.add(delta):
                    draft.grow(size, transcript.events)
                    await draft.room()
        return stream


async def _failed(draft: Draft, transcript: Transcript, error: TramontaneError) -> Failed:
    rest = await draft.settle()
    return Failed(error, rest, transcript.length)


def _ending(attempt: Attempt, stream: ChatStream, events: tuple[NewEvent, ...]) -> Ending:
    job, usage, now = attempt.job, stream.usage, utc_now()
    result = ResultShape(
        job_id=show_id("job", job.key.id),
        request_id=job.request_id,
        content=stream.content,
        usage=usage or _NULL,
        completed_at=iso(now),
        finish_reason=stream.finish_reason or "",
        completion=Raw(stream.completion()),
    )
    return Ending(
        key=job.key,
        attempt=job.attempt,
        entry_id=attempt.entry_id,
        state=State.COMPLETED,
        at=now,
        events=events,
        result=encode(result),
        usage=bytes(usage).decode() if usage else None,
        correlation_id=stream.correlation_id,
    )

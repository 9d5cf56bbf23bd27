"""One attempt of a job: a streamed call to Mistral whose text goes to the log while it comes."""

import asyncio
from dataclasses import dataclass
from typing import Final

import anyio
import msgspec
from msgspec import UNSET, Raw

from tramontane import continuity
from tramontane.appender import Appender, Draft
from tramontane.calls import Calls
from tramontane.errors import AttemptLost, JobTimeout, RequestRefused, TramontaneError, UpstreamTimeout
from tramontane.gauge import Gauge
from tramontane.ids import iso, show_id, utc_now
from tramontane.mistral import ChatStream, MistralClient
from tramontane.models import Attempt, Ending, NewEvent, Past, State
from tramontane.transcript import Transcript
from tramontane.vault import Vault
from tramontane.wire import ResultShape, encode

_NULL: Final = Raw(b"null")
#: Mistral takes larger seeds, other servers of its API may not.
_LARGEST_SEED: Final = 2**31 - 1
#: Seconds that an attempt may still take to write down what it has, once it is told to stop.
_LAST_WORDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that did not get there, and why; its text is in the log, `length` UTF-16 units in all."""

    error: TramontaneError
    length: int
    #: What Mistral reported of this attempt, and of all; and whether it may have billed this one without saying so.
    own_usage: str | None = None
    usage: str | None = None
    unreported: bool = False


class Runner:
    """Makes attempts. It decides nothing about retries: that is the worker's.

    vault: opens the Mistral keys of tenants that have their own.
    """

    def __init__(
        self,
        mistral: MistralClient,
        appender: Appender,
        vault: Vault | None = None,
        calls: Calls | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        self._mistral = mistral
        self._appender = appender
        self._vault = vault or Vault(())
        self._calls = calls or Calls()
        self._gauge = gauge

    async def run(self, attempt: Attempt) -> Ending | Failed:
        """Call Mistral and log what it says. Returns the job's ending, or why there is none.

        A later attempt goes on with the text that is there, as `continuity` plans it, and says so first.
        One whose Mistral key cannot be opened here fails with SecretsLocked, before anybody is told or asked anything.
        Raises AttemptLost when the log refuses the attempt, which also closes the call to Mistral.
        """
        job = attempt.job
        with anyio.CancelScope() as scope:
            course = _Course(attempt, Draft(job.key, job.attempt, self._appender, scope.cancel))
            try:
                return await self._answer(course)
            except TimeoutError:
                error: TramontaneError = JobTimeout(f"the attempt took over {job.timeout_seconds:g} s")
            except TramontaneError as failure:
                error = failure
            except asyncio.CancelledError:
                # Handed over, most likely: what was paid for goes to the log, for the next attempt to go on with.
                with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_WORDS):
                    await course.draft.written()
                raise
            await course.draft.written()
            return course.failed(error)
        raise AttemptLost(f"attempt {job.attempt} of {show_id('job', job.key.id)} was overtaken")

    async def _answer(self, course: "_Course") -> Ending:
        if course.plan.mode != "finished" and (sealed := course.attempt.mistral_key) is not None:
            # First of all: without it nothing begins here that readers would have to be told of.
            course.api_key = self._vault.open(sealed)
        await course.announce()
        if course.plan.mode != "finished":
            async with asyncio.timeout(course.attempt.job.timeout_seconds):
                await self._ask(course)
            if self._gauge and course.stream:
                self._gauge.after(course.attempt.job, _text(course.stream.usage), course.attempt.mistral_key)
        # Past the limit from here on: the answer is there, and the log takes as long as it takes.
        return course.ending(await course.draft.settle())

    async def _ask(self, course: "_Course") -> None:
        try:
            await self._read(course)
        except RequestRefused:
            if course.plan.mode != "continue":
                raise
            # Refused calls cost nothing, and this one was of our making: ask as the caller did.
            course.begin("refused", prefix=False)
            await course.announce()
            await self._read(course)

    async def _read(self, course: "_Course") -> None:
        draft, transcript = course.draft, course.transcript
        job, mistral_key = course.attempt.job, course.attempt.mistral_key
        heard = await self._gauge.before(job, mistral_key) if self._gauge else None
        asked = self._mistral.stream(course.plan.request, api_key=course.api_key, heard=heard)
        async with self._calls.watch(job.model, asked) as call:
            course.stream = stream = call.stream
            async for delta in stream:
                call.token()
                if size := transcript.add(delta):
                    draft.grow(size, transcript.events)
                    await draft.room()
                if transcript.over:
                    return
        if size := transcript.end():
            draft.grow(size, transcript.events)


class _Course:
    """An attempt as far as it has come."""

    def __init__(self, attempt: Attempt, draft: Draft) -> None:
        self.attempt = attempt
        self.draft = draft
        #: The tenant's own for Mistral; None: ours.
        self.api_key: str | None = None
        #: From the moment that Mistral answers.
        self.stream: ChatStream | None = None
        self._past = attempt.past or Past(reason="")
        self._so_far = continuity.said(self._past.events)
        self.begin(self._past.reason if attempt.past else None)

    def begin(self, reason: str | None, *, prefix: bool = True) -> None:
        """Plan the attempt, from what earlier ones have left."""
        job = self.attempt.job
        request = msgspec.json.decode(self.attempt.request, type=dict[str, Raw])
        seed = job.key.id.int % _LARGEST_SEED
        self.plan = continuity.plan(request, self._so_far, resume=job.resume, seed=seed, prefix=prefix)
        self.transcript = Transcript(self._so_far, self.plan, reason=reason)
        self._announced = reason is None

    async def announce(self) -> None:
        """Tell readers how it goes on, before Mistral is asked: an attempt that has been overtaken asks nothing."""
        if not self._announced:
            self._announced = True
            self.draft.grow(1, self.transcript.events)
            await self.draft.written()

    def failed(self, error: TramontaneError) -> Failed:
        """Why the attempt did not get there."""
        own, usage = self._usage()
        return Failed(error, self.transcript.length, _text(own), _text(usage), unreported=self._unreported(error))

    def ending(self, rest: tuple[NewEvent, ...]) -> Ending:
        """The end of the job, with the events that are not yet in the log."""
        job, now = self.attempt.job, utc_now()
        own, usage = self._usage()
        unreported = self._past.unreported + self._unreported(None)
        finish_reason = self._finish_reason()
        complete = self.transcript.complete(finish_reason, attempts=job.attempt, usage=usage, unreported=unreported)
        result = ResultShape(
            job_id=show_id("job", job.key.id),
            request_id=job.request_id,
            content=self.transcript.content,
            usage=usage or _NULL,
            completed_at=iso(now),
            finish_reason=finish_reason,
            completion=Raw(self._completion(finish_reason, int(now.timestamp()))),
            unreported_attempts=unreported or UNSET,
        )
        return Ending(
            key=job.key,
            attempt=job.attempt,
            entry_id=self.attempt.entry_id,
            state=State.COMPLETED,
            at=now,
            events=(*rest, complete),
            result=encode(result),
            usage=_text(usage),
            own_usage=_text(own),
            unreported=self._unreported(None),
            correlation_id=self.stream.correlation_id if self.stream else None,
        )

    def _finish_reason(self) -> str:
        if self.transcript.over:
            return "stop"
        return self.plan.finish_reason or (self.stream and self.stream.finish_reason) or ""

    def _completion(self, finish_reason: str, created: int) -> bytes:
        """Mistral's object, of a continued answer with the whole text; one of ours where Mistral was not asked."""
        if self.stream is None:
            message = {"role": "assistant", "tool_calls": None, "content": self.transcript.content}
            choice = {"index": 0, "finish_reason": finish_reason, "message": message}
            model, id = self.attempt.job.model, show_id("job", self.attempt.job.key.id)  # noqa: A001 - it is one
            ours = {"id": id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}
            return encode(ours)
        completion = self.stream.completion()
        if not self.transcript.continued:
            return completion
        return continuity.whole(completion, self.transcript.content, finish_reason)

    def _usage(self) -> tuple[Raw | None, Raw | None]:
        """What Mistral reported of this attempt, and of all together."""
        own = self.stream.usage if self.stream else None
        return own, continuity.add_up((*self._past.usages, *([bytes(own)] if own else ())))

    def _unreported(self, error: TramontaneError | None) -> bool:
        """Mistral may have billed this attempt, and has not said what: it had begun to answer, or to think."""
        slow = isinstance(error, JobTimeout) or (isinstance(error, UpstreamTimeout) and error.phase != "connect")
        return (slow or self.stream is not None) and not (self.stream and self.stream.usage)


def _text(raw: Raw | None) -> str | None:
    return bytes(raw).decode() if raw else None

"""Many prompts at once: answers in the order of the prompts, a bounded number of calls, errors as the caller likes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from random import random
from typing import Any, Literal

from tramontane.errors import InvalidInput, MistralError, TramontaneError
from tramontane.mistral import MistralClient
from tramontane.retry import Backoff, delay, may_retry
from tramontane.settings import Settings, read_settings

#: A question, or a whole conversation in Mistral's form.
Prompt = str | Sequence[Mapping[str, Any]]
#: Called with how many prompts have ended, and how many there are.
Progress = Callable[[int, int], object]
Sleep = Callable[[float], Awaitable[object]]


async def process_batch(
    prompts: Iterable[Prompt],
    *,
    model: str = "mistral-small-latest",
    concurrency: int = 5,
    attempts: int = 3,
    on_error: Literal["raise", "return"] = "raise",
    progress: Progress | bool | None = None,
    client: MistralClient | None = None,
    settings: Settings | None = None,
    backoff: Backoff | None = None,
    sleep: Sleep = asyncio.sleep,
    **parameters: Any,
) -> list[str | TramontaneError]:
    """Answer all prompts, at most `concurrency` at a time; the answers stand in the order of the prompts.

    attempts: calls for one prompt at most. What may pass is tried again after the time that `retry.delay` gives,
    `Retry-After` included. on_error: with "raise" the first failure cancels the rest and is raised with the index of
    its prompt as a note; with "return" it stands in the place of the answer, and the rest goes on. progress: True
    for a bar in the terminal (on stderr), or a function. client: the caller's, who also closes it; without one,
    `settings` or the environment says where Mistral is. sleep: waits so many seconds between two attempts.
    parameters: Mistral's other chat fields.

    Raises InvalidInput for an empty prompt, before the first call. A cancel ends all calls.
    """
    _check(prompts, concurrency, attempts, on_error, parameters)
    requests = [
        {"model": model, "messages": _messages(prompt, index), **parameters} for index, prompt in enumerate(prompts)
    ]
    answers: list[str | TramontaneError] = [""] * len(requests)
    waiting = iter(enumerate(requests))
    ended = 0

    async def work() -> None:
        nonlocal ended
        for index, request in waiting:
            try:
                answers[index] = await call.answer(request)
            except TramontaneError as error:
                error.add_note(f"prompts[{index}]")
                if on_error == "raise":
                    raise
                answers[index] = error
            ended += 1
            show(ended, len(requests))

    with _shown(progress, len(requests)) as show:
        async with _opened(client, settings) as mistral:
            call = _Call(mistral, attempts, backoff or Backoff(), sleep)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(min(concurrency, len(requests))):
                        tasks.create_task(work())
            except ExceptionGroup as failures:
                first = failures.exceptions[0]
                raise first from first.__cause__
    return answers


@dataclass(frozen=True)
class _Call:
    """One prompt's way to its answer."""

    mistral: MistralClient
    attempts: int
    backoff: Backoff
    sleep: Sleep

    async def answer(self, request: Mapping[str, Any]) -> str:
        failures = 0
        while True:
            try:
                return await self._ask(request)
            except TramontaneError as error:
                failures += 1
                if not may_retry(error, failures, self.attempts):
                    raise
                asked = error.retry_after if isinstance(error, MistralError) else None
            await self.sleep(delay(self.backoff, failures, retry_after=asked, random=random()))  # noqa: S311  no secret

    async def _ask(self, request: Mapping[str, Any]) -> str:
        # Streamed, although nobody watches: silence is noticed within seconds, and a long answer is no timeout.
        async with self.mistral.stream(request) as stream:
            async for _ in stream:
                pass
            return stream.content


def _check(prompts: object, concurrency: int, attempts: int, on_error: str, parameters: Mapping[str, Any]) -> None:
    if isinstance(prompts, str):
        raise InvalidInput("prompts", "is one text: put it in a list")
    if concurrency < 1:
        raise InvalidInput("concurrency", "must be 1 or more")
    if attempts < 1:
        raise InvalidInput("attempts", "must be 1 or more")
    if on_error not in ("raise", "return"):
        raise InvalidInput("on_error", 'must be "raise" or "return"')
    if "stream" in parameters:
        raise InvalidInput("stream", "is not for the caller to choose here")


def _messages(prompt: Prompt, index: int) -> Sequence[Mapping[str, Any]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt.strip() else prompt
    if not messages or isinstance(messages, str):
        raise InvalidInput(f"prompts[{index}]", "is empty")
    return messages


@asynccontextmanager
async def _opened(client: MistralClient | None, settings: Settings | None) -> AsyncIterator[MistralClient]:
    if client is not None:
        yield client
        return
    async with MistralClient.from_settings(settings or read_settings()) as own:
        yield own


@contextmanager
def _shown(progress: Progress | bool | None, total: int) -> Iterator[Progress]:
    if callable(progress):
        yield progress
    elif progress:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn
        from rich.progress import Progress as Bar

        with Bar(*Bar.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("prompts", total=total)
            yield lambda ended, _: bar.update(task, completed=ended)
    else:
        yield lambda _ended, _total: None

"""Many prompts as jobs: their results in the order of the prompts, a bounded number under way."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Literal, TypeGuard, TypeVar

from tramontane.client.job import Job, Result
from tramontane.client.question import Prompt
from tramontane.errors import InvalidInput, TramontaneError

Item = TypeVar("Item", Result, Result | TramontaneError)

#: What the cancelling of the rest may take, in seconds.
_CANCEL: Final = 5.0


class Answers(Generic[Item]):
    """`async for` gives results as soon as they and all before them are there; `await` gives the list of them.

    submit: makes a job of a prompt, given its index. Jobs whose answers nobody will read any more, because one failed
    or the loop was left, are cancelled, unless `keep`.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        submit: Callable[[Prompt, int], Awaitable[Job]],
        tasks: asyncio.TaskGroup,
        *,
        concurrency: int,
        on_error: Literal["raise", "return"],
        keep: bool,
    ) -> None:
        if isinstance(prompts, str):
            raise InvalidInput("prompts", "is one text: put it in a list")
        if concurrency < 1:
            raise InvalidInput("concurrency", "must be 1 or more")
        if on_error not in ("raise", "return"):
            raise InvalidInput("on_error", 'must be "raise" or "return"')
        self._prompts = prompts
        self._submit = submit
        self._tasks = tasks
        self._concurrency = concurrency
        self._return_errors = on_error == "return"
        self._keep = keep

    def __await__(self) -> Generator[Any, None, list[Item]]:
        return self._list().__await__()

    async def __aiter__(self) -> AsyncGenerator[Item, None]:
        under_way: deque[_Asked] = deque()
        try:
            for index, prompt in enumerate(self._prompts):
                if len(under_way) == self._concurrency:
                    yield await self._next(under_way)
                under_way.append(_Asked(self._submit(prompt, index), index, self._tasks, keep=self._keep))
            while under_way:
                yield await self._next(under_way)
        finally:
            await _leave([asked for asked in under_way if not asked.task.done()])

    async def _list(self) -> list[Item]:
        return [answer async for answer in self]

    async def _next(self, under_way: "deque[_Asked]") -> Any:
        """The answer of the first one. An error of any that shall be raised is not waited for until it is the first."""
        while True:
            for asked in under_way:
                if asked.task.done() and self._raises(answer := asked.task.result()):
                    raise answer
            if under_way[0].task.done():
                return under_way.popleft().task.result()
            await asyncio.wait([a.task for a in under_way if not a.task.done()], return_when=asyncio.FIRST_COMPLETED)

    def _raises(self, answer: Result | Exception) -> TypeGuard[Exception]:
        return isinstance(answer, Exception) and not (self._return_errors and isinstance(answer, TramontaneError))


class _Asked:
    """A prompt on its way to its answer, in a task that raises nothing: in a group, that would end all the others."""

    def __init__(self, submit: Awaitable[Job], index: int, tasks: asyncio.TaskGroup, *, keep: bool) -> None:
        self._job: Job | None = None
        self._left = False
        self._keep = keep
        self.task: asyncio.Task[Result | Exception] = tasks.create_task(self._answer(submit, index))

    def leave(self) -> None:
        """Want no answer any more. What is being submitted has its job first, so that it can be cancelled, too."""
        self._left = True
        if self._job is not None:
            self.task.cancel()

    async def _answer(self, submit: Awaitable[Job], index: int) -> Result | Exception:
        try:
            self._job = await submit
            if self._left:
                raise asyncio.CancelledError
            return await self._job
        except Exception as error:  # noqa: BLE001
            error.add_note(f"prompts[{index}]")
            return error
        except asyncio.CancelledError:
            if self._job is not None and not self._keep:
                with suppress(TimeoutError, TramontaneError):
                    async with asyncio.timeout(_CANCEL):
                        await self._job.cancel()
            raise


async def _leave(under_way: "Sequence[_Asked]") -> None:
    tasks = [asked.task for asked in under_way]
    for asked in under_way:
        asked.leave()
    if tasks:
        _, slow = await asyncio.wait(tasks, timeout=_CANCEL)
        for task in slow:
            task.cancel()

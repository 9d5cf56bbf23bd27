"""Tramontane without `async`: the same verbs as plain calls, the same loops as plain loops.

    with TramontaneSync("http://localhost:8787") as t:      # or TramontaneSync(): embedded
        for piece in t.stream("Why does the tramontane blow?"):
            print(piece, end="", flush=True)

The event loop has a thread of its own, so this also works where a loop runs already (a notebook). One value may be used
from several threads.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from concurrent import futures
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, Self, TypeVar, overload

from tramontane.client import Headers, Job, Prompt, Result
from tramontane.engine import Tramontane
from tramontane.errors import TramontaneError

P = ParamSpec("P")
T = TypeVar("T")
Behind = TypeVar("Behind")

_CLOSED: Final = "TramontaneSync is open inside `with` only"
#: What the cancelling of a call may take after Ctrl-C, in seconds.
_CANCEL: Final = 5.0


class LoopThread:
    """A thread with an event loop, in which a Tramontane is open."""

    def __init__(self, tramontane: Tramontane) -> None:
        self._tramontane = tramontane
        self._began = Event()
        self._opened: futures.Future[None] = futures.Future()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None]
        # A program that forgets to close it shall end all the same.
        self._thread = Thread(target=self._work, name="tramontane", daemon=True)

    def start(self) -> None:
        """Open it. Raises what opening it raises."""
        self._thread.start()
        try:
            self._opened.result()
        except KeyboardInterrupt:
            self.stop()
            raise

    def stop(self) -> None:
        """Close it, and wait until it is closed. Raises what has ended it before its time."""
        self._began.wait()
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run in the thread. An interrupt of the caller cancels it."""
        ended = Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        running = watched()
        try:
            future = asyncio.run_coroutine_threadsafe(running, self._loop)
        except (AttributeError, RuntimeError):
            running.close()
            work.close()
            raise RuntimeError(_CLOSED) from self._failure
        try:
            return future.result()
        except futures.CancelledError:
            raise RuntimeError(_CLOSED) from self._failure
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(_CANCEL)
            raise

    def _work(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised to whoever opens or closes it
            if not self._opened.done():
                self._opened.set_exception(error)
            else:
                self._failure = error

    async def _main(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop, self._task = asyncio.get_running_loop(), task
        self._began.set()
        async with self._tramontane:
            self._opened.set_result(None)
            await asyncio.Event().wait()


class _Face(Generic[Behind]):
    """What all blocking faces have: the asynchronous value behind them, and the thread in which it lives."""

    def __init__(self, behind: Behind, thread: LoopThread) -> None:
        self._behind = behind
        self._thread = thread

    def _each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while (item := self._thread.run(_next(items))) is not _END:
                yield item  # type: ignore[misc]
        finally:
            with suppress(RuntimeError):  # it was closed meanwhile, and the loop with it
                self._thread.run(_close(items))


def _call(
    verb: Callable[Concatenate[Behind, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Face[Behind], P], T]:
    @functools.wraps(verb)
    def call(self: _Face[Behind], /, *given: P.args, **named: P.kwargs) -> T:
        return self._thread.run(verb(self._behind, *given, **named))

    return call


def _job(
    verb: Callable[Concatenate[Behind, P], Coroutine[Any, Any, Job]],
) -> "Callable[Concatenate[_Face[Behind], P], JobSync]":
    @functools.wraps(verb)
    def call(self: _Face[Behind], /, *given: P.args, **named: P.kwargs) -> "JobSync":
        return JobSync(self._thread.run(verb(self._behind, *given, **named)), self._thread)

    return call


def _loop(
    verb: Callable[Concatenate[Behind, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[_Face[Behind], P], Iterator[T]]:
    @functools.wraps(verb)
    def call(self: _Face[Behind], /, *given: P.args, **named: P.kwargs) -> Iterator[T]:
        return self._each(verb(self._behind, *given, **named))

    return call


class JobSync(_Face[Job]):
    """A durable job. It goes on whether anybody holds this value or not; only `cancel` stops it."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self._behind.id

    @property
    def text(self) -> str:
        """The answer as far as this value has read it."""
        return self._behind.text

    def __repr__(self) -> str:
        return repr(self._behind)

    result = _call(Job.result)
    events = _loop(Job.events)
    pieces = _loop(Job.pieces)
    cancel = _call(Job.cancel)
    details = _call(Job.details)
    retry = _job(Job.retry)
    delete = _call(Job.delete)


class TramontaneSync(_Face[Tramontane]):
    """Asks for jobs, like Tramontane and with the same arguments. Use it as `with`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        headers: Headers | None = None,
        patience: float = 60.0,
        worker: bool = True,
        **settings: Any,
    ) -> None:
        behind = Tramontane(url, api_key=api_key, headers=headers, patience=patience, worker=worker, **settings)
        super().__init__(behind, LoopThread(behind))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()

    submit = _job(Tramontane.submit)
    stream = _loop(Tramontane.stream)
    cancel = _call(Tramontane.cancel)

    def submit_many(
        self, prompts: Iterable[Prompt], *, idempotency_key: str | None = None, **options: Any
    ) -> list[JobSync]:
        """Have many jobs done at once. See Tramontane.submit_many."""
        jobs = self._thread.run(self._behind.submit_many(prompts, idempotency_key=idempotency_key, **options))
        return [JobSync(job, self._thread) for job in jobs]

    def job(self, job_id: str) -> JobSync:
        """A job by its id. Nothing is asked yet: one that is not there raises NotFound when it is used."""
        return JobSync(self._behind.job(job_id), self._thread)

    @overload
    def map(
        self, prompts: Iterable[Prompt], *, on_error: Literal["raise"] = "raise", **options: Any
    ) -> Iterator[Result]: ...
    @overload
    def map(
        self, prompts: Iterable[Prompt], *, on_error: Literal["return"], **options: Any
    ) -> Iterator[Result | TramontaneError]: ...
    def map(
        self, prompts: Iterable[Prompt], *, on_error: Literal["raise", "return"] = "raise", **options: Any
    ) -> Iterator[Any]:
        """Have many prompts answered as jobs; their results in the order of the prompts. See Tramontane.map."""
        answers = self._behind.map(prompts, on_error=on_error, **options)
        return self._each(aiter(answers))


_END: Final = object()


async def _next(items: AsyncGenerator[T, None]) -> T | object:
    return await anext(items, _END)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()

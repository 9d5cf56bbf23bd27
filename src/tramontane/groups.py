"""Group commit: callers that come together share one transaction, since what a commit costs is paid per commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

#: Seconds between two tries of what must not be lost.
_PAUSE: Final = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Gathers what is added while a write is under way, and writes it together next.

    write: takes items, returns one result for each, in order. A lone caller waits for nobody. When a group fails, each
    of its items is tried once more, alone, so that a bad one fails alone (and a good one succeeds whose statement was
    prepared before a migration changed the table: Postgres refuses that once); an error of `outages` is nobody's fault,
    and fails all. An exception among the results is a result like any other: it is returned, not raised.
    told: of each group's size.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        outages: tuple[type[Exception], ...] = (),
        largest: int = 200,
        told: Callable[[int], object] = int,
    ) -> None:
        self._write = write
        self._outages = outages
        self._largest = largest
        self._told = told
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._news = asyncio.Event()

    async def add(self, item: Item) -> Result:
        """Write an item; its result, once it is committed.

        A cancelled caller may find its item written all the same.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._news.set()
        return await future

    async def insist(self, item: Item, *, patience: float, failed: Callable[[Exception], None]) -> Result:
        """`add`, once more whenever that fails, for so many seconds; then the failure is raised.

        For what may be written twice and must not be lost. failed: told of each failure that another try follows.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            try:
                return await self.add(item)
            except Exception as error:
                if loop.time() > deadline:
                    raise
                failed(error)
                await asyncio.sleep(_PAUSE)

    async def run(self) -> None:
        """Write groups until cancelled. Whoever still waits then is cancelled too."""
        try:
            while True:
                await self._news.wait()
                group, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                if not self._waiting:
                    self._news.clear()
                self._told(len(group))
                try:
                    await self._commit(group)
                finally:
                    _cancel(group)  # whoever has no answer by now gets none
        finally:
            _cancel(self._waiting)

    async def _commit(self, group: list[tuple[Item, asyncio.Future[Result]]], *, again: bool = True) -> None:
        try:
            results = await self._write([item for item, _ in group])
        except Exception as error:  # noqa: BLE001 - handed to the callers, each of whom raises it
            if again and not isinstance(error, self._outages):
                for member in group:
                    await self._commit([member], again=False)
                return
            for _, future in group:
                if not future.done():  # its caller may have gone
                    future.set_exception(error)
        else:
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _cancel(group: "list[tuple[Item, asyncio.Future[Result]]]") -> None:
    for _, future in group:
        future.cancel()

"""The ledger: every call that the simulator got, what it would have billed, and how it ended."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One `POST /v1/chat/completions`, as far as it has come. Times are readings of the simulator's clock."""

    #: 1 for the first call of this simulator.
    number: int
    #: The first 12 hex digits of the key's SHA-256, empty without a key. The key itself is kept nowhere.
    key: str
    #: The client's address and port: calls with the same one came over one connection.
    connection: str
    #: The body as it was sent, empty until it is read, or when it is no JSON object.
    request: dict[str, Any] = {}
    model: str = ""
    stream: bool = False
    #: HTTP status, None as long as nothing was answered.
    status: int | None = None
    #: Tokens billed so far. What a cut or a leaving client spared is not billed.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    #: `data:` frames written, `[DONE]` not counted.
    chunks: int = 0
    #: `running`; `complete`; `refused` with a status of 400 or more; `disconnected` by the client; `stopped` with the
    #: simulator; the fault that struck: `cut`, `end`, `malformed`, `error` (a silence ends as `disconnected`); or
    #: `failed`, by a fault that nobody asked for.
    outcome: str = "running"
    started: float
    ended: float | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of all calls."""

    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    chunks: int
    outcomes: dict[str, int]


class Ledger:
    """Calls in the order they came. The oldest are forgotten past `keep` of them; the totals are not."""

    def __init__(self, *, keep: int = 10_000) -> None:
        self._keep = keep
        self._calls: dict[int, Call] = {}
        self._begun = 0
        self._ended = Counter[str]()
        self._sums = Counter[str]()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def calls(self) -> list[Call]:
        """All calls that are remembered."""
        return list(self._calls.values())

    def totals(self) -> Totals:
        """The sum of all calls, of running ones too."""
        outcomes = dict(self._ended)
        running = self._begun - self._ended.total()
        if running:
            outcomes["running"] = running
        return Totals(calls=self._begun, outcomes=outcomes, **{name: self._sums[name] for name in _SUMMED})

    def begin(self, *, key: str, connection: str, now: float) -> Call:
        """Enter a new call."""
        self._begun += 1
        call = Call(number=self._begun, key=key, connection=connection, started=now)
        self._calls[call.number] = call
        while len(self._calls) > self._keep:
            del self._calls[next(iter(self._calls))]
        self._changed()
        return call

    def change(self, call: Call, **changes: Any) -> Call:
        """Write down what has become of a call, and return it as it is now."""
        changed = msgspec.structs.replace(call, **changes)
        if call.number in self._calls:
            self._calls[call.number] = changed
        for name in _SUMMED:
            if name in changes:
                self._sums[name] += changes[name] - getattr(call, name)
        if changed.outcome != call.outcome:
            self._ended[changed.outcome] += 1
        self._changed()
        return changed

    async def wait_for_calls(self, count: int) -> None:
        """Return once `count` calls have come."""
        await self._wait(lambda: self._begun >= count)

    async def wait_for_ends(self, count: int, outcome: str | None = None) -> None:
        """Return once `count` calls have ended, or have ended in that way."""
        await self._wait(lambda: (self._ended[outcome] if outcome else self._ended.total()) >= count)

    async def wait_for_chunks(self, number: int, count: int) -> None:
        """Return once the call of that number has sent `count` chunks."""
        await self._wait(lambda: number in self._calls and self._calls[number].chunks >= count)

    async def _wait(self, holds: Callable[[], bool]) -> None:
        if holds():
            return
        waiting = (holds, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting[1]
        finally:
            self._waiting.remove(waiting)

    def _changed(self) -> None:
        for holds, future in self._waiting:
            if not future.done() and holds():
                future.set_result(None)


_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "chunks")

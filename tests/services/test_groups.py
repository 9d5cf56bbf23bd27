"""Group commit: who comes together is written together, and nobody is left waiting."""

import asyncio
from collections.abc import Sequence

import pytest
from lives import at_once, in_the_background

from tramontane import groups as module
from tramontane.groups import GroupCommit


class Ledger:
    """Writes down each group; an item named `bad` fails its group, and `gate` holds writes up."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception = ValueError("bad")

    async def write(self, items: Sequence[str]) -> list[str]:
        self.groups.append(list(items))
        self.called.set()
        await self.gate.wait()
        if "bad" in items:
            raise self.error
        return [item.upper() for item in items]


async def test_a_lone_caller_waits_for_nobody() -> None:
    ledger = Ledger()
    group = GroupCommit[str, str](ledger.write)
    async with in_the_background(group.run()):
        assert await group.add("a") == "A"
        assert await group.add("b") == "B"
    assert ledger.groups == [["a"], ["b"]]


async def test_what_comes_during_a_write_is_written_together_in_order() -> None:
    ledger = Ledger()
    group = GroupCommit[str, str](ledger.write)
    async with in_the_background(group.run()):
        assert await group.add("0") == "0"
        ledger.called.clear()
        ledger.gate.clear()
        outcomes = asyncio.ensure_future(at_once([group.add(item) for item in "abc"]))
        await ledger.called.wait()
        more = asyncio.ensure_future(at_once([group.add(item) for item in "de"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ledger.gate.set()
        assert await outcomes == ["A", "B", "C"]
        assert await more == ["D", "E"]
    assert ledger.groups == [["0"], ["a", "b", "c"], ["d", "e"]]


async def test_a_group_has_at_most_its_largest_size_and_nobody_is_forgotten() -> None:
    ledger = Ledger()
    group = GroupCommit[str, str](ledger.write, largest=4)
    async with in_the_background(group.run()):
        items = [f"i{number}" for number in range(10)]
        assert await at_once([group.add(item) for item in items]) == [item.upper() for item in items]
    assert [len(written) for written in ledger.groups] == [4, 4, 2]


async def test_a_bad_item_fails_alone() -> None:
    ledger = Ledger()
    group = GroupCommit[str, str](ledger.write)
    async with in_the_background(group.run()):
        outcomes = await at_once([group.add(item) for item in ("a", "bad", "c")])
        assert [outcomes[0], outcomes[2]] == ["A", "C"]
        assert isinstance(outcomes[1], ValueError)
        assert await group.add("d") == "D"


async def test_an_outage_fails_all_at_once_and_is_not_tried_item_by_item() -> None:
    ledger = Ledger()
    ledger.error = ConnectionError("away")
    group = GroupCommit[str, str](ledger.write, outages=(OSError,))
    async with in_the_background(group.run()):
        outcomes = await at_once([group.add(item) for item in ("a", "bad", "c")])
    assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
    assert len(ledger.groups) == 1


async def test_an_exception_among_the_results_is_returned_and_not_raised() -> None:
    lost = LookupError("overtaken")

    async def write(items: Sequence[str]) -> list[str | LookupError]:
        return [lost for _ in items]

    group = GroupCommit[str, "str | LookupError"](write)
    async with in_the_background(group.run()):
        assert await group.add("a") is lost


async def test_a_caller_that_leaves_does_not_harm_the_others() -> None:
    ledger = Ledger()
    group = GroupCommit[str, str](ledger.write)
    async with in_the_background(group.run()):
        ledger.gate.clear()
        leaving = asyncio.ensure_future(group.add("a"))
        staying = asyncio.ensure_future(group.add("b"))
        await ledger.called.wait()
        leaving.cancel()
        ledger.gate.set()
        assert await staying == "B"
        assert leaving.cancelled()


@pytest.mark.parametrize("during", ["the write", "the retry of each alone"])
async def test_when_it_ends_nobody_waits_for_ever(during: str) -> None:
    writing = asyncio.Event()

    async def write(items: Sequence[str]) -> list[str]:
        if len(items) > 1 and during != "the write":
            raise ValueError("bad")
        writing.set()
        await asyncio.Event().wait()
        raise AssertionError

    group = GroupCommit[str, str](write)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(group.run())
        callers = [asyncio.ensure_future(group.add(item)) for item in "abc"]
        await writing.wait()
        callers.append(asyncio.ensure_future(group.add("late")))
        await asyncio.sleep(0)
        running.cancel()
    await asyncio.wait(callers, timeout=2)
    assert all(caller.cancelled() for caller in callers)


async def test_who_insists_is_written_once_the_writing_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    answers: list[Exception | str] = [ConnectionError("away"), ConnectionError("away"), "A"]
    told: list[Exception] = []

    async def write(items: Sequence[str]) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    group = GroupCommit[str, str](write, outages=(ConnectionError,))
    async with in_the_background(group.run()):
        assert await group.insist("a", patience=60.0, failed=told.append) == "A"
    assert [str(error) for error in told] == ["away", "away"]


async def test_patience_ends_with_the_failure_itself() -> None:
    told: list[Exception] = []

    async def write(items: Sequence[str]) -> list[str]:
        raise ConnectionError("away")

    group = GroupCommit[str, str](write, outages=(ConnectionError,))
    async with in_the_background(group.run()):
        with pytest.raises(ConnectionError, match="away"):
            await group.insist("a", patience=-1.0, failed=told.append)
    assert told == []

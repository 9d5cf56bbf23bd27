"""The appender: text of all attempts in one commit, written once, and upstream waits for the log."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import msgspec
import pytest
from lives import T0, Lives, in_the_background

from tramontane import appender as module
from tramontane.appender import Appender, Draft
from tramontane.database import Database
from tramontane.models import Attempt, Batch, JobKey, NewEvent
from tramontane.store import EventStore


class Events(EventStore):
    """The real log, with a gate before it, and a wire that may break after a commit."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.pool)
        self.calls: list[list[Batch]] = []
        self.called = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.break_after_commit = 0
        self.break_before_commit = 0

    async def append(self, batches: Sequence[Batch], now: datetime) -> list[int | None]:
        self.calls.append(list(batches))
        self.called.set()
        await self.gate.wait()
        if self.break_before_commit:
            self.break_before_commit -= 1
            raise ConnectionError("no answer, nothing written")
        heads = await super().append(batches, now)
        if self.break_after_commit:
            self.break_after_commit -= 1
            raise ConnectionError("no answer, all written")
        return heads


class Text:
    """What an attempt says, and the draft that takes it."""

    def __init__(self, attempt: Attempt, appender: Appender) -> None:
        self.lost = 0
        self.key = attempt.job.key
        self.draft = Draft(self.key, attempt.job.attempt, appender, self._on_lost)
        self._waiting: list[str] = []

    def say(self, text: str) -> None:
        self._waiting.append(text)
        self.draft.grow(len(text), self._events)

    def _events(self) -> list[NewEvent]:
        text, self._waiting = "".join(self._waiting), []
        return [NewEvent("chunk", msgspec.json.encode({"content": text}))]

    def _on_lost(self) -> None:
        self.lost += 1


@pytest.fixture
async def lives(database: Database) -> Lives:
    lives = Lives(database)
    await lives.worker()
    return lives


@pytest.fixture
def events(database: Database) -> Events:
    return Events(database)


@pytest.fixture
def woken() -> list[tuple[JobKey, int]]:
    return []


@pytest.fixture
def appender(events: Events, woken: list[tuple[JobKey, int]], monkeypatch: pytest.MonkeyPatch) -> Appender:
    monkeypatch.setattr(module, "_PAUSE_AFTER_FAILURE", 0.0)
    return Appender(events, lambda batch, head: woken.append((batch.key, head)), interval=0.001)


async def texts(lives: Lives, key: JobKey) -> list[str]:
    return [msgspec.json.decode(event.body)["content"] for event in (await lives.log(key))[1:]]


async def test_text_that_comes_during_a_commit_is_one_event_of_the_next(
    lives: Lives, events: Events, appender: Appender
) -> None:
    text = Text(await lives.running(), appender)
    events.gate.clear()
    async with in_the_background(appender.run()):
        text.say("a")
        await events.called.wait()
        events.called.clear()
        for word in "bcd":
            text.say(word)
        events.gate.set()
        await events.called.wait()
        await text.draft.settle()
    assert await texts(lives, text.key) == ["a", "bcd"]


async def test_all_that_is_ready_goes_with_one_statement(lives: Lives, events: Events, appender: Appender) -> None:
    several = [Text(await lives.running(), appender) for _ in range(5)]
    for text in several:
        text.say("x")
    async with in_the_background(appender.run()):
        await events.called.wait()
        for text in several:
            await text.draft.settle()
    assert [len(batches) for batches in events.calls] == [5]
    assert [await texts(lives, text.key) for text in several] == [["x"]] * 5


async def test_readers_are_woken_after_the_commit(
    lives: Lives, events: Events, appender: Appender, woken: list[tuple[JobKey, int]]
) -> None:
    text = Text(await lives.running(), appender)
    events.gate.clear()
    text.say("x")
    async with in_the_background(appender.run()):
        await events.called.wait()
        assert woken == []
        events.gate.set()
        await text.draft.settle()
    assert woken == [(text.key, 2)]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_batch_whose_commit_is_unknown_is_repeated_and_written_once(
    lives: Lives, events: Events, appender: Appender, when: str
) -> None:
    setattr(events, f"break_{when}_commit", 2)
    text = Text(await lives.running(), appender)
    async with in_the_background(appender.run()):
        text.say("once")
        await events.called.wait()
        text.say(" more")
        rest = await text.draft.settle()
    assert [batches[0].number for batches in events.calls] == [1, 1, 1]
    assert await texts(lives, text.key) == ["once"]
    assert [msgspec.json.decode(event.body)["content"] for event in rest] == [" more"]
    assert text.lost == 0


async def test_a_draft_that_is_refused_is_told_once_and_the_others_go_on(
    lives: Lives, events: Events, appender: Appender
) -> None:
    lost, good = Text(await lives.running(), appender), Text(await lives.running(), appender)
    await lives.jobs.cancel(lost.key, T0)
    lost.say("late")
    good.say("fine")
    async with in_the_background(appender.run()):
        await events.called.wait()
        await good.draft.settle()
        await lost.draft.settle()
        await lost.draft.room()
    assert (lost.lost, good.lost) == (1, 0)
    assert await texts(lives, good.key) == ["fine"]


@pytest.mark.parametrize("body", [b"this is no JSON", b'{}\x1e{"content":"another\'s"}', b'{"content":"\x1e"}'])
async def test_text_that_the_log_cannot_take_ends_its_own_attempt_and_no_other(
    lives: Lives, events: Events, appender: Appender, body: bytes
) -> None:
    bad, good = Text(await lives.running(), appender), Text(await lives.running(), appender)
    bad.draft.grow(1, lambda: [NewEvent("chunk", body)])
    good.say("fine")
    async with in_the_background(appender.run()):
        await events.called.wait()
        await good.draft.settle()
        await bad.draft.settle()
    assert (bad.lost, good.lost) == (1, 0)
    assert await texts(lives, good.key) == ["fine"]
    assert await texts(lives, bad.key) == []


async def test_upstream_waits_when_it_is_far_ahead_of_the_log(lives: Lives, events: Events, appender: Appender) -> None:
    text = Text(await lives.running(), appender)
    events.gate.clear()
    async with in_the_background(appender.run()):
        text.say("a")
        await events.called.wait()
        text.say("x" * (256 * 1024 + 1))
        room = asyncio.ensure_future(text.draft.room())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not room.done()
        events.gate.set()
        async with asyncio.timeout(5):
            await room
        # The commit of `a` made room to ask for more text; the rest was taken meanwhile or goes with the ending.
        await text.draft.settle()


async def test_settle_hands_over_what_was_never_taken_once_the_batch_before_is_in_the_log(
    lives: Lives, events: Events, appender: Appender
) -> None:
    text = Text(await lives.running(), appender)
    events.gate.clear()
    async with in_the_background(appender.run()):
        text.say("in the log")
        await events.called.wait()
        text.say("with the ending")
        settling = asyncio.ensure_future(text.draft.settle())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not settling.done()
        events.gate.set()
        rest = await settling
    assert [msgspec.json.decode(event.body)["content"] for event in rest] == ["with the ending"]
    assert await texts(lives, text.key) == ["in the log"]

"""The queue's consumer over a real Postgres: what it picks up, how much at once, and what it leaves alone.

Here real time is the subject: pgqueuer judges heartbeats by the clock of the database. They are short.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from lives import at_once, in_the_background, until

from tramontane import queue
from tramontane.database import Database, open_database
from tramontane.ids import new_id
from tramontane.listener import Listener
from tramontane.models import JobKey
from tramontane.queue import Consumer, Entry, LeaveEntry
from tramontane.settings import Settings
from tramontane.store import prepare

#: A poll that comes too late for any test: what is picked up before it, a hint has brought.
NEVER = 60.0


@pytest.fixture
async def listener(database: Database) -> AsyncIterator[Listener]:
    listener = Listener(database.connect, probe=0.05)
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        yield listener


class Queue:
    """Entries of a database, and consumers of them."""

    def __init__(self, database: Database, listener: Listener) -> None:
        self.pool = database.pool
        self.listener = listener

    async def put(self, count: int = 1, *, each_alone: bool = False) -> list[JobKey]:
        keys = [JobKey(tenant="default", id=new_id()) for _ in range(count)]
        for group in [[key] for key in keys] if each_alone else [keys]:
            async with self.pool.acquire() as connection, connection.transaction():
                await queue.put(connection, group, [0] * len(group))
        return keys

    async def remove(self, entry: Entry) -> None:
        async with self.pool.acquire() as connection:
            await queue.remove(connection, [entry.id])

    async def cancel(self, entry: Entry) -> None:
        async with self.pool.acquire() as connection:
            await queue.cancel(connection, entry.id)

    async def entries(self) -> list[tuple[int, str, JobKey]]:
        async with self.pool.acquire() as connection:
            return await queue.entries(connection)

    def consumer(
        self,
        handle: Callable[[Entry], Awaitable[None]],
        *,
        concurrency: int = 5,
        heartbeat: float = 20.0,
        poll: float = NEVER,
    ) -> Consumer:
        return Consumer(self.pool, self.listener, handle, concurrency=concurrency, heartbeat=heartbeat, poll=poll)


@pytest.fixture
def entries(database: Database, listener: Listener) -> Queue:
    return Queue(database, listener)


@asynccontextmanager
async def consuming(consumer: Consumer) -> AsyncIterator[None]:
    """Run a consumer, stop it at the end, and wait for it."""
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        tasks.create_task(consumer.run())
        try:
            yield
        finally:
            consumer.stop()


async def idle(queue_: Queue) -> None:
    """Wait until a consumer listens: what is put from now on comes by a hint."""
    await until(lambda: listens(queue_))


async def listens(queue_: Queue) -> bool:
    return bool(queue_.listener._callbacks.get("tramontane_ch_pgqueuer"))


async def test_an_entry_is_picked_up_by_its_notification(entries: Queue) -> None:
    handled: asyncio.Queue[Entry] = asyncio.Queue()

    async def handle(entry: Entry) -> None:
        await entries.remove(entry)
        handled.put_nowait(entry)

    async with consuming(entries.consumer(handle)):
        for count in (1, 1, 3):
            keys = await entries.put(count)
            assert {(await handled.get()).key for _ in keys} == set(keys)
    assert await entries.entries() == []


async def test_a_key_survives_the_way_through_the_queue(entries: Queue) -> None:
    handled: asyncio.Queue[JobKey] = asyncio.Queue()

    async def handle(entry: Entry) -> None:
        handled.put_nowait(entry.key)

    key = JobKey(tenant="Sète & fils / 風", id=new_id())
    async with consuming(entries.consumer(handle)):
        async with entries.pool.acquire() as connection:
            await queue.put(connection, [key], [0])
        assert await handled.get() == key


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_as_many_run_at_once_as_the_concurrency_and_never_more(entries: Queue, concurrency: int) -> None:
    running = most = done = 0
    full, finished = asyncio.Event(), asyncio.Event()

    async def handle(entry: Entry) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if running == concurrency:
            full.set()
        await full.wait()
        await asyncio.sleep(0.005)  # the work
        await entries.remove(entry)
        running -= 1
        done += 1
        if done == 4 * concurrency:
            finished.set()

    async with consuming(entries.consumer(handle, concurrency=concurrency)):
        await entries.put(4 * concurrency)
        await finished.wait()
    assert most == concurrency


async def test_of_what_comes_between_two_polls_nothing_is_missed(entries: Queue) -> None:
    handled = set()
    finished = asyncio.Event()

    async def handle(entry: Entry) -> None:
        await entries.remove(entry)
        handled.add(entry.key)
        if len(handled) == 60:
            finished.set()

    async with consuming(entries.consumer(handle, concurrency=60)):
        await idle(entries)
        await at_once([entries.put(10, each_alone=True) for _ in range(6)])
        await finished.wait()
    assert await entries.entries() == []


async def test_between_two_polls_one_hint_is_passed_on_and_every_cancel(entries: Queue) -> None:
    passed: list[str] = []
    driver = queue._PoolDriver(entries.pool, entries.listener)
    await driver.add_listener("tramontane_ch_pgqueuer", lambda payload: passed.append(str(payload)))
    insert = '{"type":"table_changed_event","operation":"insert"}'
    delete = '{"type":"table_changed_event","operation":"delete"}'
    cancel = '{"type":"cancellation_event","ids":[1]}'
    for payload in (delete, insert, insert, cancel, delete, cancel, insert, ""):
        driver._heard(payload)
    driver.wake()
    assert passed == [insert, cancel, cancel]
    driver.polled()
    driver.wake()
    driver._heard(insert)
    assert len(passed) == 4
    async with driver:
        pass


async def test_a_cancel_interrupts_the_handler_at_once_and_the_entry_goes(entries: Queue) -> None:
    started: asyncio.Queue[Entry] = asyncio.Queue()
    interrupted = asyncio.Event()

    async def handle(entry: Entry) -> None:
        started.put_nowait(entry)
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    async with consuming(entries.consumer(handle)):
        await entries.put()
        entry = await started.get()
        async with asyncio.timeout(1):
            await entries.cancel(entry)
            await interrupted.wait()
        await until(lambda: empty(entries))


async def empty(entries: Queue) -> bool:
    return await entries.entries() == []


async def test_a_cancelled_handlers_slot_is_free_at_once(entries: Queue) -> None:
    started: asyncio.Queue[Entry] = asyncio.Queue()

    async def handle(entry: Entry) -> None:
        started.put_nowait(entry)
        await asyncio.Event().wait()

    consumer = entries.consumer(handle, concurrency=1)
    async with consuming(consumer):
        keys = await entries.put(3)
        for key in keys:
            async with asyncio.timeout(2):
                entry = await started.get()
            assert entry.key == key
            await entries.cancel(entry)


async def test_an_entry_that_is_left_alone_stays_picked_and_is_taken_over_after_the_heartbeat(
    entries: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    taken: asyncio.Queue[Entry] = asyncio.Queue()

    async def lose(entry: Entry) -> None:
        taken.put_nowait(entry)
        raise LeaveEntry

    async def handle(entry: Entry) -> None:
        await entries.remove(entry)
        taken.put_nowait(entry)

    async with consuming(entries.consumer(lose, heartbeat=1.0, poll=0.1)):
        await entries.put()
        first = await taken.get()
    assert [status for _, status, _ in await entries.entries()] == ["picked"]
    async with consuming(entries.consumer(handle, heartbeat=1.0, poll=0.1)):
        assert await taken.get() == first
    assert await entries.entries() == []
    assert [record for record in caplog.records if record.name == "pgqueuer"] == []


async def test_a_consumer_that_is_cancelled_again_and_again_leaves_its_entries(entries: Queue) -> None:
    started, interrupted = asyncio.Event(), asyncio.Event()

    async def handle(_: Entry) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    running = asyncio.ensure_future(entries.consumer(handle).run())
    await entries.put()
    await started.wait()
    running.cancel()
    await asyncio.wait([running], timeout=0.05)
    # The first cancel is a wish to end: it waits for what runs. The next ones, an impatient Ctrl-C, do not.
    assert not interrupted.is_set()
    while not running.done():
        running.cancel()
        await asyncio.wait([running], timeout=0.05)
    assert interrupted.is_set()
    assert [status for _, status, _ in await entries.entries()] == ["picked"]


async def test_stop_ends_the_polls_and_waits_for_what_runs(entries: Queue) -> None:
    started: asyncio.Queue[Entry] = asyncio.Queue()
    let_go = asyncio.Event()

    async def handle(entry: Entry) -> None:
        started.put_nowait(entry)
        await let_go.wait()
        await entries.remove(entry)

    consumer = entries.consumer(handle)
    running = asyncio.ensure_future(consumer.run())
    await entries.put()
    await started.get()
    consumer.stop()
    late = await entries.put(3)
    await asyncio.sleep(0)
    assert not running.done()
    let_go.set()
    async with asyncio.timeout(5):
        await running
    # A poll that was under way may have brought some of them. What was taken has run to its end.
    taken = {started.get_nowait().key for _ in range(started.qsize())}
    left = [(status, key) for _, status, key in await entries.entries()]
    assert left == [("queued", key) for key in late if key not in taken]


async def test_a_consumer_that_was_stopped_before_it_ran_takes_nothing(entries: Queue) -> None:
    async def handle(_: Entry) -> None:
        raise AssertionError("nothing may run")

    await entries.put()
    consumer = entries.consumer(handle)
    consumer.stop()
    async with asyncio.timeout(5):
        await consumer.run()
    assert len(await entries.entries()) == 1


# Outages


async def terminate_all_others(database: Database) -> None:
    connection = await database.connect()
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()


async def test_polls_survive_the_loss_of_every_connection(entries: Queue, database: Database) -> None:
    handled: asyncio.Queue[JobKey] = asyncio.Queue()

    async def handle(entry: Entry) -> None:
        handled.put_nowait(entry.key)

    async with consuming(entries.consumer(handle, poll=0.1)):
        [first] = await entries.put()
        assert await handled.get() == first
        await terminate_all_others(database)
        async with asyncio.timeout(8):
            [second] = await put_again(entries)
            assert await handled.get() == second


async def test_while_a_handler_runs_an_outage_keeps_no_other_entry_waiting(entries: Queue, database: Database) -> None:
    handled: asyncio.Queue[JobKey] = asyncio.Queue()
    let_go = asyncio.Event()

    async def handle(entry: Entry) -> None:
        handled.put_nowait(entry.key)
        await let_go.wait()

    async with consuming(entries.consumer(handle, poll=0.05)):
        await entries.put()
        await handled.get()
        await terminate_all_others(database)
        async with asyncio.timeout(8):
            [second] = await put_again(entries)
            assert await handled.get() == second
        let_go.set()


async def put_again(entries: Queue) -> list[JobKey]:
    """What anybody does whose connection broke: try again."""
    while True:
        try:
            return await entries.put()
        except Exception:  # noqa: BLE001 - each dead connection of the pool is met once
            await asyncio.sleep(0)


async def test_a_lost_listener_comes_back_and_hears_again(entries: Queue, database: Database) -> None:
    handled: asyncio.Queue[JobKey] = asyncio.Queue()

    async def handle(entry: Entry) -> None:
        handled.put_nowait(entry.key)

    async with consuming(entries.consumer(handle)):
        await idle(entries)
        listener = entries.listener
        first = listener._connection
        assert first is not None
        await database.pool.execute("SELECT pg_terminate_backend($1)", first.get_server_pid())
        # What comes while nobody listens is found when somebody does again.
        [unheard] = await entries.put()
        async with asyncio.timeout(8):
            assert await handled.get() == unheard

        async def listens_again() -> bool:
            return listener._connection not in (None, first)

        await until(listens_again)
        [heard] = await entries.put()
        async with asyncio.timeout(8):
            assert await handled.get() == heard


async def test_a_lost_listener_is_noticed_at_once_and_not_by_the_next_sign_of_life(database: Database) -> None:
    listener = Listener(database.connect, probe=3600)
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        first = listener._connection
        assert first is not None
        await database.pool.execute("SELECT pg_terminate_backend($1)", first.get_server_pid())

        async def listens_again() -> bool:
            return listener._connection not in (None, first)

        await until(listens_again)


async def test_a_listener_gains_channels_while_it_listens_and_while_it_does_not(database: Database) -> None:
    heard: list[str] = []
    listener = Listener(database.connect, probe=0.01)
    await listener.add("early", lambda _: heard.append("early"))
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        # Together, and beside the signs of life: one connection does one thing at a time.
        await at_once([listener.add(f"c{n}", lambda _, n=n: heard.append(f"c{n}")) for n in range(20)])  # type: ignore[misc]

        async def all_heard() -> bool:
            await database.pool.execute("SELECT pg_notify('c' || n, '') FROM generate_series(0, 19) AS n")
            return len(set(heard)) == 21

        await until(all_heard)


async def test_a_channel_added_to_a_dead_connection_is_heard_on_the_next(database: Database) -> None:
    heard = asyncio.Event()
    listener = Listener(database.connect, probe=0.05)
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        connection = listener._connection
        assert connection is not None
        await database.pool.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
        await listener.add("late", lambda payload: heard.set() if payload == "x" else None)

        async def is_heard() -> bool:
            await database.pool.execute("SELECT pg_notify('late', 'x')")
            return heard.is_set()

        await until(is_heard)


async def test_a_callback_that_was_removed_is_called_no_more(database: Database) -> None:
    heard: list[str] = []
    listener = Listener(database.connect)
    kept = asyncio.Event()
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        await listener.add("c", heard.append)
        await listener.add("c", lambda _: kept.set())
        await listener.remove("c", heard.append)
        await database.pool.execute("SELECT pg_notify('c', 'x')")
        async with asyncio.timeout(5):
            await kept.wait()
    assert heard == []


# Installing


async def test_prepare_may_come_twice_and_from_two_processes_at_once(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    async with open_database(settings) as one, open_database(settings) as two:
        applied = await at_once([prepare(one), prepare(two), prepare(one)])
        assert sorted(applied) == [[], [], ["0001_core", "0002_webhooks", "0003_continuity", "0004_fleet"]]
        assert await prepare(two) == []
        connection = await one.connect()
        try:
            await queue.install(connection)
            assert await queue.entries(connection) == []
        finally:
            await connection.close()


async def test_everything_lives_in_our_schema(database: Database) -> None:
    rows = await database.pool.fetch(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert [row["schemaname"] for row in rows] == ["tramontane"]


def test_no_variable_of_the_environment_renames_anything_in_the_queue() -> None:
    fields = ("prefix", "db_schema", "channel", "function", "queue_table", "queue_table_log", "trigger", "durability")
    foreign = {name: "x_" for field in fields for name in (field.upper(), field, f"PGQUEUER_{field.upper()}")}
    code = "from tramontane import queue; print(queue._SETTINGS, queue._TABLE, queue._ENQUEUE)"
    plain, renamed = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        for env in ({}, foreign)
    ]
    assert plain == renamed
    assert "tramontane.tramontane_pgqueuer" in plain

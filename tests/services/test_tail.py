"""A tail tells those who have everything, each event once, and says where it left off when they have to look again."""

import asyncio

import msgspec
import pytest
from connections import Connection

from tramontane.ids import new_id
from tramontane.models import Event, JobKey
from tramontane.tail import Tail


@pytest.fixture
async def tail() -> Tail:
    return Tail(JobKey(tenant="default", id=new_id()), 1, 15.0)


def events(*seqs: int, content: str = "x") -> list[Event]:
    return [
        Event(
            seq=seq,
            attempt=1,
            type="chunk",
            body=msgspec.json.encode({"off": (seq - 2) * len(content), "content": content, "tokenCount": seq - 1}),
        )
        for seq in seqs
    ]


END = Event(seq=3, attempt=1, type="complete", body=b'{"len":1}')


async def test_all_who_have_everything_are_told_the_same_bytes(tail: Tail) -> None:
    one, two = Connection(), Connection()
    waiting = [tail.follow(connection.write) for connection in (one, two)]
    tail.extend(events(2))
    tail.extend(events(3))

    assert one.spans == two.spans == [(2, 2), (3, 3)]
    assert one.told[0] is two.told[0]
    assert not any(future.done() for future in waiting)


async def test_events_that_come_together_are_told_as_one(tail: Tail) -> None:
    connection = Connection()
    tail.follow(connection.write)
    tail.extend(events(2, 3, 4))

    assert connection.spans == [(2, 4)]


async def test_what_is_more_than_one_write_is_left_to_each_reader(tail: Tail) -> None:
    connection = Connection()
    waiting = tail.follow(connection.write)
    tail.extend(events(2, 3, 4, content="x" * 10_000))
    tail.extend(events(5))

    assert connection.told == []
    assert await waiting == 1


async def test_who_is_full_is_told_no_more_and_knows_what_it_has(tail: Tail) -> None:
    full, well = Connection(room=2), Connection()
    waiting, other = tail.follow(full.write), tail.follow(well.write)
    for seq in (2, 3, 4):
        tail.extend(events(seq))

    assert await waiting == 3
    assert full.spans == [(2, 2), (3, 3)]
    assert well.spans == [(2, 2), (3, 3), (4, 4)]
    assert not other.done()


async def test_a_wake_and_an_end_let_all_look(tail: Tail) -> None:
    connection = Connection()
    first = tail.follow(connection.write)
    tail.wake()
    assert await first == 1
    tail.extend(events(2))
    second = tail.follow(connection.write)
    tail.extend([END])

    assert await second == 3
    assert connection.spans == [(3, 3)]


@pytest.mark.parametrize("over", [asyncio.Future.cancel, lambda future: future.set_result(1)])
async def test_who_no_longer_waits_is_told_nothing(tail: Tail, over: object) -> None:
    connection = Connection()
    waiting = tail.follow(connection.write)
    assert callable(over)
    over(waiting)
    tail.extend(events(2))
    tail.extend(events(3))

    assert connection.told == []

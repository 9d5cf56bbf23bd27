"""The ledger tells what every call cost and how it ended, and wakes whoever waits for that."""

import asyncio

import aiohttp
import msgspec
import pytest
from chatting import Chat, chatting

from tramontane.simulator import Behaviour, Simulator, serve
from tramontane.simulator.ledger import Ledger


async def test_a_complete_call_is_billed_as_its_usage_says(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, metadata={"flush": "f1"})

    (call,) = simulator.ledger
    usage = reply.chunks[-1]["usage"]
    assert (call.number, call.model, call.stream, call.status) == (1, "mistral-small-latest", True, 200)
    assert (call.prompt_tokens, call.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (call.outcome, call.chunks) == ("complete", len(reply.chunks))
    assert call.request["metadata"] == {"flush": "f1"}
    assert call.ended is not None
    assert call.ended >= call.started


async def test_a_refused_call_costs_nothing(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        await chat(model="windy-7b")

    (call,) = simulator.ledger
    assert (call.outcome, call.status, call.prompt_tokens, call.completion_tokens) == ("refused", 400, 0, 0)


async def test_a_key_is_told_apart_and_never_kept(simulator: Simulator) -> None:
    for key in ("secret-one", "secret-two", ""):
        async with chatting(simulator, key=key) as chat:
            await chat()

    first, second, none = simulator.ledger
    assert first.key != second.key
    assert none.key == ""
    assert b"secret" not in msgspec.json.encode(simulator.ledger)


async def test_a_kept_connection_shows(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        await chat(stream=True)
        await chat()
    async with chatting(simulator) as chat:
        await chat()

    first, second, third = (call.connection for call in simulator.ledger)
    assert first == second
    assert first != third


# A few milliseconds are usual; a machine that is busy with other tests gets time to turn around.
NOTICED = 0.5


async def leave(chat: Chat, simulator: Simulator, **fields: object) -> float:
    """Ask, leave once the call runs, and return how long the simulator took to notice."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(chat(**fields))  # type: ignore[arg-type]
        await simulator.wait_for_chunks(1, 3) if fields.get("stream") else await simulator.wait_for_calls(1)
        asking.cancel()
        start = loop.time()
        await simulator.wait_for_ends(1, "disconnected")
    return loop.time() - start


async def test_a_client_that_leaves_in_a_pause_is_noticed_at_once(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        noticed = await leave(chat, simulator, stream=True, how="silence_after=3")

    assert noticed < NOTICED
    assert simulator.ledger[0].completion_tokens == 2


async def test_a_client_that_leaves_a_running_stream_is_not_billed_for_the_rest(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(tokens=1000, tokens_per_second=200)
    async with chatting(simulator) as chat:
        noticed = await leave(chat, simulator, stream=True)

    assert noticed < NOTICED
    assert 2 <= simulator.ledger[0].completion_tokens < 200


async def test_a_client_that_leaves_before_an_answer_is_noticed_at_once(simulator: Simulator) -> None:
    simulator.behaviour = Behaviour(latency=60)
    async with chatting(simulator) as chat:
        noticed = await leave(chat, simulator)

    assert noticed < NOTICED


async def test_leaving_the_simulator_ends_what_runs_and_does_not_wait_for_it() -> None:
    loop = asyncio.get_running_loop()
    simulator = Simulator(behaviour=Behaviour(silence_after=1))
    async with simulator, chatting(simulator) as chat, asyncio.TaskGroup() as group:
        asking = group.create_task(chat(stream=True))
        await simulator.wait_for_chunks(1, 1)
        start = loop.time()
        await simulator.__aexit__()
        reply = await asking

    assert loop.time() - start < 0.5
    assert isinstance(reply.broken, aiohttp.ClientPayloadError)
    assert simulator.ledger[0].outcome == "stopped"


async def test_a_fault_of_the_simulator_itself_shows(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tramontane.simulator.exchange.compose", None)
    async with chatting(simulator) as chat:
        reply = await chat()

    assert reply.status == 500
    assert simulator.ledger[0].outcome == "failed"


async def test_totals_are_the_sum_of_all_calls(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        await chat()
        await chat(stream=True, how="cut_after=5")
        await chat(how="status=500")

    totals = simulator.totals()
    assert totals.calls == 3
    assert totals.outcomes == {"complete": 1, "cut": 1, "refused": 1}
    assert totals.completion_tokens == sum(call.completion_tokens for call in simulator.ledger)
    assert totals.prompt_tokens == sum(call.prompt_tokens for call in simulator.ledger)


async def test_other_processes_read_the_ledger_over_http(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        await chat("Say: one")
        await chat("Say: two")
        async with chat.session.get(f"{chat.url}/simulator/ledger?after=1") as response:
            shown = await response.json()

    assert shown["totals"]["calls"] == 2
    assert [call["request"]["messages"][0]["content"] for call in shown["calls"]] == ["Say: two"]


async def test_a_wait_for_what_never_comes_has_an_end(simulator: Simulator) -> None:
    with pytest.raises(TimeoutError):
        await simulator.wait_for_calls(1, timeout=0.01)


def test_the_oldest_calls_are_forgotten_and_their_tokens_are_not() -> None:
    ledger = Ledger(keep=2)
    for now in (1.0, 2.0, 3.0):
        call = ledger.begin(key="k", connection="c", now=now)
        ledger.change(call, prompt_tokens=10, outcome="complete", ended=now)

    assert [call.number for call in ledger.calls()] == [2, 3]
    assert ledger.totals().prompt_tokens == 30


async def test_serve_says_where_it_listens_and_runs_until_cancelled() -> None:
    ready: asyncio.Future[Simulator] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(serve(port=0, behaviour=Behaviour(tokens=3), ready=ready.set_result))
        async with chatting(await ready) as chat:
            reply = await chat()
        serving.cancel()

    assert reply.json["usage"]["completion_tokens"] == 3

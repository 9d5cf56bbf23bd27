"""What can go wrong goes wrong where it was asked to, and nowhere else."""

import asyncio
import re

import aiohttp
import pytest
from chatting import chatting

from tramontane.errors import ConfigurationError, InvalidInput
from tramontane.simulator import Behaviour, Simulator


async def test_a_cut_aborts_the_connection_after_n_chunks(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="cut_after=3")

    assert len(reply.chunks) == 3
    assert isinstance(reply.broken, aiohttp.ClientPayloadError)
    assert simulator.ledger[0].outcome == "cut"


async def test_a_cut_after_nothing_comes_before_the_headers(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await chat(stream=True, how="cut_after=0")
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await chat(how="cut_after=7")

    assert [(call.outcome, call.completion_tokens) for call in simulator.ledger] == [("cut", 0), ("cut", 7)]


async def test_a_fault_past_the_end_leaves_the_answer_complete(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat("Say: ok", stream=True, how="cut_after=3")

    assert reply.lines[-1] == b"[DONE]"
    assert simulator.ledger[0].outcome == "complete"


async def test_a_clean_end_has_neither_finish_reason_nor_done(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="end_after=4")

    assert reply.broken is None
    assert b"[DONE]" not in reply.lines
    assert len(reply.chunks) == 4
    assert {chunk["choices"][0]["finish_reason"] for chunk in reply.chunks} == {None}
    assert simulator.ledger[0].outcome == "end"


async def test_done_and_usage_can_be_left_out(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="done=false, usage=false")

    assert reply.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert b"[DONE]" not in reply.lines
    assert not [chunk for chunk in reply.chunks if "usage" in chunk]


async def test_silence_lasts_until_the_client_leaves(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await chat(stream=True, how="silence_after=2")
        await simulator.wait_for_ends(1, "disconnected")

    assert simulator.ledger[0].chunks == 2


async def test_a_malformed_frame_is_half_an_object(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="malformed_after=2")
        whole = await chat(how="malformed_after=2")

    assert len(reply.lines) == 3
    assert reply.lines[-1].endswith(b'[{"ind')
    with pytest.raises(ValueError, match="truncated"):
        _ = whole.json


async def test_an_error_object_comes_in_the_stream(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="error_after=2")

    assert reply.status == 200
    assert reply.chunks[-1]["object"] == "error"
    assert reply.chunks[-1]["code"] == "1000"


@pytest.mark.parametrize(
    ("how", "status", "body"),
    [
        ("status=503, error_body=html", 503, r"<html>.*503"),
        ("status=500", 500, r'"code":"1000"'),
        ("status=401", 401, r'^{"detail":"Unauthorized"}$'),
        ("status=403", 403, r'"raw_status_code":403'),
        ("status=404", 404, r'^{"detail":"Not Found"}$'),
        ("status=422", 422, r'^{"detail":\[{"type":"missing","loc":\["body","messages"\]'),
        ("status=422, error_body=envelope", 422, r'^{"object":"error","message":{"detail":\['),
        ("status=422, error_body=string", 422, r'^{"detail":"'),
    ],
)
async def test_a_status_brings_the_body_that_was_seen_with_it(
    simulator: Simulator, how: str, status: int, body: str
) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(how=how)

    assert reply.status == status
    assert re.search(body, reply.body.decode(), re.DOTALL)
    assert reply.headers["content-type"].startswith("text/html" if "html" in how else "application/json")


async def test_framing_may_be_rough_and_the_text_is_the_same(simulator: Simulator) -> None:
    question = "Say: Sète — été ☀️ 日本語"
    async with chatting(simulator) as chat:
        plain = await chat(question, stream=True)
        rough = await chat(question, stream=True, how="crlf, comments, split_frames")

    assert rough.text == plain.text == "Sète — été ☀️ 日本語"
    assert b"\r\n\r\n" in rough.body
    assert b"\n: " in rough.body


async def test_content_may_come_as_parts_of_known_and_unknown_types(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        streamed = await chat("Say: one two", stream=True, how="content=parts")
        whole = await chat("Say: one two", how="content=parts")

    parts = [part for delta in streamed.deltas for part in delta["content"] if isinstance(delta["content"], list)]
    assert [part["type"] for part in parts] == ["text", "text", "reference", "weather"]
    assert [part["type"] for part in whole.json["choices"][0]["message"]["content"]] == ["text", "reference", "weather"]


async def test_content_type_and_deprecation_header_can_be_set(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="content_type=text/plain, deprecated")

    assert reply.headers["content-type"] == "text/plain"
    assert "x-model-deprecation-timestamp" in reply.headers


async def test_latency_and_pace_take_their_time(simulator: Simulator) -> None:
    loop = asyncio.get_running_loop()
    async with chatting(simulator) as chat:
        start = loop.time()
        await chat("Say: one two three four five", stream=True, how="latency=0.1, tokens_per_second=50")
        streamed = loop.time() - start
        await chat("Say: one two three four five", how="latency=0.1, tokens_per_second=50")
        whole = loop.time() - start - streamed

    # Seven chunks have six pauses of 20 ms between them, five tokens four.
    assert streamed >= 0.1 + 6 * 0.02 - 0.01
    assert whole >= 0.1 + 4 * 0.02 - 0.01


async def test_the_header_wins_over_script_and_default_and_leaves_the_script_alone() -> None:
    async with Simulator(behaviour=Behaviour(status=500)) as simulator, chatting(simulator) as chat:
        simulator.script(Behaviour(status=503))
        statuses = [
            (await chat(how="status=418")).status,
            (await chat()).status,
            (await chat()).status,
            (await chat(how="retry_after=1")).status,
            (await chat(how="status=none")).status,
        ]

    assert statuses == [418, 503, 500, 500, 200]


async def test_a_header_with_a_typing_error_is_a_400_that_helps(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(how="cut_aftr=3")

    assert reply.status == 400
    assert reply.json["message"] == "x-simulator: cut_aftr: no such behaviour; did you mean cut_after?"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latency": -1}, "latency: must be 0 or more, not -1"),
        ({"latency": "soon"}, "latency: must be a number, not 'soon'"),
        ({"tokens_per_second": 0}, "tokens_per_second: must be more than 0, not 0"),
        ({"status": 200}, "status: must be between 400 and 599, not 200"),
        ({"cut_after": "x"}, "cut_after: must be a whole number, not 'x'"),
        ({"echo": "loud"}, "echo: must be one of whole, split, none, altered, not 'loud'"),
        ({"crlf": "perhaps"}, "crlf: must be true or false, not 'perhaps'"),
        ({"finish_reason": "a\nb"}, "finish_reason: must be one line of text, not 'a\\nb'"),
        ({"cut_after": 1, "end_after": 2}, "end_after: an answer goes wrong once: cut_after is set too"),
    ],
)
def test_a_behaviour_that_makes_no_sense_names_its_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Behaviour(**fields)  # type: ignore[arg-type]

    assert str(caught.value) == message


def test_a_header_changes_some_fields_and_a_fault_replaces_a_fault() -> None:
    behaviour = Behaviour(latency=1, cut_after=3).but("silence_after=2, crlf, echo=none")

    assert behaviour == Behaviour(latency=1, silence_after=2, crlf=True, echo="none")


async def test_a_taken_port_is_one_clear_line(simulator: Simulator) -> None:
    port = int(simulator.url.rpartition(":")[2])

    with pytest.raises(ConfigurationError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*in use"):
        await Simulator(port=port).__aenter__()


async def test_a_torn_chunk_breaks_off_within_its_frame(simulator: Simulator) -> None:
    async with chatting(simulator) as chat:
        reply = await chat(stream=True, how="torn_after=3")
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await chat(how="torn_after=3")

    *whole, torn = reply.body.split(b"\n\n")
    assert len(whole) == 3
    assert torn.startswith(b"data: {")
    assert not torn.endswith(b"}")
    assert isinstance(reply.broken, aiohttp.ClientPayloadError)
    assert [call.outcome for call in simulator.ledger] == ["cut", "cut"]

"""`webhooks listen`: each webhook shown, checked and forwarded once, whatever becomes of the server meanwhile."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from drawing import drawing
from listening import Desk, application, listening
from terminal import Terminal

from tramontane.webhooks.signatures import verify

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


@pytest.fixture
def desk(short_dir: Path) -> Desk:
    return Desk(short_dir / "data")


async def test_a_webhook_is_shown_with_its_job_its_size_and_its_signature(desk: Desk, short_dir: Path) -> None:
    async with desk.serving(), listening(short_dir / "data", "--events", "chat.*,*.failed") as command:
        greeting = [await command.line() for _ in range(2)]
        body = desk.tell(job="job_1")
        good = await command.line()
        result = await desk.results.get()
        desk.tell(event="chat.failed", forged=True)
        forged = await command.line()
        refused = await desk.results.get()
        ended = await command.interrupt()

    [secret] = desk.secrets.values()
    assert greeting == ["listening for chat.*, *.failed", f"  secret   {secret}"]
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  chat\.completed +job_1 +{len(body.encode())} B  ✓ signed", good)
    assert result == {"deliveryId": "dlv_2", "status": None}
    assert "chat.failed" in forged
    assert "✗ no signature matches" in forged
    assert refused["errorClass"] == "protocol"
    assert ended == (0, "", "")
    assert desk.closed == ["ep_1"]


async def test_the_forward_keeps_every_byte_and_every_signed_header(desk: Desk, short_dir: Path) -> None:
    async with (
        desk.serving(),
        application() as (url, came),
        listening(short_dir / "data", "--json", "--forward", url) as command,
    ):
        opened = await command.told("listening")
        body = desk.tell()
        told = await command.told("webhook")
        headers, posted = await came.get()
        result = await desk.results.get()

    assert posted == body.encode()
    assert verify(posted, headers, opened["secret"]).event == "chat.completed"
    assert {name.lower() for name in headers} >= {name.lower() for name in told["headers"]}
    assert headers["user-agent"] == told["headers"]["user-agent"]
    assert (told["verified"], told["jobId"], told["body"]) == (True, "job_1", body)
    assert told["forwarded"]["status"] == 200
    assert result["status"] == 200
    assert 0 < result["totalMs"] < 10_000


async def test_an_answer_that_is_no_success_is_shown_and_told_to_the_server(desk: Desk, short_dir: Path) -> None:
    async with (
        desk.serving(),
        application(status=307) as (url, came),
        listening(short_dir / "data", "--forward", url.removeprefix("http://")) as command,
    ):
        assert await command.line() == "listening for *"
        assert await command.line() == f"  forward  {url}"
        await command.line()
        desk.tell()
        shown = await command.line()
        result = await desk.results.get()

    assert re.search(r"✓ signed  → 307 in \d+ ms$", shown)
    assert (result["status"], result["errorClass"]) == (307, "redirect")
    assert came.qsize() == 1, "a redirect is not followed"


async def test_a_program_that_does_not_run_is_a_line_and_no_end(desk: Desk, short_dir: Path) -> None:
    async with desk.serving(), listening(short_dir / "data", "--forward", "http://127.0.0.1:9/") as command:
        for _ in range(3):
            await command.line()
        desk.tell()
        shown = await command.line()
        result = await desk.results.get()
        desk.tell()
        again = await command.line()

    assert "→ connect_refused: the connection was refused in" in shown
    assert "connect_refused" in again
    assert (result["status"], result["errorClass"]) == (None, "connect_refused")


async def test_events_of_one_job_are_forwarded_one_after_the_other_and_hold_up_no_other(
    desk: Desk, short_dir: Path
) -> None:
    gate = asyncio.Event()
    async with (
        desk.serving(),
        application(gate=gate) as (url, came),
        listening(short_dir / "data", "--json", "--forward", url) as command,
    ):
        await command.told("listening")
        for job, event in (("job_1", "chat.started"), ("job_1", "chat.completed"), ("job_2", "chat.completed")):
            desk.tell(job=job, event=event)
        unanswered = [(await came.get())[0] for _ in range(2)]
        gate.set()
        last = (await came.get())[0]

    assert {headers["X-Webhook-Job"] for headers in unanswered} == {"job_1", "job_2"}
    assert (last["X-Webhook-Job"], last["X-Webhook-Event"]) == ("job_1", "chat.completed")


async def test_a_restart_of_the_server_is_survived_and_said_and_no_result_is_lost(desk: Desk, short_dir: Path) -> None:
    gate = asyncio.Event()
    async with AsyncExitStack() as server, application(gate=gate) as (url, came):
        await server.enter_async_context(desk.serving())
        async with listening(short_dir / "data", "--json", "--forward", url) as command:
            await command.told("listening")
            desk.tell()
            await came.get()
            await server.aclose()
            gate.set()
            await command.told("webhook")
            await command.told("away")
            async with desk.serving():  # on another port
                await command.told("back")
                late = await desk.results.get()
                desk.tell()
                heard = await command.told("webhook")
                ended = await command.interrupt()

    assert (late["deliveryId"], late["status"]) == ("dlv_2", 200)
    assert heard["verified"]
    assert ended == (0, "", "")
    assert (len(desk.secrets), len(desk.closed)) == (1, 1)


async def test_a_server_that_has_forgotten_the_listener_is_given_a_new_one(desk: Desk, short_dir: Path) -> None:
    async with desk.serving(), listening(short_dir / "data", "--json") as command:
        first = await command.told("listening")
        desk.tell()
        await command.told("webhook")
        desk.forget()
        second = await command.told("listening")
        desk.tell()
        heard = await command.told("webhook")

    assert (first["again"], second["again"]) == (False, True)
    assert first["secret"] != second["secret"]
    assert heard["verified"]


async def test_on_a_terminal_it_is_in_colour_and_ctrl_c_leaves_nothing_behind(desk: Desk, short_dir: Path) -> None:
    async with desk.serving():
        with drawing(Terminal(short_dir / "data"), "webhooks", "listen") as command:
            await asyncio.to_thread(command.until, "secret")
            desk.tell()
            await asyncio.to_thread(command.until, "signed")
            desk.tell(forged=True)
            await asyncio.to_thread(command.until, "no signature matches")
            code = await asyncio.to_thread(command.interrupt)

    assert code == 0
    assert re.search(r"\x1b\[32m +✓ signed", command.drawn), "green"
    assert re.search(r"\x1b\[31m +✗ no signature", command.drawn), "red"
    assert len(desk.closed) == 1


async def test_without_a_server_and_with_a_wrong_filter_it_ends_in_one_line(desk: Desk, short_dir: Path) -> None:
    async with listening(short_dir / "data") as command:
        assert command.process.stderr
        none = (await command.process.stderr.read()).decode()
        assert await command.process.wait() == 2
    async with desk.serving(), listening(short_dir / "data", "--events", "nonsense") as command:
        assert command.process.stderr
        wrong = (await command.process.stderr.read()).decode()
        assert await command.process.wait() == 2

    assert none.startswith("error: no server runs here")
    assert wrong == "error: events: there is no such event\n"

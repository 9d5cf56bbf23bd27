"""The commands that stay: how they start, how they refuse to, and how they end."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from terminal import Terminal

from tramontane.address import write_address
from tramontane.cli.serve import bound_socket
from tramontane.client import ApiClient
from tramontane.errors import ConfigurationError
from tramontane.settings import Settings

if TYPE_CHECKING:
    from tramontane.simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture
def terminal(short_dir: Path) -> Terminal:
    return Terminal(short_dir / "data")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly_and_its_postgres_too(terminal: Terminal, number: signal.Signals) -> None:
    with terminal.serve("--simulator") as server:
        assert (terminal.data_dir / "server.json").exists()
        assert terminal.postgres_runs()
        ended = server.end(number)

    assert ended.code == 0
    assert "Traceback" not in ended.err
    assert not terminal.postgres_runs()
    assert not (terminal.data_dir / "server.json").exists()


async def test_streams_end_properly_when_the_server_does(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> None:
    from tramontane.simulator import Behaviour

    simulator.behaviour = Behaviour(tokens=200, silence_after=3)
    terminal = _remote(short_dir, database_url, simulator, TRAMONTANE_GRACE="0.2s")
    with terminal.serve() as server:
        async with ApiClient(server.url, patience=0) as client, client.chat_stream(HELLO) as events:
            await anext(events)
            ended = server.end(signal.SIGTERM)

    assert ended.code == 0
    assert "job.handed_over" in ended.err


async def test_a_second_signal_ends_the_server_at_once(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> None:
    from tramontane.simulator import Behaviour

    simulator.behaviour = Behaviour(tokens=200, silence_after=3)
    terminal = _remote(short_dir, database_url, simulator, TRAMONTANE_GRACE="1h")
    with terminal.serve() as server:
        async with ApiClient(server.url, patience=0) as client:
            await client.submit(HELLO)
            await simulator.wait_for_chunks(1, 3)
        server.process.send_signal(signal.SIGINT)
        assert "stopping" in server.out.readline()
        ended = server.end(signal.SIGINT)

    assert ended.code == 130


def test_without_a_key_the_server_says_how_to_go_on(terminal: Terminal) -> None:
    refused = terminal.run("serve")

    assert refused.code == 2
    assert refused.err.startswith("error: MISTRAL_API_KEY is not set")
    assert "--simulator" in refused.err
    assert refused.err.count("\n") == 1
    assert not terminal.data_dir.exists()


def test_a_port_that_was_asked_for_and_is_taken_is_one_clear_line(terminal: Terminal) -> None:
    with taken_port() as port:
        refused = terminal.run("serve", "--simulator", "--port", str(port))

    assert refused.code == 2
    assert refused.err.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert refused.err.count("\n") == 1


def test_a_second_server_on_the_directory_joins_the_first_on_a_port_of_its_own(short_dir: Path) -> None:
    terminal = Terminal(short_dir / "data")
    with terminal.serve("--simulator") as first:
        with terminal.serve("--simulator") as second:
            joined = terminal.run("submit", "Hello", "--wait")
            ended_second = second.end(signal.SIGTERM)
        listed = terminal.run("jobs", "list", "--json")
        ended_first = first.end(signal.SIGTERM)

    assert first.url in second.greeting
    assert second.url != first.url
    assert (joined.code, ended_second.code, listed.code, ended_first.code) == (0, 0, 0, 0)
    assert isinstance(listed.json, dict)
    assert len(listed.json["jobs"]) == 1
    assert not terminal.postgres_runs()


def test_the_default_port_gives_way_to_any_other_beside_a_server_of_the_same_directory(short_dir: Path) -> None:
    with taken_port() as port:
        settings = Settings(data_dir=short_dir, port=port)
        with pytest.raises(ConfigurationError, match="cannot listen"), bound_socket(settings, free=True):
            pass
        write_address(short_dir, "http://127.0.0.1:1")
        with pytest.raises(ConfigurationError, match="cannot listen"), bound_socket(settings, free=False):
            pass
        with bound_socket(settings, free=True) as (bound, beside):
            assert bound.getsockname()[1] != port
            assert beside == "http://127.0.0.1:1"


def test_a_data_directory_that_cannot_be_is_one_clear_line(short_dir: Path) -> None:
    (short_dir / "file").write_text("")

    refused = Terminal(short_dir / "file" / "data").run("serve", "--simulator", "--port", "0")

    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("error: ")
    assert "cannot be used" in refused.err
    assert "Traceback" not in refused.err


def test_a_database_out_of_reach_is_one_clear_line_without_the_password(short_dir: Path) -> None:
    with taken_port() as port:
        pass
    url = f"postgresql://somebody:hunter2@127.0.0.1:{port}/jobs"

    refused = Terminal(short_dir / "data", DATABASE_URL=url).run("serve", "--simulator", "--port", "0")

    assert refused.code == 2
    assert f"127.0.0.1:{port}/jobs cannot be reached" in refused.err
    assert "hunter2" not in refused.err
    assert refused.err.count("\n") == 1


async def test_a_database_of_a_newer_version_is_one_clear_line(short_dir: Path, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO tramontane.migrations (number, name, checksum) VALUES (9999, 'later', '')")
    await connection.close()

    refused = Terminal(short_dir / "data", DATABASE_URL=database_url).run("serve", "--simulator", "--port", "0")

    assert refused.code == 2
    assert "newer version of Tramontane" in refused.err
    assert refused.err.count("\n") == 1


async def test_an_api_and_a_worker_in_two_processes_are_a_server(
    short_dir: Path, database_url: str, simulator: "Simulator"
) -> None:
    terminal = _remote(short_dir, database_url, simulator)
    with (
        terminal.start("api", "--port", "0", until="  try") as api,
        terminal.start("worker", until="tramontane worker") as worker,
    ):
        answered = await asyncio.to_thread(terminal.run, "submit", "Say: aye", "--wait")
        ended = (worker.end(signal.SIGTERM), api.end(signal.SIGTERM))

    assert (answered.code, answered.out) == (0, "aye\n")
    assert [each.code for each in ended] == [0, 0]


def test_the_simulator_serves_what_its_flags_say(terminal: Terminal) -> None:
    with terminal.start("simulator", "--port", "0", "--latency", "0", "--fault", "status=503", until="ledger") as fake:
        other = Terminal(terminal.data_dir, MISTRAL_SERVER_URL=fake.url)
        refused = other.run("chat", "Hello")
        ended = fake.end(signal.SIGTERM)

    assert (refused.code, ended.code) == (1, 0)
    assert refused.err.startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--port", "many"),
        ("serve", "--colour"),
        ("simulator", "--fault", "nonsense=1"),
        ("nonsense",),
        ("jobs", "nonsense"),
        ("jobs", "show"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(terminal: Terminal, words: tuple[str, ...]) -> None:
    refused = terminal.run(*words)

    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1


def _remote(short_dir: Path, database_url: str, simulator: "Simulator", **settings: str) -> Terminal:
    return Terminal(
        short_dir / "data",
        DATABASE_URL=database_url,
        MISTRAL_SERVER_URL=simulator.url,
        MISTRAL_API_KEY="key",
        TRAMONTANE_HEARTBEAT="1s",
        TRAMONTANE_POLL="0.2s",
        **settings,
    )

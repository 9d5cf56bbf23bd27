"""`tramontane webhooks …` against a real server and a real receiver, as people and scripts use it."""

import asyncio
import queue
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from drawing import drawing
from terminal import Ended, Terminal

from tramontane.address import read_address
from tramontane.cli.program import run
from tramontane.client import ApiClient
from tramontane.errors import NotFound
from tramontane.webhook_client import WebhookClient
from tramontane.webhooks.signatures import new_secret, verify

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60), pytest.mark.xdist_group("webhooks_commands")]

NOBODY = "ep_00000000000000000000000000"


@dataclass
class Inbox:
    """A receiver: what it answers, and what has come."""

    url: str
    status: int = 200
    came: "queue.Queue[tuple[Message, bytes]]" = field(default_factory=queue.Queue)

    def next(self) -> tuple[Message, bytes]:
        """Headers and body of the next request, in the order in which they came."""
        return self.came.get(timeout=20)


@contextmanager
def receiving(status: int = 200) -> Iterator[Inbox]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            held.came.put((self.headers, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(held.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        held = Inbox(f"http://127.0.0.1:{server.server_port}/hook", status)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield held
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def terminal(make_dir: Callable[[], Path]) -> Iterator[Terminal]:
    """A terminal, and a server on a simulator that may call this machine."""
    directory = make_dir()
    settings = {"TRAMONTANE_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8", "TRAMONTANE_GRACE": "0.2s"}
    try:
        terminal = Terminal(directory / "data", **settings)
        with terminal.serve("--simulator", "--rate-limit", "0"):
            yield terminal
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def cli(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """A command in this process, which is quicker."""
    monkeypatch.setenv("TRAMONTANE_DATA_DIR", str(terminal.data_dir))
    for name in ("TRAMONTANE_URL", "TRAMONTANE_WEBHOOK_SECRET", "DATABASE_URL", "MISTRAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def cli(*words: str) -> Ended:
        code = run(words)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return cli


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with receiving() as inbox:
        yield inbox


@pytest.fixture
def endpoint(cli: Callable[..., Ended], inbox: Inbox) -> Iterator[dict[str, Any]]:
    """A registered endpoint that leads to the inbox, told nothing that others in this file do."""
    added = _object(cli("webhooks", "endpoints", "add", inbox.url, "--events", "endpoint.recovered", "--json"))
    yield added
    cli("webhooks", "endpoints", "remove", added["endpointId"])


def test_an_endpoint_is_added_listed_shown_changed_steered_and_removed(cli: Callable[..., Ended], inbox: Inbox) -> None:
    added = cli(
        "webhooks", "endpoints", "add", inbox.url, "--events", "chat.completed,*.failed", "--header", "X-Ship=Argo",
        "--bearer", "a-token-of-ours", "--timeout", "5s", "--description", "of the crew",
    )  # fmt: skip
    [endpoint_id, secret] = re.findall(r"ep_\w{26}|whsec_\S+", added.out)
    listed = cli("webhooks", "endpoints")
    also_listed = cli("webhooks", "endpoints", "list", "--json")
    updated = cli("webhooks", "endpoints", "update", endpoint_id, "--events", "*", "--no-headers")
    steered = [cli("webhooks", "endpoints", verb, endpoint_id).out for verb in ("pause", "disable", "enable")]
    shown = cli("webhooks", "endpoints", "show", endpoint_id)
    removed = cli("webhooks", "endpoints", "remove", endpoint_id)
    gone = cli("webhooks", "endpoints", "show", endpoint_id)

    assert "X-Ship" in added.out
    assert "of the crew" in added.out
    assert endpoint_id in listed.out
    assert endpoint_id in {each["endpointId"] for each in _object(also_listed)["endpoints"]}
    assert "X-Ship" not in updated.out
    assert steered == [f"{endpoint_id} {status}\n" for status in ("paused", "disabled", "active")]
    assert re.search(r"events +\*\n", shown.out)
    assert removed.out == f"{endpoint_id} removed\n"
    assert gone.code == 3
    every = (added, listed, also_listed, updated, shown, removed)
    assert {(each.code, each.err) for each in every} == {(0, "")}
    for each in every[1:]:
        assert secret not in each.out, "it is shown once"
        assert "a-token-of-ours" not in each.out


def test_a_test_says_whether_it_arrived_and_what_to_change(
    cli: Callable[..., Ended], inbox: Inbox, endpoint: dict[str, Any]
) -> None:
    well = cli("webhooks", "test", endpoint["endpointId"])
    headers, body = inbox.next()
    inbox.status = 404
    ill = cli("webhooks", "test", endpoint["endpointId"])
    listed = cli("webhooks", "attempts", "--endpoint", endpoint["endpointId"], "--json")
    table = cli("webhooks", "attempts", "--endpoint", endpoint["endpointId"], "--outcome", "failed")

    assert verify(body, dict(headers.items()), endpoint["secret"]).event == "webhook.test"
    assert (well.code, well.err, ill.code, ill.err) == (0, "", 1, "")
    assert "succeeded" in well.out
    assert "→ 404: no such path at the receiver" in ill.out
    assert [attempt["status"] for attempt in _object(listed)["attempts"]] == [404, 200]
    assert "→ 404" in table.out
    assert "200" not in table.out


def test_a_callback_is_listed_and_replayed_with_the_same_id_and_bytes(cli: Callable[..., Ended], inbox: Inbox) -> None:
    secret = new_secret()
    submitted = cli("submit", "Say: ahoy", "--callback", inbox.url, "--callback-secret", secret, "--wait", "--json")
    job_id = _object(submitted)["jobId"]
    first = inbox.next()
    found = _until(lambda: cli("webhooks", "deliveries", "--job", job_id, "--json"), _succeeded)
    [delivery] = _object(found)["deliveries"]
    replayed = cli("webhooks", "replay", delivery["deliveryId"], "--wait", "--json")
    second = inbox.next()
    shown = cli("webhooks", "deliveries", delivery["deliveryId"])
    table = cli("webhooks", "deliveries", "--job", job_id, "--since", "1h")

    assert delivery["callback"]
    assert _object(replayed)["status"] == "succeeded"
    assert first[1] == second[1]
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    for headers, body in (first, second):
        assert verify(body, dict(headers.items()), secret).data["content"] == "ahoy"
    assert "the callback of its job" in shown.out
    assert table.out.count("chat.completed") == 2


def test_what_an_endpoint_missed_is_recovered(cli: Callable[..., Ended], inbox: Inbox) -> None:
    # It is told to its callback, and there is no endpoint yet.
    told = cli("submit", "Say: lost", "--wait", "--json", "--callback", inbox.url, "--callback-secret", new_secret())
    inbox.next()
    added = _object(cli("webhooks", "endpoints", "add", inbox.url, "--events", "chat.completed", "--json"))
    words = ("webhooks", "recover", added["endpointId"], "--since", "1h", "--only", "missing")

    recovered = cli(*words)
    came = [inbox.next() for _ in range(_sent(recovered))]
    again = cli(*words, "--detach", "--json")
    listed = cli("webhooks", "recoveries", "--endpoint", added["endpointId"])
    watched = cli("webhooks", "recoveries", _object(again)["recoveryId"])
    cli("webhooks", "endpoints", "remove", added["endpointId"])

    assert (recovered.code, recovered.err) == (0, "")
    assert _object(told)["jobId"] in {
        verify(body, dict(headers.items()), added["secret"]).data["jobId"] for headers, body in came
    }
    assert _object(again)["total"] == 0, "nothing is missing any more"
    assert _object(again)["recoveryId"] in listed.out
    assert (watched.code, watched.out.split()[1]) == (0, "completed:")


def test_a_rotated_secret_signs_beside_the_old_one(
    cli: Callable[..., Ended], inbox: Inbox, endpoint: dict[str, Any]
) -> None:
    rotated = _object(cli("webhooks", "rotate", endpoint["endpointId"], "--overlap", "1h", "--json"))
    cli("webhooks", "test", endpoint["endpointId"])
    headers, body = inbox.next()

    assert rotated["secret"] != endpoint["secret"]
    for secret in (endpoint["secret"], rotated["secret"]):
        assert verify(body, dict(headers.items()), secret).event == "webhook.test"


def test_explain_says_what_is_allowed_and_what_would_have_to_be_set(cli: Callable[..., Ended], inbox: Inbox) -> None:
    refused = cli("webhooks", "explain", "https://10.0.0.1/hook")
    allowed = cli("webhooks", "explain", inbox.url)

    assert (refused.code, refused.err) == (1, "")
    assert "not allowed" in refused.out
    assert "TRAMONTANE_WEBHOOK_ALLOW_CIDRS=10.0.0.1/32" in "".join(refused.out.split())
    assert (allowed.code, allowed.err) == (0, "")


def test_exit_codes_tell_what_kind_of_error_it_was(
    cli: Callable[..., Ended], inbox: Inbox, endpoint: dict[str, Any]
) -> None:
    cli("webhooks", "endpoints", "pause", endpoint["endpointId"])
    unknown = cli("webhooks", "test", NOBODY)
    conflict = cli("webhooks", "test", endpoint["endpointId"])
    event = cli("webhooks", "endpoints", "add", inbox.url, "--events", "chat.nonsense")
    blocked = cli("submit", "Hello", "--callback", "http://10.0.0.1/", "--callback-secret", new_secret())
    misplaced = cli("webhooks", "endpoints", "--json", "show", endpoint["endpointId"])
    when = cli("webhooks", "deliveries", "--since", "yesterday")

    assert [each.code for each in (unknown, conflict, event, blocked, misplaced, when)] == [3, 4, 2, 2, 2, 2]
    for each in (unknown, conflict, event, blocked, misplaced, when):
        assert each.err.startswith("error: ")
        assert each.err.count("\n") == 1
        assert each.out == ""
    assert "TRAMONTANE_WEBHOOK_ALLOW_CIDRS=10.0.0.1/32" in blocked.err


def test_a_listener_hears_and_forwards_every_event_and_is_gone_after_ctrl_c(
    cli: Callable[..., Ended], terminal: Terminal, inbox: Inbox
) -> None:
    words = ("webhooks", "listen", "--json", "--forward", inbox.url)
    with terminal.start(*words, until="listening") as command:
        opened = msgspec.json.decode(command.greeting, type=dict[str, Any])
        cli("submit", "Say: ahoy", "--wait")
        heard = [msgspec.json.decode(command.out.readline(), type=dict[str, Any]) for _ in range(2)]
        ended = command.end(signal.SIGINT)
    forwarded = [inbox.next() for _ in heard]
    logged = _object(cli("webhooks", "attempts", "--endpoint", opened["listenerId"], "--json"))["attempts"]

    assert [each["event"] for each in heard] == ["chat.started", "chat.completed"]
    assert all(each["verified"] for each in heard)
    for headers, body in forwarded:
        assert verify(body, dict(headers.items()), opened["secret"]).data["kind"] == "chat"
    assert (ended.code, ended.err) == (0, "")
    assert [attempt["status"] for attempt in logged] == [200, 200]
    with pytest.raises(NotFound):
        asyncio.run(_listen_on(terminal, opened["listenerId"]))


async def _listen_on(terminal: Terminal, listener_id: str) -> None:
    url = read_address(terminal.data_dir)
    assert url
    async with ApiClient(url) as client:
        await WebhookClient(client).next_heard(listener_id, [], wait=0)


def test_ctrl_c_leaves_a_recovery_running_and_says_how_to_look_again(
    cli: Callable[..., Ended], terminal: Terminal, inbox: Inbox
) -> None:
    cli("submit", "Say: lost", "--wait", "--callback", inbox.url, "--callback-secret", new_secret())
    with receiving(status=503) as ill:
        endpoint_id = _object(cli("webhooks", "endpoints", "add", ill.url, "--json"))["endpointId"]
        words = ("webhooks", "recover", endpoint_id, "--since", "1h", "--only", "missing")
        with drawing(terminal, *words) as recover:
            recover.until("sent again")
            ill.next()
            code = recover.interrupt()
        [recovery_id] = re.findall(r"look again: tramontane webhooks recoveries (rec_\w{26})", recover.visible)
        cancelled = cli("webhooks", "recoveries", recovery_id, "--cancel", "--json")
        cli("webhooks", "endpoints", "remove", endpoint_id)

    assert code == 130
    assert recover.drawn.rindex("\x1b[?25h") > recover.drawn.rindex("\x1b[?25l"), "the cursor is back"
    assert _object(cancelled)["recoveryId"] == recovery_id


def test_a_batch_tells_each_of_its_jobs_but_those_that_name_another_place(
    cli: Callable[..., Ended], inbox: Inbox, tmp_path: Path
) -> None:
    secret = new_secret()
    with receiving() as other:
        own = {"prompt": "Say: two", "callback": {"url": other.url, "secret": secret}}
        lines = [msgspec.json.encode(line).decode() for line in ({"prompt": "Say: one"}, own)]
        (tmp_path / "two.jsonl").write_text("\n".join(lines))

        done = cli("batch", str(tmp_path / "two.jsonl"), "--callback", inbox.url, "--callback-secret", secret)
        told = [verify(body, dict(headers.items()), secret) for headers, body in (inbox.next(), other.next())]

    assert (done.code, done.err) == (0, "")
    assert [webhook.data["content"] for webhook in told] == ["one", "two"]


def test_on_a_terminal_the_tables_fit(terminal: Terminal, endpoint: dict[str, Any]) -> None:
    terminal.run("webhooks", "test", endpoint["endpointId"])

    for words in (("attempts",), ("deliveries",), ("endpoints",)):
        code, drawn = terminal.run_in_terminal("webhooks", *words, columns=80)
        visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
        assert code == 0
        assert max(len(line) for line in visible.splitlines() if not line.startswith("→")) <= 80
        assert "…" not in visible.splitlines()[0], "no heading is cut"


def _object(ended: Ended) -> dict[str, Any]:
    assert ended.out, ended.err
    assert isinstance(ended.json, dict), ended.err
    return ended.json


def _succeeded(found: Ended) -> bool:
    return all(delivery["status"] == "succeeded" for delivery in _object(found)["deliveries"])


def _sent(recovered: Ended) -> int:
    return int(re.findall(r"(\d+) messages? to send again", recovered.out)[0])


def _until(ask: Callable[[], Ended], fits: Callable[[Ended], bool]) -> Ended:
    """What is asked for once it fits; what a receiver knows, its sender knows a little later."""
    for _ in range(50):
        if fits(found := ask()):
            return found
    raise AssertionError(found.out)

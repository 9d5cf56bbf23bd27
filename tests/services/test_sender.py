"""The sender over a real Postgres: what is let through is signed, sent, and its outcome written down, come what may."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from aiohttp import web
from cryptography.fernet import Fernet
from lives import T0, at, ending, in_the_background, until
from told import FINE, ILL, Told, callback

from tramontane.admission import AdmissionService
from tramontane.database import Database
from tramontane.deliveries import Sender
from tramontane.ids import new_id, show_id
from tramontane.listener import Listener
from tramontane.queue import Consumer, Entry, Work
from tramontane.settings import Settings
from tramontane.store import DeliveryStore
from tramontane.vault import Vault
from tramontane.webhooks.models import Exchange, Outgoing
from tramontane.webhooks.policy import AddressPolicy
from tramontane.webhooks.signatures import new_secret, verify
from tramontane.webhooks.transport import Transport

Answer = Callable[[Outgoing], Awaitable[Exchange]]

SECRET = new_secret()
DEFAULT_SECRET = "the server's own secret"


class Post:
    """A sender, its admission, and the transport that it is given: a list of what was sent, and an answer."""

    def __init__(self, database: Database, listener: Listener) -> None:
        self.told = Told(database)
        self.vault = Vault([Fernet.generate_key().decode()])
        self.now = T0
        self.sent: list[Outgoing] = []
        self.settings = Settings(webhook_secret=DEFAULT_SECRET, webhook_concurrency=8, grace=5.0)
        self._database, self._listener = database, listener

    async def endpoint(self, *events: str, **columns: Any) -> Any:
        return await self.told.endpoint(*events, secret=self.vault.seal(SECRET), **columns)

    @asynccontextmanager
    async def open(
        self, answer: Answer | None = None, *, vault: Vault | None = None, **changes: Any
    ) -> AsyncIterator[Sender]:
        """Sends until the block is left; then stops in good order. A keyword changes a setting."""

        async def send(outgoing: Outgoing) -> Exchange:
            self.sent.append(outgoing)
            return await answer(outgoing) if answer else FINE

        settings = Settings(**({name: getattr(self.settings, name) for name in _OURS} | changes))
        admission = AdmissionService(
            self.told.deliveries, self._listener, poll=0.02, channel="tramontane_deliveries", clock=lambda: self.now
        )
        sender = Sender(
            self.told.deliveries,
            lambda handle: self._consumer(handle, settings.webhook_concurrency),
            send,
            vault or self.vault,
            admission,
            settings,
            worker_id=self.told.worker_id,
            dice=lambda: 0.0,
            clock=lambda: self.now,
        )
        async with asyncio.timeout(20), in_the_background(admission.run()), asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run())
            try:
                yield sender
            finally:
                sender.stop()

    def _consumer(self, handle: Callable[[Entry], Awaitable[None]], concurrency: int) -> Consumer:
        return Consumer(
            self._database.pool,
            self._listener,
            handle,
            concurrency=concurrency,
            heartbeat=20.0,
            poll=0.1,
            work=Work.DELIVERY,
        )

    async def all(self, state: str) -> bool:
        return set(await self.told.states()) == {state}


_OURS = ("webhook_secret", "webhook_concurrency", "grace")


@pytest.fixture
async def post(database: Database) -> AsyncIterator[Post]:
    listener = Listener(database.connect)
    async with in_the_background(listener.run()):
        await listener.listening.wait()
        post = Post(database, listener)
        await post.told.senders()
        yield post


def header(outgoing: Outgoing, name: str) -> str:
    [value] = [value for known, value in outgoing.headers if known.lower() == name.lower()]
    return value


# Sends


async def test_a_completed_job_arrives_signed_at_a_real_receiver(post: Post) -> None:
    arrived: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        arrived.put_nowait((await request.read(), request.headers.copy()))
        return web.Response(status=204)

    server = web.Application()
    server.router.add_post("/hooks", receive)
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    await post.endpoint(
        "*.completed",
        url=f"http://{host}:{port}/hooks",
        headers=post.vault.seal('{"authorization":"Bearer 7","x-own":"yes"}'),
    )
    policy = AddressPolicy(allow_cidrs=(ip_network("127.0.0.0/8"),))
    try:
        async with Transport(policy) as transport, post.open(transport.send):
            attempt = await post.told.running()
            await post.told.jobs.end([ending(attempt, at=T0)])
            async with asyncio.timeout(5):
                body, headers = await arrived.get()
            await until(lambda: post.all("succeeded"))
    finally:
        await runner.cleanup()
    told = verify(body, list(headers.items()), SECRET, now=T0)
    assert (told.event, told.data["jobId"]) == ("chat.completed", show_id("job", attempt.job.key.id))
    [row] = await post.told.rows()
    assert (told.id, told.attempt) == (show_id("msg", row["message_id"]), 1)
    assert told.delivery_id == show_id("dlv", row["id"])
    assert (headers["authorization"], headers["x-own"]) == ("Bearer 7", "yes")
    assert headers["X-Webhook-Timestamp"] == told.body["timestamp"]
    [line] = await post.told.attempts(row["id"])
    assert (line["status"], line["remote_ip"], line["counted"]) == (204, "127.0.0.1", True)
    assert line["total_ms"] > 0


async def test_a_callback_without_a_secret_is_signed_with_the_servers(post: Post) -> None:
    own = callback(path="/own", secret=post.vault.seal(SECRET), headers=post.vault.seal('{"x-own":"yes"}'))
    async with post.open():
        for given in (callback(), own):
            attempt = await post.told.running(callback=given)
            await post.told.jobs.end([ending(attempt, at=T0)])
        await until(lambda: post.all("succeeded"))
    by_url = {outgoing.url: outgoing for outgoing in post.sent}
    assert len(by_url) == 2
    for url, secret in (("https://hooks.example:443/told", DEFAULT_SECRET), ("https://hooks.example:443/own", SECRET)):
        assert verify(by_url[url].body, by_url[url].headers, secret, now=T0).event == "chat.completed"
    assert header(by_url["https://hooks.example:443/own"], "x-own") == "yes"


async def test_every_attempt_has_the_same_id_and_body_and_a_time_of_its_own(post: Post) -> None:
    answers = [ILL, ILL, FINE]

    async def answer(_: Outgoing) -> Exchange:
        return answers.pop(0)

    await post.endpoint()
    await post.told.publish()
    async with post.open(answer):
        for count in (1, 2, 3):

            async def tried(count: int = count) -> bool:
                return bool((await post.told.rows())[0]["attempts"] == count)

            await until(tried)
            post.now += timedelta(seconds=60)
    assert await post.all("succeeded")
    assert len({(header(one, "webhook-id"), one.body, header(one, "X-Webhook-Timestamp")) for one in post.sent}) == 1
    times = [int(header(one, "webhook-timestamp")) - int(T0.timestamp()) for one in post.sent]
    assert times == [0, 60, 120]
    assert [header(one, "X-Webhook-Attempt") for one in post.sent] == ["1", "2", "3"]
    assert len({header(one, "webhook-signature") for one in post.sent}) == 3


async def test_two_secrets_sign_while_they_overlap(post: Post) -> None:
    endpoint, second = await post.endpoint(), new_secret()
    await post.told.pool.execute(
        "INSERT INTO endpoint_secrets (tenant_id, endpoint_id, id, secret, primary_from, not_after)"
        " VALUES ('default', $1, gen_random_uuid(), $2, $3, NULL)",
        *(endpoint, post.vault.seal(second), at(10)),
    )
    await post.told.pool.execute("UPDATE endpoint_secrets SET not_after = $1 WHERE primary_from = $2", at(20), T0)
    async with post.open():
        for seconds in (5, 15, 25):
            post.now = at(seconds)
            await post.told.publish(at=post.now)
            await until(lambda: post.all("succeeded"))
    valid = [
        [bool(_verifies(one, secret, at(seconds))) for secret in (SECRET, second)]
        for one, seconds in zip(post.sent, (5, 15, 25), strict=True)
    ]
    assert valid == [[True, True], [True, True], [False, True]]


def _verifies(outgoing: Outgoing, secret: str, now: datetime) -> bool:
    from tramontane.errors import InvalidSignature

    try:
        verify(outgoing.body, outgoing.headers, secret, now=now)
    except InvalidSignature:
        return False
    return True


async def test_no_more_are_sent_at_once_than_the_setting_says(post: Post) -> None:
    running, most = 0, 0
    full = asyncio.Event()

    async def answer(_: Outgoing) -> Exchange:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        async with asyncio.timeout(5):
            await full.wait()
        await asyncio.sleep(0.01)  # a receiver's own time
        running -= 1
        return FINE

    for _ in range(4):
        await post.endpoint()
    for _ in range(3):
        await post.told.publish()
    async with post.open(answer, webhook_concurrency=3):
        await until(lambda: post.all("succeeded"))
    assert (most, len(post.sent)) == (3, 12)


async def test_outcomes_are_written_in_groups(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    record = DeliveryStore.record

    async def counted(self: DeliveryStore, tries: Sequence[Any], **fields: Any) -> list[bool]:
        groups.append(len(tries))
        return await record(self, tries, **fields)

    monkeypatch.setattr(DeliveryStore, "record", counted)
    for _ in range(60):
        await post.endpoint()
    await post.told.publish()
    async with post.open(webhook_concurrency=64):
        await until(lambda: post.all("succeeded"))
    assert sum(groups) == 60
    assert len(groups) <= 30


# Sends nothing


async def test_what_was_let_through_before_a_pause_waits_again_uncounted(post: Post) -> None:
    paused, ill = await post.endpoint("chat.completed"), await post.endpoint("chat.failed")
    await post.told.publish("chat.completed")
    await post.told.publish("chat.failed")
    assert len(await post.told.admit()) == 2
    await post.told.set_endpoint(paused, state="paused")
    await post.told.set_endpoint(ill, blocked_until=at(60))
    async with post.open():
        await until(lambda: post.all("waiting"))
    assert post.sent == []
    assert [(row["attempts"], row["tries"], row["due_at"]) for row in await post.told.rows()] == [(0, 0, T0)] * 2
    assert await post.told.entries() == []


@pytest.mark.parametrize("of", ["an endpoint", "a callback"])
async def test_what_cannot_be_signed_waits_uncounted_until_it_can(
    post: Post, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    caplog.set_level(logging.ERROR, "tramontane")
    if of == "an endpoint":
        await post.endpoint()
        await post.told.publish()
        wrong: dict[str, Any] = {"vault": Vault([Fernet.generate_key().decode()])}
    else:
        attempt = await post.told.running(callback=callback())
        await post.told.jobs.end([ending(attempt, at=T0)])
        wrong = {"webhook_secret": ""}

    async def handed_back() -> bool:
        return bool((await post.told.rows())[0]["due_at"] > T0)

    async with post.open(**wrong):
        await until(handed_back)
    [row] = await post.told.rows()
    assert (row["state"], row["attempts"], row["tries"], row["due_at"]) == ("waiting", 0, 0, at(600))
    assert post.sent == []
    assert "delivery.unsigned" in caplog.text
    post.now = at(600)
    async with post.open():
        await until(lambda: post.all("succeeded"))
    assert len(post.sent) == 1


async def test_the_deliveries_of_an_erased_job_are_cancelled_unsent(post: Post) -> None:
    await post.endpoint("*.completed")
    attempt = await post.told.running()
    await post.told.jobs.end([ending(attempt, at=T0)])
    await post.told.admit()
    await post.told.jobs.erase(attempt.job.key, T0)
    async with post.open():
        await until(lambda: post.all("cancelled"))
    assert post.sent == []


# Trouble


async def test_an_outage_while_an_outcome_is_written_is_waited_out(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    record, broken = DeliveryStore.record, [ConnectionError("gone"), ConnectionError("still gone")]

    async def breaks(self: DeliveryStore, tries: Sequence[Any], **fields: Any) -> list[bool]:
        if broken:
            raise broken.pop()
        return await record(self, tries, **fields)

    monkeypatch.setattr(DeliveryStore, "record", breaks)
    await post.endpoint()
    await post.told.publish()
    async with post.open():
        await until(lambda: post.all("succeeded"))
    assert len(post.sent) == 1
    assert not broken


async def test_an_outcome_whose_commit_is_unknown_is_written_once(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = DeliveryStore.record, list[int]()

    async def breaks_after_the_commit(self: DeliveryStore, tries: Sequence[Any], **fields: Any) -> list[bool]:
        outcome = await record(self, tries, **fields)
        calls.append(len(tries))
        if len(calls) == 1:
            raise ConnectionError("no answer, all written")
        return outcome

    monkeypatch.setattr(DeliveryStore, "record", breaks_after_the_commit)
    await post.endpoint()
    await post.told.publish()

    async def told_twice() -> bool:
        return len(calls) == 2

    async with post.open(_ill):
        await until(told_twice)
    [row] = await post.told.rows()
    assert (row["state"], row["attempts"], len(await post.told.attempts(row["id"]))) == ("waiting", 1, 1)
    assert len(post.sent) == 1


async def _ill(_: Outgoing) -> Exchange:
    return ILL


async def test_a_fault_of_ours_leaves_the_delivery_to_others_and_harms_none(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(outgoing: Outgoing) -> Exchange:
        if b"bad" in outgoing.body:
            raise ZeroDivisionError
        return FINE

    await post.endpoint()
    bad = await post.told.publish(data={"this is": "bad"})
    good = await post.told.publish(data={"this is": "good"})

    async def good_is_told() -> bool:
        return bool((await post.told.rows("message_id = $1", good.id))[0]["state"] == "succeeded")

    async with post.open(answer):
        await until(good_is_told)
    [row] = await post.told.rows("message_id = $1", bad.id)
    assert (row["state"], row["attempts"]) == ("dispatched", 0)
    assert [entry.key.id for entry in await post.told.delivery_entries()] == [row["id"]]
    assert "delivery.left" in caplog.text


# Stops


async def test_a_stop_hands_back_what_does_not_end_within_its_grace(post: Post) -> None:
    begun = asyncio.Event()

    async def never(_: Outgoing) -> Exchange:
        begun.set()
        await asyncio.Event().wait()
        return FINE

    await post.endpoint()
    await post.told.publish()
    async with post.open(never, grace=0.01):
        await begun.wait()
        await post.told.limits.stop(post.told.worker_id, T0)  # or it would be let through anew
    [row] = await post.told.rows()
    assert (row["state"], row["attempts"], row["tries"], row["due_at"]) == ("waiting", 0, 0, T0)
    assert await post.told.entries() == []
    post.told.worker_id = new_id()
    await post.told.senders()
    async with post.open():
        await until(lambda: post.all("succeeded"))
    first, second = post.sent
    assert (header(first, "webhook-id"), first.body) == (header(second, "webhook-id"), second.body)
    assert header(second, "X-Webhook-Attempt") == "1"


async def test_a_stop_lets_what_is_under_way_end_within_its_grace(post: Post) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(_: Outgoing) -> Exchange:
        begun.set()
        await may_end.wait()
        return FINE

    await post.endpoint()
    await post.told.publish()
    async with post.open(slow) as sender:
        await begun.wait()
        sender.stop()
        may_end.set()
    assert await post.told.states() == ["succeeded"]


async def test_what_is_only_being_loaded_when_the_grace_is_over_is_not_sent(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, grace_is_over = asyncio.Event(), asyncio.Event()
    load = DeliveryStore.load

    async def slow(self: DeliveryStore, entries: Sequence[Entry], now: datetime) -> Any:
        loading.set()
        await grace_is_over.wait()
        return await load(self, entries, now)

    monkeypatch.setattr(DeliveryStore, "load", slow)
    await post.endpoint()
    await post.told.publish()
    async with post.open(grace=0.01) as sender:
        await loading.wait()
        sender.stop()
        await asyncio.sleep(0.1)  # the grace itself
        grace_is_over.set()
    assert post.sent == []
    # It waits again, or admission, which goes on here, has let it through to somebody else.
    [row] = await post.told.rows()
    assert (row["state"] in ("waiting", "dispatched"), row["attempts"], row["tries"]) == (True, 0, 0)


async def test_what_waits_while_nobody_sends_goes_out_when_somebody_does(post: Post) -> None:
    await post.endpoint()
    async with post.open():
        pass
    messages = [await post.told.publish(data={"n": number}) for number in range(20)]
    assert await post.told.entries() == []
    async with post.open():
        await until(lambda: post.all("succeeded"))
    assert sorted(msgspec.json.decode(one.body)["data"]["n"] for one in post.sent) == list(range(20))
    assert len({header(one, "webhook-id") for one in post.sent}) == len(messages)

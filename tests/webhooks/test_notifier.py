"""The seed's notifier: one signed POST, and whether it arrived."""

import json
import logging
import ssl
from ipaddress import ip_network

import pytest
import trustme
from receivers import OK, Visit, answering, receiving, status

from tramontane.errors import InvalidInput
from tramontane.ids import utc_now
from tramontane.settings import Settings
from tramontane.webhooks.notifier import WebhookNotifier
from tramontane.webhooks.signatures import new_secret, verify, verify_hex

SECRET = new_secret()
LAPTOP = Settings(webhook_allow_cidrs=(ip_network("127.0.0.0/8"),))


def parsed(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines), body


async def test_a_notification_arrives_signed_both_ways() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        heard.append(await visit.request())
        await visit.write(OK)

    async with receiving(listen) as receiver:
        arrived = await WebhookNotifier(SECRET, settings=LAPTOP).notify(
            receiver.url, "chat.completed", {"jobId": "job_1", "content": "é"}
        )

    headers, body = parsed(heard[0])
    verified = verify(body, headers, SECRET, now=utc_now())
    sent = json.loads(body)
    assert arrived is True
    assert heard[0].startswith(b"POST /hook HTTP/1.1\r\n")
    assert list(sent) == ["id", "event", "type", "timestamp", "data"]
    assert sent["event"] == sent["type"] == headers["X-Webhook-Event"] == verified.event == "chat.completed"
    assert sent["timestamp"] == headers["X-Webhook-Timestamp"]
    assert sent["id"] == headers["webhook-id"] == verified.id
    assert sent["data"] == verified.data == {"jobId": "job_1", "content": "é"}
    assert verify_hex(body, headers["X-Webhook-Signature"], SECRET)
    assert headers["Content-Type" if "Content-Type" in headers else "content-type"] == "application/json"


@pytest.mark.parametrize("code", [199 + 1, 204, 299])
async def test_every_2xx_is_a_success(code: int) -> None:
    async with receiving(answering(status(code))) as receiver:
        assert await WebhookNotifier(SECRET, settings=LAPTOP).notify(receiver.url, "a.b", {}) is True


@pytest.mark.parametrize("code", [302, 404, 410, 500])
async def test_every_other_status_is_none(code: int) -> None:
    async with receiving(answering(status(code))) as receiver:
        assert await WebhookNotifier(SECRET, settings=LAPTOP).notify(receiver.url, "a.b", {}) is False


async def test_an_address_that_is_not_allowed_is_not_called(caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(answering(OK)) as receiver:
        with caplog.at_level(logging.WARNING):
            assert await WebhookNotifier(SECRET, settings=Settings()).notify(receiver.url, "a.b", {}) is False

    assert receiver.connections == 0
    (record,) = caplog.records
    assert record.__dict__["fields"]["error_class"] == "blocked_ssrf"
    assert "TRAMONTANE_WEBHOOK_ALLOW_CIDRS=127.0.0.1/32" in record.__dict__["fields"]["detail"]


async def test_the_environment_is_the_leave_to_call_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving(answering(OK)) as receiver:
        monkeypatch.delenv("TRAMONTANE_WEBHOOK_ALLOW_CIDRS", raising=False)
        assert await WebhookNotifier(SECRET).notify(receiver.url, "a.b", {}) is False
        monkeypatch.setenv("TRAMONTANE_WEBHOOK_ALLOW_CIDRS", "127.0.0.0/8")
        assert await WebhookNotifier(SECRET).notify(receiver.url, "a.b", {}) is True


async def test_as_a_context_it_keeps_its_connection() -> None:
    async with receiving(answering(OK)) as receiver:
        async with WebhookNotifier(SECRET, settings=LAPTOP) as notifier:
            assert [await notifier.notify(receiver.url, "a.b", {"n": n}) for n in range(3)] == [True] * 3
        assert receiver.connections == 1
        assert await notifier.notify(receiver.url, "a.b", {}) is True


async def test_it_gives_up_in_time() -> None:
    async def mute(visit: Visit) -> None:
        await visit.request()
        await visit.reader.read()

    async with receiving(mute) as receiver:
        assert await WebhookNotifier(SECRET, settings=LAPTOP, timeout=0.1).notify(receiver.url, "a.b", {}) is False


async def test_it_speaks_tls_to_whom_it_is_told_to_trust() -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    async with receiving(answering(OK), tls=server) as receiver:
        trusting = WebhookNotifier(SECRET, settings=LAPTOP, ssl_context=trust)
        assert await trusting.notify(receiver.url, "a.b", {}) is True
        assert await WebhookNotifier(SECRET, settings=LAPTOP).notify(receiver.url, "a.b", {}) is False


async def test_a_large_body_is_sent_whole() -> None:
    heard: list[bytes] = []

    async def listen(visit: Visit) -> None:
        heard.append(await visit.request())
        await visit.write(OK)

    content = "x" * (3 * 2**20)
    async with receiving(listen) as receiver:
        assert await WebhookNotifier(SECRET, settings=LAPTOP).notify(receiver.url, "a.b", {"content": content})

    headers, body = parsed(heard[0])
    assert verify(body, headers, SECRET, now=utc_now()).data == {"content": content}


@pytest.mark.parametrize(
    ("field", "event", "data"),
    [
        ("event", "", {}),
        ("event", "a b", {}),
        ("event", "a\r\nx: 1", {}),
        ("event", "é", {}),
        ("data", "a.b", []),
        ("data", "a.b", None),
        ("data", "a.b", "text"),
        ("data", "a.b", {"a": object()}),
    ],
)
async def test_a_wrong_argument_is_the_callers(field: str, event: str, data: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        await WebhookNotifier(SECRET, settings=LAPTOP).notify("https://example.com/", event, data)

    assert raised.value.field == field


@pytest.mark.parametrize("secret", ["", "short", "whsec_", "whsec_!!!"])
def test_a_secret_that_cannot_sign_is_refused(secret: str) -> None:
    with pytest.raises(InvalidInput):
        WebhookNotifier(secret, settings=LAPTOP)

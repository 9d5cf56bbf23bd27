"""The FastAPI dependency on a real socket, and the page's own example of it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import aiohttp
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from webhook_cases import ROOT, body_of, named

from tramontane.errors import InvalidSignature
from tramontane.ids import utc_now
from tramontane.ports import listen_on
from tramontane.webhooks.receiver import verified
from tramontane.webhooks.signatures import Verified, new_secret, signed_headers

SECRET = new_secret()
BODY = body_of(named("sent"))


def headers_of(body: bytes, *, at: datetime | None = None, secrets: tuple[str, ...] = (SECRET,)) -> dict[str, str]:
    return dict(
        signed_headers(
            body=body,
            message_id="msg_1",
            timestamp="2026-11-22T06:46:00.123Z",
            attempted_at=at or utc_now(),
            secrets=secrets,
            event="chat.completed",
            delivery_id="dlv_1",
            attempt=1,
        )
    )


def receiver(secret: str | list[str] = SECRET, **options: Any) -> FastAPI:
    app = FastAPI()
    dependency = verified(secret, **options)

    @app.post("/webhooks")
    async def receive(webhook: Annotated[Verified, Depends(dependency)]) -> dict[str, Any]:
        return {"id": webhook.id, "event": webhook.event, "content": webhook.data["content"]}

    return app


@asynccontextmanager
async def posting(app: FastAPI) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """The app on a free port, and a client."""
    bound = listen_on("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, loop="none", ws="none", lifespan="off", log_config=None))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[bound]))
        try:
            async with aiohttp.ClientSession() as session:
                yield session, f"http://127.0.0.1:{bound.getsockname()[1]}/webhooks"
        finally:
            server.should_exit = True


async def post(app: FastAPI, body: bytes, headers: dict[str, str]) -> tuple[int, str, Any]:
    """Status, media type and JSON of the answer."""
    async with posting(app) as (session, url), session.post(url, data=body, headers=headers) as answer:
        return answer.status, answer.content_type, await answer.json(content_type=None)


async def test_a_genuine_webhook_reaches_the_route() -> None:
    answer = await post(receiver(), BODY, headers_of(BODY))
    assert answer == (200, "application/json", {"id": "msg_1", "event": "chat.completed", "content": "Bonjour !"})


async def test_the_previous_secret_passes_while_both_are_given() -> None:
    status, _, _ = await post(receiver([new_secret(), SECRET]), BODY, headers_of(BODY))
    assert status == 200


async def test_what_is_not_genuine_is_a_problem_with_its_reason() -> None:
    answer = await post(receiver(), BODY + b" ", headers_of(BODY))
    reason = "no signature matches: another secret, or the body was changed"
    assert answer == (400, "application/problem+json", {"detail": reason})


async def test_unsigned_garbage_is_a_400_and_never_a_500() -> None:
    status, _, _ = await post(receiver(), b"\xff\x00", {"webhook-signature": "nonsense"})
    assert status == 400


async def test_the_seed_signature_alone_passes_only_where_it_was_asked_for() -> None:
    signed = headers_of(BODY)
    alone = {name: signed[name] for name in ("X-Webhook-Signature", "X-Webhook-Timestamp")}
    assert (await post(receiver(), BODY, alone))[0] == 400
    assert (await post(receiver(allow_unbound=True), BODY, alone))[0] == 200


async def test_a_body_at_the_limit_passes_and_a_byte_more_is_refused_however_well_signed() -> None:
    app = receiver(limit=len(BODY))
    assert (await post(app, BODY, headers_of(BODY)))[0] == 200
    more = BODY + b"\n"
    status, media_type, problem = await post(app, more, headers_of(more))
    assert (status, media_type) == (413, "application/problem+json")
    assert problem == {"detail": f"the body has more than {len(BODY)} bytes"}


async def test_an_endless_body_is_refused_before_it_ends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    async with posting(receiver(limit=100_000)) as (session, url):
        try:
            async with session.post(url, data=endless(), headers=headers_of(b"")) as answer:
                assert answer.status == 413
        except aiohttp.ClientConnectionError:
            pass  # the server hung up on what we were still sending


@pytest.mark.parametrize("secret", ["", "whsec_", [], [SECRET, ""], "whsec_a*b*c"])
def test_a_secret_that_cannot_be_used_stops_the_receiver_at_its_start(secret: str | list[str]) -> None:
    with pytest.raises(InvalidSignature, match="the secret is"):
        verified(secret)


async def test_the_example_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    page = (ROOT / "docs" / "receivers.md").read_text("utf-8")
    [example] = re.findall(r"<!-- verifier: fastapi -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "receivers.md", "exec"), names)

    async with posting(names["app"]) as (session, url):
        async with session.post(url, data=BODY, headers=headers_of(BODY)) as answer:
            assert answer.status == 204
        async with session.post(url, data=BODY, headers=headers_of(BODY, secrets=(new_secret(),))) as answer:
            assert answer.status == 400
    assert capsys.readouterr().out.startswith("msg_1 chat.completed {")

"""Tickets: one job's events, for reading, for a while, without any header; and nobody writes them down."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from clients import QUESTION, Frames
from faces import Face, facing
from gate import Gate
from keyring import bearer, make_key, make_known_key
from logs import write_log

from tramontane.errors import InvalidTicket, SecretsLocked
from tramontane.ids import new_id, show_id, utc_now
from tramontane.models import JobKey
from tramontane.simulator import Simulator
from tramontane.store import KeyStore
from tramontane.tickets import Ticket, Tickets
from tramontane.vault import Vault

NOW = datetime(2026, 11, 22, 6, 46, tzinfo=UTC)
OLD, NEW = "A" * 43 + "=", "B" * 43 + "="
JOB = JobKey(tenant="default", id=new_id())
FREE = Ticket(job=JOB, made_with=None)
MAKER = new_id()
KEYED = Ticket(job=JOB, made_with=MAKER)

either = pytest.mark.parametrize("made", [FREE, KEYED], ids=["free", "keyed"])


@pytest_asyncio.fixture
async def face(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, worker=False, encryption_keys=(OLD,)) as face:
        yield face


async def ticket_of(face: Face, job_id: str, **form: Any) -> dict[str, Any]:
    answer = await face.ask("POST", f"/api/jobs/{job_id}/ticket", json=form)
    assert answer.status == 201
    ticket: dict[str, Any] = answer.json
    return ticket


# What a ticket is


@either
def test_a_ticket_opens_its_job_until_it_expires(made: Ticket) -> None:
    tickets = Tickets(Vault([OLD]))
    ticket, expires_at = tickets.issue(made, ttl=60, now=NOW)
    assert expires_at == NOW + timedelta(seconds=60)
    for second in (0, 30, 59):
        tickets.open(ticket, JOB.id, NOW + timedelta(seconds=second))
    for second in (60, 61, 3600):
        with pytest.raises(InvalidTicket):
            tickets.open(ticket, JOB.id, NOW + timedelta(seconds=second))


@either
def test_a_ticket_opens_no_other_job_and_none_of_another_tenant(made: Ticket) -> None:
    tickets = Tickets(Vault([OLD]))
    ticket, _ = tickets.issue(made, ttl=60, now=NOW)
    assert tickets.open(ticket, JOB.id, NOW) == made
    for forged, job_id in ((ticket, new_id()), (ticket.replace("_default_", "_another_"), JOB.id)):
        with pytest.raises(InvalidTicket):
            tickets.open(forged, job_id, NOW)


@either
def test_any_change_of_a_ticket_makes_it_worthless(made: Ticket) -> None:
    tickets = Tickets(Vault([OLD]))
    ticket, _ = tickets.issue(made, ttl=60, now=NOW)
    later = ticket.replace(ticket.split("_")[1], str(int(ticket.split("_")[1]) + 1))
    spoiled = [ticket[:i] + ("A" if ticket[i] != "A" else "B") + ticket[i + 1 :] for i in range(len(ticket) - 1)]
    for wrong in ("", "tkt_", ticket + "A", ticket[:-1], f" {ticket}", f"{ticket}\n", later, "٣" * 60, *spoiled):
        with pytest.raises(InvalidTicket):
            tickets.open(wrong, JOB.id, NOW)
    tickets.open(ticket, JOB.id, NOW)


def test_a_ticket_does_not_come_loose_from_the_key_that_it_was_made_with() -> None:
    tickets = Tickets(Vault([OLD]))
    ticket, _ = tickets.issue(KEYED, ttl=60, now=NOW)
    head, signature = ticket.split(f"{show_id('key', MAKER)}_")
    for forged in (f"{head}{signature}", f"{head}{show_id('key', new_id())}_{signature}"):
        with pytest.raises(InvalidTicket):
            tickets.open(forged, JOB.id, NOW)


def test_every_process_that_has_the_key_knows_a_ticket_also_after_the_key_was_followed_by_another() -> None:
    ticket, _ = Tickets(Vault([OLD])).issue(FREE, ttl=60, now=NOW)
    Tickets(Vault([OLD])).open(ticket, JOB.id, NOW)
    Tickets(Vault([NEW, OLD])).open(ticket, JOB.id, NOW)
    with pytest.raises(InvalidTicket):
        Tickets(Vault([NEW])).open(ticket, JOB.id, NOW)
    with pytest.raises(SecretsLocked):
        Tickets(Vault([])).issue(FREE, ttl=60, now=NOW)


# Over HTTP


async def test_a_ticket_reads_the_events_again_and_again(face: Face, database_url: str) -> None:
    accepted = await face.submit()
    await write_log(database_url, accepted["jobId"], ["a", "b"])
    ticket = await ticket_of(face, accepted["jobId"], ttl="10m")

    assert set(ticket) == {"ticket", "url", "expiresAt"}
    assert ticket["url"] == f"{accepted['eventsUrl']}?ticket={ticket['ticket']}"
    for cursor, count in ((None, 3), ("2", 2)):
        headers = {"Last-Event-ID": cursor} if cursor else {}
        answer = await face.ask("GET", ticket["url"], headers=headers)
        assert (answer.status, len(Frames().feed(answer.body))) == (200, count)


@pytest.mark.parametrize("form", [None, b"", b"{}", b'{"ttl":"1h"}', b'{"ttl":3600}'])
async def test_a_ticket_lasts_an_hour_unless_something_else_is_asked_for(face: Face, form: bytes | None) -> None:
    accepted = await face.submit()
    answer = await face.ask("POST", f"/api/jobs/{accepted['jobId']}/ticket", data=form)
    lasts = datetime.fromisoformat(answer.json["expiresAt"]) - datetime.now(UTC)  # noqa: TID251
    assert answer.status == 201
    assert answer.headers["Cache-Control"] == "no-store"
    assert timedelta(minutes=59) < lasts <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("form", "status"), [(b'{"ttl":"25h"}', 422), (b'{"ttl":0}', 422), (b'{"more":1}', 422), (b"[", 400), (b"[]", 422)]
)
async def test_a_ticket_of_another_kind_is_refused(face: Face, form: bytes, status: int) -> None:
    accepted = await face.submit()
    assert (await face.ask("POST", f"/api/jobs/{accepted['jobId']}/ticket", data=form)).status == status


async def test_a_ticket_for_another_job_or_a_wrong_one_is_refused_before_the_stream_begins(face: Face) -> None:
    mine, yours = await face.submit(), await face.submit()
    ticket = (await ticket_of(face, yours["jobId"]))["ticket"]
    for wrong in (ticket, "", "tkt_9999999999_x"):
        for method in ("GET", "HEAD"):
            answer = await face.ask(method, mine["eventsUrl"], params={"ticket": wrong})
            assert answer.status == 401
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert "WWW-Authenticate" in answer.headers
    assert answer.body == b""
    assert (await face.ask("GET", mine["eventsUrl"], params={"ticket": "x"})).json["code"] == "invalid_ticket"


async def test_a_ticket_dies_with_its_job(face: Face) -> None:
    accepted = await face.submit()
    ticket = await ticket_of(face, accepted["jobId"])
    await face.cancel(accepted["jobId"])
    await face.ask("DELETE", accepted["statusUrl"])
    assert (await face.ask("GET", ticket["url"])).status == 404
    assert (await face.ask("POST", f"{accepted['statusUrl']}/ticket")).status == 404


async def test_a_ticket_of_one_process_opens_the_stream_of_another(
    face: Face, simulator: Simulator, database_url: str
) -> None:
    accepted = await face.submit()
    ticket = await ticket_of(face, accepted["jobId"])
    async with facing(simulator, database_url, worker=False, encryption_keys=(OLD,)) as other:
        assert (await other.ask("HEAD", ticket["url"])).status == 200


async def test_a_ticket_is_worth_no_more_than_the_key_that_it_was_made_with(
    face: Face, simulator: Simulator, database_url: str
) -> None:
    unlocked = await face.submit()
    free = await ticket_of(face, unlocked["jobId"])
    (revoked, known), kept = await make_known_key(face.app, "default"), await make_key(face.app, "default")
    job = (await face.ask("POST", "/api/jobs", json={"messages": QUESTION}, **bearer(kept))).json
    tickets = [(await face.ask("POST", f"{job['statusUrl']}/ticket", **bearer(key))).json for key in (revoked, kept)]
    async with facing(simulator, database_url, worker=False, encryption_keys=(OLD,)) as other:
        for each, ticket in itertools.product((face, other), tickets):
            assert (await each.ask("HEAD", ticket["url"])).status == 200

        await KeyStore(face.app.database.pool).revoke(known.id, utc_now())

        for each in (face, other):
            async with asyncio.timeout(5):
                while (answer := await each.ask("GET", tickets[0]["url"])).status != 401:
                    pass
            assert answer.json["code"] == "invalid_ticket"
            assert (await each.ask("HEAD", tickets[1]["url"])).status == 200
            assert (await each.ask("HEAD", free["url"])).status == 200


async def test_without_a_key_that_processes_share_there_are_no_tickets(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False) as face:
        accepted = await face.submit()
        answer = await face.ask("POST", f"{accepted['statusUrl']}/ticket")
    assert (answer.status, answer.json["code"]) == (503, "secrets_locked")


async def test_a_ticket_changes_nothing_for_the_pages_of_other_origins(simulator: Simulator, database_url: str) -> None:
    page, other = {"Origin": "https://pages.example"}, {"Origin": "https://elsewhere.example"}
    origins = ("https://pages.example",)
    async with facing(simulator, database_url, worker=False, encryption_keys=(OLD,), cors_origins=origins) as face:
        accepted = await face.submit()
        ticket = await ticket_of(face, accepted["jobId"])
        allowed = await face.ask("HEAD", ticket["url"], headers=page)
        refused = await face.ask("GET", ticket["url"], headers=other)
        expired = await face.ask("GET", f"{accepted['eventsUrl']}?ticket=x", headers=page)

    assert (allowed.status, allowed.headers["Access-Control-Allow-Origin"]) == (200, "https://pages.example")
    assert (refused.status, refused.json["code"]) == (403, "not_allowed")
    assert (expired.status, expired.headers["Access-Control-Allow-Origin"]) == (401, "https://pages.example")


async def test_no_log_and_no_answer_holds_a_ticket(
    simulator: Simulator,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = []
    async with (
        Gate.to(database_url) as gate,
        facing(simulator, gate.url, worker=False, encryption_keys=(OLD,)) as face,
    ):
        accepted = await face.submit()
        ticket = await ticket_of(face, accepted["jobId"])
        secret = ticket["ticket"].rpartition("_")[2]
        other = (await face.submit())["eventsUrl"]
        for method, url in (
            ("HEAD", ticket["url"]),
            ("GET", f"{other}?ticket={ticket['ticket']}"),
            ("GET", f"{ticket['url']}&after=9"),
            ("GET", f"{ticket['url']}&unknown={ticket['ticket']}"),
            ("GET", f"{ticket['url']}&compact={ticket['ticket']}"),
            ("GET", f"{ticket['url']}&ping={ticket['ticket']}"),
            ("GET", f"{ticket['url']}&after={ticket['ticket']}"),
            ("PUT", ticket["url"]),
            ("GET", f"/nothing?ticket={ticket['ticket']}"),
        ):
            answers.append(await face.ask(method, url))
        with monkeypatch.context() as broken:
            broken.setattr(face.app.streams, "open", None)
            answers.append(await face.ask("GET", ticket["url"]))
        await gate.close()
        answers.append(await face.ask("GET", ticket["url"]))
    output = capfd.readouterr()

    assert [answer.status for answer in answers] == [200, 401, 409, 422, 422, 422, 400, 405, 404, 500, 503]
    written = [repr(vars(record)) for record in caplog.records]
    assert any("request.broken" in line for line in written)
    for text in (*written, output.out, output.err, *(str(answer.body) + str(answer.headers) for answer in answers)):
        assert secret not in text

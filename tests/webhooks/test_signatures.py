"""Our signer and verifier against the published cases, against Standard Webhooks' own library, and against noise."""

import base64
import binascii
import contextlib
import json
import runpy
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import Any

import pytest
import standardwebhooks.webhooks
from hypothesis import given, settings
from hypothesis import strategies as st
from webhook_cases import CASES, FILE, ROOT, body_of, named, now_of, secrets_of

from tramontane.errors import InvalidInput, InvalidSignature
from tramontane.ids import utc_now
from tramontane.webhooks.signatures import Verified, check_secret, new_secret, signed_headers, verify, verify_hex

SENT = named("sent")
BODY, SECRET, NOW, HEADERS = body_of(SENT), SENT["secret"], now_of(SENT), SENT["headers"]
HARMLESS = {"content-type", "user-agent"}


def sign(body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), at: datetime = NOW, **more: Any) -> dict[str, str]:
    """An attempt of ours."""
    fields: dict[str, Any] = {
        "message_id": SENT["accepted"]["id"],
        "timestamp": SENT["accepted"]["timestamp"],
        "event": "chat.completed",
        "delivery_id": SENT["accepted"]["deliveryId"],
        "attempt": 3,
    }
    return dict(signed_headers(body=body, secrets=secrets, attempted_at=at, **(fields | more)))


def test_the_published_cases_are_what_their_script_makes() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "webhook_vectors.py"))["render"]()
    assert FILE.read_text("utf-8") == made, "run python scripts/webhook_vectors.py"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_case_is_accepted_or_refused_for_its_reason(case: dict[str, Any]) -> None:
    unbound = case.get("allowUnbound", False)
    body, headers, secret = body_of(case), case["headers"], case["secret"]
    if "error" in case:
        with pytest.raises(InvalidSignature) as refused:
            verify(body, headers, secret, now=now_of(case), allow_unbound=unbound)
        assert refused.value.message == case["error"]
        return
    read = verify(body, headers, secret, now=now_of(case), allow_unbound=unbound)
    expected = case["accepted"]
    at = expected["timestamp"]
    assert read == Verified(
        id=expected["id"],
        event=expected["event"],
        timestamp=datetime.fromisoformat(at) if at else None,
        data=expected.get("data", read.data),
        body=read.body,
        attempt=expected["attempt"],
        delivery_id=expected["deliveryId"],
    )


@pytest.mark.parametrize("name", ["sent", "rotation-new"])
def test_the_signer_writes_every_header_of_the_published_cases(name: str) -> None:
    case = named(name)
    secrets = (SECRET, named("rotation-old")["secret"]) if name == "rotation-new" else (SECRET,)
    at = datetime.fromtimestamp(int(case["headers"]["webhook-timestamp"]), UTC)
    job = case["headers"]["X-Webhook-Job"]

    headers = sign(secrets=secrets, at=at, job_id=job, job_seq=7)

    assert {name: value for name, value in headers.items() if name not in HARMLESS} == case["headers"]
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("tramontane-webhooks/")


def test_what_belongs_to_no_job_names_none() -> None:
    assert not {"X-Webhook-Job", "X-Webhook-Job-Seq", "X-Webhook-Signature-Secondary"} & set(sign())


def test_the_zone_of_the_clock_changes_nothing() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=2)))
    assert sign(at=elsewhere) == sign(at=NOW)
    assert verify(BODY, sign(), SECRET, now=elsewhere).id == SENT["accepted"]["id"]


def test_a_part_of_a_second_counts_towards_the_tolerance() -> None:
    late = datetime.fromtimestamp(int(HEADERS["webhook-timestamp"]) + 300, UTC)
    assert verify(BODY, HEADERS, SECRET, now=late)
    with pytest.raises(InvalidSignature, match="too old"):
        verify(BODY, HEADERS, SECRET, now=late + timedelta(milliseconds=1))
    assert verify(BODY, HEADERS, SECRET, now=late + timedelta(minutes=5), tolerance=600)


def test_the_clock_is_now_unless_said_otherwise() -> None:
    assert verify(BODY, sign(at=utc_now()), SECRET)
    with pytest.raises(InvalidSignature, match="too old"):
        verify(BODY, sign(at=utc_now() - timedelta(minutes=6)), SECRET)


def test_headers_may_be_a_mapping_pairs_bytes_or_those_of_http_server() -> None:
    pairs = list(HEADERS.items())
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    message = Message()
    for name, value in pairs:
        message[name] = value
    for headers in (HEADERS, pairs, iter(pairs), raw, dict(raw), message):
        assert verify(BODY, headers, SECRET, now=NOW).attempt == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["webhook-id", "Webhook-Timestamp", "WEBHOOK-SIGNATURE", "x-webhook-signature"])
def test_a_header_that_came_twice_is_refused_even_if_it_says_the_same(name: str) -> None:
    value = {known.lower(): value for known, value in HEADERS.items()}[name.lower()]
    with pytest.raises(InvalidSignature, match=f"{name.lower()} came more than once"):
        verify(BODY, [*HEADERS.items(), (name, value)], SECRET, now=NOW)


@pytest.mark.parametrize("secrets", [[], [""], [SECRET, ""], ["whsec_", SECRET]])
def test_an_empty_secret_opens_nothing_even_beside_a_good_one(secrets: list[str]) -> None:
    with pytest.raises(InvalidSignature, match="the secret is empty"):
        verify(BODY, HEADERS, secrets, now=NOW)


def test_the_seed_contract_can_be_checked_alone() -> None:
    signature = HEADERS["X-Webhook-Signature"]
    assert verify_hex(BODY, signature, SECRET)
    for body, given_signature, secret in (
        (BODY + b" ", signature, SECRET),
        (BODY, signature.upper(), SECRET),
        (BODY, signature[:-1], SECRET),
        (BODY, "é\udcff", SECRET),
        (BODY, "", SECRET),
        (BODY, signature, SECRET + "x"),
    ):
        assert not verify_hex(body, given_signature, secret)
    empty = "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad"
    assert not verify_hex(b"", empty, ""), "what an empty key signs"


def test_a_new_secret_is_long_good_and_new() -> None:
    secret = new_secret()
    check_secret(secret)
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert secret != new_secret()


GOOD_SECRETS = [
    "8 letters",
    "é" * 8,
    "x" * 256,
    "whsec_" + base64.b64encode(bytes(24)).decode(),
    "whsec_" + base64.b64encode(bytes(64)).decode(),
    "whsec_" + base64.b64encode(bytes(25)).decode().rstrip("="),
]
BAD_SECRETS = [
    ("", "8 to 256"),
    ("7 chars", "8 to 256"),
    ("x" * 257, "8 to 256"),
    ("two\nlines of it", "control"),
    ("a tab\there", "control"),
    ("lone \udcff surrogate", "control"),
    ("whsec_", "0 bytes"),
    ("whsec_not base64!", "not base64"),
    ("whsec_aaaaa", "not base64"),
    ("whsec_ééééééééé", "not base64"),
    ("whsec_" + base64.b64encode(bytes(23)).decode(), "23 bytes"),
    ("whsec_" + base64.b64encode(bytes(65)).decode(), "65 bytes"),
]


@pytest.mark.parametrize("secret", GOOD_SECRETS)
def test_a_good_secret_passes_and_signs(secret: str) -> None:
    check_secret(secret)
    assert verify(BODY, sign(secrets=(secret,)), secret, now=NOW)


@pytest.mark.parametrize(("secret", "reason"), BAD_SECRETS)
def test_a_bad_secret_is_refused_and_not_quoted(secret: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        check_secret(secret)
    assert refused.value.field == "secret"
    assert len(secret) < 7 or secret not in str(refused.value)


def test_every_phase_of_a_rotation_reaches_both_sides() -> None:
    old, new = new_secret(), new_secret()
    for signing in ((old,), (old, new), (new, old), (new,)):
        headers = sign(secrets=signing)
        assert verify(BODY, headers, [new, old], now=NOW)
        for secret in (old, new):
            if secret in signing:
                assert verify(BODY, headers, secret, now=NOW)
            else:
                with pytest.raises(InvalidSignature, match="no signature matches"):
                    verify(BODY, headers, secret, now=NOW)
        assert verify_hex(BODY, headers["X-Webhook-Signature"], signing[0])
        if len(signing) > 1:
            assert verify_hex(BODY, headers["X-Webhook-Signature-Secondary"], signing[1])


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "2026-13-01T00:00:00Z", "2026-11-22T06:46:00+24:00"])
def test_a_time_that_no_calendar_has_is_refused_plainly(time: str) -> None:
    body = json.dumps({"timestamp": time}).encode()
    with pytest.raises(InvalidSignature, match="not that of a webhook"):
        verify(body, sign(body), SECRET, now=NOW)


def test_secrets_and_bodies_stay_out_of_what_is_shown() -> None:
    read = verify(BODY, HEADERS, SECRET, now=NOW)
    assert "body=" not in repr(read)


# The library of Standard Webhooks as an oracle.


@pytest.mark.parametrize("size", [24, 25, 26, 32, 64])
def test_what_we_sign_their_library_verifies(size: int) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(size))).decode()
    other = new_secret()
    for secrets in ((secret,), (secret, other), (other, secret)):
        headers = sign(secrets=secrets, at=utc_now())
        assert standardwebhooks.Webhook(secret).verify(BODY, headers)["event"] == "chat.completed"


def test_what_their_library_signs_we_verify() -> None:
    secret, at = new_secret(), utc_now()
    signature = standardwebhooks.Webhook(secret).sign("msg_1", at, BODY.decode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signature,
    }
    assert verify(BODY, headers, secret).id == "msg_1"
    assert signature == sign(secrets=(secret,), at=at, message_id="msg_1")["webhook-signature"]


class _Stopped(datetime):
    """The clock of their library, which takes none."""

    at: datetime

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.at


# Their verdict differs from ours here, and why.
DIFFERENT = {
    "plain-secret": "text without whsec_ is base64 to them",
    "unicode-secret": "the same",
    "base64-without-prefix": "the same",
    "foreign-versions": "an entry without a comma is an exception",
    "prefix-removed": "whsec_ may be missing",
    "timestamp-as-a-float": "any float is a time, and checked as the whole number below",
    "dotted-id": "an id may have dots",
    "body-not-utf8": "a UnicodeDecodeError",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_their_library_judges_the_cases_as_we_do_but_for_its_known_defects(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = type("Stopped", (_Stopped,), {"at": now_of(case)})
    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", clock)

    def accepts(secret: str) -> bool:
        try:
            standardwebhooks.Webhook(secret).verify(body_of(case), case["headers"], json_parse=False)
        except Exception:  # noqa: BLE001 - of five kinds
            return False
        return True

    same = any(accepts(secret) for secret in secrets_of(case)) == case["v1"]
    assert same == (case["name"] not in DIFFERENT)


# What their verifier raises beside its own error is a 500 at a careless receiver, and so a retry of garbage.


def test_malformed_entries_bad_base64_and_bytes_that_are_no_text_are_refused_plainly() -> None:
    theirs = standardwebhooks.Webhook(SECRET)
    fresh = sign(at=utc_now())
    for body, signature, raised in (
        (BODY, "nocomma", ValueError),
        (BODY, "v1,x", binascii.Error),
        (b"\xff", fresh["webhook-signature"], UnicodeDecodeError),
    ):
        headers = fresh | {"webhook-signature": signature}
        with pytest.raises(raised):
            theirs.verify(body, headers)
        with pytest.raises(InvalidSignature, match="no signature matches"):
            verify(body, headers, SECRET)


_TEXT = st.text() | st.sampled_from(["", "v1,", "v1,,", "1795330000", "msg_1", "é", "\udcff", "9" * 5000])
_NAMES = st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "X-Webhook-Signature"]) | st.text()
_RAW_NAMES = _NAMES.map(lambda name: name.encode("utf-8", "replace"))
_LEAF = st.integers() | st.text() | st.none() | st.datetimes().map(str)
_JSON = _LEAF | st.lists(_LEAF, max_size=2) | st.dictionaries(st.text(), _LEAF, max_size=2)
# How long an example takes says nothing on a machine that is busy with other tests.
UNHURRIED = settings(deadline=None)


@UNHURRIED
@given(
    body=st.binary() | st.just(BODY),
    headers=st.lists(st.tuples(_NAMES, _TEXT) | st.tuples(_RAW_NAMES, st.binary())),
    secret=_TEXT | st.lists(_TEXT) | st.just(SECRET) | st.text().map("whsec_".__add__),
    unbound=st.booleans(),
)
def test_no_request_whatever_raises_anything_but_invalid_signature(
    body: bytes, headers: Any, secret: Any, unbound: bool
) -> None:
    with pytest.raises(InvalidSignature):
        verify(body, headers, secret, now=NOW, allow_unbound=unbound)


@UNHURRIED
@given(st.binary() | st.text().map(lambda text: b'{"data":' + text.encode("utf-8", "replace")))
def test_no_body_whatever_raises_anything_but_invalid_signature_even_if_signed(body: bytes) -> None:
    headers = sign(body)
    with contextlib.suppress(InvalidSignature):
        assert isinstance(verify(body, headers, SECRET, now=NOW).data, dict)


@UNHURRIED
@given(st.dictionaries(st.sampled_from(["id", "event", "type", "timestamp", "data"]), _JSON))
def test_no_json_whatever_raises_anything_but_invalid_signature(said: dict[str, Any]) -> None:
    body = json.dumps(said).encode()
    with contextlib.suppress(InvalidSignature):
        assert verify(body, sign(body), SECRET, now=NOW).body == json.loads(body)


@UNHURRIED
@given(st.binary(min_size=1), st.integers(min_value=0))
def test_a_changed_byte_is_always_noticed(body: bytes, at: int) -> None:
    headers, place = sign(body), at % len(body)
    changed = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
    with pytest.raises(InvalidSignature, match="no signature matches"):
        verify(changed, headers, SECRET, now=NOW)
    assert not verify_hex(changed, headers["X-Webhook-Signature"], SECRET)


def test_importing_it_loads_neither_a_framework_nor_a_client() -> None:
    heavy = {"aiohttp", "asyncpg", "fastapi", "starlette", "pydantic", "uvicorn", "pgqueuer"}
    code = "import sys, tramontane.webhooks.signatures, tramontane.webhooks.receiver; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(loaded.stdout.split()) == set()

"""`webhooks verify`: what it says of a captured request, and how precisely."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from tramontane.cli.program import run
from tramontane.ids import iso, utc_now
from tramontane.webhooks.signatures import check_secret, new_secret, signed_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SENT = datetime.fromisoformat("2026-11-22T06:46:00Z")
BODY = b'{"id":"msg_1","event":"chat.completed","timestamp":"2026-11-22T06:46:00.123Z","data":{"content":"\xc3\xa9 1"}}'

Check: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """The command on a captured request: its exit code and what it says."""
    monkeypatch.delenv("TRAMONTANE_WEBHOOK_SECRET", raising=False)

    def check(
        *words: str, body: bytes = BODY, secret: str | None = SECRET, headers: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        (tmp_path / "body").write_bytes(body)
        lines = "".join(f"{name}: {value}\n" for name, value in (signed() if headers is None else headers).items())
        (tmp_path / "headers").write_text(lines)
        given = ["--secret", secret] if secret is not None else []
        code = run(
            ["webhooks", "verify", str(tmp_path / "body"), "--headers", str(tmp_path / "headers"), *given, *words]
        )
        said = capsys.readouterr()
        return code, said.out, said.err

    return check


def signed(at: datetime = SENT, body: bytes = BODY) -> dict[str, str]:
    return dict(
        signed_headers(
            body=body, message_id="msg_1", timestamp="2026-11-22T06:46:00.123Z", attempted_at=at, secrets=[SECRET],
            event="chat.completed", delivery_id="dlv_1", attempt=2,
        )
    )  # fmt: skip


def test_a_genuine_request_is_said_to_be_good(check: Check) -> None:
    code, out, err = check(headers=signed(utc_now()))

    assert (code, err) == (0, "")
    assert out.startswith("✓ the signature is good\n")
    assert "chat.completed" in out


def test_for_programs_it_is_json(check: Check) -> None:
    good = check("--json", "--no-time")
    bad = check("--json", "--no-time", body=BODY + b"!")

    assert (good[0], bad[0]) == (0, 1)
    assert msgspec.json.decode(good[1]) == {
        "verified": True,
        "bound": True,
        "id": "msg_1",
        "event": "chat.completed",
        "timestamp": "2026-11-22T06:46:00.123Z",
        "attempt": 2,
        "deliveryId": "dlv_1",
    }
    assert msgspec.json.decode(bad[1], type=dict[str, object])["verified"] is False


def test_the_age_of_a_captured_request_can_be_passed_over_or_set(check: Check) -> None:
    old = check()
    passed_over = check("--no-time")
    then = check("--at", iso(SENT + timedelta(seconds=200)))
    later = check("--at", iso(SENT + timedelta(seconds=400)))

    assert [code for code, _, _ in (old, passed_over, then, later)] == [1, 0, 0, 1]
    assert "→ it was sent at 2026-11-22T06:46:00.000Z: --no-time passes over that" in old[1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"body": BODY + b"\n"}, "→ the body has a line end too many"),
        ({"body": BODY.replace(b",", b", ").replace(b":", b": ", 1)}, "→ the body was parsed and written anew"),
        ({"secret": SECRET + " "}, "→ the secret has blanks around it"),
        ({"secret": new_secret()}, "✗ no signature matches: another secret, or the body was changed\n"),
        ({"headers": signed() | {"webhook-id": "msg_2"}}, "→ secret and body are right: webhook-id"),
        ({"headers": signed() | {"content-length": "7"}, "body": BODY[:-2]}, "and content-length says 7"),
        ({"headers": {}}, "✗ the webhook is not signed"),
        ({"headers": {"webhook-id": "msg_1"}}, "✗ webhook-timestamp is missing"),
        ({"secret": "whsec_!!"}, "✗ the secret is not base64 after whsec_"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(check: Check, changed: dict[str, object], said: str) -> None:
    code, out, err = check("--no-time", **changed)

    assert (code, err) == (1, "")
    assert said in out


def test_a_signature_that_binds_no_time_is_good_with_a_warning(check: Check) -> None:
    headers = {"X-Webhook-Signature": signed()["X-Webhook-Signature"]}

    code, out, _ = check(headers=headers)

    assert code == 0
    assert "binds no time" in out


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("opening", ["POST /hook HTTP/1.1", "> POST /hook HTTP/1.1"])
def test_a_whole_request_in_one_file_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str, opening: str
) -> None:
    lines = [opening, *(f"{name}: {value}" for name, value in signed().items()), "", ""]
    (tmp_path / "request").write_bytes(end.join(lines).encode() + BODY)

    code = run(["webhooks", "verify", str(tmp_path / "request"), "--secret", SECRET, "--no-time"])

    assert (code, capsys.readouterr().err) == (0, "")


def test_the_secret_may_come_from_the_environment_and_must_come_from_somewhere(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = check("--no-time", secret=None)
    monkeypatch.setenv("TRAMONTANE_WEBHOOK_SECRET", SECRET)
    with_it = check("--no-time", secret=None)

    assert without[0] == 2
    assert without[2].startswith("error: --secret: is missing")
    assert with_it[0] == 0


def test_a_fresh_secret_is_one_that_endpoints_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["webhooks", "secret"]) == 0
    made = capsys.readouterr().out.strip()

    check_secret(made)
    assert made.startswith("whsec_")

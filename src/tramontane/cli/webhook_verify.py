"""`tramontane webhooks verify` and `secret`: the signature of a captured request, checked here, without a server."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, moment, settings_from
from tramontane.errors import InvalidInput, InvalidSignature
from tramontane.ids import iso
from tramontane.webhooks.signatures import TOLERANCE, Verified, new_secret, verify, verify_hex

_Headers: TypeAlias = list[tuple[str, str]]

#: Seconds; more than any clock says.
_ANY_AGE: Final = 1e15


def check(
    body: Annotated[str, typer.Argument(metavar="[FILE]", help="the body, byte for byte; `-`: standard input")] = "-",
    headers: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="`Name: value` lines, or JSON; without, FILE begins with them and a blank line"
        ),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(metavar="SECRET", help="the endpoint's [TRAMONTANE_WEBHOOK_SECRET]")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="as if it had come then, e.g. 2026-11-22T06:00Z")
    ] = None,
    no_time: Annotated[bool, typer.Option("--no-time", help="do not mind how old it is")] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Check the signature of a request that was captured, and say precisely what is wrong with it."""
    key = secret if secret is not None else settings_from(data_dir=data_dir).webhook_secret
    if not key:
        raise InvalidInput("--secret", "is missing, and TRAMONTANE_WEBHOOK_SECRET is not set")
    came, given = _request(body, headers)
    now, tolerance = _now(at, no_time=no_time), _ANY_AGE if no_time else TOLERANCE
    try:
        verified = verify(came, given, key, now=now, tolerance=tolerance, allow_unbound=True)
    except InvalidSignature as error:
        return _refused(error.message, _reasons(came, given, key), json=json)
    bound = any(name.lower() == "webhook-signature" for name, _ in given)
    if json:
        screen.show_json({"verified": True, "bound": bound, **_fields(verified)})
    else:
        _show(verified, bound=bound)
    return exits.OK


def secret(json: Json = False) -> int:
    """Print a fresh secret for an endpoint or callbacks."""
    made = new_secret()
    screen.show_json({"secret": made}) if json else screen.say(made)
    return exits.OK


def _now(at: str | None, *, no_time: bool) -> datetime | None:
    if at is not None and no_time:
        raise InvalidInput("--at", "and --no-time: one of them")
    text = moment("--at", at)
    return datetime.fromisoformat(text) if text else None


def _request(file: str, headers: str | None) -> tuple[bytes, _Headers]:
    """Body and headers of what was captured."""
    content = _read(file)
    if headers is not None:
        return content, _headers(_read(headers))
    ends = [(content.find(end), end) for end in (b"\r\n\r\n", b"\n\n") if end in content]
    if not ends:
        raise InvalidInput("--headers", "is missing, and FILE holds no headers before a blank line")
    place, end = min(ends)
    return content[place + len(end) :], _headers(content[:place])


def _read(file: str) -> bytes:
    try:
        return typer.get_binary_stream("stdin").read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(file, f"cannot be read: {error.strerror}") from None


def _headers(content: bytes) -> _Headers:
    """From `Name: value` lines (a request line before them and curl's `> ` are passed over), or a JSON object."""
    text = content.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        try:
            return list(msgspec.json.decode(text, type=dict[str, str]).items())
        except msgspec.MsgspecError:
            raise InvalidInput("--headers", "is not a JSON object of texts") from None
    found = []
    for line in text.splitlines():
        name, colon, value = line.removeprefix("> ").partition(":")
        if colon and " " not in name.strip():
            found.append((name.strip(), value.strip()))
    return found


def _reasons(body: bytes, headers: _Headers, secret: str) -> list[str]:
    """What may have gone wrong on the way, as far as trying it out can tell."""
    known = {name.lower(): value for name, value in headers}

    def fits(body: bytes, secret: str) -> bool:
        return verify_hex(body, known.get("x-webhook-signature", ""), secret) or _signed(body, headers, secret)

    if _signed(body, headers, secret):
        sent = iso(datetime.fromtimestamp(int(known["webhook-timestamp"]), UTC))
        return [f"it was sent at {sent}: --no-time passes over that, --at takes another time"]
    if fits(body, secret):
        return ["secret and body are right: webhook-id, -timestamp or -signature is not what was sent"]
    told = []
    if (length := known.get("content-length", "")).isdecimal() and int(length) != len(body):
        told.append(f"the body has {len(body)} bytes, and content-length says {length}")
    if fits(body, secret.strip()):
        told.append("the secret has blanks around it that do not belong to it")
    if fits(body.rstrip(b"\r\n"), secret):
        told.append("the body has a line end too many: whatever wrote it to the file has added one")
    if (compact := _compact(body)) not in (None, body) and fits(compact or b"", secret):
        told.append("the body was parsed and written anew: check the bytes as they came")
    return told


def _signed(body: bytes, headers: _Headers, secret: str) -> bool:
    try:
        verify(body, headers, secret, tolerance=_ANY_AGE)
    except InvalidSignature:
        return False
    return True


def _compact(body: bytes) -> bytes | None:
    try:
        return msgspec.json.encode(msgspec.json.decode(body))
    except (msgspec.MsgspecError, RecursionError):
        return None


def _refused(problem: str, reasons: Sequence[str], *, json: bool) -> int:
    if json:
        screen.show_json({"verified": False, "problem": problem, "reasons": reasons})
    else:
        screen.say(f"✗ {problem}")
        for reason in reasons:
            screen.say(f"  → {reason}")
    return exits.FAILED


def _fields(verified: Verified) -> dict[str, Any]:
    return {
        "id": verified.id,
        "event": verified.event,
        "timestamp": verified.timestamp and iso(verified.timestamp),
        "attempt": verified.attempt,
        "deliveryId": verified.delivery_id,
    }


def _show(verified: Verified, *, bound: bool) -> None:
    screen.say("✓ the signature is good")
    for name, value in _fields(verified).items():
        if value is not None:
            screen.say(f"  {name:10} {value}")
    if not bound:
        screen.say("  → X-Webhook-Signature alone binds no time: whoever has seen it can send it again")

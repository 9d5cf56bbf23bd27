"""Signatures of webhooks: how each request is signed, and how a receiver knows that it is ours. Pure.

Two contracts travel side by side. `webhook-signature` is that of Standard Webhooks: it covers the id, the second of the
attempt and the body, so that an old request cannot be sent again. `X-Webhook-Signature` covers the body alone: easy to
check by hand, and open to a replay.

    secret           key of webhook-signature             key of X-Webhook-Signature
    whsec_<base64>   the bytes that the base64 stands for   the text as displayed, UTF-8
    any other text   the text, UTF-8                        the text, UTF-8
"""

import binascii
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from secrets import token_bytes
from typing import Any, Final, TypeAlias, cast

import msgspec

from tramontane.errors import InvalidInput, InvalidSignature
from tramontane.ids import utc_now

#: Headers as frameworks hand them over: a mapping of whatever kind, or pairs.
Headers: TypeAlias = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str | bytes, str | bytes]]

#: Seconds that a receiver's clock and ours may differ, the way of the request included.
TOLERANCE: Final = 300.0

_PREFIX: Final = "whsec_"
_USER_AGENT: Final = "tramontane-webhooks/" + version("tramontane")
_STANDARD: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_READ: Final = frozenset((*_STANDARD, "x-webhook-signature", "x-webhook-attempt", "x-webhook-delivery"))
# Visible ASCII. No dot, which parts what is signed: with one, a body could be read as an id, a time and another body.
_ID: Final = re.compile(r"[!-\-/-~]{1,256}")
_SECONDS: Final = re.compile(r"[0-9]{1,12}")
_ISO_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """A webhook that somebody signed who knows the secret."""

    #: The same on every attempt and replay: what to recognise a repeat by. Empty if the sender gave none.
    id: str
    #: `chat.completed`; empty if the body names none.
    event: str
    #: When it happened, which is not when it was sent; None if the body does not say.
    timestamp: datetime | None
    data: dict[str, Any]
    #: The whole body.
    body: dict[str, Any] = field(repr=False)
    #: Which attempt this is, from 1. It and `delivery_id` are not signed: for logs, not for decisions.
    attempt: int | None = None
    delivery_id: str | None = None


def new_secret() -> str:
    """A fresh secret: `whsec_` and 32 random bytes as base64."""
    return _PREFIX + _base64(token_bytes(32))


def check_secret(text: str, field: str = "secret") -> None:
    """Raises InvalidInput for a secret that is too weak, or that two programs might read differently."""
    if not text.isprintable():
        raise InvalidInput(field, "has a control character, a line break perhaps")
    if not text.startswith(_PREFIX):
        if not 8 <= len(text) <= 256:
            raise InvalidInput(field, "must have 8 to 256 characters; or whsec_ and base64 of 24 to 64 bytes")
        return
    try:
        key = _key(text)
    except ValueError as error:
        raise InvalidInput(field, str(error)) from None
    if not 24 <= len(key) <= 64:
        raise InvalidInput(field, f"stands for {len(key)} bytes after whsec_: must be 24 to 64")


def signed_headers(
    *,
    body: bytes,
    message_id: str,
    timestamp: str,
    attempted_at: datetime,
    secrets: Sequence[str],
    event: str,
    delivery_id: str,
    attempt: int,
    job_id: str | None = None,
    job_seq: int | None = None,
) -> tuple[tuple[str, str], ...]:
    """Every header of one attempt, but those that the endpoint's owner added.

    timestamp: the body's own, the time of the event. secrets: the primary one first, then all that are still valid.
    """
    assert attempted_at.tzinfo is not None, "a time without its zone would be signed as another one"
    assert "." not in message_id, "a dot parts what is signed"
    seconds = str(int(attempted_at.timestamp()))
    content = f"{message_id}.{seconds}.".encode() + body
    headers = [
        ("content-type", "application/json"),
        ("user-agent", _USER_AGENT),
        ("webhook-id", message_id),
        ("webhook-timestamp", seconds),
        ("webhook-signature", " ".join([_standard(content, secret) for secret in secrets])),
        ("X-Webhook-Signature", _hex(body, secrets[0])),
        ("X-Webhook-Timestamp", timestamp),
        ("X-Webhook-Event", event),
        ("X-Webhook-Id", message_id),
        ("X-Webhook-Delivery", delivery_id),
        ("X-Webhook-Attempt", str(attempt)),
    ]
    if len(secrets) > 1:
        headers.append(("X-Webhook-Signature-Secondary", _hex(body, secrets[1])))
    if job_id is not None:
        headers.append(("X-Webhook-Job", job_id))
    if job_seq is not None:
        headers.append(("X-Webhook-Job-Seq", str(job_seq)))
    return tuple(headers)


def verify(
    body: bytes,
    headers: Headers,
    secret: str | Sequence[str],
    *,
    now: datetime | None = None,
    tolerance: float = TOLERANCE,
    allow_unbound: bool = False,
) -> Verified:
    """What the webhook says, once it is certain that the owner of a secret said it, and said it just now.

    body: the bytes as they came, before anybody parsed them. secret: one, or all that are valid during a rotation.
    now: the receiver's clock when None; it may differ by `tolerance` seconds from the sender's.
    allow_unbound: also take a request that has `X-Webhook-Signature` alone. That signature binds no time: whoever once
    saw the request can send it again for ever. With any `webhook-…` header there, it never counts.

    Raises InvalidSignature, and nothing else, whatever came.
    """
    secrets = usable_secrets(secret)
    found = _found(headers)
    if any(name in found for name in _STANDARD):
        message_id = _check_standard(body, found, secrets, now or utc_now(), tolerance)
    elif (signature := found.get("x-webhook-signature")) is None:
        raise InvalidSignature("the webhook is not signed: it has neither webhook-signature nor X-Webhook-Signature")
    elif not allow_unbound:
        raise InvalidSignature("X-Webhook-Signature alone is open to replay: webhook-signature is required")
    elif any(verify_hex(body, signature, one) for one in secrets):
        message_id = None
    else:
        raise InvalidSignature("no signature matches: another secret, or the body was changed")
    return _read(body, message_id, found)


def verify_hex(body: bytes, signature_hex: str, secret: str) -> bool:
    """Whether `X-Webhook-Signature` fits the body. True proves who signed it, never when: it can be sent again."""
    given = signature_hex.encode("utf-8", "replace")
    return bool(secret) and hmac.compare_digest(_hex(body, secret).encode(), given)


def usable_secrets(secret: str | Sequence[str]) -> tuple[str, ...]:
    """The secrets of a receiver. Raises InvalidSignature if one of them, or their list, is empty or malformed."""
    secrets = (secret,) if isinstance(secret, str) else tuple(secret)
    try:
        usable = [bool(_key(one)) for one in secrets]
    except ValueError as error:
        raise InvalidSignature(f"the secret {error}") from None
    # Anybody can sign with an empty key: a variable that is not set must not open the door.
    if not usable or not all(usable):
        raise InvalidSignature("the secret is empty")
    return secrets


def _check_standard(
    body: bytes, found: Mapping[str, str], secrets: Sequence[str], now: datetime, tolerance: float
) -> str:
    """The id of a request that Standard Webhooks calls valid."""
    for name in _STANDARD:
        if not found.get(name):
            raise InvalidSignature(f"{name} is missing")
    message_id, seconds, signatures = (found[name] for name in _STANDARD)
    if not _ID.fullmatch(message_id):
        raise InvalidSignature("webhook-id is not an id")
    if not _SECONDS.fullmatch(seconds):
        raise InvalidSignature("webhook-timestamp is not a whole number of seconds")
    assert now.tzinfo is not None, "a time without its zone may be hours off"
    age = now.timestamp() - int(seconds)
    if age > tolerance:
        raise InvalidSignature(f"the webhook is too old: sent more than {tolerance:g} seconds ago")
    if -age > tolerance:
        raise InvalidSignature(f"the webhook is from the future: more than {tolerance:g} seconds ahead")
    content = f"{message_id}.{seconds}.".encode() + body
    entries = [entry.encode("utf-8", "replace") for entry in signatures.split(" ")]
    for secret in secrets:
        expected = _standard(content, secret).encode()
        # Every entry is compared as a whole: one of another version, or half a one, is just not equal.
        if any(hmac.compare_digest(expected, entry) for entry in entries):
            return message_id
    raise InvalidSignature("no signature matches: another secret, or the body was changed")


def _found(headers: Headers) -> dict[str, str]:
    """The headers that we read, names in lower case."""
    found: dict[str, str] = {}
    # Asked for items(), not for being a Mapping: the headers of http.server are none, and iterate over their names.
    pairs = headers.items() if hasattr(headers, "items") else headers
    for name, value in cast("Iterable[tuple[str | bytes, str | bytes]]", pairs):
        known = _text(name).lower()
        if known not in _READ:
            continue
        if known in found:
            raise InvalidSignature(f"{known} came more than once")
        found[known] = _text(value)
    return found


def _read(body: bytes, message_id: str | None, found: Mapping[str, str]) -> Verified:
    """What a body says that is known to be genuine."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidSignature("the body is not a JSON object") from None
    event = said.get("event", said.get("type", ""))
    data = said.get("data", {})
    own_id = said.get("id", "")
    if not isinstance(event, str) or not isinstance(data, dict) or not isinstance(own_id, str):
        raise InvalidSignature("the body is not that of a webhook")
    attempt, delivery_id = found.get("x-webhook-attempt", ""), found.get("x-webhook-delivery", "")
    return Verified(
        id=message_id or own_id,
        event=event,
        timestamp=_time(said.get("timestamp")),
        data=data,
        body=said,
        attempt=int(attempt) if _SECONDS.fullmatch(attempt) else None,
        delivery_id=delivery_id if _ID.fullmatch(delivery_id) else None,
    )


def _time(text: object) -> datetime | None:
    if text is None:
        return None
    try:
        if isinstance(text, str) and _ISO_TIME.fullmatch(text):
            return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidSignature("the body is not that of a webhook")


def _key(secret: str) -> bytes:
    """The key of `webhook-signature`. Raises ValueError that says what is wrong with the secret."""
    if not secret.startswith(_PREFIX):
        return secret.encode("utf-8", "surrogatepass")
    text = secret.removeprefix(_PREFIX)
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise ValueError("is not base64 after whsec_") from None


def _standard(content: bytes, secret: str) -> str:
    return "v1," + _base64(hmac.digest(_key(secret), content, "sha256"))


def _hex(body: bytes, secret: str) -> str:
    return hmac.digest(secret.encode("utf-8", "surrogatepass"), body, "sha256").hex()


def _base64(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value

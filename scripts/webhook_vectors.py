"""Write tests/vectors/webhooks.json, the cases that every verifier of ours is held to.

Nothing of the package is used here: the cases judge it.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

FILE = Path(__file__).parents[1] / "tests" / "vectors" / "webhooks.json"


def whsec(key: bytes) -> str:
    """A secret of that key."""
    return "whsec_" + base64.b64encode(key).decode()


#: A body as a case writes it.
Body: TypeAlias = str | dict[str, Any]
#: What a verifier makes of a request.
Reading: TypeAlias = dict[str, Any]

AT = 1795330000
EVENT_TIME = "2026-11-22T06:46:00.123Z"
ID = "msg_01KAN4RZ5VE9S8T2K6M3XQ7D4B"
DELIVERY = "dlv_01KAN4RZ5W0C2G4J6N8Q1S3V5X"
JOB = "job_01KAN4RZ3M7P9R1T3W5Y8A0C2E"
SECRET = whsec(bytes(range(32)))
OLD = whsec(bytes(range(100, 132)))
PLAIN = "correct horse battery staple"
BODY = (
    f'{{"id":"{ID}","event":"chat.completed","type":"chat.completed","timestamp":"{EVENT_TIME}",'
    f'"data":{{"jobId":"{JOB}","kind":"chat","status":"completed","seq":7,"content":"Bonjour !",'
    '"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}}'
)
READ: Reading = {
    "id": ID,
    "event": "chat.completed",
    "timestamp": EVENT_TIME,
    "data": json.loads(BODY)["data"],
    "attempt": 3,
    "deliveryId": DELIVERY,
}
#: The same without the headers that nobody signed.
BARE: Reading = READ | {"attempt": None, "deliveryId": None}
#: The one case known in seven languages before ours.
FIXED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - known to the world
FIXED_ID, FIXED_AT = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
FIXED_BODY = '{"test": 2432232314}'

NO_MATCH = "no signature matches: another secret, or the body was changed"
NOT_SECONDS = "webhook-timestamp is not a whole number of seconds"
LATE = "the webhook is too old: sent more than 300 seconds ago"
EARLY = "the webhook is from the future: more than 300 seconds ahead"
NOT_WEBHOOK = "the body is not that of a webhook"
UNSIGNED = "the webhook is not signed: it has neither webhook-signature nor X-Webhook-Signature"
NOT_JSON = "the body is not a JSON object"
UNBOUND = "X-Webhook-Signature alone is open to replay: webhook-signature is required"

ABOUT = {
    "what": "Webhooks as Tramontane signs them, and as nobody should. A verifier accepts the cases that have `accepted`"
    " and refuses those that have `error` (the words may differ).",
    "tolerance": "300 seconds, the ends included",
    "secret": "whsec_ and base64: the key of webhook-signature is the decoded bytes; any other text: its UTF-8."
    " The key of X-Webhook-Signature is the text as it stands. A list: either is valid, as during a rotation",
    "now": "the receiver's clock, in Unix seconds",
    "body": "text, sent as UTF-8; or {base64}; or {head, repeat, times, tail}",
    "v1": "whether webhook-signature alone holds: what a verifier decides that does not read the body",
    "allowUnbound": "the receiver has asked for X-Webhook-Signature to be enough",
    "accepted": "what is read; `data` is left out where it is long",
}


def raw(body: Body) -> bytes:
    """The bytes that a case means."""
    if isinstance(body, str):
        return body.encode()
    if "base64" in body:
        return base64.b64decode(body["base64"])
    return f"{body['head']}{body['repeat'] * body['times']}{body['tail']}".encode()


def standard(secret: str, body: Body = BODY, *, id: str = ID, at: int | str = AT) -> str:  # noqa: A002
    """`v1,…` of Standard Webhooks."""
    key = base64.b64decode(secret[6:] + "==") if secret.startswith("whsec_") else secret.encode()
    digest = hmac.new(key, f"{id}.{at}.".encode() + raw(body), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def of_body(secret: str, body: Body = BODY) -> str:
    """What X-Webhook-Signature holds."""
    return hmac.new(secret.encode(), raw(body), hashlib.sha256).hexdigest()


def signed(secret: str, body: Body = BODY, *, id: str = ID, at: int | str = AT) -> dict[str, str]:  # noqa: A002
    """The three headers of Standard Webhooks alone."""
    signature = standard(secret, body, id=id, at=at)
    return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": signature}


def sent(*secrets: str) -> dict[str, str]:
    """The headers of an attempt of ours, but those that say nothing about it (content-type, user-agent)."""
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(AT),
        "webhook-signature": " ".join(standard(secret) for secret in secrets),
        "X-Webhook-Signature": of_body(secrets[0]),
        "X-Webhook-Timestamp": EVENT_TIME,
        "X-Webhook-Event": "chat.completed",
        "X-Webhook-Id": ID,
        "X-Webhook-Delivery": DELIVERY,
        "X-Webhook-Attempt": "3",
        "X-Webhook-Job": JOB,
        "X-Webhook-Job-Seq": "7",
    }
    if len(secrets) > 1:
        headers["X-Webhook-Signature-Secondary"] = of_body(secrets[1])
    return headers


def case(
    name: str,
    claim: str,
    headers: dict[str, str],
    outcome: Reading | str,
    *,
    secret: str | list[str] = SECRET,
    body: Body = BODY,
    now: int = AT + 2,
    v1: bool | None = None,
    allow_unbound: bool = False,
) -> dict[str, Any]:
    """One case. outcome: what is read, or the error. v1: whether there is an outcome, if not said otherwise."""
    accepted = isinstance(outcome, dict)
    made = {"name": name, "claim": claim, "secret": secret, "now": now, "headers": headers, "body": body}
    made |= {"allowUnbound": True} if allow_unbound else {}
    return made | {"v1": accepted if v1 is None else v1, "accepted" if accepted else "error": outcome}


def read(id: str = ID, event: str = "", timestamp: str | None = None, **more: Any) -> Reading:  # noqa: A002
    """What a verifier reads from a request that says little."""
    return {"id": id, "event": event, "timestamp": timestamp, **more, "attempt": None, "deliveryId": None}


def genuine() -> Iterator[dict[str, Any]]:
    """What must be accepted."""
    one, both = signed(SECRET), sent(SECRET, OLD)
    value = one["webhook-signature"]
    fixed = signed(FIXED_SECRET, FIXED_BODY, id=FIXED_ID, at=FIXED_AT)
    assert fixed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    about, says = "the case that other libraries have too", read(FIXED_ID, data={})
    yield case("fixed", about, fixed, says, secret=FIXED_SECRET, body=FIXED_BODY, now=FIXED_AT)
    yield case("sent", "a request as Tramontane sends it", sent(SECRET), READ)
    yield case("standard-only", "Standard Webhooks alone is enough", one, BARE)
    shouted = {name.upper(): value for name, value in sent(SECRET).items()}
    yield case("header-case", "the case of a header's name means nothing", shouted, READ)
    yield case("rotation-new", "two signatures, the receiver has the new secret", both, READ)
    yield case("rotation-old", "two signatures, the receiver has the old secret", both, READ, secret=OLD)
    yield case("rotation-both", "one signature, the receiver takes two secrets", sent(OLD), READ, secret=[SECRET, OLD])
    foreign = one | {"webhook-signature": f"v2,{value[3:]} v1a,{value[3:]} nonsense v1, {value}"}
    yield case("foreign-versions", "what is of another version is passed over", foreign, BARE)
    yield case("five-minutes-late", "300 s old is young enough", one, BARE, now=AT + 300)
    yield case("five-minutes-early", "300 s ahead is near enough", one, BARE, now=AT - 300)
    ignored = sent(SECRET) | {"X-Webhook-Signature": "0" * 64}
    yield case("hex-ignored", "beside webhook-signature the other one counts for nothing", ignored, READ)
    vague = sent(SECRET) | {"X-Webhook-Attempt": "three", "X-Webhook-Delivery": "a b"}
    yield case("vague-attempt", "what is not signed may be garbage", vague, BARE)


def genuine_secrets() -> Iterator[dict[str, Any]]:
    """Every form of a secret, with a request that must be accepted."""
    accented, text = "clé secrète ☀️", SECRET.removeprefix("whsec_")
    yield case("plain-secret", "a secret without whsec_ is its UTF-8", sent(PLAIN), READ, secret=PLAIN)
    yield case("unicode-secret", "beyond ASCII too", sent(accented), READ, secret=accented)
    yield case("base64-without-prefix", "without whsec_ even base64 is just text", sent(text), READ, secret=text)
    for size, padding in ((24, 0), (26, 1), (25, 2)):
        secret = whsec(bytes(range(size)))
        name, claim = f"padding-{padding}", f"a secret of {size} bytes"
        yield case(name, claim, signed(secret), BARE, secret=secret)
        if padding:
            yield case(name + "-missing", claim + ", its padding lost", signed(secret), BARE, secret=secret.rstrip("="))
    short = whsec(bytes(range(8)))
    yield case("short-key", "a weak secret of another sender still verifies", signed(short), BARE, secret=short)


def genuine_bodies() -> Iterator[dict[str, Any]]:
    """Every form of a body, with a request that must be accepted."""
    words = '{"event":"a.b","timestamp":"2026-11-22T07:46:00.5+01:00","data":{"content":"été ☀️ 日本語\\u2028"}}'
    said = read(ID, "a.b", "2026-11-22T06:46:00.500Z", data={"content": "été ☀️ 日本語\u2028"})
    spaced = '{ "type": "invoice.paid",\n  "data": {} }\n'
    large = {"head": '{"event":"a.b","data":{"content":"', "repeat": "é", "times": 524288, "tail": '"}}'}
    for name, claim, body, says in (
        ("unicode-body", "bytes are signed, not characters", words, said),
        ("empty-object", "nothing needs to be said", "{}", read(data={})),
        (
            "type-alone",
            "another sender's `type` is the event; layout is kept",
            spaced,
            read(ID, "invoice.paid", data={}),
        ),
        ("one-mebibyte", "a body of 1 MiB", large, read(ID, "a.b")),
    ):
        yield case(name, claim, signed(SECRET, body), says, body=body)


def unbound() -> Iterator[dict[str, Any]]:
    """X-Webhook-Signature alone: taken only where it is asked for, and never in place of the better one."""
    alone = {"X-Webhook-Signature": of_body(PLAIN), "X-Webhook-Timestamp": EVENT_TIME}
    whsec_alone = {"X-Webhook-Signature": of_body(SECRET)}
    yield case("unbound", "it can be replayed, so it must be asked for", alone, UNBOUND, secret=PLAIN)
    for name, claim, headers, secret, outcome in (
        ("unbound-allowed", "asked for", alone, PLAIN, BARE),
        ("unbound-whsec", "its key is the secret as displayed", whsec_alone, SECRET, BARE),
        ("unbound-other", "signed by somebody else", whsec_alone, PLAIN, NO_MATCH),
        ("unbound-half", "cut", {"X-Webhook-Signature": of_body(PLAIN)[:32]}, PLAIN, NO_MATCH),
        ("unbound-empty", "no signature", {"X-Webhook-Signature": ""}, PLAIN, NO_MATCH),
        ("unbound-none", "nothing at all", {}, PLAIN, UNSIGNED),
    ):
        yield case(name, claim, headers, outcome, secret=secret, v1=False, allow_unbound=True)
    later = sent(PLAIN) | {"webhook-timestamp": str(AT + 900)}
    claim = "a broken webhook-signature is not healed by the other one"
    yield case("no-downgrade", claim, later, NO_MATCH, secret=PLAIN, now=AT + 900, allow_unbound=True)


def wrong_requests() -> Iterator[dict[str, Any]]:
    """Signed once, and not like this."""
    one = signed(SECRET)
    for name in one:
        rest = {key: kept for key, kept in sent(SECRET).items() if key != name}
        yield case(f"no-{name}", "each of the three is needed", rest, f"{name} is missing")
        yield case(f"empty-{name}", "and has to say something", one | {name: ""}, f"{name} is missing")
    yield case("no-headers", "nothing is signed", {}, UNSIGNED)
    yield case("too-late", "5 min 1 s old", one, LATE, now=AT + 301)
    yield case("too-early", "5 min 1 s ahead", one, EARLY, now=AT - 301)
    changed = BODY.replace("Bonjour", "Bonsoir")
    yield case("tampered-body", "some characters of the body", one, NO_MATCH, body=changed)
    yield case("added-newline", "a line end that a proxy or an editor added", one, NO_MATCH, body=BODY + "\n")
    yield case("tampered-id", "another id", one | {"webhook-id": ID[:-1] + "C"}, NO_MATCH)
    yield case("tampered-timestamp", "a later time", one | {"webhook-timestamp": str(AT + 1)}, NO_MATCH)
    yield case("dotted-id", "a body could pass for an id", signed(SECRET, id=ID + ".1"), "webhook-id is not an id")
    crossed = one | {"webhook-signature": "v1," + base64.b64encode(bytes.fromhex(of_body(PLAIN))).decode()}
    yield case("crossed", "the signature of the body is not that of the request", crossed, NO_MATCH, secret=PLAIN)


def wrong_signatures() -> Iterator[dict[str, Any]]:
    """Lists in which no entry is the signature."""
    one = signed(SECRET)
    value = one["webhook-signature"]
    for name, altered in {
        "version-alone": "v1,",
        "truncated": value[:11],
        "truncated-by-one": value[:-1],
        "without-version": value[3:],
        "wrong-version": "v2," + value[3:],
        "asymmetric-version": "v1a," + value[3:],
        "upper-case-version": "V1," + value[3:],
        "longer": value + ",more",
        "hexadecimal": "v1," + base64.b64decode(value[3:]).hex(),
        "not-base64": "v1,***",
        "not-ascii": value[:-2] + "é=",
        "comma-list": f"{value},v2,x",
        "separators": " , ,, v1,, ",
    }.items():
        yield case(f"signature-{name}", "no signature", one | {"webhook-signature": altered}, NO_MATCH)


def wrong_timestamps() -> Iterator[dict[str, Any]]:
    """Times that are no whole seconds, each well signed."""
    for name, at in {
        "float": f"{AT}.0",
        "milliseconds": f"{AT}000",
        "exponent": "1.79533e9",
        "signed": f"+{AT}",
        "negative": f"-{AT}",
        "underscores": "1_795_330_000",
        "hexadecimal": hex(AT),
        "text": "now",
        "iso": EVENT_TIME,
        "endless": "9" * 400,
        "arabic-digits": "".join(chr(0x660 + int(digit)) for digit in str(AT)),
    }.items():
        yield case(f"timestamp-{name}", "whole seconds only", signed(SECRET, at=at), NOT_SECONDS)
    one = signed(SECRET) | {"webhook-timestamp": f"{AT}.9"}
    yield case("timestamp-as-a-float", "signed whole, and sent with a fraction", one, NOT_SECONDS)


def wrong_secrets() -> Iterator[dict[str, Any]]:
    """Secrets that fit nothing, or would fit everything."""
    one, text = signed(SECRET), SECRET.removeprefix("whsec_")
    yield case("other-secret", "signed by somebody else", signed(OLD), NO_MATCH)
    yield case("other-secrets", "none of two secrets", signed(PLAIN), NO_MATCH, secret=[SECRET, OLD])
    yield case("prefix-removed", "a secret without its whsec_ is another one", one, NO_MATCH, secret=text)
    for name, claim, headers, secret, error in (
        ("empty-secret", "an empty key signs for everybody", signed(""), "", "the secret is empty"),
        ("prefix-alone", "so does whsec_ alone", signed("whsec_"), "whsec_", "the secret is empty"),
        ("malformed-secret", "whsec_ promises base64", one, "whsec_a*b*c", "the secret is not base64 after whsec_"),
    ):
        yield case(name, claim, headers, error, secret=secret)


def wrong_bodies() -> Iterator[dict[str, Any]]:
    """Bodies that are well signed, and yet no webhook."""
    bodies: dict[str, Body] = {
        "not-utf8": {"base64": base64.b64encode(b'{"event":"\xff"}').decode()},
        "byte-order-mark": {"base64": base64.b64encode(b"\xef\xbb\xbf{}").decode()},
        "not-json": "payload=1",
        "cut": BODY[:-1],
        "empty": "",
        "array": "[]",
        "null": "null",
        "deep": {"head": '{"data":', "repeat": "[", "times": 100_000, "tail": ""},
    }
    for name, body in bodies.items():
        yield case(f"body-{name}", "no JSON object", signed(SECRET, body), NOT_JSON, body=body, v1=True)
    for name, text in {
        "event": '{"event":7}',
        "data": '{"event":"a.b","data":[]}',
        "null-data": '{"event":"a.b","data":null}',
        "id": '{"id":1}',
        "timestamp": '{"timestamp":"yesterday"}',
        "local-timestamp": '{"timestamp":"2026-11-22T06:46:00"}',
        "unix-timestamp": '{"timestamp":1795330000}',
    }.items():
        yield case(f"wrong-{name}", "no webhook's body", signed(SECRET, text), NOT_WEBHOOK, body=text, v1=True)


def render() -> str:
    """The file: a case a line."""
    right = (genuine(), genuine_secrets(), genuine_bodies(), unbound())
    wrong = (wrong_requests(), wrong_signatures(), wrong_timestamps(), wrong_secrets(), wrong_bodies())
    lines = ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in chain(*right, *wrong))
    return f'{{\n"about": {json.dumps(ABOUT, indent=2, ensure_ascii=False)},\n"cases": [\n{lines}\n]\n}}\n'


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")

"""The published cases, as the tests of every verifier read them."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "vectors" / "webhooks.json"
CASES: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["cases"]


def named(name: str) -> dict[str, Any]:
    """The case of that name."""
    return next(case for case in CASES if case["name"] == name)


def body_of(case: dict[str, Any]) -> bytes:
    body = case["body"]
    if isinstance(body, str):
        return body.encode()
    if "base64" in body:
        return base64.b64decode(body["base64"])
    return f"{body['head']}{body['repeat'] * body['times']}{body['tail']}".encode()


def now_of(case: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(case["now"], UTC)


def secrets_of(case: dict[str, Any]) -> list[str]:
    return [case["secret"]] if isinstance(case["secret"], str) else list(case["secret"])

"""The OpenAPI document is true: schemathesis tries every operation with what fits its schema, and with what does not.

Nothing may be answered by 5xx, nor by a status, a content type or a body that the document does not have. The same
inputs come every time; TRAMONTANE_FUZZ=1 tries more of them.
"""

import asyncio
import base64
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from faces import Face, facing

from tramontane.api.application import create_api
from tramontane.api.description import ANSWERS
from tramontane.ids import new_id, utc_now
from tramontane.keys import ApiKey, hash_of, new_key
from tramontane.models import Scope
from tramontane.simulator import Simulator
from tramontane.store import KeyStore

EXAMPLES = "100" if os.environ.get("TRAMONTANE_FUZZ") else "2"  # noqa: TID251 - a setting of the tests
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,ignored_auth"
)
KEY = base64.urlsafe_b64encode(bytes(32)).decode()

pytestmark = pytest.mark.timeout(1800 if EXAMPLES != "2" else 300)


async def fuzz(url: str, directory: Path, *options: str) -> None:
    """Fail with what schemathesis found, if it found anything."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--checks", CHECKS, "--continue-on-failure", "--suppress-health-check", "all"]
    command += ["--generation-deterministic", "--max-examples", EXAMPLES, "--request-timeout", "20", *options]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        pytest.fail(output.decode(), pytrace=False)


@pytest_asyncio.fixture
async def face(simulator: Simulator, database_url: str) -> AsyncIterator[Face]:
    async with facing(simulator, database_url, encryption_keys=(KEY,), body_limit=300_000) as face:
        face.app.listeners.drain()  # nobody is to wait for what never comes
        face.app.streams.drain()
        yield face


async def test_no_operation_answers_by_5xx_or_other_than_the_document_says(face: Face, tmp_path: Path) -> None:
    await fuzz(face.url, tmp_path, "--header", f"Authorization: Bearer {await key_for(face.app)}")


async def test_the_same_where_no_key_is_needed(face: Face, tmp_path: Path) -> None:
    await fuzz(face.url, tmp_path, "--phases", "fuzzing,stateful", "--exclude-checks", "ignored_auth")


async def key_for(app: Any) -> str:
    """A key to everything of one tenant."""
    key = new_key()
    scopes = frozenset({Scope.SUBMIT, Scope.READ, Scope.ADMIN})
    api_key = ApiKey(tenant="acme", id=new_id(), name="fuzz", scopes=scopes, created_at=utc_now())
    await KeyStore(app.database.pool).add(api_key, hash_of(key) or b"")
    return key


async def test_every_answer_of_a_route_is_described(simulator: Simulator, database_url: str) -> None:
    async with facing(simulator, database_url, worker=False) as face:
        document = create_api(face.app).openapi()
    operations = {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    for name, operation in operations.items():
        for status, answer in operation["responses"].items():
            json = answer.get("content", {}).get("application/json")
            if status.startswith("2") and json is not None:
                assert json.get("schema"), f"{name}: say in ANSWERS what its JSON looks like"
    assert set(ANSWERS) <= set(operations)

"""The JavaScript client and the playground on a server that wants a key."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from browser import browser
from served import HERE, run_node, serve

from tramontane.database import open_database
from tramontane.ids import new_id, utc_now
from tramontane.keys import USUAL_SCOPES, ApiKey, hash_of, new_key
from tramontane.settings import Settings
from tramontane.simulator import Simulator
from tramontane.store import KeyStore

pytestmark = [pytest.mark.timeout(90), pytest.mark.xdist_group("chromium")]

ANSWER = "document.querySelector('.turn.assistant:last-child')?.firstChild.data"
STATE = "document.getElementById('state').textContent"
ASKED = "document.getElementById('locked').open"


@asynccontextmanager
async def closed(simulator: Simulator, directory: Path, database_url: str) -> AsyncIterator[tuple[str, str]]:
    """A server that wants keys, and one of them."""
    key = new_key()
    digest = hash_of(key)
    assert digest is not None
    known = ApiKey(tenant="acme", id=new_id(), name="page", scopes=USUAL_SCOPES, created_at=utc_now())
    async with open_database(Settings(database_url=database_url)) as database:
        await KeyStore(database.pool).add(known, digest)
    async with serve(simulator, directory / "data", database_url) as url:
        yield url, key


async def test_the_client_sends_a_key_with_every_request(
    simulator: Simulator, short_dir: Path, database_url: str
) -> None:
    async with closed(simulator, short_dir, database_url) as (url, key):
        said = await run_node(str(HERE / "keyed.mjs"), stdin={"url": url, "key": key})
    refused = ["unauthorized", "unauthorized"]
    assert msgspec.json.decode(said) == {
        "value": ["aye", True],
        "function": ["aye", True],
        "none": refused,
        "wrong": refused,
    }


async def test_the_playground_asks_for_a_key_until_it_has_one_and_keeps_it_in_its_tab(
    simulator: Simulator, make_dir: Callable[[], Path], database_url: str
) -> None:
    directory = make_dir()
    async with (
        browser(directory / "profile") as chromium,
        closed(simulator, directory, database_url) as (url, key),
    ):
        page = await chromium.open(f"{url}/playground")

        async def ask() -> None:
            await page.run("document.getElementById('question').value = 'Say: aye'")
            await page.run("document.getElementById('ask').requestSubmit()")

        async def unlock(typed: str) -> None:
            await page.holds(ASKED)
            await page.run(f"document.getElementById('key').value = '{typed}'")
            await page.run("document.getElementById('unlock').requestSubmit()")

        await ask()
        await unlock(new_key())
        await unlock(key)
        await page.holds(f"{STATE} == 'verified'")
        assert await page.run(ANSWER) == "aye"
        assert await page.run("sessionStorage.getItem('tramontane.playground.key')") == key
        assert await page.run("localStorage.length") == 0

        await page.reload()
        await ask()
        await page.holds(f"{STATE} == 'verified'")
        assert await page.run(ASKED) is False
        await page.close()
    shutil.rmtree(directory)

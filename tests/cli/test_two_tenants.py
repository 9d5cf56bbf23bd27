"""Two tenants on one server, from the outside: each with its jobs, and one with its own key for Mistral."""

import asyncio
import signal
from pathlib import Path

import pytest
from clients import QUESTION
from terminal import Terminal

from tramontane.client import ApiClient
from tramontane.errors import NotFound
from tramontane.simulator import Simulator
from tramontane.simulator.accounts import fingerprint

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

OURS, HERS, WRONG = "key-of-the-server", "key-of-acme", "key-of-nobody"


async def ended(client: ApiClient) -> tuple[str, str]:
    """A job of that tenant, once it has ended: its id, and its status or the code of its error."""
    job_id = (await client.submit({"messages": QUESTION}))["jobId"]
    job = await client.get(job_id, wait=20)
    return job_id, job["error"]["code"] if job["error"] else job["status"]


async def test_each_has_its_own_jobs_and_goes_by_its_own_mistral_key(short_dir: Path, database_url: str) -> None:
    async with Simulator(port=0, api_keys=[OURS, HERS]) as simulator:
        terminal = Terminal(
            short_dir / "data",
            DATABASE_URL=database_url,
            MISTRAL_SERVER_URL=simulator.url,
            MISTRAL_API_KEY=OURS,
            TRAMONTANE_HEARTBEAT="1s",
            TRAMONTANE_POLL="0.2s",
            TRAMONTANE_ENCRYPTION_KEY="A" * 43 + "=",
        )

        async def run(*words: str, stdin: str = "") -> str:
            done = await asyncio.to_thread(terminal.run, *words, stdin=stdin)
            assert done.code == 0, done.err
            return done.out

        async def goes_by(mistral_key: str | None) -> None:
            word = ("--mistral-key", "-" if mistral_key else "none")
            await run("tenants", "set", "acme", *word, stdin=mistral_key or "")

        keys = [(await run("keys", "create", "--tenant", name)).split()[-1] for name in ("acme", "globex")]
        with terminal.serve() as server:
            async with ApiClient(server.url, api_key=keys[0]) as acme, ApiClient(server.url, api_key=keys[1]) as globex:
                outcomes = []
                for mistral_key in (None, HERS, WRONG, None):
                    await goes_by(mistral_key)
                    outcomes += [(await ended(acme))[1], (await ended(globex))[1]]
                mine, _ = await ended(acme)
                with pytest.raises(NotFound):
                    await globex.get(mine)
                counts = [len((await client.list())["jobs"]) for client in (acme, globex)]
            said = await asyncio.to_thread(server.end, signal.SIGTERM)

    assert outcomes == ["completed"] * 4 + ["upstream_unauthorized"] + ["completed"] * 3
    assert counts == [5, 4]
    asked_with = [call.key for call in simulator.ledger]
    assert asked_with == [fingerprint(key) for key in (OURS, OURS, HERS, OURS, WRONG, OURS, OURS, OURS, OURS)]
    for secret in (HERS, WRONG, OURS, *keys):
        assert secret not in said.out + said.err

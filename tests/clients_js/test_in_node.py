"""The JavaScript client in Node: its own tests, its size, and thousands of cuts between it and a real server."""

import gzip
import os
import re
from pathlib import Path

import aiohttp
import msgspec
import pytest
from served import CLIENT, HERE, CuttingProxy, node, run_node, serve

from tramontane.simulator import Behaviour, Simulator

pytestmark = pytest.mark.timeout(60)

#: What resumes a stream and proves it, in the order of its imports. Callbacks, tabs and memory come on top.
STREAM_PART = ("errors", "calls", "sse", "connections", "stream")
LIMIT = 2560


async def test_the_tests_of_the_client_pass() -> None:
    tests = sorted(str(path) for path in (CLIENT / "test").glob("*.test.js"))
    assert len(tests) >= 4
    await run_node("--test", "--test-reporter=dot", *tests)


async def test_the_stream_part_is_small() -> None:
    """Minified and gzipped, as a bundler would ship it."""
    terser = HERE / "node_modules" / "terser" / "bin" / "terser"
    node()
    if not terser.exists():
        missing = "terser is not installed (npm ci in tests/clients_js)"
        if "CI" in os.environ:  # noqa: TID251 - the one thing a test asks of its surroundings
            pytest.fail(missing)
        pytest.skip(missing)
    modules = [(CLIENT / "src" / f"{name}.js").read_text("utf-8") for name in STREAM_PART]
    imported = {name for module in modules for name in re.findall(r'^import .* from "\./(\w+)\.js"', module, re.M)}
    assert imported <= set(STREAM_PART)
    joined = "\n".join(re.sub(r"^import .*\n", "", module, flags=re.M) for module in modules)
    one = re.sub(r"^export (?!class Stream )", "", joined, flags=re.M)

    minified = await run_node(
        str(terser), "--module", "--mangle", "--compress", "passes=3", stdin=msgspec.Raw(one.encode())
    )

    assert len(gzip.compress(minified, 9)) <= LIMIT


async def test_the_first_example_of_the_documents_runs(
    simulator: Simulator, short_dir: Path, database_url: str
) -> None:
    [example, *_] = re.findall(r"```js\n(.*?)```", (CLIENT.parents[1] / "docs" / "clients.md").read_text("utf-8"), re.S)
    async with serve(simulator, short_dir / "data", database_url) as url:
        said = await run_node("--input-type=module", "--eval", example.replace("http://localhost:8787", url))

    text, _, proof = said.decode().strip().rpartition("true ")
    assert len(text.encode("utf-16-le")) // 2 == int(proof)


async def test_whatever_is_cut_every_event_comes_once_and_every_job_is_asked_for_once(
    simulator: Simulator, short_dir: Path, database_url: str
) -> None:
    simulator.behaviour = Behaviour(tokens=150, tokens_per_second=300)
    messages = [{"role": "user", "content": "Sète — 😀 ?"}]
    async with (
        serve(simulator, short_dir / "data", database_url) as url,
        CuttingProxy(url, seed=7).run() as proxy,
        aiohttp.ClientSession(url) as session,
    ):
        out = await run_node(
            str(HERE / "follow.mjs"), stdin={"url": proxy.url, "jobs": 12, "replays": 6, "messages": messages}
        )
        async with session.get("/api/jobs", params={"limit": 200}) as response:
            jobs = (await response.json())["jobs"]
        texts = {}
        for job in jobs:
            async with session.get(job["statusUrl"]) as response:
                texts[job["jobId"]] = (await response.json())["result"]["content"]
    told = msgspec.json.decode(out)

    print(f"{proxy.cuts} cuts, {told['reconnects']} reconnects, {proxy.posts} POSTs")
    assert len(jobs) == 12
    assert len(told["results"]) == 84
    assert proxy.cuts >= 200
    for result in told["results"]:
        assert result["text"] == texts[result["jobId"]]
        assert (result["verified"], result["dense"], result["gaps"]) == (True, True, 0)

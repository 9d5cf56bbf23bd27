"""The JavaScript client in a real browser, on the playground of a real server."""

import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from browser import Chromium, Page, browser
from served import CuttingProxy, serve
from yarl import URL

from tramontane.simulator import Behaviour, Simulator

# One browser and one server for all of them: starting the two takes longer than most of the tests.
pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.xdist_group("chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]

SLOW = Behaviour(tokens=120, tokens_per_second=80)
#: Goes on until somebody cancels: such a test does not depend on how fast the machine is.
ENDLESS = Behaviour(tokens=50_000, tokens_per_second=80)
STATE = "document.getElementById('state').textContent"
SEQ = "Number(document.getElementById('seq').textContent)"
TIMELINE = "document.getElementById('timeline').textContent"
ANSWER = "document.querySelector('.turn.assistant:last-child').firstChild.data"


class Place:
    """A browser, and a server that it reaches through a proxy which may cut."""

    def __init__(
        self, chromium: Chromium, proxy: CuttingProxy, session: aiohttp.ClientSession, mistral: Simulator
    ) -> None:
        self.proxy = proxy
        self.mistral = mistral
        self._chromium = chromium
        self._session = session
        self._pages: list[Page] = []

    async def playground(self, fragment: str = "") -> Page:
        page = await self._chromium.open(f"{self.proxy.url}/playground{fragment}")
        self._pages.append(page)
        return page

    async def the_job(self) -> dict[str, Any]:
        """The newest job of the server, with its result."""
        async with self._session.get("/api/jobs", params={"limit": 1}) as response:
            [job] = (await response.json())["jobs"]
        async with self._session.get(job["statusUrl"], headers={"prefer": "wait=10"}) as response:
            shape: dict[str, Any] = await response.json()
            return shape

    async def get(self, path: str) -> aiohttp.ClientResponse:
        async with self._session.get(URL(self.proxy.url + path, encoded=True)) as response:
            await response.read()
            return response

    async def cancel(self, job_id: str) -> None:
        async with self._session.post(f"/api/jobs/{job_id}/cancel") as response:
            assert response.status == 200

    async def tidy(self) -> None:
        self.mistral.behaviour = SLOW
        self.proxy.cutting = False
        self.proxy.spared = 0
        self.proxy.cuts = self.proxy.posts = 0
        while self._pages:
            await self._pages.pop().close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_place(make_dir: Callable[[], Path]) -> AsyncIterator[Place]:
    directory = make_dir()
    async with (
        Simulator(seed=1) as mistral,
        browser(directory / "profile") as chromium,
        serve(mistral, directory / "data") as url,
        CuttingProxy(url, seed=3).run() as proxy,
        aiohttp.ClientSession(url) as session,
    ):
        yield Place(chromium, proxy, session, mistral)
    shutil.rmtree(directory)


@pytest_asyncio.fixture(loop_scope="module")
async def place(shared_place: Place) -> AsyncIterator[Place]:
    await shared_place.tidy()
    yield shared_place
    await shared_place.tidy()


async def ask(page: Page, question: str = "Which wind?") -> None:
    await page.run(f"document.getElementById('question').value = '{question}'")
    await page.run("document.getElementById('ask').requestSubmit()")


async def test_the_page_has_a_strict_policy_and_nothing_of_others(place: Place) -> None:
    page = await place.get("/playground")
    text = await page.text()
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert not re.search(r"https?://|<style|<script>|\son\w+=|\sstyle=", text)
    for name in ("client/index.d.ts", "client/..%2fpackage.json", "..%2fplayground.py", "other.js"):
        assert (await place.get(f"/playground/{name}")).status == 404


async def test_a_connection_that_is_cut_is_resumed_and_the_answer_is_proven(place: Place) -> None:
    page = await place.playground()
    await ask(page)
    for _ in range(3):
        here = await page.run(SEQ) or 0
        await page.holds(f"{SEQ} > {here + 5} && !document.getElementById('cut').disabled")
        await page.run("document.getElementById('cut').click()")
        await page.holds(f"{STATE} == 'reconnecting'")
    await page.holds(f"{STATE} == 'verified'")

    timeline = await page.run(TIMELINE)
    job = await place.the_job()
    assert timeline.count("resumed after event") == 3
    assert await page.run(ANSWER) == job["result"]["content"]
    assert page.errors == []


async def test_a_reload_in_the_middle_goes_on_with_the_same_job(place: Place) -> None:
    page = await place.playground()
    await ask(page)
    await page.holds(f"{SEQ} > 10")

    await page.reload()
    shown = await page.run(ANSWER)
    await page.holds(f"{STATE} == 'verified'")

    job = await place.the_job()
    assert shown
    assert "reloaded" in await page.run(TIMELINE)
    assert await page.run(ANSWER) == job["result"]["content"]
    await page.reload()
    assert await page.run(ANSWER) == job["result"]["content"]
    assert place.proxy.posts == 1
    assert page.errors == []


async def test_a_job_is_cancelled_from_the_page(place: Place) -> None:
    place.mistral.behaviour = Behaviour(tokens=120, tokens_per_second=80, silence_after=20)
    page = await place.playground()
    await ask(page)
    await page.holds(f"{SEQ} > 5")

    await page.run("document.getElementById('cancel').click()")
    await page.holds(f"{STATE} == 'failed'")

    assert (await place.the_job())["status"] == "cancelled"
    assert "(cancelled)" in await page.run(TIMELINE)


# Follows a job in a page of its own making, and counts the connections that are open to its events.
FOLLOW = """
(async (given) => {
  const { Tramontane } = await import("/playground/client/index.js");
  globalThis.open = 0;
  const counted = async (url, init) => {
    open++;
    init.signal.addEventListener("abort", () => open--, { once: true });
    return fetch(url, init);
  };
  const client = new Tramontane(location.origin, { fetch: counted });
  globalThis.stream = client.stream(given, { onChunk() {}, onError: (error) => (globalThis.failed = String(error)) });
})
"""
#: What was shown, once the stream has ended and the text is as long as the server says.
ENDED = "stream.final?.len == stream.text.length && stream.text"
REQUEST = '{messages: [{role: "user", content: "Which wind?"}]}'


async def test_tabs_share_one_connection_and_another_takes_over_when_its_tab_is_closed(place: Place) -> None:
    place.mistral.behaviour = ENDLESS
    first, second, third = [await place.playground() for _ in range(3)]
    await first.run(f"{FOLLOW}({REQUEST})")
    job_id = await first.holds("globalThis.stream?.jobId")
    for page in (second, third):
        await page.run(f"{FOLLOW}('{job_id}')")

    for page in (second, third):
        await page.holds("stream.cursor > 20 && open == 0")
    assert await first.run("open") == 1
    await first.close()
    for page in (second, third):
        await page.holds(f"stream.cursor > {await page.run('stream.cursor')} + 5")
    assert await second.run("open") + await third.run("open") == 1

    await place.cancel(job_id)
    assert await second.holds(ENDED) == await third.holds(ENDED)


async def test_a_tab_that_reads_slowly_does_not_hold_the_others_back(place: Place) -> None:
    place.mistral.behaviour = ENDLESS
    first, second = [await place.playground() for _ in range(2)]
    await first.run(
        f"""(async () => {{
          const {{ Tramontane }} = await import("/playground/client/index.js");
          globalThis.stream = new Tramontane().stream({REQUEST});
          globalThis.events = stream[Symbol.asyncIterator]();
          await events.next();
        }})()"""
    )
    job_id = await first.run("stream.jobId")
    await second.run(f"{FOLLOW}('{job_id}')")

    await second.holds("stream.cursor > 20")
    assert await first.run("stream.cursor") == 1
    await place.cancel(job_id)
    await first.run("(async () => { while (!(await events.next()).done); })()")
    assert await second.holds(ENDED) == await first.holds(ENDED)


async def test_without_web_locks_each_tab_has_a_connection_of_its_own(place: Place) -> None:
    first, second = [await place.playground() for _ in range(2)]
    for page in (first, second):
        await page.run("Object.defineProperty(navigator, 'locks', { value: undefined })")
    await first.run(f"{FOLLOW}({REQUEST})")
    job_id = await first.holds("globalThis.stream?.jobId")
    await second.run(f"{FOLLOW}('{job_id}')")

    await second.holds("stream.cursor > 5")
    assert [await page.run("open") for page in (first, second)] == [1, 1]
    for page in (first, second):
        await page.holds("stream.verified")


async def test_whatever_is_cut_a_page_has_every_event_once(place: Place) -> None:
    page = await place.playground()
    script = f"""(async () => {{
      const {{ Tramontane }} = await import("/playground/client/index.js");
      Math.random = () => 0.01;
      const client = new Tramontane();
      const follow = async (given) => {{
        const stream = client.stream(given, {{ tabs: false }});
        await stream.done;
        return stream;
      }};
      const made = await follow({REQUEST});
      const read = await Promise.all(Array.from({{ length: 8 }}, () => follow(made.jobId)));
      return [made, ...read].map(({{ text, verified, gaps }}) => [text, verified, gaps]);
    }})()"""
    await page.run("import('/playground/client/index.js').then(() => 0)")
    place.proxy.cutting = True

    results = await page.run(script)

    place.proxy.cutting = False
    text = (await place.the_job())["result"]["content"]
    assert results == [[text, True, 0]] * 9
    assert place.proxy.cuts > 15


async def test_a_tab_that_is_opened_on_a_job_follows_it(place: Place) -> None:
    page = await place.playground()
    await ask(page)
    job_id = await page.holds(f"{SEQ} > 3 && document.getElementById('job').textContent")

    other = await place.playground(f"#{job_id}")
    await other.holds(f"{STATE} == 'verified'")

    assert await other.run(ANSWER) == (await place.the_job())["result"]["content"]
    assert other.errors == []


async def test_a_native_event_source_resumes_by_ticket(place: Place) -> None:
    page = await place.playground()
    url = await page.run(
        f"""(async () => {{
          const {{ Tramontane }} = await import("/playground/client/index.js");
          const client = new Tramontane();
          return (await client.ticket(await client.submit({REQUEST}))).url;
        }})()"""
    )
    # An EventSource is over for good where headers are cut short: Chromium takes them for whole ones of another type.
    place.proxy.spared = 4000
    place.proxy.cutting = True
    await page.run(
        f"""
        globalThis.told = [];
        globalThis.source = new EventSource("{url}");
        for (const name of ["start", "chunk", "attempt", "complete"]) source.addEventListener(name, (event) => {{
          told.push(JSON.parse(event.data));
          if (name == "complete") source.close();
        }});
        0"""
    )
    await page.holds("told.at(-1)?.type == 'chat:complete'")
    told = await page.run("told")

    place.proxy.cutting = False
    job = await place.the_job()
    covered = [(event.get("from", event["seq"]), event["seq"]) for event in told]
    assert place.proxy.cuts > 0
    assert [first for first, _ in covered] == [1, *(last + 1 for _, last in covered[:-1])]
    assert "".join(event.get("content", "") for event in told) == job["result"]["content"]

"""`tramontane batch FILE`: many prompts as durable jobs, the first answer live, and a table of them all."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import msgspec
import typer

from tramontane import telemetry
from tramontane.address import read_address
from tramontane.cli import exits, screen
from tramontane.cli.batch_view import View, open_view, show_results, show_webhooks
from tramontane.cli.chat import DEFAULT_MODEL
from tramontane.cli.options import (
    Callback,
    CallbackSecret,
    DataDir,
    Json,
    Model,
    Simulate,
    callback_from,
    settings_from,
)
from tramontane.cli.prompts_file import BadLine, PromptLine, read_prompts
from tramontane.cli.reach import can_work, own_server, reach, require_key, simulated
from tramontane.cli.signals import run
from tramontane.errors import ConfigurationError, InvalidInput, TramontaneError
from tramontane.ids import utc_now
from tramontane.models import DEFAULT_TENANT
from tramontane.seam import cut
from tramontane.settings import Settings
from tramontane.tasks import task_group

if TYPE_CHECKING:
    from tramontane.cli.receiver import Receiver
    from tramontane.client import ApiClient

#: Requests that are under way at a time: submits first, then waits for the jobs that are next to end.
_AT_ONCE: Final = 32
_LONG_POLL: Final = 30  # seconds
#: What the cancelling of the rest may take after Ctrl-C, in seconds.
_CANCEL: Final = 5.0
#: What the last webhook may take after the last job's end, in seconds; it may be its second try.
_ARRIVAL: Final = 15.0
_LOOPBACK: Final = ip_network("127.0.0.0/8")


def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a prompt per line; `.jsonl`: a JSON object per line")],
    model: Model = DEFAULT_MODEL,
    live: Annotated[bool, typer.Option("--live", help="show the first answer while it is written")] = False,
    skip_bad_lines: Annotated[bool, typer.Option("--skip-bad-lines", help="run the good lines all the same")] = False,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="write the answers there, as JSON lines")] = None,
    callback: Callback = None,
    callback_secret: CallbackSecret = None,
    receive: Annotated[
        bool, typer.Option("--receive", help="with --simulator: receive a webhook of each end here, and check it")
    ] = False,
    simulator: Simulate = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Run a file of prompts as jobs, and wait for the answers.

    With --simulator everything is in this process and its data directory: no key, no server.
    """
    settings = settings_from(data_dir=data_dir)
    telemetry.configure("warning")
    if live and json:
        raise InvalidInput("--live", "shows text and --json shows none: choose one")
    if receive and (callback is not None or not simulator):
        raise InvalidInput("--receive", "goes with --simulator, and without --callback")
    prompts = _prompts(file, settings, model, skip_bad_lines=skip_bad_lines)
    if told := callback_from(callback, callback_secret):
        prompts = _telling(prompts, told)
    with _opened(output) as results:
        if receive:
            return run(lambda _: _batch_received(settings, prompts, results, live=live, json=json))
        return run(lambda _: _batch(settings, prompts, results, live=live, simulator=simulator, json=json))


async def _batch_received(
    settings: Settings, prompts: list[PromptLine], results: TextIO | None, *, live: bool, json: bool
) -> int:
    from tramontane.cli.receiver import receiving

    # The server is ours, and so is the receiver: no other address becomes reachable by this.
    settings = dataclasses.replace(settings, webhook_allow_cidrs=(*settings.webhook_allow_cidrs, _LOOPBACK))
    async with receiving() as receiver:
        prompts = _telling(prompts, receiver.callback)
        return await _batch(settings, prompts, results, live=live, simulator=True, json=json, receiver=receiver)


async def _batch(
    settings: Settings,
    prompts: list[PromptLine],
    results: TextIO | None,
    *,
    live: bool,
    simulator: bool,
    json: bool,
    receiver: "Receiver | None" = None,
) -> int:
    began = monotonic()
    async with _engine(settings, simulator=simulator) as client:
        with open_view(len(prompts), first=prompts[0].text if live else None, quiet=json) as view:
            try:
                jobs = await _run(client, prompts, view, live=live)
                wall = monotonic() - began
                told = [job["jobId"] for prompt, job in zip(prompts, jobs, strict=True) if _tells(prompt, receiver)]
                missing = await receiver.wait(told, seconds=_ARRIVAL) if receiver else 0
            except asyncio.CancelledError:
                view.close()
                screen.note("interrupted: what has not ended is cancelled")
                raise
    rows = [{"line": prompt.line, "prompt": prompt.text, **job} for prompt, job in zip(prompts, jobs, strict=True)]
    if results is not None:
        results.writelines(msgspec.json.encode(row).decode() + "\n" for row in rows)
    if json:
        webhooks = {"webhooks": [arrival.to_json() for arrival in receiver.arrived.values()]} if receiver else {}
        screen.show_json({"jobs": rows, "seconds": round(wall, 3), **webhooks})
    else:
        show_results(rows, wall)
        if receiver is not None:
            show_webhooks(list(receiver.arrived.values()), missing)
        if simulator:
            screen.note(f"they are kept: tramontane jobs list --data-dir {settings.data_dir}")
    return exits.FAILED if missing or any(job["status"] != "completed" for job in jobs) else exits.OK


@asynccontextmanager
async def _engine(settings: Settings, *, simulator: bool) -> "AsyncIterator[ApiClient]":
    if not simulator:
        async with reach(settings, worker=can_work(settings)) as reached:
            if reached.own:
                require_key(settings, "tramontane batch FILE --simulator")
            yield reached.client
        return
    if url := read_address(settings.data_dir):
        # Its worker would take our jobs, and might ask the real Mistral.
        raise ConfigurationError(
            f"a server runs on {settings.data_dir} ({url}): leave --simulator out to use it, or take another --data-dir"
        )
    # Nor may another database bring other workers.
    settings = dataclasses.replace(settings, database_url="")
    async with simulated(settings) as pretended, own_server(pretended, worker=True) as client:
        yield client


async def _run(client: "ApiClient", prompts: Sequence[PromptLine], view: View, *, live: bool) -> list[dict[str, Any]]:
    """The jobs, ended, in the order of the prompts. When cancelled, so are those that have not ended."""
    ids: list[str] = [""] * len(prompts)
    ended: dict[int, dict[str, Any]] = {}

    async def submit(index: int) -> None:
        ids[index] = (await client.submit(prompts[index].body))["jobId"]

    async def wait(index: int) -> None:
        if live and index == 0:
            await _show_first(client, ids[0], view)
        job = await client.get(ids[index], wait=_LONG_POLL)
        while job["completedAt"] is None:
            job = await client.get(ids[index], wait=_LONG_POLL)
        ended[index] = job
        view.advance()

    try:
        await submit(0)  # the one that is watched goes first
        await _each(range(1, len(prompts)), submit)
        await _each(range(len(prompts)), wait)
    except asyncio.CancelledError:
        with suppress(TimeoutError, TramontaneError, BaseExceptionGroup):
            async with asyncio.timeout(_CANCEL):
                left = [index for index, job_id in enumerate(ids) if job_id and index not in ended]
                await _each(left, lambda index: client.cancel(ids[index]))
        raise
    return [ended[index] for index in range(len(prompts))]


async def _each(indexes: Sequence[int], work: Callable[[int], Awaitable[object]]) -> None:
    """Do `work` with every index, in their order, some at a time."""
    coming = iter(indexes)

    async def take() -> None:
        for index in coming:
            await work(index)

    async with task_group() as tasks:
        for _ in range(min(_AT_ONCE, len(indexes))):
            tasks.create_task(take())


async def _show_first(client: "ApiClient", job_id: str, view: View) -> None:
    text = ""
    async with client.follow(job_id) as events:
        async for event in events:
            if event.type == "chunk":
                text += event.data["content"]
                view.text(event.data["content"])
            elif event.type == "attempt" and (kept := cut(text, event.data["keep"])) != text:
                # What is on the screen cannot be taken back: what is still valid of it is shown once more.
                text = kept
                view.text(f"\n(attempt {event.data['attempt']} begins again)\n{kept}")
    view.text_ends()


def _prompts(file: str, settings: Settings, model: str, *, skip_bad_lines: bool) -> list[PromptLine]:
    """The lines to run. Raises InvalidInput for bad ones unless they are to be skipped; lists them in any case."""
    from tramontane.api.schemas import new_job

    def check(body: bytes) -> None:
        new_job(body, settings, tenant=DEFAULT_TENANT, idempotency_key=None, now=utc_now())

    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(file, f"cannot be read: {error.strerror}") from None
    good, bad = read_prompts(content, json_lines=file.endswith((".jsonl", ".ndjson")), model=model, check=check)
    for line in bad:
        print(f"{file}:{line.line}: {screen.plain(line.reason)}", file=sys.stderr)
    if bad and not skip_bad_lines:
        raise InvalidInput(file, f"{_count_of(bad)}; nothing was submitted (--skip-bad-lines runs the others)")
    if not good:
        raise InvalidInput(file, "holds no prompt")
    return good


def _tells(prompt: PromptLine, receiver: "Receiver | None") -> bool:
    return receiver is not None and prompt.body.get("callback") == receiver.callback


def _telling(prompts: Sequence[PromptLine], callback: dict[str, Any]) -> list[PromptLine]:
    """The same, each with a callback; one that a line brings itself stays."""
    return [dataclasses.replace(prompt, body={"callback": callback, **prompt.body}) for prompt in prompts]


def _count_of(bad: Sequence[BadLine]) -> str:
    return "a line is bad" if len(bad) == 1 else f"{len(bad)} lines are bad"


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO | None]:
    """The file for the answers, opened before anything is asked: a wrong path costs no tokens."""
    if output is None:
        yield None
        return
    try:
        with open(output, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InvalidInput("--output", f"{output} cannot be written: {error.strerror}") from None

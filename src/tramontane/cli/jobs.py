"""`tramontane submit` and `tramontane jobs …`: durable jobs, asked for, looked at and steered."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tramontane.cli import bulk, exits, screen
from tramontane.cli.chat import DEFAULT_MODEL, tell
from tramontane.cli.options import (
    Attempts,
    Callback,
    CallbackSecret,
    DataDir,
    JobId,
    Json,
    Metadata,
    Model,
    Priority,
    Prompt,
    RequestId,
    System,
    Timeout,
    job_options,
    messages_from,
    number,
    pairs,
    prompt_from,
    settings_from,
)
from tramontane.cli.reach import Reached, can_work, require_key, with_server
from tramontane.ids import iso, utc_now

if TYPE_CHECKING:
    from tramontane.client import ApiClient

_ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_WITHOUT_KEY: Final = "tramontane serve --simulator, in another terminal"


def submit(
    prompt: Prompt,
    model: Model = DEFAULT_MODEL,
    system: System = None,
    priority: Priority = None,
    run_at: Annotated[str | None, typer.Option(metavar="TIME", help="not before, e.g. 2026-11-22T06:00:00Z")] = None,
    delay: Annotated[str | None, typer.Option(metavar="TIME", help='not before so long from now, e.g. "30s"')] = None,
    deadline: Annotated[str | None, typer.Option(metavar="TIME", help='not after: "2h" from now, or a time')] = None,
    attempts: Attempts = None,
    timeout: Timeout = None,
    request_id: RequestId = None,
    idempotency_key: Annotated[str | None, typer.Option(metavar="KEY", help="one job, however often sent")] = None,
    metadata: Metadata = None,
    callback: Callback = None,
    callback_secret: CallbackSecret = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the answer and print it")] = False,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Have a job done in the background."""
    options = job_options(
        priority=priority,
        deadline=deadline,
        attempts=attempts,
        timeout=timeout,
        request_id=request_id,
        metadata=metadata,
        callback=callback,
        callback_secret=callback_secret,
    )
    times = {name: value for name, value in (("runAt", run_at), ("delay", delay)) if value is not None}
    request = {"model": model, "messages": messages_from(prompt_from(prompt), system)}
    body = {"kind": "chat", "request": request, **options, **times}

    async def ask(reached: Reached) -> int:
        if wait and reached.own:
            require_key(settings_from(data_dir=data_dir), _WITHOUT_KEY)
        accepted = await reached.client.submit(body, idempotency_key=idempotency_key)
        if wait:
            return await _wait(reached.client, accepted["jobId"], json=json)
        if json:
            screen.show_json(accepted)
        else:
            screen.say(f"{accepted['jobId']} {accepted['status']}")
            _say_when(reached, accepted["jobId"])
        return exits.OK

    return with_server(data_dir, ask, works=wait and can_work(settings_from(data_dir=data_dir)))


def list_jobs(
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="queued, running, completed …")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="model that answers")] = None,
    error: Annotated[str | None, typer.Option(metavar="CODE", help="failed with it, e.g. rate_limited")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="TEXT", help="your own name for it")] = None,
    metadata: Metadata = None,
    limit: Annotated[str, typer.Option(metavar="N", help="at most so many, up to 200")] = "20",
    cursor: Annotated[str | None, typer.Option(metavar="ID", help="only those before this job")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """List jobs, newest first."""
    filters = {"status": status, "model": model, "error": error, "requestId": request_id}
    filters |= {"cursor": cursor, "limit": limit}
    filters |= {f"metadata.{name}": value for name, value in pairs("--metadata", metadata).items()}

    async def ask(reached: Reached) -> int:
        found = await reached.client.list(**filters)
        if json:
            screen.show_json(found)
        elif found["jobs"]:
            _show_list(found)
        else:
            screen.say("no jobs")
        return exits.OK

    return with_server(data_dir, ask)


def show_job(job_id: JobId, json: Json = False, data_dir: DataDir = None) -> int:
    """Show a job and its answer."""

    async def ask(reached: Reached) -> int:
        job = await reached.client.get(job_id)
        if json:
            screen.show_json(job)
        else:
            _show(job)
        return exits.OK

    return with_server(data_dir, ask)


def follow_job(
    job_id: JobId,
    after: Annotated[str | None, typer.Option(metavar="N", help="only events after this one")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Read a job's answer, from its beginning, while it is written."""
    first = number("--after", after) or 0

    async def ask(reached: Reached) -> int:
        job = await reached.client.get(job_id)
        if reached.own and job["status"] not in _ENDED:
            require_key(settings_from(data_dir=data_dir), _WITHOUT_KEY)
        async with reached.client.follow(job_id, first) as events:
            return await tell(events, json=json)

    return with_server(data_dir, ask, works=can_work(settings_from(data_dir=data_dir)))


def cancel_job(job_id: JobId, json: Json = False, data_dir: DataDir = None) -> int:
    """Stop a job, and the call to Mistral with it. An ended one stays as it is."""

    async def ask(reached: Reached) -> int:
        job = await reached.client.cancel(job_id)
        screen.show_json(job) if json else screen.say(f"{job['jobId']} {job['status']}")
        return exits.OK

    return with_server(data_dir, ask)


def delete_job(job_id: JobId, data_dir: DataDir = None) -> int:
    """Erase what an ended job said and heard."""

    async def ask(reached: Reached) -> int:
        await reached.client.delete(job_id)
        screen.say(f"{job_id} erased")
        return exits.OK

    return with_server(data_dir, ask)


COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "list": list_jobs,
    "show": show_job,
    "follow": follow_job,
    "cancel": cancel_job,
    "retry": bulk.retry,
    "bulk": bulk.bulk,
    "delete": delete_job,
}


async def _wait(client: "ApiClient", job_id: str, *, json: bool) -> int:
    async with client.follow(job_id) as events:
        async for _ in events:
            pass
    job = await client.get(job_id)
    if json:
        screen.show_json(job)
    elif job["status"] == "completed":
        screen.stream(job["result"]["content"] + "\n")
    else:
        exits.report(f"{job_id} {job['status']}: {job['error']['message']}")
    return exits.OK if job["status"] == "completed" else exits.FAILED


def _say_when(reached: Reached, job_id: str) -> None:
    if reached.own:
        screen.note("it runs once `tramontane serve` runs")
    else:
        screen.note(f"tramontane jobs follow {job_id}")


def _show_list(found: dict[str, Any]) -> None:
    listed = screen.table(
        "job", "status", "model", "try", "took", "tokens", "age",
        right=("try", "took", "tokens", "age"), wide=("model",),
    )  # fmt: skip
    now = iso(utc_now())
    for job in found["jobs"]:
        listed.add_row(
            job["jobId"],
            screen.word(job["status"]),
            screen.cut(job["model"]),
            str(job["attempt"]),
            screen.span(screen.between(job["startedAt"], job["completedAt"])),
            str((job["usage"] or {}).get("total_tokens", "-")),
            screen.age(screen.between(job["createdAt"], now) or 0.0),
        )
    screen.show(listed)
    if found["next"]:
        screen.note(f"more: --cursor {found['next']}")


def _show(job: dict[str, Any]) -> None:
    usage = job["usage"] or {}
    lines = {
        "status": job["status"],
        "model": job["model"],
        "request": job["requestId"],
        "attempt": f"{job['attempt']} (failed {job['failures']} of {job['maxAttempts']})",
        "created": job["createdAt"],
        "queued": screen.span(screen.between(job["createdAt"], job["startedAt"])),
        "ran": screen.span(screen.between(job["startedAt"], job["completedAt"])),
        "tokens": f"{usage.get('prompt_tokens', '-')} in, {usage.get('completion_tokens', '-')} out",
    }
    if job["cost"]:
        lines["cost"] = f"{job['cost']['amount']} {job['cost']['currency']}"
    if job["status"] == "queued":
        lines["runs at"] = job["runAt"]
        if job["deadline"]:
            lines["deadline"] = job["deadline"]
    if job["metadata"]:
        lines["metadata"] = ", ".join(f"{name}={value}" for name, value in job["metadata"].items())
    if job["error"]:
        lines["error"] = f"{job['error']['message']} ({job['error']['code']})"
    screen.say(job["jobId"])
    for name, value in lines.items():
        screen.say(f"  {name:9} {value}")
    if job["result"]:
        screen.say()
        screen.stream(job["result"]["content"] + "\n")

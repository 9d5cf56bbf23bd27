"""`tramontane jobs bulk` and `jobs retry`: many jobs at once, from a file or by what they have in common."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from tramontane.cli import exits, screen
from tramontane.cli.options import DataDir, Json, Metadata, moment, number, pairs
from tramontane.cli.reach import Reached, with_server
from tramontane.errors import InvalidInput

if TYPE_CHECKING:
    from tramontane.client import ApiClient

#: Jobs of one request.
_PAGE: Final = 1000
_RETRIES: Final = 500


def bulk(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a job's JSON per line; `-`: standard input")],
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="makes the whole repeatable: the same lines keep their jobs")
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Have many jobs done in the background, from a file."""
    bodies = _bodies(file)

    async def ask(reached: Reached) -> int:
        first, accepted, refused = 0, 0, 0
        while page := list(islice(bodies, _PAGE)):
            key = None if idempotency_key is None else f"{idempotency_key}:{first}"
            answer = await reached.client.submit_bulk(page, idempotency_key=key)
            for line in answer["jobs"]:
                line["index"] += first
                _show_line(line, json=json)
            first += len(page)
            accepted += answer["accepted"] + answer["replayed"]
            refused += answer["refused"]
        if not json:
            screen.note(f"{screen.count(accepted, 'job')} taken, {refused} refused")
        return exits.FAILED if refused else exits.OK

    return with_server(data_dir, ask)


def retry(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="a job's id, `job_…`")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="all that have failed, and were not retried")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="all that were cancelled")] = False,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="of these, only those of this model")] = None,
    error: Annotated[str | None, typer.Option(metavar="CODE", help="… with this error, e.g. rate_limited")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="… made since then: `2h` ago, or a time")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="… made before then")] = None,
    metadata: Metadata = None,
    limit: Annotated[str | None, typer.Option(metavar="N", help="… at most so many")] = None,
    json: Json = False,
    data_dir: DataDir = None,
) -> int:
    """Ask the same as ended jobs, as new ones: one by its id, or all that have failed."""
    if (job_id is not None) + failed + cancelled != 1:
        raise InvalidInput("ID", "give one job, or --failed, or --cancelled")
    filters = {
        "model": model,
        "error": error,
        "createdAfter": moment("--since", since),
        "createdBefore": moment("--until", until),
        "metadata": pairs("--metadata", metadata) or None,
    }
    most = number("--limit", limit)
    if job_id is not None and (most is not None or any(filters.values())):
        raise InvalidInput("ID", "is enough to name a job: filters go with --failed or --cancelled")

    async def ask(reached: Reached) -> int:
        if job_id is not None:
            accepted = await reached.client.retry(job_id)
            screen.show_json(accepted) if json else screen.say(f"{accepted['jobId']} {accepted['status']}")
            if not json:
                screen.note(f"tramontane jobs follow {accepted['jobId']}")
            return exits.OK
        wanted = filters | {"status": "failed" if failed else "cancelled"}
        retried = await _retry_all(reached.client, wanted, most, json=json)
        if not json:
            screen.say(f"{screen.count(retried, 'job')} retried")
        return exits.OK

    return with_server(data_dir, ask)


async def _retry_all(client: "ApiClient", wanted: dict[str, Any], most: int | None, *, json: bool) -> int:
    retried, cursor = 0, None
    while most is None or retried < most:
        limit = _RETRIES if most is None else min(_RETRIES, most - retried)
        page = await client.retry_all(**wanted, limit=limit, cursor=cursor)
        for line in page["jobs"]:
            screen.show_json(line) if json else screen.say(f"{line['jobId']} for {line['retryOf']}")
        retried, cursor = retried + page["retried"], page["next"]
        if cursor is None:
            break
    return retried


def _show_line(line: dict[str, Any], *, json: bool) -> None:
    if json:
        screen.show_json(line)
    elif "error" in line:
        field = f"{line['error']['field']}: " if "field" in line["error"] else ""
        message = line["error"]["message"].removeprefix(field)
        exits.report(f"line {line['index'] + 1}: {field}{message}")
    else:
        screen.say(line["jobId"])


def _bodies(file: str) -> Iterator[msgspec.Raw]:
    """The lines of a file, as they are; blank ones count as no line. Raises InvalidInput for one that is no JSON."""
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as lines:
            for place, line in enumerate(lines, 1):
                if line.strip():
                    yield _body(line.strip(), place)
    except OSError as error:
        raise InvalidInput("FILE", f"{file} cannot be read: {error.strerror}") from None


def _body(line: bytes, place: int) -> msgspec.Raw:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput("FILE", f"line {place} is not JSON: {error}") from None
    return msgspec.Raw(line)

"""Tramontane for programs: jobs asked of a server, or of an engine in this very process; the two are used alike.

async with Tramontane("http://localhost:8787") as t:      # or Tramontane(): embedded, with a worker and its Postgres
    job = await t.submit("Why does the tramontane blow?")
    async for event in job.events():
        ...
    result = await job
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, Literal, Self, overload
from urllib.parse import urlsplit

from tramontane.client import Answers, ApiClient, Headers, InProcess, Job, Prompt, Result, job_body, of_line
from tramontane.errors import ConfigurationError, InvalidInput, TramontaneError
from tramontane.ids import new_id, show_id
from tramontane.settings import Settings, read_settings
from tramontane.tasks import task_group

#: Seconds: whoever leaves an embedded engine does not wait for running jobs as long as a server would.
_GRACE: Final = 1.0
#: What `submit` takes that is ours; the rest is Mistral's.
_OPTIONS: Final = frozenset(
    {
        "request_id",
        "callback",
        "priority",
        "run_at",
        "delay",
        "deadline",
        "attempts",
        "backoff",
        "timeout",
        "resume",
        "metadata",
    }
)
#: Jobs of one request.
_PAGE: Final = 1000


class Tramontane:
    """Asks for jobs. Use it as `async with`; one value serves any number of callers of its event loop.

    url: of a server; None: the engine runs here, on the database of DATABASE_URL or else on its own Postgres, and
    what is running when the block is left is handed back to whoever works next. api_key: for a server that wants one.
    headers: sent with every request, or a function (async, if you like) that gives them each time, for tokens that
    expire. patience: seconds that a server
    which has gone is waited for; one that was never there is not. worker: whether an engine here runs jobs, too.
    settings: those of an engine here, by name (`data_dir=…, concurrency=10, heartbeat="5s"`); others come from the
    environment.

    Raises InvalidInput for no URL and ConfigurationError for settings; entering it raises DatabaseError when an engine
    here cannot have its database.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        headers: Headers | None = None,
        patience: float = 60.0,
        worker: bool = True,
        **settings: Any,
    ) -> None:
        if url is not None and settings:
            raise TypeError(f"settings are those of the server at {url}: {', '.join(settings)}")
        self._url = None if url is None else _checked(url)
        self._settings = None if url is not None else _settings(settings, worker=worker)
        self._worker = worker
        self._headers = headers
        self._key = api_key
        self._patience = patience
        self._open = AsyncExitStack()
        self._api: ApiClient | None = None
        self._tasks: asyncio.TaskGroup

    async def __aenter__(self) -> Self:
        try:
            self._api = await self._enter()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # Whatever the block has raised: the services below end in good order, running jobs are handed back.
        self._api = None
        await self._open.aclose()

    async def submit(
        self,
        /,
        messages: Prompt | None = None,
        *,
        request: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        callback: str | Mapping[str, Any] | None = None,
        priority: int | None = None,
        run_at: datetime | str | None = None,
        delay: float | str | timedelta | None = None,
        deadline: float | str | timedelta | datetime | None = None,
        attempts: int | None = None,
        backoff: Mapping[str, Any] | None = None,
        timeout: float | str | timedelta | None = None,
        resume: Literal["auto", "never"] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        **parameters: Any,
    ) -> Job:
        """Have a job done; when this returns it is on disk, and it is one job however often the network broke.

        messages: a question, or a conversation in Mistral's form. request: instead of that, Mistral's whole chat
        request. parameters: Mistral's other fields, such as `model` and `temperature`. The rest is as in docs/http.md;
        durations are seconds, texts or timedeltas, and a `deadline` may be a time, too. idempotency_key: the same one
        gives the same job, also to another process and later.

        Raises InvalidInput naming the field, IdempotencyMismatch, Unreachable, and, when too much waits or is spent,
        QueueFull, Overloaded or BudgetExhausted.
        """
        body = job_body(
            messages,
            request,
            parameters,
            request_id=request_id,
            callback=callback,
            priority=priority,
            run_at=run_at,
            delay=delay,
            deadline=deadline,
            attempts=attempts,
            backoff=backoff,
            timeout=timeout,
            resume=resume,
            metadata=metadata,
        )
        accepted = await self._client.submit(body, idempotency_key=idempotency_key)
        return Job(self._client, accepted["jobId"])

    async def submit_many(
        self, prompts: Iterable[Prompt], *, idempotency_key: str | None = None, **options: Any
    ) -> list[Job]:
        """Have many jobs done, many times faster than one by one; they are on disk when this returns.

        idempotency_key: makes the whole repeatable, also after an error or a crash: prompts keep their jobs from one
        run of a program to the next. options: those of `submit`, for all.

        Raises what `submit` does, for the first that is refused, with the index of its prompt as a note; others of the
        same page of a thousand may have been taken all the same.
        """
        if isinstance(prompts, str):
            raise InvalidInput("prompts", "is one text: put it in a list")
        own = {name: options.pop(name) for name in _OPTIONS & options.keys()}
        key, jobs, waiting = idempotency_key or show_id("key", new_id()), list[Job](), iter(prompts)
        while page := list(islice(waiting, _PAGE)):
            bodies = [job_body(prompt, None, options, **own) for prompt in page]
            answer = await self._client.submit_bulk(bodies, idempotency_key=f"{key}:{len(jobs)}")
            for line in answer["jobs"]:
                if "error" in line:
                    error = of_line(line["error"])
                    error.add_note(f"prompt {len(jobs)}")
                    raise error
                jobs.append(Job(self._client, line["jobId"]))
        return jobs

    def job(self, job_id: str) -> Job:
        """A job by its id. Nothing is asked yet: one that is not there raises NotFound when it is used."""
        return Job(self._client, job_id)

    async def cancel(self, job_id: str) -> None:
        """Stop a job, and the call to Mistral with it. An ended one stays as it is. Raises NotFound."""
        await self._client.cancel(job_id)

    async def stream(self, /, messages: Prompt | None = None, **options: Any) -> AsyncGenerator[str, None]:
        """Have a job done and give its answer piece by piece, as `Job.pieces` does; options are those of `submit`.

        Leaving the loop does not stop the job.
        """
        job = await self.submit(messages, **options)
        async with aclosing(job.pieces()) as pieces:
            async for piece in pieces:
                yield piece

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        concurrency: int = 32,
        on_error: Literal["raise"] = "raise",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Answers[Result]: ...
    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        concurrency: int = 32,
        on_error: Literal["return"],
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Answers[Result | TramontaneError]: ...
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        concurrency: int = 32,
        on_error: Literal["raise", "return"] = "raise",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Answers[Any]:
        """Have many prompts answered as jobs: `async for result in t.map(prompts)`, or `await t.map(prompts)`.

        Results come in the order of the prompts. concurrency: jobs at a time that are asked for and not yet handed
        out (how many run is the workers' concern). on_error: with "raise" the first error cancels the rest and is
        raised with the index of its prompt as a note; with "return" it stands in the place of its result.
        idempotency_key: makes the whole repeatable: prompts keep their jobs from one run of a program to the next, so
        that a program that was interrupted asks Mistral nothing twice; leaving it cancels nothing then. options: those
        of `submit`, for all.
        """

        async def submit(prompt: Prompt, index: int) -> Job:
            key = None if idempotency_key is None else f"{idempotency_key}:{index}"
            return await self.submit(prompt, idempotency_key=key, **options)

        return Answers(
            prompts,
            submit,
            self._group,
            concurrency=concurrency,
            on_error=on_error,
            keep=idempotency_key is not None,
        )

    @property
    def _client(self) -> ApiClient:
        if self._api is None:
            raise RuntimeError("Tramontane is open inside `async with` only")
        return self._api

    @property
    def _group(self) -> asyncio.TaskGroup:
        assert self._client
        return self._tasks

    async def _enter(self) -> ApiClient:
        enter = self._open.enter_async_context
        if self._settings is None:
            assert self._url is not None
            self._tasks = await enter(_tasks())
            client = ApiClient(self._url, api_key=self._key, headers=self._headers, patience=self._patience)
            return await enter(client)
        from tramontane.api import create_api
        from tramontane.app import open_app

        app = await enter(open_app(self._settings, worker=self._worker))
        self._tasks = await enter(_tasks())
        server = InProcess(create_api(app), self._tasks)
        key = app.authentication.own_key()
        return await enter(ApiClient(server, api_key=key, headers=self._headers, patience=self._patience))


class _Left(Exception):
    """The block was left."""


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup whose tasks are cancelled when the block is left."""
    with suppress(_Left):
        async with task_group() as tasks:
            yield tasks
            raise _Left


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("url", "must be an http:// or https:// address")
    return url.rstrip("/")


def _settings(named: Mapping[str, Any], *, worker: bool) -> Settings:
    known = {setting.name: setting for setting in dataclasses.fields(Settings)}
    for name in named:
        if name not in known:
            raise TypeError(f"Tramontane() has no setting {name!r}; docs/settings.md has them all")
    try:
        values = {
            name: known[name].metadata["read"](value) if isinstance(value, str) else value
            for name, value in named.items()
        }
    except ValueError as error:
        raise ConfigurationError(f"a setting of Tramontane() has a wrong value: {error}") from None
    settings = read_settings(**values)
    if worker and not settings.mistral_api_key and settings.mistral_server_url == Settings.mistral_server_url:
        raise ConfigurationError("MISTRAL_API_KEY is not set: export it, or pass mistral_api_key=…")
    return settings if "grace" in named else dataclasses.replace(settings, grace=min(settings.grace, _GRACE))

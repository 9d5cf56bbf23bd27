"""Tasks that live as long as a block: a TaskGroup whose lone failure is raised as itself, not wrapped."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup. When one thing fails, in the block or in a task, that exception comes out; several are a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        if len(failures.exceptions) > 1:
            raise
        raise failures.exceptions[0] from None


@asynccontextmanager
async def beside(*services: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run services beside the block and cancel them when it is left. One that fails ends the block."""
    async with task_group() as tasks:
        running = [tasks.create_task(service) for service in services]
        yield
        for task in running:
            task.cancel()

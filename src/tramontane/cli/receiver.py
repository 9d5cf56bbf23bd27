"""A receiver of webhooks in this process, such as a user would write: it checks each signature, and keeps what came."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

import uvicorn
from fastapi import Depends, FastAPI

from tramontane.ids import utc_now
from tramontane.ports import listen_on, url_of
from tramontane.tasks import task_group
from tramontane.webhooks.receiver import verified
from tramontane.webhooks.signatures import Verified, new_secret

_PATH: Final = "/webhooks"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A webhook whose signature was good, and when it came."""

    webhook: Verified
    at: datetime

    @property
    def job_id(self) -> str:
        """The job that it tells of."""
        return str(self.webhook.data["jobId"])

    @property
    def seconds_after_end(self) -> float:
        """From the job's end until it was here."""
        return (self.at - datetime.fromisoformat(self.webhook.data["completedAt"])).total_seconds()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "webhookId": self.webhook.id,
            "event": self.webhook.event,
            "jobId": self.job_id,
            "verified": True,
            "secondsAfterEnd": round(self.seconds_after_end, 4),
        }


@dataclass
class Receiver:
    """What has come so far, by job."""

    url: str
    secret: str
    arrived: dict[str, Arrival] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def callback(self) -> dict[str, Any]:
        """The `callback` of a job that shall tell its end here."""
        return {"url": self.url, "secret": self.secret}

    def take(self, webhook: Verified) -> None:
        """Keep a webhook. One that came before is a repeat, which changes nothing."""
        arrival = Arrival(webhook, utc_now())
        self.arrived.setdefault(arrival.job_id, arrival)
        self._news.set()

    async def wait(self, job_ids: Sequence[str], *, seconds: float) -> int:
        """Wait until something has come of each job, or the time is over; of how many nothing has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.arrived.keys() >= set(job_ids):
                    self._news.clear()
                    await self._news.wait()
        return len(set(job_ids) - self.arrived.keys())


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port of the loopback, with a secret of its own."""
    with listen_on("127.0.0.1", 0) as bound:
        receiver = Receiver(f"{url_of(bound)}{_PATH}", new_secret())
        config = uvicorn.Config(
            _application(receiver), loop="none", http="httptools", ws="none", lifespan="off", log_config=None
        )
        config.access_log = False
        server = _Server(config)
        async with task_group() as tasks:
            tasks.create_task(server.serve(sockets=[bound]))
            try:
                yield receiver
            finally:
                server.should_exit = True


def _application(receiver: Receiver) -> FastAPI:
    application = FastAPI(openapi_url=None)

    @application.post(_PATH, status_code=204)
    async def receive(webhook: Annotated[Verified, Depends(verified(receiver.secret))]) -> None:
        receiver.take(webhook)

    return application


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's business."""
        yield

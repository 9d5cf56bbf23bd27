"""The outbox: a message and its waiting deliveries are written in the transaction of the event that they tell."""

from collections.abc import Sequence
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from tramontane.ids import new_id
from tramontane.store.rows import Connection
from tramontane.store.statements import Statements
from tramontane.webhooks.health import FIRST_WINDOW, Health
from tramontane.webhooks.messages import LARGEST_BODY
from tramontane.webhooks.models import NewMessage

SQL = Statements("messages")

#: What an endpoint's columns say before anything was sent to it.
START_HEALTH: Final = msgspec.json.encode(Health()).decode()
START_ALLOWANCE: Final = int(FIRST_WINDOW)


def origin_id(tenant: str, origin: str) -> UUID:
    """The id of the endpoint that keeps an origin's health: made of its name, so that nobody has to look it up."""
    return uuid5(NAMESPACE_URL, f"{tenant} {origin}")


async def publish(connection: Connection, messages: Sequence[NewMessage]) -> None:
    """Write messages, and a waiting delivery of each for whoever wants it, in the caller's transaction.

    Takes no lock on an endpoint.
    """
    if not messages:
        return
    ids, tenants = [message.id for message in messages], [message.tenant for message in messages]
    events, jobs = [message.event for message in messages], [message.job_id for message in messages]
    about = [message.about for message in messages]
    targets = await connection.fetch(SQL.targets, ids, tenants, events, jobs, about)
    by_id = {message.id: message for message in messages}
    deliveries = [(by_id[target["message_id"]], target) for target in targets]
    await connection.execute(
        SQL.insert_messages,
        tenants,
        ids,
        events,
        [message.at for message in messages],
        jobs,
        [message.seq for message in messages],
        [message.final for message in messages],
        [message.body if len(message.body) <= LARGEST_BODY else None for message in messages],
        [message.thin for message in messages],
        about,
        [new_id() for _ in deliveries],
        [message.id for message, _ in deliveries],
        [target["endpoint_id"] for _, target in deliveries],
        [target["callback"] for _, target in deliveries],
        [_format(message, target["format"]) for message, target in deliveries],
    )


def _format(message: NewMessage, wanted: str) -> str:
    return wanted if len(message.body) <= LARGEST_BODY else "thin"

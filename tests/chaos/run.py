"""One run from beginning to end."""

import asyncio
from dataclasses import dataclass

import msgspec

from chaos.crowd import Crowd, Tenant
from chaos.evidence import Evidence
from chaos.faults import Faults
from chaos.gathering import gather, settle
from chaos.town import Town, open_town


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large, how long. Everything that is left to chance follows from the seed."""

    seed: int
    #: Seconds of faults; every kind comes once, however short.
    seconds: float
    servers: int = 2
    workers: int = 4
    tenants: int = 3
    #: Users of each tenant.
    users: int = 10
    #: Seconds between two submits of a user, on average.
    pause: float = 0.4
    #: Longest pause between two faults.
    rest: float = 2.0
    #: How long a fault lasts, in relation to its usual length.
    length: float = 1.0
    #: Seconds that everything gets to settle afterwards.
    patience: float = 150.0
    #: Seconds that a clock is ahead after a jump: less than a webhook's timestamp may be wrong by.
    clock_jump: float = 45
    #: Mistral's limits a minute.
    request_limit: int = 1500
    token_limit: int = 400_000


async def run(plan: Plan) -> Evidence:
    """Open a town, let a crowd into it, do harm, wait until it has settled, and ask everybody."""
    clock = asyncio.get_running_loop().time
    async with open_town(
        servers=plan.servers,
        workers=plan.workers,
        TRAMONTANE_RATE_LIMIT=0,
        REQUEST_LIMIT=plan.request_limit,
        TOKEN_LIMIT=plan.token_limit,
        CLOCK_JUMP=plan.clock_jump,
    ) as town:
        tenants = [await new_tenant(town, name) for name in ("acme", "boreas", "cierzo", "doldrum")[: plan.tenants]]
        faults = Faults(town, plan.seed, pause=plan.rest, length=plan.length)
        async with Crowd(town, tenants, plan.seed, pause=plan.pause) as crowd:
            begun = clock()
            async with asyncio.TaskGroup() as tasks:
                for tenant in tenants:
                    for number in range(plan.users):
                        tasks.create_task(crowd.use(tenant, number))
                await faults.rage(plan.seconds)
                crowd.over = True
            ended = clock()
            await settle(town, crowd, within=plan.patience)
            settled = clock()
            evidence = await gather(town, crowd, tenants, faults.strikes)
    evidence.seconds, evidence.settled = ended - begun, settled - ended
    return evidence


async def new_tenant(town: Town, name: str) -> Tenant:
    """A tenant with a key of its own, made as anybody makes one."""
    words = ["keys", "create", "--tenant", name, "--name", "chaos", "--scopes", "submit,read", "--json"]
    made = await town.command(*words)
    return Tenant(name, msgspec.json.decode(made)["key"])

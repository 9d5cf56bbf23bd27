"""A round of admission finds its rows in the same way whatever its plans were made by: its cost hangs on no statistics.

Sessions keep plans from when the tables were empty, and nothing looks at them again until Postgres analyzes. So each
plan is made at one moment and asked for at the end, when a backlog has come.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from lives import T0, Lives, new_job

from tramontane.database import Database
from tramontane.store.buckets import SQL as BUCKETS
from tramontane.store.limits import SQL as LIMITS
from tramontane.store.limits import admit
from tramontane.store.rounds import SQL as ROUNDS
from tramontane.store.rows import Connection

_JOBS = """
INSERT INTO jobs (tenant_id, id, kind, state, request_id, model, attempts, backoff_kind, backoff_seconds,
                  timeout_seconds, priority, run_at, due, created_at, admitted_at, completed_at)
SELECT 'tenant-' || n % 3, gen_random_uuid(), 'chat', $2, 'req', 'mistral-small-latest', 3, 'fixed', 1, 60, 0, now(),
       true, now(), CASE WHEN $2 = 'completed' THEN now() END, CASE WHEN $2 = 'completed' THEN now() END
  FROM generate_series(1, $1::integer) AS n
"""
_ATTEMPTS = """
INSERT INTO job_attempts (tenant_id, job_id, attempt, worker_id, started_at, ended_at, outcome, account, model, tokens)
SELECT tenant_id, id, 1, gen_random_uuid(), now(), now(), 'completed', '*', model, 10 FROM jobs
 WHERE state = 'completed'
"""

_STATEMENTS = {
    "fleet": ROUNDS.fleet,
    "candidates": ROUNDS.candidates,
    "buckets": BUCKETS.buckets,
    "admit": LIMITS.admit,
}
#: The indexes by which a statement of the round may read the tables that grow.
_WAYS = {
    "fleet": {"jobs_scheduled", "jobs_in_flight", "job_attempts_started"},
    "candidates": {"jobs_waiting", "jobs_in_flight"},
    "buckets": {"jobs_in_flight", "job_attempts_started", "job_attempts_by_start", "job_attempts_by_end"},
    "admit": set(),
}


async def nothing(_: Connection) -> None:
    """Tables as they were made."""


async def analyzed(connection: Connection) -> None:
    await connection.execute("ANALYZE")


async def a_few_ended(connection: Connection) -> None:
    await connection.execute(_JOBS, 60, "completed")
    await connection.execute(_ATTEMPTS)
    await connection.execute("ANALYZE")


async def many_ended(connection: Connection) -> None:
    await connection.execute(_JOBS, 10_000, "completed")
    await connection.execute(_ATTEMPTS)
    await connection.execute("ANALYZE")


async def many_waiting(connection: Connection) -> None:
    await connection.execute(_JOBS, 10_000, "queued")
    await connection.execute("ANALYZE")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


@pytest.mark.parametrize("moment", [nothing, analyzed, a_few_ended, many_ended, many_waiting])
async def test_each_table_is_read_by_the_index_that_is_made_for_it(
    any_database: Database, moment: Callable[[Connection], Awaitable[None]]
) -> None:
    async with any_database.pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await moment(connection)
        asks = {}
        for name, statement in _STATEMENTS.items():
            count = len((await connection.prepare(statement)).get_parameters())
            asks[name] = f"EXPLAIN (FORMAT JSON) EXECUTE {name} ({', '.join(['NULL'] * count)})"
            await connection.execute(f"PREPARE {name} AS {statement}")
            await connection.fetchval(asks[name])
        await connection.execute(_JOBS, 10_000, "queued")
        for name, ask in asks.items():
            [explained] = json.loads(await connection.fetchval(ask))
            read = [node for node in nodes(explained["Plan"]) if node.get("Relation Name") in ("jobs", "job_attempts")]
            for node in read:
                if node["Node Type"] == "ModifyTable":
                    continue
                assert node["Node Type"] == "Tid Scan" or node.get("Index Name") in _WAYS[name], node
                if node["Relation Name"] == "job_attempts":
                    assert "_at >" in node["Index Cond"], node  # the window alone, not all there ever was
            assert read


async def test_a_round_keeps_its_plans_and_leaves_the_session_as_it_was(database: Database) -> None:
    lives = Lives(database)
    await lives.submit(*(new_job() for _ in range(8)))
    await lives.worker(slots=4)
    async with database.pool.acquire() as connection:
        async with connection.transaction():
            assert len((await admit(connection, T0, wait=True)).admitted) == 4
        kept = await connection.fetch(
            "SELECT generic_plans FROM pg_prepared_statements WHERE statement = ANY ($1::text[])",
            list(_STATEMENTS.values()),
        )
        assert [row["generic_plans"] > 0 for row in kept] == [True] * 4
        assert await connection.fetchval("SHOW plan_cache_mode") == "auto"

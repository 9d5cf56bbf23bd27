"""What is known of Mistral's limits, and what the fleet has used of them: each bucket with its facts of one moment."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from tramontane.fairness import BucketKey
from tramontane.limits import NOMINAL, Bucket, Heard, Use, counted_from, learn
from tramontane.models import SERVER_ACCOUNT
from tramontane.store.rows import Connection, Pool
from tramontane.store.statements import Statements
from tramontane.tenants import HEAVIEST, LIGHTEST

SQL = Statements("buckets")

#: An average of answers gives way to new ones: of so many, half is new.
_HALF = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A bucket, our use of it, and how far those tenants are that were asked for."""

    bucket: Bucket
    use: Use
    shares: Mapping[str, float]


class BucketStore:
    """Verbs about buckets. Each is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def learn(
        self,
        key: BucketKey,
        heard: Sequence[Heard],
        answers: Sequence[int],
        now: datetime,
        window: timedelta,
        *,
        mistral_key: bytes | None = None,
    ) -> Bucket:
        """Write down what answers said of a bucket, oldest first, and how many tokens they had; the bucket then.

        mistral_key: the tenant's own, sealed, that was answered. Of one that has been replaced nothing is written.
        """
        account, model = key
        latest = max((one.at for one in heard), default=now)
        count = any(one.limit_requests for one in heard), any(one.limit_tokens for one in heard)
        async with self._pool.acquire() as connection, connection.transaction():
            if account != SERVER_ACCOUNT and await connection.fetchval(SQL.lock_key, account) != mistral_key:
                return Bucket(account=account, model=model)
            await connection.execute(SQL.lock_bucket, account, model)
            [level] = await read_levels(connection, [key], latest, window, count=count)
            bucket = level.bucket
            for one in heard:
                bucket = learn(bucket, one, level.use, window)
            await connection.execute(
                SQL.learn,
                account,
                model,
                bucket.observed_at,
                bucket.limit_requests,
                bucket.limit_tokens,
                bucket.foreign_requests,
                bucket.foreign_tokens,
                bucket.blocked_until,
                bucket.caution,
                _average(bucket.answer_tokens, answers),
            )
        return bucket

    async def refuses(self, key: BucketKey, now: datetime, window: timedelta) -> bool:
        """Whether Mistral has said "never" of a bucket, and it is not this caller's turn to ask whether it still does.

        One caller in the fleet has that turn per window.
        """
        row = await self._pool.fetchrow(SQL.refusing, *key, now, now - window)
        return row is not None and not row["probe"]


async def read_levels(
    connection: Connection,
    keys: Sequence[BucketKey],
    now: datetime,
    window: timedelta,
    *,
    tenants: Sequence[str] = (),
    count: tuple[bool, bool] = (False, False),
) -> list[Level]:
    """Buckets with their facts, in one snapshot. count: requests, and tokens, even where no limit is known."""
    rows = await connection.fetch(
        SQL.buckets,
        [account for account, _ in keys],
        [model for _, model in keys],
        counted_from(now, window),
        now - window,
        now,
        *count,
        list(tenants),
    )
    return [_level(row) for row in rows]


async def settle(connection: Connection, ended: Iterable[tuple[asyncpg.Record, int | None]]) -> None:
    """Charge tenants for what their attempts really used, where that is known: rows of `jobs`, with the tokens."""
    known = [(row, tokens) for row, tokens in ended if tokens is not None and tokens != row["reserved"]]
    if known:
        await connection.execute(
            SQL.settle,
            [row["account"] for row, _ in known],
            [row["model"] for row, _ in known],
            [row["tenant_id"] for row, _ in known],
            [row["reserved"] for row, _ in known],
            [tokens for _, tokens in known],
            *NOMINAL,
            LIGHTEST,
            HEAVIEST,
        )


def _level(row: asyncpg.Record) -> Level:
    return Level(
        bucket=Bucket(
            account=row["account"],
            model=row["model"],
            observed_at=row["observed_at"],
            limit_requests=row["limit_requests"],
            limit_tokens=row["limit_tokens"],
            foreign_requests=row["foreign_requests"] or 0,
            foreign_tokens=row["foreign_tokens"] or 0,
            blocked_until=row["blocked_until"],
            caution=1.0 if row["caution"] is None else row["caution"],
            answer_tokens=row["answer_tokens"],
        ),
        use=Use(
            requests=row["requests"],
            probes=row["probes"],
            starting=row["starting"],
            flying=row["flying"],
            tokens=int(row["tokens"]),
            leaving=int(row["leaving"]),
            reserved=int(row["reserved"]),
            oldest_start=row["oldest_start"],
            oldest_end=row["oldest_end"],
        ),
        shares=dict(zip(row["tenants"] or (), row["times"] or (), strict=True)),
    )


def _average(before: float | None, answers: Sequence[int]) -> float | None:
    if not answers:
        return before
    mean = sum(answers) / len(answers)
    if before is None:
        return mean
    return before + (mean - before) * (1.0 - math.pow(0.5, len(answers) / _HALF))

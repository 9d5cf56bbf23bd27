-- name: take
-- Nothing here counts beyond $2: past that the planner's own estimate of the index has to do.
WITH RECURSIVE waiting AS (
    -- Tenants of whom somebody waits, by leaps along the index.
    (SELECT tenant_id, 1 AS place FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL
      ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT next.tenant_id, w.place + 1 FROM waiting w CROSS JOIN LATERAL (
        SELECT tenant_id FROM jobs
         WHERE state = 'queued' AND due AND admitted_at IS NULL AND tenant_id > w.tenant_id
         ORDER BY tenant_id LIMIT 1
    ) AS next
     WHERE w.place < 100
), oldest AS (
    -- By id, which is by time: the first one that waits, past some that are scheduled or admitted.
    SELECT min(first.since) AS at
      FROM waiting w CROSS JOIN LATERAL (
        SELECT greatest(created_at, run_at) AS since
          FROM (SELECT * FROM jobs WHERE tenant_id = w.tenant_id AND state = 'queued' ORDER BY id LIMIT 200) AS early
         WHERE due AND admitted_at IS NULL
         ORDER BY id LIMIT 1
    ) AS first
), alive AS (
    SELECT count(*) AS workers, coalesce(sum(concurrency), 0) AS slots FROM workers
     WHERE stopped_at IS NULL AND seen_at > $1::timestamptz - make_interval(secs => 3 * heartbeat_seconds)
)
SELECT (SELECT count(*) FROM (SELECT FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL LIMIT $2) AS w)
           AS waiting,
       (SELECT count(*) FROM (SELECT FROM jobs WHERE state = 'queued' AND NOT due LIMIT $2) AS s) AS scheduled,
       (SELECT count(*) FROM jobs WHERE admitted_at IS NOT NULL AND state = 'queued') AS admitted,
       (SELECT count(*) FROM jobs WHERE admitted_at IS NOT NULL AND state = 'running') AS running,
       (SELECT count(*) FROM (SELECT FROM deliveries WHERE state = 'waiting' LIMIT $2) AS d) AS untold,
       (SELECT count(*) FROM deliveries WHERE state = 'dispatched') AS dispatched,
       (SELECT max(reltuples) FROM pg_class WHERE oid = to_regclass('jobs_waiting')) AS waiting_estimate,
       (SELECT max(reltuples) FROM pg_class WHERE oid = to_regclass('jobs_scheduled')) AS scheduled_estimate,
       (SELECT max(reltuples) FROM pg_class WHERE oid = to_regclass('deliveries_waiting')) AS untold_estimate,
       oldest.at AS oldest_at, alive.workers, alive.slots
  FROM oldest CROSS JOIN alive

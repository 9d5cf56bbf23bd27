-- name: register_worker
INSERT INTO workers (id, concurrency, heartbeat_seconds, host, pid, started_at, seen_at, deliveries)
VALUES ($1, $2, $3, $4, $5, $6, $6, $7)
    ON CONFLICT (id) DO NOTHING -- a repeat after an unknown outcome

-- name: other_heartbeat
-- The heartbeat of workers that are alive, where it differs.
SELECT heartbeat_seconds FROM workers
 WHERE stopped_at IS NULL AND seen_at > $1::timestamptz - make_interval(secs => 3 * heartbeat_seconds)
   AND heartbeat_seconds <> $2
 LIMIT 1

-- name: beat
UPDATE workers SET seen_at = $2 WHERE id = $1

-- name: stop_worker
UPDATE workers SET stopped_at = $2 WHERE id = $1

-- name: forget_workers
DELETE FROM workers WHERE seen_at < $1

-- name: set_rate
UPDATE limits SET rate = $1 WHERE tenant_id = '*' AND name = 'starts' AND rate <> $1

-- name: lock_limit
SELECT rate FROM limits WHERE tenant_id = '*' AND name = 'starts' FOR UPDATE

-- name: try_limit
SELECT rate FROM limits WHERE tenant_id = '*' AND name = 'starts' FOR UPDATE SKIP LOCKED

-- name: fleet
-- Free slots of the fleet; the starts within $2 before now; jobs let through that have not started (in one snapshot a
-- job is one or the other); the next scheduled job. Those whose time has come become due.
WITH come AS (
    UPDATE jobs SET due = true WHERE state = 'queued' AND NOT due AND run_at <= $1
), started AS (
    -- A start that lies further ahead is a clock that was wrong: all others would wait until then.
    SELECT count(*) AS recent, min(started_at) AS oldest FROM job_attempts
     WHERE started_at > $1::timestamptz - $2::interval AND started_at < $1::timestamptz + interval '2 minutes'
       AND $2::interval > interval '0'
)
SELECT (SELECT coalesce(sum(concurrency), 0) FROM workers
         WHERE stopped_at IS NULL AND seen_at > $1::timestamptz - make_interval(secs => 3 * heartbeat_seconds))
     - (SELECT count(*) FROM jobs WHERE admitted_at IS NOT NULL AND state IN ('queued', 'running')) AS free,
       (SELECT count(*) FROM jobs WHERE admitted_at IS NOT NULL AND state = 'queued') AS starting,
       (SELECT min(run_at) FROM jobs WHERE state = 'queued' AND NOT due AND run_at > $1) AS next_run_at,
       recent, oldest
  FROM started

-- name: admit
WITH next AS (
    SELECT tenant_id, id FROM jobs
     WHERE state = 'queued' AND due AND admitted_at IS NULL
     ORDER BY priority DESC, id
     LIMIT $2
       FOR UPDATE SKIP LOCKED
)
UPDATE jobs j SET admitted_at = $1
  FROM next n
 WHERE j.tenant_id = n.tenant_id AND j.id = n.id
RETURNING j.tenant_id, j.id, j.priority

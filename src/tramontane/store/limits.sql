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

-- name: set_limit
UPDATE limits SET rate = $2 WHERE tenant_id = '*' AND name = $1 AND rate <> $2

-- name: lock_limit
-- A round is short: planning its statements for the values at hand would take as long as they do. Their plans are kept.
SELECT rate, (SELECT rate FROM limits WHERE tenant_id = '*' AND name = 'window') AS seconds,
       set_config('plan_cache_mode', 'force_generic_plan', true)
  FROM limits WHERE tenant_id = '*' AND name = 'starts' FOR UPDATE

-- name: try_limit
SELECT rate, (SELECT rate FROM limits WHERE tenant_id = '*' AND name = 'window') AS seconds,
       set_config('plan_cache_mode', 'force_generic_plan', true)
  FROM limits WHERE tenant_id = '*' AND name = 'starts' FOR UPDATE SKIP LOCKED

-- name: admit
-- By their place in the table, which no statistics from before a backlog can make a search of. One that is being
-- cancelled at this moment is passed over. With it the tenants' virtual times, $4 to $7, in order.
WITH given AS (
    SELECT * FROM unnest($2::tid[], $3::integer[]) AS g (place, reserved)
), still AS (
    SELECT ctid AS place FROM jobs
     WHERE ctid = ANY ($2::tid[]) AND state IS NOT DISTINCT FROM 'queued' AND due AND admitted_at IS NULL
       FOR UPDATE SKIP LOCKED
), moved AS (
    INSERT INTO shares (account, model, tenant_id, virtual_time)
    SELECT * FROM unnest($4::text[], $5::text[], $6::text[], $7::double precision[]) AS s (account, model, tenant_id, time)
     ORDER BY account, model, tenant_id
        ON CONFLICT (account, model, tenant_id) DO UPDATE SET virtual_time = excluded.virtual_time
)
UPDATE jobs j SET admitted_at = $1, reserved = g.reserved
  FROM still s JOIN given g USING (place)
 WHERE j.ctid = s.place
RETURNING j.tenant_id, j.id, j.priority

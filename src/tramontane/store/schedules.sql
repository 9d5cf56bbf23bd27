-- name: insert_schedule
INSERT INTO schedules (tenant_id, id, name, cron, timezone, job, template, catch_up, state, next_at, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING *

-- name: take_turns
-- One of a tenant at a time, in any process: what was added before is counted.
SELECT pg_advisory_xact_lock(hashtextextended('tramontane_schedules:' || $1, 0))

-- name: count_schedules
SELECT count(*) FROM schedules WHERE tenant_id = $1

-- name: get_schedule
SELECT * FROM schedules WHERE tenant_id = $1 AND id = $2

-- name: list_schedules
SELECT * FROM schedules WHERE tenant_id = $1 ORDER BY name

-- name: update_schedule
-- Unless somebody else has changed it meanwhile: what was read is what is changed.
UPDATE schedules
   SET name = $4, cron = $5, timezone = $6, job = $7, template = $8, catch_up = $9, state = $10, reason = NULL,
       next_at = $11, updated_at = $12
 WHERE tenant_id = $1 AND id = $2 AND updated_at = $3
RETURNING *

-- name: name_taken
SELECT EXISTS (SELECT FROM schedules WHERE tenant_id = $1 AND name = $3 AND id <> $2)

-- name: delete_schedule
DELETE FROM schedules WHERE tenant_id = $1 AND id = $2 RETURNING id

-- name: due_schedules
-- Whoever comes at the same moment passes over what is taken. $3: tenants that have no place for more jobs.
SELECT * FROM schedules
 WHERE state = 'active' AND next_at <= $1 AND tenant_id <> ALL ($3::text[])
 ORDER BY next_at
 LIMIT $2
   FOR UPDATE SKIP LOCKED

-- name: next_schedule
SELECT min(next_at) FROM schedules WHERE state = 'active' AND next_at > $1

-- name: move_schedule
-- It was its turn. `updated_at` is for what people change.
UPDATE schedules SET next_at = $3, last_at = coalesce($4, last_at), last_job = coalesce($5, last_job), reason = NULL
 WHERE tenant_id = $1 AND id = $2

-- name: put_off
-- Those of a tenant, or of all (`*`), that are due and will be as long as there is no place; each is told once.
UPDATE schedules SET reason = $2
 WHERE state = 'active' AND next_at <= $3 AND reason IS NULL AND ($1 = '*' OR tenant_id = $1)
RETURNING id

-- name: stop_schedule
UPDATE schedules SET state = 'paused', reason = $3, next_at = NULL, updated_at = $4 WHERE tenant_id = $1 AND id = $2

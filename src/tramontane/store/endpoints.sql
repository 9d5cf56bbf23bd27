-- name: insert_endpoint
-- A registered URL or a listener, with its first secret.
WITH added AS (
    INSERT INTO endpoints (tenant_id, id, kind, url, description, events, format, ordering, headers, timeout_seconds,
                           allowance, health, expires_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13, $14, $14)
)
INSERT INTO endpoint_secrets (tenant_id, endpoint_id, id, secret, primary_from) VALUES ($1, $2, $15, $16, $14)

-- name: get_endpoint
SELECT e.*,
       (SELECT count(*) FROM deliveries d
         WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'waiting') AS waiting,
       (SELECT count(*) FROM deliveries d
         WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'dispatched') AS dispatched
  FROM endpoints e WHERE e.tenant_id = $1 AND e.id = $2 AND e.kind = 'registered'

-- name: list_endpoints
-- Newest first, from before a cursor.
SELECT *, NULL AS waiting, NULL AS dispatched FROM endpoints
 WHERE tenant_id = $1 AND kind = 'registered' AND ($2::uuid IS NULL OR id < $2)
 ORDER BY id DESC
 LIMIT $3

-- name: live_secrets
-- Without the secrets themselves; the primary first, as attempts are signed.
SELECT endpoint_id, id, not_after FROM endpoint_secrets
 WHERE tenant_id = $1 AND endpoint_id = ANY($2::uuid[]) AND (not_after IS NULL OR not_after > $3)
 ORDER BY endpoint_id, primary_from <= $3 DESC, primary_from DESC, id

-- name: lock_endpoint
SELECT *, NULL AS waiting, NULL AS dispatched FROM endpoints
 WHERE tenant_id = $1 AND id = $2 AND kind = 'registered'
   FOR NO KEY UPDATE

-- name: update_endpoint
UPDATE endpoints
   SET url = $3, description = $4, events = $5, format = $6, ordering = $7, headers = $8, timeout_seconds = $9,
       state = $10, disabled_reason = $11, health = $12::json, allowance = $13, blocked_until = $14, updated_at = $15
 WHERE tenant_id = $1 AND id = $2

-- name: delete_endpoint
-- With its secrets. What waits is cancelled, and what is told again ends; the log of both stays.
WITH removed AS (
    DELETE FROM endpoints WHERE tenant_id = $1 AND id = $2 AND kind = 'registered' RETURNING tenant_id, id
), secrets AS (
    DELETE FROM endpoint_secrets s USING removed r WHERE s.tenant_id = r.tenant_id AND s.endpoint_id = r.id
), untold AS (
    UPDATE deliveries d SET state = 'cancelled', ended_at = $3, last_error = 'removed'
      FROM removed r WHERE d.tenant_id = r.tenant_id AND d.endpoint_id = r.id AND d.state = 'waiting'
), stopped AS (
    UPDATE recoveries v SET state = 'cancelled', ended_at = $3
      FROM removed r WHERE v.tenant_id = r.tenant_id AND v.endpoint_id = r.id AND v.state IN ('running', 'paused')
)
SELECT id FROM removed

-- name: end_secrets
-- The others sign until $3 at the latest. One whose turn as primary was still to come gives it up when $4 says so.
UPDATE endpoint_secrets
   SET not_after = least(not_after, $3::timestamptz),
       primary_from = CASE WHEN $4 THEN least(primary_from, $5::timestamptz - interval '1 us') ELSE primary_from END
 WHERE tenant_id = $1 AND endpoint_id = $2

-- name: forget_secrets
DELETE FROM endpoint_secrets WHERE tenant_id = $1 AND endpoint_id = $2 AND not_after <= $3

-- name: insert_secret
INSERT INTO endpoint_secrets (tenant_id, endpoint_id, id, secret, primary_from) VALUES ($1, $2, $3, $4, $5)

-- name: count_secrets
SELECT count(*) FROM endpoint_secrets WHERE tenant_id = $1 AND endpoint_id = $2

-- name: insert_test
-- A message for one endpoint alone, and its delivery.
WITH message AS (
    INSERT INTO messages (tenant_id, id, event, at, final) VALUES ($1, $3, $4, $5, false)
), body AS (
    INSERT INTO message_bodies (tenant_id, message_id, body, thin) VALUES ($1, $3, $6, $6)
), waiting AS (
    INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, final, origin, run_id,
                            state, due_at, created_at)
    VALUES ($1, $7, $3, $2, false, 'default', $4, false, 'test', $7, 'waiting', $5, $5)
)
SELECT pg_notify('tramontane_deliveries', '')

-- name: replayable
SELECT b.message_id IS NOT NULL AS has_body, e.state AS endpoint_state
  FROM deliveries d
  LEFT JOIN message_bodies b ON b.tenant_id = d.tenant_id AND b.message_id = d.message_id
  LEFT JOIN endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
 WHERE d.tenant_id = $1 AND d.id = $2

-- name: insert_replay
WITH waiting AS (
    INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, job_id, seq, final, origin,
                            run_id, state, due_at, created_at)
    SELECT tenant_id, $3, message_id, endpoint_id, callback, format, event, job_id, seq, final, 'replay',
           $3, 'waiting', $4, $4
      FROM deliveries WHERE tenant_id = $1 AND id = $2
)
SELECT pg_notify('tramontane_deliveries', '')

-- name: record_results
-- Ends deliveries that were handed to this listener, with a line in the log of attempts for each.
WITH given AS (
    SELECT * FROM unnest($3::uuid[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::double precision[])
           AS g (id, status, error_class, detail, hint, total_ms)
), heard AS (
    UPDATE deliveries d
       SET state = CASE WHEN g.error_class IS NULL THEN 'succeeded' ELSE 'failed' END, attempts = d.attempts + 1,
           tries = d.tries + 1, last_status = g.status, last_error = g.error_class, hint = g.hint, ended_at = $9
      FROM given g
     WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.id = g.id AND d.state = 'dispatched'
    RETURNING d.*, g.status, g.error_class, g.detail, g.total_ms
)
INSERT INTO delivery_attempts (tenant_id, delivery_id, number, endpoint_id, event, counted, started_at, status,
                               error_class, detail, hint, total_ms, truncated, worker_id)
SELECT tenant_id, id, tries, endpoint_id, event, true, coalesce(dispatched_at, $9), status, error_class, detail, hint,
       total_ms, false, endpoint_id
  FROM heard

-- name: renew
-- The listener's lease, and its secret. No row once the lease has ended.
UPDATE endpoints e SET expires_at = $3
  FROM endpoint_secrets s
 WHERE e.tenant_id = $1 AND e.id = $2 AND e.kind = 'listener' AND e.expires_at > $4
   AND s.tenant_id = e.tenant_id AND s.endpoint_id = e.id
RETURNING s.secret

-- name: hand_out
-- What waits, and what was handed out before $3 and never answered.
WITH chosen AS (
    SELECT tenant_id, id FROM deliveries
     WHERE tenant_id = $1 AND endpoint_id = $2
       AND (state = 'waiting' AND due_at <= $4::timestamptz OR state = 'dispatched' AND dispatched_at <= $3)
     ORDER BY due_at, id
     LIMIT $5
       FOR UPDATE SKIP LOCKED
), handed AS (
    UPDATE deliveries d SET state = 'dispatched', dispatched_at = $4, fence = d.fence + 1
      FROM chosen c WHERE d.tenant_id = c.tenant_id AND d.id = c.id
    RETURNING d.*
)
SELECT h.*, m.at AS event_at, CASE WHEN h.format = 'thin' OR b.body IS NULL THEN b.thin ELSE b.body END AS sent
  FROM handed h
  JOIN messages m ON m.tenant_id = h.tenant_id AND m.id = h.message_id
  JOIN message_bodies b ON b.tenant_id = h.tenant_id AND b.message_id = h.message_id
 ORDER BY h.due_at, h.id

-- name: delete_listener
-- With its secret. What was not heard any more is cancelled.
WITH removed AS (
    DELETE FROM endpoints WHERE tenant_id = $1 AND id = $2 AND kind = 'listener' RETURNING tenant_id, id
), secrets AS (
    DELETE FROM endpoint_secrets s USING removed r WHERE s.tenant_id = r.tenant_id AND s.endpoint_id = r.id
), unheard AS (
    UPDATE deliveries d SET state = 'cancelled', ended_at = $3
      FROM removed r WHERE d.tenant_id = r.tenant_id AND d.endpoint_id = r.id AND d.state IN ('waiting', 'dispatched')
)
SELECT id FROM removed

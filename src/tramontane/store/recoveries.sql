-- name: insert_recovery
-- Counts by the same conditions as next_page. An endpoint that is not there, or disabled, begins none.
INSERT INTO recoveries (tenant_id, id, endpoint_id, since, until, wanted, event, state, total, created_at)
SELECT e.tenant_id, $3, e.id, $4::timestamptz, $5::timestamptz, $6, $7::text, 'running', (
        SELECT count(*)
          FROM messages m JOIN message_bodies b ON b.tenant_id = m.tenant_id AND b.message_id = m.id
         CROSS JOIN LATERAL (
            SELECT ARRAY[m.event, split_part(m.event, '.', 1) || '.*', '*.' || split_part(m.event, '.', 2), '*'] AS filters
         ) AS f
         CROSS JOIN LATERAL (
            SELECT coalesce(bool_or(d.state IN ('failed', 'cancelled'))
                        AND NOT bool_or(d.state IN ('succeeded', 'waiting', 'dispatched')), false) AS failed,
                   count(d.id) = 0 AS missing
              FROM deliveries d
             WHERE d.tenant_id = m.tenant_id AND d.message_id = m.id AND d.endpoint_id IS NOT DISTINCT FROM e.id AND NOT d.callback
         ) AS told
         WHERE m.tenant_id = e.tenant_id AND m.at >= $4 AND m.at < $5
           AND m.event <> 'webhook.test' AND m.about IS DISTINCT FROM e.id
           AND e.events && f.filters AND ($7 IS NULL OR $7 = ANY(f.filters))
           AND CASE $6 WHEN 'failed' THEN told.failed WHEN 'missing' THEN told.missing ELSE true END
       ), $8
  FROM endpoints e WHERE e.tenant_id = $1 AND e.id = $2 AND e.kind = 'registered' AND e.state <> 'disabled'
RETURNING id

-- name: endpoint_state
SELECT state FROM endpoints WHERE tenant_id = $1 AND id = $2 AND kind = 'registered'

-- name: get_recovery
SELECT r.*, t.* FROM recoveries r CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE d.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE d.state IN ('waiting', 'dispatched')) AS waiting,
           count(*) FILTER (WHERE d.state NOT IN ('succeeded', 'waiting', 'dispatched')) AS failed
      FROM deliveries d WHERE d.tenant_id = r.tenant_id AND d.run_id = r.id AND d.origin = 'recovery'
) AS t
 WHERE r.tenant_id = $1 AND r.id = $2

-- name: list_recoveries
-- Newest first, from before a cursor.
SELECT r.*, t.* FROM (
    SELECT * FROM recoveries
     WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::uuid IS NULL OR endpoint_id = $3)
     ORDER BY id DESC
     LIMIT $4
) AS r CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE d.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE d.state IN ('waiting', 'dispatched')) AS waiting,
           count(*) FILTER (WHERE d.state NOT IN ('succeeded', 'waiting', 'dispatched')) AS failed
      FROM deliveries d WHERE d.tenant_id = r.tenant_id AND d.run_id = r.id AND d.origin = 'recovery'
) AS t
 ORDER BY r.id DESC

-- name: steer_recovery
-- To $3 from one of $4.
UPDATE recoveries SET state = $3, ended_at = CASE WHEN $3 = 'cancelled' THEN $5::timestamptz END
 WHERE tenant_id = $1 AND id = $2 AND state = ANY($4::text[])
RETURNING id

-- name: cancel_deliveries
UPDATE deliveries SET state = 'cancelled', ended_at = $3
 WHERE tenant_id = $1 AND run_id = $2 AND origin = 'recovery' AND state = 'waiting'

-- name: running
-- Those whose endpoint would take more now. Usually there are none, which costs a look at an empty index.
SELECT r.tenant_id, r.id, r.endpoint_id
  FROM recoveries r JOIN endpoints e ON e.tenant_id = r.tenant_id AND e.id = r.endpoint_id
 WHERE r.state = 'running' AND e.state = 'active'
   AND (SELECT count(*) FROM (
        SELECT FROM deliveries d
         WHERE d.tenant_id = r.tenant_id AND d.endpoint_id = r.endpoint_id AND d.state = 'waiting' AND d.due_at <= $1
         LIMIT $2
       ) AS due) < $2
 ORDER BY r.created_at
   FOR NO KEY UPDATE OF r SKIP LOCKED

-- name: next_page
-- Looks at the next messages of a recovery, makes deliveries of those that are wanted, and moves the cursor behind them:
-- all of it or nothing, so whoever comes after a crash goes on where this one did not. IS NOT DISTINCT FROM keeps
-- the planner from looking for a message among all deliveries of the endpoint, of which it may know of none yet.
WITH run AS (
    SELECT r.*, e.events, e.format
      FROM recoveries r JOIN endpoints e ON e.tenant_id = r.tenant_id AND e.id = r.endpoint_id
     WHERE r.tenant_id = $1 AND r.id = $2
), page AS MATERIALIZED (
    SELECT m.*, run.events, run.format, run.endpoint_id, run.wanted, run.event AS only_event,
           ARRAY[m.event, split_part(m.event, '.', 1) || '.*', '*.' || split_part(m.event, '.', 2), '*'] AS filters
      FROM run CROSS JOIN LATERAL (
        SELECT * FROM messages
         WHERE tenant_id = $1 AND at < run.until
           AND (at, id) > (coalesce(run.cursor_at, run.since),
                           coalesce(run.cursor_id, '00000000-0000-0000-0000-000000000000'::uuid))
         ORDER BY at, id
         LIMIT cardinality($3::uuid[])
      ) AS m
), wanted AS (
    SELECT p.*, b.body IS NULL AS too_large, row_number() OVER (ORDER BY p.at, p.id) AS number
      FROM page p JOIN message_bodies b ON b.tenant_id = p.tenant_id AND b.message_id = p.id
     CROSS JOIN LATERAL (
        SELECT coalesce(bool_or(d.state IN ('failed', 'cancelled'))
                    AND NOT bool_or(d.state IN ('succeeded', 'waiting', 'dispatched')), false) AS failed,
               count(d.id) = 0 AS missing
          FROM deliveries d
         WHERE d.tenant_id = p.tenant_id AND d.message_id = p.id AND d.endpoint_id IS NOT DISTINCT FROM p.endpoint_id
           AND NOT d.callback
     ) AS told
     WHERE p.event <> 'webhook.test' AND p.about IS DISTINCT FROM p.endpoint_id
       AND p.events && p.filters AND (p.only_event IS NULL OR p.only_event = ANY(p.filters))
       AND CASE p.wanted WHEN 'failed' THEN told.failed WHEN 'missing' THEN told.missing ELSE true END
), made AS (
    INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, job_id, seq, final, origin,
                            run_id, state, due_at, created_at)
    SELECT tenant_id, ($3::uuid[])[number], id, endpoint_id, false, CASE WHEN too_large THEN 'thin' ELSE format END,
           event, job_id, seq, final, 'recovery', $2, 'waiting', $4::timestamptz, $4
      FROM wanted
    ON CONFLICT (tenant_id, message_id, endpoint_id, callback, run_id) DO NOTHING
    RETURNING 1
), counted AS (
    SELECT (SELECT count(*) FROM page) AS seen, (SELECT count(*) FROM made) AS made
), moved AS (
    UPDATE recoveries r SET cursor_at = last.at, cursor_id = last.id, done = r.done + counted.made
      FROM (SELECT at, id FROM page ORDER BY at DESC, id DESC LIMIT 1) AS last, counted
     WHERE r.tenant_id = $1 AND r.id = $2
)
SELECT seen, made FROM counted

-- name: complete
-- Once none of its deliveries is on its way any more.
UPDATE recoveries r SET state = 'completed', ended_at = $3
 WHERE r.tenant_id = $1 AND r.id = $2
   AND NOT EXISTS (SELECT FROM deliveries d
                    WHERE d.tenant_id = r.tenant_id AND d.run_id = r.id AND d.origin = 'recovery'
                      AND d.state IN ('waiting', 'dispatched'))

-- name: overdue
-- Jobs that had to start before now. Those that are being started at this moment are passed over.
SELECT * FROM jobs
 WHERE state = 'queued' AND deadline <= $1
 ORDER BY deadline
 LIMIT $2
   FOR UPDATE SKIP LOCKED

-- name: next_deadline
SELECT min(deadline) FROM jobs WHERE state = 'queued' AND deadline IS NOT NULL

-- name: beyond_budget
-- Jobs that wait for a budget that is spent, of tenants that want no waiting. What is let through already may run.
WITH spent AS (
    SELECT t.id
      FROM tenants t
      JOIN LATERAL (SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens, coalesce(sum(cost), 0) AS cost
                      FROM spendings s
                     WHERE s.tenant_id = t.id AND s.day = $1) AS today ON true
     WHERE t.on_budget = 'fail' AND (today.tokens >= t.daily_tokens OR today.cost >= t.daily_cost)
)
SELECT j.* FROM spent t JOIN jobs j ON j.tenant_id = t.id
 WHERE j.state = 'queued' AND j.due AND j.admitted_at IS NULL
 LIMIT $2
   FOR UPDATE OF j SKIP LOCKED

-- name: fail_waiting
-- Ends jobs that wait, which the caller has locked, with their final event. `told`: webhooks may want to know.
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[])
        AS g (tenant_id, id, usage, body)
), failed AS (
    UPDATE jobs j
       SET state = 'failed', head = j.head + 1, usage = g.usage::json, error_code = $5, error_message = $6,
           error_retryable = false, completed_at = $7
      FROM given g
     WHERE j.tenant_id = g.tenant_id AND j.id = g.id AND j.state = 'queued'
    RETURNING j.*
), final AS (
    INSERT INTO events (tenant_id, job_id, seq, attempt, type, body, created_at)
    SELECT f.tenant_id, f.id, f.head, f.attempt, 'error', g.body::json, $7
      FROM failed f JOIN given g ON g.tenant_id = f.tenant_id AND g.id = f.id
), hint AS (
    SELECT pg_notify('tramontane_events', CASE WHEN length(pairs) < 7900 THEN pairs ELSE '' END)
      FROM (SELECT string_agg(id || ':' || head, ',') AS pairs FROM failed) AS p
     WHERE pairs IS NOT NULL
)
SELECT f.*,
       (EXISTS (SELECT FROM endpoints n WHERE n.tenant_id = f.tenant_id AND n.kind <> 'origin')
           OR EXISTS (SELECT FROM callbacks b WHERE b.tenant_id = f.tenant_id AND b.job_id = f.id)) AS told
  FROM failed f LEFT JOIN hint ON true

-- name: expire_contents
-- A small bite: what at most $3 jobs asked and answered that ended before a time. A callback is kept while there are
-- messages, which a replay would send to it.
WITH old AS (
    SELECT tenant_id, id FROM jobs
     WHERE completed_at < $1 AND contents_pruned_at IS NULL
     ORDER BY completed_at LIMIT $3
       FOR UPDATE SKIP LOCKED
), marked AS (
    UPDATE jobs j SET contents_pruned_at = $2, events_pruned_at = coalesce(j.events_pruned_at, $2)
      FROM old o WHERE j.tenant_id = o.tenant_id AND j.id = o.id
), contents AS (
    DELETE FROM job_contents c USING old o WHERE c.tenant_id = o.tenant_id AND c.job_id = o.id
), log AS (
    DELETE FROM events e USING old o WHERE e.tenant_id = o.tenant_id AND e.job_id = o.id
), callback AS (
    DELETE FROM callbacks c USING old o
     WHERE c.tenant_id = o.tenant_id AND c.job_id = o.id
       AND NOT EXISTS (SELECT FROM messages m WHERE m.tenant_id = o.tenant_id AND m.job_id = o.id)
)
SELECT count(*) FROM old

-- name: forget_jobs
-- A small bite of the ledger: at most $2 jobs that ended before a time, with their attempts.
WITH old AS (
    SELECT tenant_id, id FROM jobs
     WHERE completed_at < $1 AND contents_pruned_at IS NOT NULL
     ORDER BY completed_at LIMIT $2
       FOR UPDATE SKIP LOCKED
), attempts AS (
    DELETE FROM job_attempts a USING old o WHERE a.tenant_id = o.tenant_id AND a.job_id = o.id
), callback AS (
    DELETE FROM callbacks c USING old o WHERE c.tenant_id = o.tenant_id AND c.job_id = o.id
), gone AS (
    DELETE FROM jobs j USING old o WHERE j.tenant_id = o.tenant_id AND j.id = o.id
)
SELECT count(*) FROM old

-- name: forget_spendings
DELETE FROM spendings WHERE day < ($1::timestamptz AT TIME ZONE 'UTC')::date

-- name: forget_recoveries
DELETE FROM recoveries WHERE ended_at < $1

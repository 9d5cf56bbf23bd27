-- name: get_tenant
SELECT * FROM tenants WHERE id = $1

-- name: list_tenants
-- Whoever has a key, a job, or something set.
WITH RECURSIVE busy AS (
    -- By jumping along the index: a tenant costs one probe, however many jobs it has.
    (SELECT tenant_id FROM jobs ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.tenant_id FROM jobs j WHERE j.tenant_id > b.tenant_id ORDER BY j.tenant_id LIMIT 1)
      FROM busy b WHERE b.tenant_id IS NOT NULL
)
SELECT n.name, t.*
  FROM (SELECT id AS name FROM tenants
        UNION SELECT tenant_id FROM api_keys
        UNION SELECT tenant_id FROM busy WHERE tenant_id IS NOT NULL) AS n
  LEFT JOIN tenants t ON t.id = n.name
 ORDER BY n.name

-- name: models_for_money
-- What tenants with a budget of money have used since a day.
SELECT DISTINCT s.model FROM tenants t JOIN spendings s ON s.tenant_id = t.id
 WHERE t.daily_cost > 0 AND s.day >= $1
 ORDER BY s.model

-- name: lock_tenant
-- A row is made for whoever has none, so that two who set something wait for each other.
INSERT INTO tenants (id, created_at, updated_at) VALUES ($1, $2, $2)
    ON CONFLICT (id) DO UPDATE SET updated_at = $2
RETURNING *

-- name: update_tenant
UPDATE tenants
   SET description = $2, weight = $3, concurrency = $4, top_priority = $5, queue_limit = $6, daily_tokens = $7,
       daily_cost = $8, on_budget = $9, mistral_key = $10
 WHERE id = $1

-- name: move_jobs
-- Jobs are counted by the limits of the Mistral key that their next attempt will be asked with.
UPDATE jobs SET account = $2 WHERE tenant_id = $1 AND state IN ('queued', 'running') AND account <> $2

-- name: forget_limits
DELETE FROM buckets WHERE account = $1

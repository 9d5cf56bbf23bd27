-- name: waiting
-- Jobs that wait in the whole fleet; counting ends at $1.
SELECT count(*) FROM (
    (SELECT 1 FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL LIMIT $1)
    UNION ALL
    (SELECT 1 FROM jobs WHERE state = 'queued' AND NOT due LIMIT $1)
) AS counted

-- name: waiting_of
-- Jobs of a tenant that wait; counting ends at $2.
SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant_id = $1 AND state = 'queued' LIMIT $2) AS counted

-- name: started
-- Starts since then; counting ends at ten thousand.
SELECT count(*) FROM (SELECT 1 FROM job_attempts WHERE started_at > $1 LIMIT 10000) AS counted

-- name: standing
SELECT t.queue_limit, t.on_budget, t.daily_tokens, t.daily_cost, today.tokens, today.cost
  FROM tenants t
  JOIN LATERAL (SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens, coalesce(sum(cost), 0) AS cost
                  FROM spendings s
                 WHERE s.tenant_id = t.id AND s.day = $2) AS today ON true
 WHERE t.id = $1

-- name: told
-- What readers were told of the answers of several jobs, in order.
SELECT e.tenant_id, e.job_id AS id, e.seq, e.attempt, e.type, e.body::text AS body
  FROM unnest($1::text[], $2::uuid[]) AS g (tenant_id, id)
  JOIN events e ON e.tenant_id = g.tenant_id AND e.job_id = g.id
 WHERE e.type IN ('chunk', 'tool', 'attempt')
 ORDER BY e.tenant_id, e.job_id, e.seq

-- name: ended_attempts
-- The ended attempts of several jobs, summed up; `reason` is the last one's.
SELECT a.tenant_id, a.job_id AS id,
       coalesce((array_agg(a.reason ORDER BY a.attempt DESC))[1], 'worker_lost') AS reason,
       coalesce(array_agg(a.usage::text ORDER BY a.attempt) FILTER (WHERE a.usage IS NOT NULL), '{}') AS usages,
       count(*) FILTER (WHERE a.unreported) AS unreported
  FROM unnest($1::text[], $2::uuid[]) AS g (tenant_id, id)
  JOIN job_attempts a ON a.tenant_id = g.tenant_id AND a.job_id = g.id
 WHERE a.ended_at IS NOT NULL
 GROUP BY a.tenant_id, a.job_id

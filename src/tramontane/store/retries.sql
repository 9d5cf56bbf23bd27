-- name: take_turns
-- One page of a tenant at a time, in any process: what the one before has retried is seen by the next.
SELECT pg_advisory_xact_lock(hashtextextended('tramontane_retries:' || $1, 0))

-- name: retriable
-- Ended jobs that nobody has retried, newest first, from before a cursor.
SELECT j.*, c.request
  FROM jobs j
  JOIN job_contents c ON c.tenant_id = j.tenant_id AND c.job_id = j.id
 WHERE j.tenant_id = $1 AND j.erased_at IS NULL AND j.state = $3
   AND ($2::uuid IS NULL OR j.id < $2)
   AND ($4::text IS NULL OR j.kind = $4)
   AND ($5::text IS NULL OR j.model = $5)
   AND ($6::text IS NULL OR j.error_code = $6)
   AND ($7::timestamptz IS NULL OR j.created_at >= $7)
   AND ($8::timestamptz IS NULL OR j.created_at < $8)
   AND ($9::jsonb IS NULL OR j.metadata @> $9)
   AND NOT EXISTS (SELECT FROM jobs r WHERE r.tenant_id = j.tenant_id AND r.retry_of = j.id)
 ORDER BY j.id DESC
 LIMIT $10

-- name: callbacks
-- Where the events of several jobs go.
SELECT c.*, e.url AS origin
  FROM callbacks c JOIN endpoints e ON e.tenant_id = c.tenant_id AND e.id = c.endpoint_id
 WHERE c.tenant_id = $1 AND c.job_id = ANY ($2::uuid[])

-- name: insert_jobs
-- One row per new job. Left out of what comes back: one whose Idempotency-Key is taken, and one that is there already.
-- None has more priority than its tenant may ask for, however it came about.
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::double precision[],
        $9::double precision[], $10::integer[], $11::timestamptz[], $12::text[], $13::uuid[], $14::text[], $15::bytea[],
        $16::text[], $17::text[], $18::timestamptz[], $19::integer[], $20::integer[], $21::uuid[], $22::text[]
    ) AS g (tenant_id, id, kind, request_id, model, attempts, backoff_kind, backoff_seconds, timeout_seconds, priority,
            run_at, metadata, retry_of, idempotency_key, idempotency_hash, request, resume, deadline, prompt_tokens,
            max_tokens, schedule_id, trace_context)
), inserted AS (
    INSERT INTO jobs (tenant_id, id, kind, state, request_id, model, attempts, backoff_kind, backoff_seconds,
                      timeout_seconds, priority, run_at, due, metadata, retry_of, idempotency_key, idempotency_hash,
                      resume, created_at, account, deadline, prompt_tokens, max_tokens, schedule_id, trace_context)
    SELECT tenant_id, id, kind, 'queued', request_id, model, attempts, backoff_kind, backoff_seconds, timeout_seconds,
           CASE WHEN priority > 0
                THEN least(priority, (SELECT top_priority FROM tenants t WHERE t.id = tenant_id)) ELSE priority END,
           run_at, run_at <= $23, metadata::jsonb, retry_of, idempotency_key, idempotency_hash, resume, $23,
           CASE WHEN EXISTS (SELECT FROM tenants t WHERE t.id = tenant_id AND t.mistral_key IS NOT NULL)
                THEN tenant_id ELSE '*' END,
           deadline, prompt_tokens, max_tokens, schedule_id, trace_context
      FROM given
     ORDER BY tenant_id, idempotency_key, id
    ON CONFLICT DO NOTHING
    RETURNING *
), contents AS (
    INSERT INTO job_contents (tenant_id, job_id, request)
    SELECT g.tenant_id, g.id, g.request::json FROM given g JOIN inserted i ON i.tenant_id = g.tenant_id AND i.id = g.id
)
SELECT * FROM inserted

-- name: insert_callbacks
-- Where new jobs' own events go. Their origins become endpoints, which keep the health of the receivers.
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::bytea[]
    ) AS g (tenant_id, job_id, endpoint_id, origin, url, events, format, secret, headers)
), origins AS (
    INSERT INTO endpoints (tenant_id, id, kind, url, events, allowance, health, created_at, updated_at)
    SELECT tenant_id, endpoint_id, 'origin', origin, '{}', $10, $11::text::json, $12, $12
      FROM (SELECT DISTINCT tenant_id, endpoint_id, origin FROM given ORDER BY tenant_id, endpoint_id) AS named
    ON CONFLICT DO NOTHING
)
INSERT INTO callbacks (tenant_id, job_id, endpoint_id, url, events, format, secret, headers)
SELECT tenant_id, job_id, endpoint_id, url, string_to_array(events, ','), format, secret, headers FROM given

-- name: get_callback
SELECT c.*, e.url AS origin
  FROM callbacks c JOIN endpoints e ON e.tenant_id = c.tenant_id AND e.id = c.endpoint_id
 WHERE c.tenant_id = $1 AND c.job_id = $2

-- name: earlier_jobs
-- What new jobs met: the same ids, or their Idempotency-Keys.
SELECT * FROM jobs WHERE (tenant_id, id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))
UNION ALL
SELECT * FROM jobs WHERE (tenant_id, idempotency_key) IN (SELECT * FROM unnest($1::text[], $3::text[]))

-- name: top_priorities
SELECT id, top_priority FROM tenants WHERE id = ANY ($1::text[]) AND top_priority IS NOT NULL

-- name: get_job
SELECT * FROM jobs WHERE tenant_id = $1 AND id = $2 AND erased_at IS NULL

-- name: get_contents
SELECT c.request, c.result FROM job_contents c WHERE c.tenant_id = $1 AND c.job_id = $2

-- name: list_jobs
-- Newest first, from before a cursor.
SELECT * FROM jobs
 WHERE tenant_id = $1 AND erased_at IS NULL
   AND ($2::uuid IS NULL OR id < $2)
   AND ($3::text IS NULL OR state = $3)
   AND ($4::text IS NULL OR kind = $4)
   AND ($5::text IS NULL OR model = $5)
   AND ($6::text IS NULL OR request_id = $6)
   AND ($7::timestamptz IS NULL OR created_at >= $7)
   AND ($8::timestamptz IS NULL OR created_at < $8)
   AND ($9::jsonb IS NULL OR metadata @> $9)
   AND ($11::text IS NULL OR error_code = $11)
 ORDER BY id DESC
 LIMIT $10

-- name: list_attempts
SELECT * FROM job_attempts WHERE tenant_id = $1 AND job_id = $2 ORDER BY attempt

-- name: start_jobs
-- Matches only admitted jobs that wait: each admission is good for one start. Only the first attempt's first event is
-- known here; a later one says itself how it goes on. `told`: webhooks may want to know.
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[]) AS g (tenant_id, id, entry_id)
), waiting AS (
    SELECT j.tenant_id, j.id, g.entry_id
      FROM jobs j JOIN given g USING (tenant_id, id)
     WHERE j.state = 'queued' AND j.admitted_at IS NOT NULL AND (j.deadline IS NULL OR j.deadline > $5)
     ORDER BY j.tenant_id, j.id
       FOR UPDATE OF j
), started AS (
    UPDATE jobs j
       SET state = 'running', attempt = j.attempt + 1, batch = 0, entry_id = w.entry_id,
           head = j.head + CASE WHEN j.attempt = 0 THEN 1 ELSE 0 END, started_at = coalesce(j.started_at, $5)
      FROM waiting w
     WHERE j.tenant_id = w.tenant_id AND j.id = w.id
    RETURNING j.*
), attempt AS (
    INSERT INTO job_attempts (tenant_id, job_id, attempt, worker_id, started_at, account, model)
    SELECT tenant_id, id, attempt, $4, $5, account, model FROM started
), first_event AS (
    INSERT INTO events (tenant_id, job_id, seq, attempt, type, body, created_at)
    SELECT s.tenant_id, s.id, s.head, s.attempt, 'start',
           format('{"status":"started","requestId":%s,"model":%s,"timestamp":"%s"}',
                  to_json(s.request_id), to_json(s.model), $6::text)::json, $5
      FROM started s
     WHERE s.attempt = 1
), hint AS (
    SELECT pg_notify('tramontane_events', CASE WHEN length(pairs) < 7900 THEN pairs ELSE '' END)
      FROM (SELECT string_agg(id || ':' || head, ',') AS pairs FROM started WHERE attempt = 1) AS p
     WHERE pairs IS NOT NULL
)
SELECT s.*, c.request, t.mistral_key, coalesce(t.daily_cost > 0, false) AS money_counts,
       (EXISTS (SELECT FROM endpoints n WHERE n.tenant_id = s.tenant_id AND n.kind <> 'origin')
           OR EXISTS (SELECT FROM callbacks b WHERE b.tenant_id = s.tenant_id AND b.job_id = s.id)) AS told
  FROM started s
  JOIN job_contents c ON c.tenant_id = s.tenant_id AND c.job_id = s.id
  LEFT JOIN tenants t ON t.id = s.tenant_id
  LEFT JOIN hint ON true

-- name: lock_job
SELECT * FROM jobs WHERE tenant_id = $1 AND id = $2 FOR UPDATE

-- name: end_jobs
-- Ends jobs for good, with their last events. Leaves out each one where another attempt, or a cancel, was there first.
-- `told`: webhooks may want to know.
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::integer[], $4::text[], $5::timestamptz[], $6::integer[], $7::text[], $8::text[],
        $9::text[], $10::boolean[], $11::text[], $12::text[], $13::text[], $14::boolean[], $20::numeric[], $21::text[],
        $23::integer[]
    ) AS g (tenant_id, id, attempt, state, at, count, usage, code, message, retryable, correlation_id, result,
            own_usage, unreported, cost, currency, tokens)
), fenced AS (
    SELECT j.tenant_id, j.id, j.attempt
      FROM jobs j JOIN given g USING (tenant_id, id, attempt)
     WHERE j.state = 'running'
     ORDER BY j.tenant_id, j.id
       FOR UPDATE OF j
), ended AS (
    UPDATE jobs j
       SET state = g.state, head = j.head + g.count, batch = j.batch + 1, usage = g.usage::json, error_code = g.code,
           error_message = g.message, error_retryable = g.retryable, completed_at = g.at,
           failures = j.failures + CASE WHEN g.state = 'failed' THEN 1 ELSE 0 END,
           -- Money of another currency, from before the table was changed, cannot be added up.
           cost = CASE WHEN g.cost IS NULL THEN j.cost WHEN j.currency = g.currency THEN j.cost + g.cost ELSE g.cost END,
           currency = coalesce(g.currency, j.currency)
      FROM fenced f JOIN given g USING (tenant_id, id, attempt)
     WHERE j.tenant_id = f.tenant_id AND j.id = f.id
    RETURNING j.*
), attempt AS (
    UPDATE job_attempts a
       SET ended_at = g.at, outcome = g.state, error_code = g.code, error_message = g.message,
           error_retryable = g.retryable, correlation_id = g.correlation_id, usage = g.own_usage::json,
           unreported = g.unreported, cost = g.cost,
           tokens = coalesce(g.tokens, 0)
      FROM ended e JOIN given g USING (tenant_id, id, attempt)
     WHERE a.tenant_id = e.tenant_id AND a.job_id = e.id AND a.attempt = e.attempt
), result AS (
    UPDATE job_contents c SET result = g.result::json
      FROM ended e JOIN given g USING (tenant_id, id, attempt)
     WHERE c.tenant_id = e.tenant_id AND c.job_id = e.id AND g.result IS NOT NULL
), last_events AS (
    INSERT INTO events (tenant_id, job_id, seq, attempt, type, body, created_at)
    SELECT e.tenant_id, e.id, e.head - g.count + v.position, e.attempt, v.type, v.body::json, g.at
      FROM unnest($22::text[], $15::uuid[], $16::integer[], $17::integer[], $18::text[], $19::text[])
           AS v (tenant_id, id, attempt, position, type, body)
      JOIN ended e USING (tenant_id, id, attempt)
      JOIN given g USING (tenant_id, id, attempt)
), hint AS (
    SELECT pg_notify('tramontane_events', CASE WHEN length(pairs) < 7900 THEN pairs ELSE '' END)
      FROM (SELECT string_agg(id || ':' || head, ',') AS pairs FROM ended) AS p
     WHERE pairs IS NOT NULL
)
SELECT ended.*,
       (EXISTS (SELECT FROM endpoints n WHERE n.tenant_id = ended.tenant_id AND n.kind <> 'origin')
           OR EXISTS (SELECT FROM callbacks b WHERE b.tenant_id = ended.tenant_id AND b.job_id = ended.id)) AS told
  FROM ended CROSS JOIN hint

-- name: requeue_job
-- Back to wait for another attempt. Matches no row once the attempt is lost.
WITH requeued AS (
    UPDATE jobs
       SET state = 'queued', run_at = $4, due = ($4::timestamptz <= $5), admitted_at = NULL, entry_id = NULL,
           failures = failures + CASE WHEN $6 = 'handover' THEN 0 ELSE 1 END,
           refusals = CASE WHEN $17 THEN refusals + 1 WHEN $6 = 'handover' THEN refusals ELSE 0 END,
           cost = CASE WHEN $14::numeric IS NULL THEN cost WHEN currency = $15 THEN cost + $14 ELSE $14 END,
           currency = coalesce($15::text, currency)
     WHERE tenant_id = $1 AND id = $2 AND attempt = $3 AND state = 'running'
    RETURNING *
), attempt AS (
    UPDATE job_attempts a
       SET ended_at = $5, outcome = $6, reason = $7, error_code = $8, error_message = $9, error_retryable = $10,
           correlation_id = $11, usage = $12::text::json, unreported = $13, cost = $14,
           tokens = coalesce($16::integer, 0)
      FROM requeued r
     WHERE a.tenant_id = r.tenant_id AND a.job_id = r.id AND a.attempt = r.attempt
)
SELECT * FROM requeued

-- name: readmit_job
-- An admitted job that no queue entry stands for waits for admission again.
UPDATE jobs SET admitted_at = NULL WHERE tenant_id = $1 AND id = $2 AND state = 'queued' AND admitted_at IS NOT NULL
RETURNING *

-- name: cancel_job
WITH cancelled AS (
    UPDATE jobs
       SET state = 'cancelled', head = head + 1, error_code = 'cancelled', error_message = $4, error_retryable = false,
           completed_at = $3
     WHERE tenant_id = $1 AND id = $2 AND state IN ('queued', 'running')
    RETURNING *
), attempt AS (
    UPDATE job_attempts a
       SET ended_at = $3, outcome = 'cancelled', error_code = 'cancelled', error_message = $4, error_retryable = false,
           unreported = true
      FROM cancelled c
     WHERE a.tenant_id = c.tenant_id AND a.job_id = c.id AND a.attempt = c.attempt AND a.outcome = 'running'
), final AS (
    INSERT INTO events (tenant_id, job_id, seq, attempt, type, body, created_at)
    SELECT tenant_id, id, head, attempt, 'error', $5::json, $3 FROM cancelled
), hint AS (
    SELECT pg_notify('tramontane_events', id || ':' || head) FROM cancelled
)
SELECT cancelled.*,
       (EXISTS (SELECT FROM endpoints n WHERE n.tenant_id = cancelled.tenant_id AND n.kind <> 'origin')
           OR EXISTS (SELECT FROM callbacks b WHERE b.tenant_id = cancelled.tenant_id AND b.job_id = cancelled.id)) AS told
  FROM cancelled CROSS JOIN hint

-- name: visible_text
-- The last event that tells how long the visible text is.
SELECT type, body::text FROM events
 WHERE tenant_id = $1 AND job_id = $2 AND type IN ('chunk', 'attempt')
 ORDER BY seq DESC LIMIT 1

-- name: erase_job
WITH erased AS (
    UPDATE jobs
       SET erased_at = $3, request_id = '', idempotency_key = NULL, idempotency_hash = NULL, metadata = NULL,
           error_message = NULL
     WHERE tenant_id = $1 AND id = $2 AND erased_at IS NULL AND state IN ('completed', 'failed', 'cancelled')
    RETURNING tenant_id, id
), attempts AS (
    UPDATE job_attempts a SET error_message = NULL FROM erased e WHERE a.tenant_id = e.tenant_id AND a.job_id = e.id
), contents AS (
    DELETE FROM job_contents c USING erased e WHERE c.tenant_id = e.tenant_id AND c.job_id = e.id
), log AS (
    DELETE FROM events v USING erased e WHERE v.tenant_id = e.tenant_id AND v.job_id = e.id
), callback AS (
    DELETE FROM callbacks b USING erased e WHERE b.tenant_id = e.tenant_id AND b.job_id = e.id
), answers AS (
    -- What receivers answered may quote what they were told.
    UPDATE delivery_attempts a SET response_headers = NULL, response_body = NULL
      FROM erased e
      JOIN messages m ON m.tenant_id = e.tenant_id AND m.job_id = e.id
      JOIN deliveries d ON d.tenant_id = m.tenant_id AND d.message_id = m.id
     WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id
), told AS (
    DELETE FROM message_bodies b USING erased e, messages m
     WHERE m.tenant_id = e.tenant_id AND m.job_id = e.id AND b.tenant_id = m.tenant_id AND b.message_id = m.id
), untold AS (
    -- One that is being let through at this moment is passed over: who loads it finds no body, and cancels it.
    SELECT d.tenant_id, d.id
      FROM erased e
      JOIN messages m ON m.tenant_id = e.tenant_id AND m.job_id = e.id
      JOIN deliveries d ON d.tenant_id = m.tenant_id AND d.message_id = m.id
     WHERE d.state = 'waiting'
       FOR UPDATE OF d SKIP LOCKED
), cancelled AS (
    UPDATE deliveries d SET state = 'cancelled', ended_at = $3, last_error = 'erased'
      FROM untold u WHERE d.tenant_id = u.tenant_id AND d.id = u.id
)
SELECT id FROM erased

-- name: in_flight_since
-- Admitted before a time and not ended: what the sweeper compares with the queue.
SELECT tenant_id, id, state, attempt, entry_id FROM jobs
 WHERE admitted_at < $1 AND state IN ('queued', 'running')
 ORDER BY admitted_at LIMIT 1000

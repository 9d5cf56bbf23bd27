-- name: targets
-- Who wants to know: endpoints whose filters match, and the callbacks of the messages' jobs.
WITH given AS (
    SELECT g.*, ARRAY[event, split_part(event, '.', 1) || '.*', '*.' || split_part(event, '.', 2), '*'] AS filters
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[]) AS g (id, tenant_id, event, job_id, about)
)
SELECT g.id AS message_id, e.id AS endpoint_id, e.format, false AS callback
  FROM given g
  JOIN endpoints e ON e.tenant_id = g.tenant_id AND e.kind <> 'origin' AND e.state <> 'disabled'
   AND e.events && g.filters AND e.id IS DISTINCT FROM g.about
UNION ALL
SELECT g.id, c.endpoint_id, c.format, true
  FROM given g
  JOIN callbacks c ON c.tenant_id = g.tenant_id AND c.job_id = g.job_id AND c.events && g.filters

-- name: insert_messages
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::text[], $4::timestamptz[], $5::uuid[], $6::integer[], $7::boolean[], $8::bytea[],
        $9::bytea[], $10::uuid[]
    ) AS g (tenant_id, id, event, at, job_id, seq, final, body, thin, about)
), written AS (
    INSERT INTO messages (tenant_id, id, event, at, job_id, seq, final, about)
    SELECT tenant_id, id, event, at, job_id, seq, final, about FROM given
), bodies AS (
    INSERT INTO message_bodies (tenant_id, message_id, body, thin) SELECT tenant_id, id, body, thin FROM given
), waiting AS (
    INSERT INTO deliveries (tenant_id, id, message_id, endpoint_id, callback, format, event, job_id, seq, final, origin,
                            run_id, state, due_at, created_at)
    SELECT g.tenant_id, d.id, g.id, d.endpoint_id, d.callback, d.format, g.event, g.job_id, g.seq, g.final, 'event',
           g.id, 'waiting', g.at, g.at
      FROM unnest($11::uuid[], $12::uuid[], $13::uuid[], $14::boolean[], $15::text[])
           AS d (id, message_id, endpoint_id, callback, format)
      JOIN given g ON g.id = d.message_id
    RETURNING 1
)
SELECT pg_notify('tramontane_deliveries', '') FROM waiting LIMIT 1

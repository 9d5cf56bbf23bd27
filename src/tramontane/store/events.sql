-- name: append_events
-- One statement for all jobs of a process. Locks in job order, so two processes cannot block each other crosswise.
-- What does not come back has either this batch already or lost its fence.
WITH given AS (
    SELECT * FROM unnest(string_to_array($1, E'\x1e'), string_to_array($2, E'\x1e')::uuid[],
                         string_to_array($3, E'\x1e')::integer[], string_to_array($4, E'\x1e')::integer[],
                         string_to_array($5, E'\x1e')::integer[]) WITH ORDINALITY
               AS g (tenant_id, job_id, attempt, batch, count, place)
), fenced AS (
    SELECT j.tenant_id, j.id, j.attempt, g.batch, g.count
      FROM jobs j JOIN given g ON j.tenant_id = g.tenant_id AND j.id = g.job_id
     WHERE j.attempt = g.attempt AND j.state = 'running' AND j.batch = g.batch - 1
     ORDER BY j.tenant_id, j.id
       FOR UPDATE OF j
), advanced AS (
    UPDATE jobs j SET head = j.head + f.count, batch = f.batch
      FROM fenced f
     WHERE j.tenant_id = f.tenant_id AND j.id = f.id
    RETURNING j.tenant_id, j.id, j.attempt, j.head, j.head - f.count AS base
), inserted AS (
    INSERT INTO events (tenant_id, job_id, seq, attempt, type, body, created_at)
    SELECT a.tenant_id, a.id, a.base + e.position, a.attempt, e.type, e.body::json, $9
      FROM (SELECT *, row_number() OVER (PARTITION BY batch ORDER BY place) AS position
              FROM unnest(string_to_array($6, E'\x1e')::integer[], string_to_array($7, E'\x1e'),
                          string_to_array($8, E'\x1e')) WITH ORDINALITY AS v (batch, type, body, place)) AS e
      JOIN given g ON g.place = e.batch
      JOIN advanced a ON a.tenant_id = g.tenant_id AND a.id = g.job_id AND a.attempt = g.attempt
), hint AS (
    -- At most 8000 bytes fit; an empty payload means: look at all you follow.
    SELECT pg_notify('tramontane_events', CASE WHEN length(pairs) < 7900 THEN pairs ELSE '' END)
      FROM (SELECT string_agg(id || ':' || head, ',') AS pairs FROM advanced) AS p
     WHERE pairs IS NOT NULL
)
SELECT g.place, a.head
  FROM advanced a JOIN given g ON a.tenant_id = g.tenant_id AND a.id = g.job_id AND a.attempt = g.attempt
 CROSS JOIN hint

-- name: fences
SELECT j.tenant_id, j.id, j.attempt, j.batch, j.state, j.head
  FROM jobs j JOIN unnest($1::text[], $2::uuid[]) AS g (tenant_id, job_id) ON j.tenant_id = g.tenant_id AND j.id = g.job_id

-- name: read_after
-- The next events of several jobs, each from its own cursor.
SELECT e.tenant_id, e.job_id, e.seq, e.attempt, e.type, e.body::text AS body
  FROM unnest($1::text[], $2::uuid[], $3::integer[]) AS g (tenant_id, job_id, after)
 CROSS JOIN LATERAL (
    SELECT * FROM events v
     WHERE v.tenant_id = g.tenant_id AND v.job_id = g.job_id AND v.seq > g.after
     ORDER BY v.seq LIMIT $4
 ) e
 ORDER BY e.job_id, e.seq

-- name: history
-- The next events of one job as three texts: of single rows the driver would look at every value.
SELECT min(e.seq) AS first,
       string_agg(e.attempt::text, E'\x1e' ORDER BY e.seq) AS attempts,
       string_agg(e.type, E'\x1e' ORDER BY e.seq) AS types,
       string_agg(e.body::text, E'\x1e' ORDER BY e.seq) AS bodies
  FROM (SELECT seq, attempt, type, body FROM events
         WHERE tenant_id = $1 AND job_id = $2 AND seq > $3 ORDER BY seq LIMIT $4) AS e

-- name: told_until
-- What was told of an answer up to an event.
SELECT seq, attempt, type, body::text AS body FROM events
 WHERE tenant_id = $1 AND job_id = $2 AND seq <= $3 AND type = ANY ($4::text[])
 ORDER BY seq

-- name: gone
SELECT g.tenant_id, g.id
  FROM unnest($1::text[], $2::uuid[]) AS g (tenant_id, id)
  LEFT JOIN jobs j ON j.tenant_id = g.tenant_id AND j.id = g.id
 WHERE j.id IS NULL OR j.erased_at IS NOT NULL OR j.events_pruned_at IS NOT NULL

-- name: prune_events
-- A small bite: the logs of at most $2 jobs that ended before a time.
WITH old AS (
    SELECT tenant_id, id FROM jobs
     WHERE completed_at < $1 AND events_pruned_at IS NULL
     ORDER BY completed_at LIMIT $2
       FOR UPDATE SKIP LOCKED
), marked AS (
    UPDATE jobs j SET events_pruned_at = $3 FROM old o WHERE j.tenant_id = o.tenant_id AND j.id = o.id
), deleted AS (
    DELETE FROM events e USING old o WHERE e.tenant_id = o.tenant_id AND e.job_id = o.id
)
SELECT count(*) FROM old

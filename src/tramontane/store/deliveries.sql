-- name: lock_deliveries
-- Rounds take turns. One that would have to wait may still have something new to see, so it waits. True when something
-- is being told again.
SELECT EXISTS (SELECT FROM recoveries WHERE state = 'running')
  FROM limits WHERE tenant_id = '*' AND name = 'deliveries' FOR UPDATE

-- name: admit_deliveries
-- Lets through what is due, as far as each endpoint's health and the fleet's workers have room; tenants take turns.
--
-- An event's delivery waits for earlier ones of its job to the same receiver that are under way or due. One that ends
-- the job supersedes those that wait for another attempt; with ordering 'job' it waits for them instead.
WITH RECURSIVE heads AS (
    -- The first waiting delivery of each endpoint, by jumping along the index: a backlog costs one probe.
    (SELECT tenant_id, endpoint_id, due_at FROM deliveries
      WHERE state = 'waiting' ORDER BY tenant_id, endpoint_id, due_at LIMIT 1)
    UNION ALL
    SELECT next.* FROM heads h CROSS JOIN LATERAL (
        SELECT tenant_id, endpoint_id, due_at FROM deliveries
         WHERE state = 'waiting' AND (tenant_id, endpoint_id) > (h.tenant_id, h.endpoint_id)
         ORDER BY tenant_id, endpoint_id, due_at LIMIT 1
    ) AS next
), fleet AS (
    SELECT (SELECT coalesce(sum(deliveries), 0) FROM workers
             WHERE stopped_at IS NULL AND seen_at > $1::timestamptz - make_interval(secs => 3 * heartbeat_seconds))
         - (SELECT count(*) FROM deliveries WHERE state = 'dispatched') AS room
), endpoint AS (
    SELECT e.tenant_id, e.id, e.ordering,
           CASE WHEN e.blocked_until IS NULL THEN e.allowance ELSE 1 END
         - (SELECT count(*) FROM deliveries d
             WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'dispatched') AS room
      FROM heads h CROSS JOIN LATERAL (
        SELECT * FROM endpoints WHERE tenant_id = h.tenant_id AND id = h.endpoint_id OFFSET 0 -- by its key, each
      ) AS e
     WHERE h.due_at <= $1 AND e.state = 'active' AND e.kind <> 'listener'
       AND (e.blocked_until IS NULL OR e.blocked_until <= $1)
), candidate AS (
    SELECT d.place, d.id, row_number() OVER (PARTITION BY d.tenant_id ORDER BY d.due_at, d.id) AS turn
      FROM endpoint e CROSS JOIN LATERAL (
        SELECT *, d.ctid AS place FROM deliveries d
         WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'waiting' AND d.due_at <= $1
           AND NOT (d.origin = 'event' AND d.seq > 1 AND EXISTS (
                SELECT FROM deliveries b
                 WHERE b.tenant_id = d.tenant_id AND b.job_id = d.job_id AND b.endpoint_id = d.endpoint_id
                   AND b.callback = d.callback AND b.origin = 'event' AND b.seq < d.seq
                   AND (b.state = 'dispatched' OR b.state = 'waiting' AND (b.due_at <= $1 OR e.ordering = 'job'))))
         ORDER BY d.due_at, d.id
         LIMIT greatest(e.room, 0)
      ) AS d
), chosen AS (
    SELECT place FROM candidate ORDER BY turn, id LIMIT (SELECT greatest(room, 0) FROM fleet)
), admitted AS (
    -- By their place in the table, which no statistics from before a backlog can make a search of.
    UPDATE deliveries d SET state = 'dispatched', fence = d.fence + 1, dispatched_at = $1
     WHERE d.ctid = ANY (ARRAY(SELECT place FROM chosen)) AND d.state IS NOT DISTINCT FROM 'waiting'
    RETURNING d.*
), overtaken AS (
    SELECT b.place
      FROM admitted a CROSS JOIN LATERAL (
        SELECT b.ctid AS place FROM deliveries b
         WHERE a.final AND a.origin = 'event' AND a.seq > 1 AND b.tenant_id = a.tenant_id AND b.job_id = a.job_id
           AND b.origin = 'event' AND b.state IN ('waiting', 'dispatched') AND b.state IS NOT DISTINCT FROM 'waiting'
           AND (b.endpoint_id, b.callback) IS NOT DISTINCT FROM (a.endpoint_id, a.callback) AND b.seq < a.seq
        OFFSET 0 -- one job after the other, by the index of jobs
      ) AS b
), superseded AS (
    UPDATE deliveries d SET state = 'superseded', ended_at = $1
     WHERE d.ctid = ANY (ARRAY(SELECT place FROM overtaken)) AND d.state IS NOT DISTINCT FROM 'waiting'
)
SELECT tenant_id, id, NULL::timestamptz AS next_at FROM admitted
UNION ALL
-- And when time alone may let another through: the next due one of each endpoint, or the end of its pause.
SELECT NULL, NULL, min(CASE WHEN e.blocked_until > $1 THEN e.blocked_until
                            ELSE (SELECT d.due_at FROM deliveries d
                                   WHERE d.tenant_id = e.tenant_id AND d.endpoint_id = e.id AND d.state = 'waiting'
                                     AND d.due_at > $1
                                   ORDER BY d.due_at LIMIT 1)
                       END)
  FROM heads h CROSS JOIN LATERAL (
    SELECT * FROM endpoints WHERE tenant_id = h.tenant_id AND id = h.endpoint_id OFFSET 0
  ) AS e
 WHERE e.state = 'active' AND e.kind <> 'listener'

-- name: load_deliveries
-- All that an attempt needs, as it is now. Secrets: the primary first.
SELECT d.*, m.at AS event_at, j.trace_context, e.kind, e.state AS endpoint_state, e.blocked_until, e.timeout_seconds,
       coalesce(c.url, e.url) AS url, CASE WHEN d.callback THEN c.headers ELSE e.headers END AS headers,
       CASE WHEN d.format = 'thin' OR b.body IS NULL THEN b.thin ELSE b.body END AS body,
       CASE WHEN d.callback THEN ARRAY[c.secret] ELSE ARRAY(
            SELECT s.secret FROM endpoint_secrets s
             WHERE s.tenant_id = d.tenant_id AND s.endpoint_id = d.endpoint_id
               AND (s.not_after IS NULL OR s.not_after > $3)
             ORDER BY s.primary_from <= $3 DESC, s.primary_from DESC, s.id)
       END AS secrets
  FROM unnest($1::text[], $2::uuid[]) AS g (tenant_id, id)
  JOIN deliveries d ON d.tenant_id = g.tenant_id AND d.id = g.id
  JOIN messages m ON m.tenant_id = d.tenant_id AND m.id = d.message_id
  JOIN endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
  LEFT JOIN message_bodies b ON b.tenant_id = d.tenant_id AND b.message_id = d.message_id
  LEFT JOIN jobs j ON j.tenant_id = d.tenant_id AND j.id = d.job_id
  LEFT JOIN callbacks c ON d.callback AND c.tenant_id = d.tenant_id AND c.job_id = d.job_id
 WHERE d.state = 'dispatched'

-- name: lock_endpoints
SELECT e.tenant_id, e.id, e.kind, e.url, e.state, e.health
  FROM unnest($1::text[], $2::uuid[]) AS g (tenant_id, id)
  JOIN endpoints e ON e.tenant_id = g.tenant_id AND e.id = g.id
 ORDER BY e.tenant_id, e.id
   FOR NO KEY UPDATE OF e

-- name: record_tries
-- What came of deliveries. Leaves out each one that was dispatched again, or ended, meanwhile.
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::uuid[], $3::integer[], $4::text[], $5::boolean[], $6::timestamptz[], $7::text[], $8::boolean[],
        $9::timestamptz[], $10::integer[], $11::text[], $12::text[], $13::double precision[], $14::double precision[],
        $15::double precision[], $16::double precision[], $17::double precision[], $18::text[], $19::text[],
        $20::bytea[], $21::boolean[]
    ) AS g (tenant_id, id, fence, state, counted, due_at, hint, tried, started_at, status, error_class, detail, dns_ms,
            connect_ms, tls_ms, first_byte_ms, total_ms, remote_ip, response_headers, response_body, truncated)
), fenced AS (
    SELECT d.tenant_id, d.id, d.fence FROM deliveries d JOIN given g USING (tenant_id, id, fence)
     WHERE d.state = 'dispatched'
     ORDER BY d.tenant_id, d.id
       FOR UPDATE OF d
), recorded AS (
    UPDATE deliveries d
       SET state = g.state, attempts = d.attempts + g.counted::integer, tries = d.tries + g.tried::integer,
           due_at = coalesce(g.due_at, d.due_at), dispatched_at = NULL,
           last_status = CASE WHEN g.tried THEN g.status ELSE d.last_status END,
           last_error = CASE WHEN g.tried THEN g.error_class ELSE d.last_error END,
           hint = CASE WHEN g.tried THEN g.hint ELSE d.hint END,
           ended_at = CASE WHEN g.state = 'waiting' THEN NULL ELSE $22::timestamptz END
      FROM fenced f JOIN given g USING (tenant_id, id, fence)
     WHERE d.tenant_id = f.tenant_id AND d.id = f.id
    RETURNING d.*
), tries AS (
    INSERT INTO delivery_attempts (tenant_id, delivery_id, number, endpoint_id, event, counted, started_at, status,
                                   error_class, detail, hint, dns_ms, connect_ms, tls_ms, first_byte_ms, total_ms,
                                   remote_ip, response_headers, response_body, truncated, worker_id)
    SELECT r.tenant_id, r.id, r.tries, r.endpoint_id, r.event, g.counted, g.started_at, g.status, g.error_class,
           g.detail, g.hint, g.dns_ms, g.connect_ms, g.tls_ms, g.first_byte_ms, g.total_ms, g.remote_ip,
           g.response_headers::json, g.response_body, g.truncated, $23
      FROM recorded r JOIN given g USING (tenant_id, id, fence)
     WHERE g.tried
)
SELECT tenant_id, id, fence FROM recorded

-- name: update_endpoints
UPDATE endpoints e
   SET health = g.health::json, allowance = g.allowance, blocked_until = g.blocked_until,
       state = coalesce(g.state, e.state), disabled_reason = coalesce(g.reason, e.disabled_reason),
       updated_at = CASE WHEN g.state IS NULL THEN e.updated_at ELSE $8::timestamptz END
  FROM unnest($1::text[], $2::uuid[], $3::text[], $4::integer[], $5::timestamptz[], $6::text[], $7::text[])
       AS g (tenant_id, id, health, allowance, blocked_until, state, reason)
 WHERE e.tenant_id = g.tenant_id AND e.id = g.id

-- name: dispatched_before
-- What the sweeper compares with the queue. What a listener has taken never had an entry there.
SELECT tenant_id, id, fence FROM deliveries d
 WHERE state = 'dispatched' AND dispatched_at < $1
   AND NOT EXISTS (SELECT FROM endpoints e
                    WHERE e.tenant_id = d.tenant_id AND e.id = d.endpoint_id AND e.kind = 'listener')
 ORDER BY dispatched_at LIMIT 1000

-- name: take_back
UPDATE deliveries SET state = 'waiting', dispatched_at = NULL
 WHERE tenant_id = $1 AND id = $2 AND fence = $3 AND state = 'dispatched'

-- name: cancel_waiting_of_gone
-- What waits for a receiver that has said to be gone for good is kept, to be replayed, and tried no more.
UPDATE deliveries d SET state = 'cancelled', ended_at = $1, last_error = 'gone'
  FROM (SELECT w.tenant_id, w.id FROM endpoints e
          JOIN deliveries w ON w.tenant_id = e.tenant_id AND w.endpoint_id = e.id AND w.state = 'waiting'
         WHERE e.state = 'disabled' AND e.disabled_reason = 'gone'
         LIMIT 1000) AS gone
 WHERE d.tenant_id = gone.tenant_id AND d.id = gone.id AND d.state = 'waiting'

-- name: cancel_waiting_of_removed
-- What was under way, or being written, when its endpoint was removed.
WITH RECURSIVE heads AS (
    (SELECT tenant_id, endpoint_id FROM deliveries WHERE state = 'waiting' ORDER BY tenant_id, endpoint_id LIMIT 1)
    UNION ALL
    SELECT next.* FROM heads h CROSS JOIN LATERAL (
        SELECT tenant_id, endpoint_id FROM deliveries
         WHERE state = 'waiting' AND (tenant_id, endpoint_id) > (h.tenant_id, h.endpoint_id)
         ORDER BY tenant_id, endpoint_id LIMIT 1
    ) AS next
)
UPDATE deliveries d SET state = 'cancelled', ended_at = $1, last_error = 'removed'
  FROM (SELECT w.tenant_id, w.id FROM heads h
          JOIN deliveries w ON w.tenant_id = h.tenant_id AND w.endpoint_id = h.endpoint_id AND w.state = 'waiting'
         WHERE NOT EXISTS (SELECT FROM endpoints e WHERE e.tenant_id = h.tenant_id AND e.id = h.endpoint_id)
         LIMIT 1000) AS left_over
 WHERE d.tenant_id = left_over.tenant_id AND d.id = left_over.id AND d.state = 'waiting'

-- name: expire_messages
-- A bite of what is past its retention, with all that belongs to it.
WITH old AS (
    SELECT tenant_id, id FROM messages WHERE at < $1 LIMIT 500
), bodies AS (
    DELETE FROM message_bodies b USING old o WHERE b.tenant_id = o.tenant_id AND b.message_id = o.id
), sent AS (
    DELETE FROM deliveries d USING old o WHERE d.tenant_id = o.tenant_id AND d.message_id = o.id
    RETURNING d.tenant_id, d.id
), tries AS (
    DELETE FROM delivery_attempts a USING sent s WHERE a.tenant_id = s.tenant_id AND a.delivery_id = s.id
)
DELETE FROM messages m USING old o WHERE m.tenant_id = o.tenant_id AND m.id = o.id

-- name: forget_listeners
-- Terminals that listen no more, with what waited for them.
WITH lapsed AS (
    DELETE FROM endpoints WHERE kind = 'listener' AND expires_at < $1 RETURNING tenant_id, id
), secrets AS (
    DELETE FROM endpoint_secrets s USING lapsed l WHERE s.tenant_id = l.tenant_id AND s.endpoint_id = l.id
)
UPDATE deliveries d SET state = 'cancelled', ended_at = $1
  FROM lapsed l WHERE d.tenant_id = l.tenant_id AND d.endpoint_id = l.id AND d.state IN ('waiting', 'dispatched')

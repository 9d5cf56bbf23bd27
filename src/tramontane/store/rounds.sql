-- name: read_limit
SELECT rate, (SELECT rate FROM limits WHERE tenant_id = '*' AND name = 'window') AS seconds
  FROM limits WHERE tenant_id = '*' AND name = 'starts'

-- What follows keeps the plans that were made for it first (see `lock_limit`), when tables may have been empty: then one
-- index looks as good as any other. Hence each part asks for an order that its own index alone has.

-- name: fleet
-- Free slots of the fleet; the starts within $2 before now; jobs let through that have not started (in one snapshot a
-- job is one or the other); the next scheduled job. With $3 those whose time has come become due.
WITH come AS (
    UPDATE jobs SET due = true
     WHERE $3 AND state IS NOT DISTINCT FROM 'queued' AND NOT due AND ctid = ANY (ARRAY(
        SELECT ctid FROM jobs WHERE state = 'queued' AND NOT due AND run_at <= $1 ORDER BY run_at))
), started AS (
    SELECT count(*) AS recent, min(started_at) AS oldest FROM (
        -- A start that lies further ahead is a clock that was wrong: all others would wait until then.
        SELECT started_at FROM job_attempts
         WHERE started_at > $1::timestamptz - $2::interval AND started_at < $1::timestamptz + interval '2 minutes'
           AND $2::interval > interval '0'
         ORDER BY started_at) AS one
), flight AS (
    SELECT count(*) AS flying, count(*) FILTER (WHERE state = 'queued') AS starting FROM (
        SELECT state FROM jobs WHERE admitted_at IS NOT NULL AND state IN ('queued', 'running') ORDER BY admitted_at) AS one
), slot AS (
    SELECT coalesce(sum(concurrency), 0) AS slots, count(*) AS workers FROM workers
     WHERE stopped_at IS NULL AND seen_at > $1::timestamptz - make_interval(secs => 3 * heartbeat_seconds)
)
SELECT slots::integer, workers, flying, starting, recent, oldest,
       (SELECT min(run_at) FROM jobs WHERE state = 'queued' AND NOT due AND run_at > $1) AS next_run_at
  FROM started, flight, slot

-- name: candidates
-- Of each tenant, kind and model the first that wait, in the order that they are wanted; up to $2 in all can go. Left
-- out: what is paused, and tenants whose budget of the day is spent. `most` were looked at in each group.
WITH RECURSIVE heads AS (
    -- The groups, by jumping along the index: a backlog costs one probe. Of a tenant a hundred, lest one with ever new
    -- models holds up all others; no kind comes after `zzz`.
    (SELECT tenant_id, kind, model, 1 AS place FROM jobs
      WHERE state = 'queued' AND due AND admitted_at IS NULL ORDER BY tenant_id, kind, model LIMIT 1)
    UNION ALL
    SELECT next.*, CASE WHEN next.tenant_id = h.tenant_id THEN h.place + 1 ELSE 1 END
      FROM heads h CROSS JOIN LATERAL (
        SELECT tenant_id, kind, model FROM jobs
         WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND (tenant_id, kind, model) > (h.tenant_id, CASE WHEN h.place < 100 THEN h.kind ELSE 'zzz' END, h.model)
         ORDER BY tenant_id, kind, model LIMIT 1
    ) AS next
), flight AS MATERIALIZED (
    SELECT tenant_id FROM jobs WHERE admitted_at IS NOT NULL AND state IN ('queued', 'running') ORDER BY admitted_at
), tenant AS (
    SELECT n.tenant_id, t.weight,
           t.concurrency - CASE WHEN t.concurrency IS NOT NULL THEN (
               SELECT count(*) FROM flight f WHERE f.tenant_id = n.tenant_id)
           END AS free
      FROM (SELECT DISTINCT tenant_id FROM heads) AS n LEFT JOIN tenants t ON t.id = n.tenant_id
     WHERE t.daily_tokens IS NULL AND t.daily_cost IS NULL
        OR (SELECT coalesce(sum(s.prompt_tokens + s.completion_tokens), 0) < coalesce(t.daily_tokens, 'infinity'::numeric)
               AND coalesce(sum(s.cost), 0) < coalesce(t.daily_cost, 'infinity'::numeric)
              FROM spendings s WHERE s.tenant_id = t.id AND s.day = ($1::timestamptz AT TIME ZONE 'UTC')::date)
), groups AS (
    SELECT h.*, t.weight, t.free
      FROM heads h JOIN tenant t ON t.tenant_id = h.tenant_id
     WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.tenant_id IN (h.tenant_id, '*')
                          AND p.kind IN (h.kind, '*') AND p.model IN (h.model, '*'))
), bound AS (
    SELECT least($2, greatest(4, 4000 / greatest(count(*), 1))) AS most FROM groups
)
SELECT j.*, g.tenant_id, g.kind, g.model, g.weight, g.free, (SELECT most FROM bound)::integer AS most
  FROM groups g CROSS JOIN LATERAL (
    SELECT id, ctid AS place, account, priority, deadline, prompt_tokens, max_tokens FROM jobs
     WHERE state = 'queued' AND due AND admitted_at IS NULL
       AND tenant_id = g.tenant_id AND kind = g.kind AND model = g.model
     ORDER BY priority DESC, coalesce(deadline, 'infinity'), id
     LIMIT (SELECT most FROM bound)
  ) AS j

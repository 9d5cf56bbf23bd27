-- name: buckets
-- What is known of buckets, what our own fleet has used of each, and how far its tenants are. Counted only where a limit
-- is near enough to be reached, or where $6 and $7 ask for it: admission lets through less than that in a window.
-- $3: starts after this time count as requests. $4: ends after this time count with their tokens.
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[]) AS g (account, model)
), flight AS (
    SELECT account, model, count(*) AS flying, count(*) FILTER (WHERE state = 'queued') AS starting,
           sum(reserved) AS reserved
      FROM (SELECT account, model, state, reserved FROM jobs
             WHERE admitted_at IS NOT NULL AND state IN ('queued', 'running') ORDER BY admitted_at) AS one
     GROUP BY account, model
)
SELECT g.account, g.model, b.observed_at, b.limit_requests, b.limit_tokens, b.foreign_requests, b.foreign_tokens,
       b.blocked_until, b.caution, b.answer_tokens,
       starts.requests, starts.probes, starts.oldest_start, ends.tokens, ends.oldest_end, leaving.tokens AS leaving,
       coalesce(f.flying, 0) AS flying, coalesce(f.starting, 0) AS starting, coalesce(f.reserved, 0) AS reserved,
       share.tenants, share.times
  FROM given g
  LEFT JOIN buckets b ON b.account = g.account AND b.model = g.model
  LEFT JOIN flight f ON f.account = g.account AND f.model = g.model
 CROSS JOIN LATERAL (
    SELECT count(*) AS requests, count(*) FILTER (WHERE one.started_at > b.blocked_until) AS probes,
           min(one.started_at) AS oldest_start
      FROM (SELECT a.started_at FROM job_attempts a
             WHERE a.account = g.account AND a.model = g.model AND a.started_at > $3
               AND a.started_at < $5::timestamptz + interval '2 minutes'
               AND ($6 OR b.limit_requests BETWEEN 1 AND 99999 OR b.blocked_until > $3)
             ORDER BY a.started_at) AS one
 ) AS starts
 CROSS JOIN LATERAL (
    SELECT coalesce(sum(one.tokens), 0) AS tokens, min(one.ended_at) FILTER (WHERE one.tokens > 0) AS oldest_end,
           avg(one.ended_at - one.started_at) AS took
      FROM (SELECT a.tokens, a.started_at, a.ended_at FROM job_attempts a
             WHERE a.account = g.account AND a.model = g.model AND a.ended_at > $4 AND a.ended_at IS NOT NULL
               AND a.ended_at < $5::timestamptz + interval '2 minutes'
               AND ($7 OR b.limit_tokens BETWEEN 1 AND 499999999)
             ORDER BY a.ended_at) AS one
 ) AS ends
 CROSS JOIN LATERAL (
    -- What leaves the window before a job of half the usual length ends.
    SELECT coalesce(sum(one.tokens), 0) AS tokens
      FROM (SELECT a.tokens FROM job_attempts a
             WHERE a.account = g.account AND a.model = g.model AND a.ended_at > $4 AND a.ended_at IS NOT NULL
               AND ends.took IS NOT NULL
               AND a.ended_at <= $4::timestamptz + least(ends.took / 2, ($5::timestamptz - $4::timestamptz) / 4)
             ORDER BY a.ended_at) AS one
 ) AS leaving
 CROSS JOIN LATERAL (
    SELECT array_agg(s.tenant_id) AS tenants, array_agg(s.virtual_time) AS times FROM shares s
     WHERE s.account = g.account AND s.model = g.model AND s.tenant_id = ANY ($8::text[])
 ) AS share

-- name: settle
-- What jobs took beyond, or short of, what was set aside for them: their tenants are moved on, or back, by as much.
-- $6, $7: requests and tokens of a window, where no limit is known. $8, $9: bounds of weights. In order, as `admit` does.
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[])
           AS g (account, model, tenant_id, reserved, tokens)
), difference AS (
    SELECT g.account, g.model, g.tenant_id,
           sum(greatest(l.request, g.tokens * l.token) - greatest(l.request, g.reserved * l.token))
             / least(greatest(coalesce(max(t.weight), 1), $8::double precision), $9::double precision) AS more
      FROM given g
      LEFT JOIN buckets b ON b.account = g.account AND b.model = g.model
      LEFT JOIN tenants t ON t.id = g.tenant_id
     CROSS JOIN LATERAL (
        SELECT 1.0::double precision / coalesce(nullif(b.limit_requests, 0), $6::integer) AS request,
               1.0::double precision / coalesce(nullif(b.limit_tokens, 0), $7::integer) AS token
     ) AS l
     GROUP BY g.account, g.model, g.tenant_id
), held AS (
    SELECT s.account, s.model, s.tenant_id, d.more
      FROM shares s JOIN difference d USING (account, model, tenant_id)
     ORDER BY s.account, s.model, s.tenant_id
       FOR UPDATE OF s
)
UPDATE shares s SET virtual_time = s.virtual_time + h.more
  FROM held h WHERE s.account = h.account AND s.model = h.model AND s.tenant_id = h.tenant_id

-- name: lock_key
-- The Mistral key of its own that a tenant has, until we are done.
SELECT mistral_key FROM tenants WHERE id = $1 FOR SHARE

-- name: lock_bucket
-- One that learns after the other.
INSERT INTO buckets (account, model) VALUES ($1, $2)
    ON CONFLICT (account, model) DO UPDATE SET model = excluded.model

-- name: learn
UPDATE buckets
   SET observed_at = $3, limit_requests = $4, limit_tokens = $5, foreign_requests = $6, foreign_tokens = $7,
       blocked_until = $8, caution = $9, answer_tokens = $10
 WHERE account = $1 AND model = $2

-- name: refusing
-- The bucket's word of never, if that is what it gave last; `probe`: it is this caller's turn to ask whether it holds.
WITH probe AS (
    UPDATE buckets SET observed_at = $3
     WHERE account = $1 AND model = $2 AND limit_requests = 0 AND observed_at <= $4
    RETURNING 1
)
SELECT EXISTS (SELECT FROM probe) AS probe FROM buckets WHERE account = $1 AND model = $2 AND limit_requests = 0

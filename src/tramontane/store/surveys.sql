-- name: waiting
-- Who waits, by tenant, kind and model: counted up to $1, in $3 groups at most. $2: of this tenant alone; NULL: of all.
WITH RECURSIVE heads AS (
    SELECT first.* FROM (
        SELECT tenant_id, kind, model, account FROM jobs
         WHERE state = 'queued' AND due AND admitted_at IS NULL AND tenant_id >= coalesce($2::text, '')
         ORDER BY tenant_id, kind, model LIMIT 1
    ) AS first WHERE $2::text IS NULL OR tenant_id = $2
    UNION ALL
    SELECT next.* FROM heads h CROSS JOIN LATERAL (
        SELECT tenant_id, kind, model, account FROM jobs
         WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND (tenant_id, kind, model) > (h.tenant_id, h.kind, h.model)
         ORDER BY tenant_id, kind, model LIMIT 1
    ) AS next WHERE $2::text IS NULL OR next.tenant_id = $2
)
SELECT h.tenant_id, h.account, h.model, sum(c.count)::bigint AS count
  FROM (SELECT * FROM heads LIMIT $3) AS h CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND tenant_id = h.tenant_id AND kind = h.kind AND model = h.model LIMIT $1
    ) AS counted
  ) AS c
 GROUP BY h.tenant_id, h.account, h.model

-- name: known
-- Buckets that Mistral has answered for, up to $2: the server's, and of other accounts $1's or, if that is NULL, all.
-- The name of a fine-tuned model says something of its owner: of the server's, $1 sees those that it has used.
SELECT account, model FROM buckets
 WHERE $1::text IS NULL OR account = $1
    OR account = '*' AND (model NOT LIKE 'ft:%' OR EXISTS (
        SELECT FROM spendings s WHERE s.tenant_id = $1 AND s.model = buckets.model))
 ORDER BY account, model LIMIT $2

-- name: ahead
-- Who waits for the same bucket as a job and is wanted more, by tenant: those of a higher priority, and those of the
-- same, of its own tenant only the ones before it. Counted up to $6. With it another tenant's weight, and the tokens of
-- the first of each, which holds the bucket if it does not fit. $7: the bucket's account. Whoever has more models than
-- a round looks at is not followed further either.
WITH RECURSIVE heads AS (
    (SELECT tenant_id, kind, model, account, 1 AS place FROM jobs
      WHERE state = 'queued' AND due AND admitted_at IS NULL ORDER BY tenant_id, kind, model LIMIT 1)
    UNION ALL
    SELECT next.*, CASE WHEN next.tenant_id = h.tenant_id THEN h.place + 1 ELSE 1 END
      FROM heads h CROSS JOIN LATERAL (
        SELECT tenant_id, kind, model, account FROM jobs
         WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND (tenant_id, kind, model) > (h.tenant_id, CASE WHEN h.place < 100 THEN h.kind ELSE 'zzz' END, h.model)
         ORDER BY tenant_id, kind, model LIMIT 1
    ) AS next
)
SELECT h.tenant_id, coalesce(max(t.weight), 1) AS weight, sum(better.count)::bigint AS better,
       sum(equal.count)::bigint AS equal, max(first.prompt_tokens) AS prompt_tokens, max(first.max_tokens) AS max_tokens
  FROM heads h
  LEFT JOIN tenants t ON t.id = h.tenant_id
 CROSS JOIN LATERAL (
    SELECT prompt_tokens, max_tokens FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL
       AND tenant_id = h.tenant_id AND kind = h.kind AND model = h.model
     ORDER BY priority DESC, coalesce(deadline, 'infinity'), id LIMIT 1
 ) AS first
 CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND tenant_id = h.tenant_id AND kind = h.kind AND model = h.model AND priority > $4 LIMIT $6
    ) AS counted
 ) AS better
 CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM jobs WHERE state = 'queued' AND due AND admitted_at IS NULL
           AND tenant_id = h.tenant_id AND kind = h.kind AND model = h.model AND priority = $4
           AND (h.tenant_id <> $1 OR (coalesce(deadline, 'infinity'), id) < (coalesce($5::timestamptz, 'infinity'), $2))
         LIMIT $6
    ) AS counted
 ) AS equal
 WHERE h.model = $3 AND h.account = $7
 GROUP BY h.tenant_id

-- name: terms
-- What keeps a job from being chosen, whatever room there is; and how many attempts began since $3, up to 100,000.
SELECT EXISTS (SELECT FROM pauses p WHERE p.tenant_id IN (j.tenant_id, '*') AND p.kind IN (j.kind, '*')
                  AND p.model IN (j.model, '*')) AS paused,
       (t.daily_tokens IS NOT NULL OR t.daily_cost IS NOT NULL)
       AND (SELECT coalesce(sum(s.prompt_tokens + s.completion_tokens), 0) >= coalesce(t.daily_tokens, 'infinity'::numeric)
                OR coalesce(sum(s.cost), 0) >= coalesce(t.daily_cost, 'infinity'::numeric)
              FROM spendings s WHERE s.tenant_id = t.id AND s.day = ($4::timestamptz AT TIME ZONE 'UTC')::date) AS spent,
       t.concurrency IS NOT NULL AND t.concurrency <= (SELECT count(*) FROM jobs f
            WHERE f.admitted_at IS NOT NULL AND f.state IN ('queued', 'running') AND f.tenant_id = t.id) AS busy,
       j.prompt_tokens,
       (SELECT count(*) FROM (SELECT FROM job_attempts WHERE started_at > $3 LIMIT 100000) AS counted) AS pace
  FROM jobs j LEFT JOIN tenants t ON t.id = j.tenant_id
 WHERE j.tenant_id = $1 AND j.id = $2

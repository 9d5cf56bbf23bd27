-- name: spend
-- Adds to the tenants' days. Rows are taken in order, so that two who add to the same ones wait for each other in turn.
INSERT INTO spendings (tenant_id, day, model, attempts, prompt_tokens, completion_tokens, cost)
SELECT tenant_id, day, model, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost)
  FROM unnest($1::text[], $2::date[], $3::text[], $4::bigint[], $5::bigint[], $6::numeric[])
       AS g (tenant_id, day, model, prompt_tokens, completion_tokens, cost)
 GROUP BY tenant_id, day, model
 ORDER BY tenant_id, day, model
    ON CONFLICT (tenant_id, day, model) DO UPDATE
   SET attempts = spendings.attempts + excluded.attempts,
       prompt_tokens = spendings.prompt_tokens + excluded.prompt_tokens,
       completion_tokens = spendings.completion_tokens + excluded.completion_tokens,
       cost = spendings.cost + excluded.cost

-- name: count_unreported
-- Of attempts that Mistral may have billed and reported nothing of: what was set aside for them, or, where readers were
-- told of more, that much. A continued answer's earlier text counts, too: Mistral was given it to read.
UPDATE job_attempts a
   SET tokens = greatest(j.reserved, j.prompt_tokens + (
           SELECT (v.body ->> 'tokenCount')::integer FROM events v
            WHERE v.tenant_id = j.tenant_id AND v.job_id = j.id AND v.attempt = g.attempt AND v.type = 'chunk'
            ORDER BY v.seq DESC LIMIT 1))
  FROM unnest($1::text[], $2::uuid[], $3::integer[]) AS g (tenant_id, id, attempt)
  JOIN jobs j USING (tenant_id, id)
 WHERE a.tenant_id = g.tenant_id AND a.job_id = g.id AND a.attempt = g.attempt AND a.unreported
RETURNING a.tenant_id, j.model, a.ended_at, a.tokens, j.prompt_tokens

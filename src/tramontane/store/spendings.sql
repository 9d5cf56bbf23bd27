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

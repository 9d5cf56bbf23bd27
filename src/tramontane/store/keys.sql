-- name: insert_key
INSERT INTO api_keys (tenant_id, id, name, hash, scopes, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING *

-- name: use_key
-- By its hash alone: which tenant asks is what the key is to tell. That it is used is noted once a minute.
WITH used AS (
    UPDATE api_keys SET used_at = $2
     WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
       AND (used_at IS NULL OR used_at <= $2::timestamptz - interval '1 minute')
)
SELECT * FROM api_keys WHERE hash = $1

-- name: find_key
-- By its id alone: an operator's acts for other tenants than its own.
SELECT * FROM api_keys WHERE id = $1

-- name: any_key
-- Revoked and expired ones count: a server that has asked for keys asks for them ever after.
SELECT EXISTS (SELECT FROM api_keys)

-- name: list_keys
SELECT * FROM api_keys WHERE $1::text IS NULL OR tenant_id = $1 ORDER BY id

-- name: revoke_key
-- For good; a second time changes nothing.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1 RETURNING *

-- name: pause
-- A pause that is there already takes the new reason.
INSERT INTO pauses (tenant_id, id, kind, model, reason, paused_at) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (tenant_id, kind, model) DO UPDATE SET reason = excluded.reason
RETURNING *

-- name: list_pauses
-- A tenant's own, and those of all.
SELECT * FROM pauses WHERE tenant_id IN ($1, '*') ORDER BY paused_at, id

-- name: resume
DELETE FROM pauses WHERE id = $2 AND (tenant_id = $1 OR ($3 AND tenant_id = '*')) RETURNING *

-- name: wake_admission
SELECT pg_notify('tramontane_admission', '')

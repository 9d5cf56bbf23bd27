-- name: add_key
INSERT INTO encryption_keys (fingerprint) VALUES ($1) ON CONFLICT DO NOTHING

-- name: other_key
SELECT fingerprint FROM encryption_keys WHERE fingerprint <> ALL ($1::text[]) ORDER BY created_at LIMIT 1

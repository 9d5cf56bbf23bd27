-- name: list_messages
-- Newest first, from before a cursor.
SELECT m.*, NULL AS sent FROM messages m
 WHERE m.tenant_id = $1
   AND ($2::uuid IS NULL OR (m.at, m.id) < (SELECT c.at, c.id FROM messages c WHERE c.tenant_id = $1 AND c.id = $2))
   AND ($3::text IS NULL OR m.event = $3)
   AND ($4::uuid IS NULL OR m.job_id = $4)
   AND ($5::timestamptz IS NULL OR m.at >= $5)
   AND ($6::timestamptz IS NULL OR m.at < $6)
 ORDER BY m.at DESC, m.id DESC
 LIMIT $7

-- name: get_message
SELECT m.*, coalesce(b.body, b.thin) AS sent
  FROM messages m LEFT JOIN message_bodies b ON b.tenant_id = m.tenant_id AND b.message_id = m.id
 WHERE m.tenant_id = $1 AND m.id = $2

-- name: list_deliveries
-- Newest first, from before a cursor.
SELECT d.*, coalesce(c.url, e.url) AS url
  FROM deliveries d
  LEFT JOIN endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
  LEFT JOIN callbacks c ON d.callback AND c.tenant_id = d.tenant_id AND c.job_id = d.job_id
 WHERE d.tenant_id = $1
   AND ($2::uuid IS NULL OR d.id < $2)
   AND ($3::uuid IS NULL OR d.endpoint_id = $3)
   AND ($4::text IS NULL OR d.event = $4)
   AND ($5::text IS NULL OR d.state = $5)
   AND ($6::text IS NULL OR d.last_error = $6)
   -- By the messages, which are few and have an index for it.
   AND ($7::uuid IS NULL
        OR d.message_id = ANY(ARRAY(SELECT m.id FROM messages m WHERE m.tenant_id = $1 AND m.job_id = $7)))
   AND ($8::uuid IS NULL OR d.message_id = $8)
   AND ($9::timestamptz IS NULL OR d.created_at >= $9)
   AND ($10::timestamptz IS NULL OR d.created_at < $10)
 ORDER BY d.id DESC
 LIMIT $11

-- name: get_delivery
SELECT d.*, coalesce(c.url, e.url) AS url
  FROM deliveries d
  LEFT JOIN endpoints e ON e.tenant_id = d.tenant_id AND e.id = d.endpoint_id
  LEFT JOIN callbacks c ON d.callback AND c.tenant_id = d.tenant_id AND c.job_id = d.job_id
 WHERE d.tenant_id = $1 AND d.id = $2

-- name: list_attempts
-- Newest first, from before a cursor: a delivery and the number of its attempt.
SELECT a.*, d.callback
  FROM delivery_attempts a
  JOIN deliveries d ON d.tenant_id = a.tenant_id AND d.id = a.delivery_id
 WHERE a.tenant_id = $1
   AND ($2::uuid IS NULL OR (a.started_at, a.delivery_id, a.number) < (
        SELECT c.started_at, c.delivery_id, c.number FROM delivery_attempts c
         WHERE c.tenant_id = $1 AND c.delivery_id = $2 AND c.number = $3))
   AND ($4::uuid IS NULL OR a.endpoint_id = $4)
   AND ($5::text IS NULL OR a.event = $5)
   AND ($6::uuid IS NULL OR a.delivery_id = $6)
   AND ($7::text IS NULL OR a.error_class = $7)
   AND ($8::boolean IS NULL OR (a.error_class IS NULL) = $8)
   AND ($9::timestamptz IS NULL OR a.started_at >= $9)
   AND ($10::timestamptz IS NULL OR a.started_at < $10)
 ORDER BY a.started_at DESC, a.delivery_id DESC, a.number DESC
 LIMIT $11

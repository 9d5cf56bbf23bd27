-- Webhooks: who is told, what is told, and each telling.
-- A message and its deliveries are written in the transaction of the event that they tell.

-- Names of the keys that secrets were encrypted with: a process with another key can say so at its start.
CREATE TABLE encryption_keys (
    fingerprint  text PRIMARY KEY,
    created_at   timestamptz NOT NULL DEFAULT now()
);

-- A registered URL; or an origin that callbacks go to, for its health; or a terminal that listens and fetches.
CREATE TABLE endpoints (
    tenant_id        text NOT NULL,
    id               uuid NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('registered', 'origin', 'listener')),
    url              text NOT NULL,
    description      text NOT NULL DEFAULT '',
    events           text[] NOT NULL,
    format           text NOT NULL DEFAULT 'default' CHECK (format IN ('default', 'thin')),
    ordering         text NOT NULL DEFAULT 'none' CHECK (ordering IN ('none', 'job')),
    -- Custom headers, authentication among them: a JSON object, encrypted.
    headers          bytea,
    timeout_seconds  double precision,
    state            text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
    disabled_reason  text,
    -- What admission reads of its health: deliveries at a time, and none before a time.
    allowance        integer NOT NULL,
    blocked_until    timestamptz,
    health           json NOT NULL,
    -- A listener's lease.
    expires_at       timestamptz,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);

CREATE INDEX endpoints_told ON endpoints (tenant_id) WHERE kind <> 'origin';

-- The primary of a moment is the latest that has begun and not ended; the others that live sign beside it.
CREATE TABLE endpoint_secrets (
    tenant_id     text NOT NULL,
    endpoint_id   uuid NOT NULL,
    id            uuid NOT NULL,
    secret        bytea NOT NULL,
    primary_from  timestamptz NOT NULL,
    not_after     timestamptz,
    PRIMARY KEY (tenant_id, endpoint_id, id)
);

-- Where a job's own events go. Without a secret of its own the server's default signs.
CREATE TABLE callbacks (
    tenant_id    text NOT NULL,
    job_id       uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    url          text NOT NULL,
    events       text[] NOT NULL,
    format       text NOT NULL,
    secret       bytea,
    headers      bytea,
    PRIMARY KEY (tenant_id, job_id)
);

CREATE TABLE messages (
    tenant_id  text NOT NULL,
    id         uuid NOT NULL,
    event      text NOT NULL,
    at         timestamptz NOT NULL,
    job_id     uuid,
    seq        integer,
    final      boolean NOT NULL,
    -- The endpoint that it is about, which is never told it.
    about      uuid,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX messages_by_time ON messages (tenant_id, at, id);
CREATE INDEX messages_old ON messages (at);
CREATE INDEX messages_by_job ON messages (tenant_id, job_id) WHERE job_id IS NOT NULL;

-- Bytes as they are signed and sent, on every attempt and replay. A body over the limit is not kept: the thin one goes.
CREATE TABLE message_bodies (
    tenant_id   text NOT NULL,
    message_id  uuid NOT NULL,
    body        bytea,
    thin        bytea NOT NULL,
    PRIMARY KEY (tenant_id, message_id)
);

CREATE TABLE deliveries (
    tenant_id      text NOT NULL,
    id             uuid NOT NULL,
    message_id     uuid NOT NULL,
    endpoint_id    uuid NOT NULL,
    -- To the job's callback, whose origin the endpoint is.
    callback       boolean NOT NULL,
    format         text NOT NULL,
    event          text NOT NULL,
    job_id         uuid,
    seq            integer,
    final          boolean NOT NULL,
    origin         text NOT NULL CHECK (origin IN ('event', 'replay', 'recovery', 'test')),
    -- The replay or recovery that made it; for an event its message. Makes a repeat of either harmless.
    run_id         uuid NOT NULL,
    state          text NOT NULL
                   CHECK (state IN ('waiting', 'dispatched', 'succeeded', 'failed', 'cancelled', 'superseded')),
    -- Attempts that count; tries are all of them.
    attempts       integer NOT NULL DEFAULT 0,
    tries          integer NOT NULL DEFAULT 0,
    -- Rises at each dispatch: a result of an earlier one is refused.
    fence          integer NOT NULL DEFAULT 0,
    due_at         timestamptz NOT NULL,
    dispatched_at  timestamptz,
    last_status    integer,
    last_error     text,
    hint           text,
    created_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, message_id, endpoint_id, callback, run_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- What admission chooses from, endpoint by endpoint, and what it counts.
CREATE INDEX deliveries_waiting ON deliveries (tenant_id, endpoint_id, due_at, id) WHERE state = 'waiting';
CREATE INDEX deliveries_dispatched ON deliveries (tenant_id, endpoint_id) WHERE state = 'dispatched';
CREATE INDEX deliveries_of_job ON deliveries (tenant_id, job_id, endpoint_id)
    WHERE state IN ('waiting', 'dispatched') AND origin = 'event';
CREATE INDEX deliveries_by_endpoint ON deliveries (tenant_id, endpoint_id, id);
CREATE INDEX deliveries_by_run ON deliveries (tenant_id, run_id, state) WHERE origin = 'recovery';

-- One row per try, append-only.
CREATE TABLE delivery_attempts (
    tenant_id         text NOT NULL,
    delivery_id       uuid NOT NULL,
    number            integer NOT NULL,
    endpoint_id       uuid NOT NULL,
    event             text NOT NULL,
    counted           boolean NOT NULL,
    started_at        timestamptz NOT NULL,
    status            integer,
    error_class       text,
    detail            text NOT NULL,
    hint              text NOT NULL,
    dns_ms            double precision,
    connect_ms        double precision,
    tls_ms            double precision,
    first_byte_ms     double precision,
    total_ms          double precision NOT NULL,
    remote_ip         text,
    response_headers  json,
    response_body     bytea,
    truncated         boolean NOT NULL,
    worker_id         uuid NOT NULL,
    PRIMARY KEY (tenant_id, delivery_id, number)
);

CREATE INDEX delivery_attempts_by_time ON delivery_attempts (tenant_id, started_at, delivery_id, number);

-- A stretch of time being told again.
CREATE TABLE recoveries (
    tenant_id    text NOT NULL,
    id           uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    since        timestamptz NOT NULL,
    until        timestamptz NOT NULL,
    wanted       text NOT NULL CHECK (wanted IN ('failed', 'missing', 'all')),
    event        text,
    state        text NOT NULL CHECK (state IN ('running', 'paused', 'completed', 'cancelled')),
    -- The last message looked at: (time, id).
    cursor_at    timestamptz,
    cursor_id    uuid,
    total        integer NOT NULL,
    done         integer NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX recoveries_running ON recoveries (created_at) WHERE state = 'running';

-- Deliveries that a worker sends at a time: what admission fills.
ALTER TABLE workers ADD COLUMN deliveries integer NOT NULL DEFAULT 0;

-- Rounds of the admission of deliveries take turns on it.
INSERT INTO limits (tenant_id, name, rate) VALUES ('*', 'deliveries', 0);

-- Jobs, their contents, their attempts, their events; the fleet's limits and workers.
-- Every table of a tenant's has the tenant first in its primary key: a job never leaves its tenant.

-- The ledger and the fence. Narrow on purpose: `head` and `batch` change with every flush of text, and as no index
-- holds them those updates stay within the page (HOT), given room.
CREATE TABLE jobs (
    tenant_id         text NOT NULL,
    id                uuid NOT NULL,
    kind              text NOT NULL,
    state             text NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    request_id        text NOT NULL,
    model             text NOT NULL,
    attempt           integer NOT NULL DEFAULT 0,
    failures          integer NOT NULL DEFAULT 0,
    attempts          integer NOT NULL CHECK (attempts > 0),
    backoff_kind      text NOT NULL,
    backoff_seconds   double precision NOT NULL,
    timeout_seconds   double precision NOT NULL,
    priority          integer NOT NULL,
    run_at            timestamptz NOT NULL,
    -- run_at has passed. Kept as a fact of its own, so that admission never wades through what is scheduled.
    due               boolean NOT NULL,
    admitted_at       timestamptz,
    -- The queue entry that started the running attempt.
    entry_id          bigint,
    head              integer NOT NULL DEFAULT 0,
    batch             integer NOT NULL DEFAULT 0,
    usage             json,
    error_code        text,
    error_message     text,
    error_retryable   boolean,
    metadata          jsonb,
    retry_of          uuid,
    idempotency_key   text,
    idempotency_hash  bytea,
    created_at        timestamptz NOT NULL,
    started_at        timestamptz,
    completed_at      timestamptz,
    events_pruned_at  timestamptz,
    erased_at         timestamptz,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

CREATE UNIQUE INDEX jobs_idempotency_key ON jobs (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- What admission chooses from, in its order.
CREATE INDEX jobs_waiting ON jobs (priority DESC, id) WHERE state = 'queued' AND due AND admitted_at IS NULL;
CREATE INDEX jobs_scheduled ON jobs (run_at) WHERE state = 'queued' AND NOT due;
-- What occupies the fleet.
CREATE INDEX jobs_in_flight ON jobs (admitted_at) WHERE admitted_at IS NOT NULL AND state IN ('queued', 'running');
CREATE INDEX jobs_by_state ON jobs (tenant_id, state, id);
CREATE INDEX jobs_by_request ON jobs (tenant_id, request_id);
CREATE INDEX jobs_ended ON jobs (completed_at) WHERE completed_at IS NOT NULL AND events_pruned_at IS NULL;

-- What erasing deletes. `json` and not `jsonb`: Mistral's objects are kept as the bytes they came in.
CREATE TABLE job_contents (
    tenant_id  text NOT NULL,
    job_id     uuid NOT NULL,
    request    json NOT NULL,
    result     json,
    PRIMARY KEY (tenant_id, job_id)
);

CREATE TABLE job_attempts (
    tenant_id        text NOT NULL,
    job_id           uuid NOT NULL,
    attempt          integer NOT NULL,
    worker_id        uuid NOT NULL,
    started_at       timestamptz NOT NULL,
    ended_at         timestamptz,
    outcome          text NOT NULL DEFAULT 'running'
                     CHECK (outcome IN ('running', 'completed', 'failed', 'cancelled', 'lost', 'handover')),
    -- What the next attempt tells readers.
    reason           text,
    error_code       text,
    error_message    text,
    error_retryable  boolean,
    correlation_id   text,
    PRIMARY KEY (tenant_id, job_id, attempt)
);

-- The starts of the last second are what the rate is kept by.
CREATE INDEX job_attempts_started ON job_attempts (started_at);

-- The log. Append-only; deleted by retention and erasure alone.
CREATE TABLE events (
    tenant_id   text NOT NULL,
    job_id      uuid NOT NULL,
    seq         integer NOT NULL,
    attempt     integer NOT NULL,
    type        text NOT NULL,
    body        json NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, job_id, seq)
);

-- One row per limit, per second; the tenant '*' is the whole fleet. Rounds of admission take turns on it.
CREATE TABLE limits (
    tenant_id  text NOT NULL,
    name       text NOT NULL,
    rate       double precision NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

INSERT INTO limits (tenant_id, name, rate) VALUES ('*', 'starts', 10);

-- Workers serve every tenant, hence no tenant here.
CREATE TABLE workers (
    id                 uuid PRIMARY KEY,
    concurrency        integer NOT NULL,
    heartbeat_seconds  double precision NOT NULL,
    host               text NOT NULL,
    pid                integer NOT NULL,
    started_at         timestamptz NOT NULL,
    seen_at            timestamptz NOT NULL,
    stopped_at         timestamptz
);

-- A fleet that obeys Mistral's limits, and tenants who share it fairly.

-- What a job may use, and until when it may start.
ALTER TABLE jobs
    -- Whose Mistral key it is asked with: the tenant's own, or `*`, the server's.
    ADD COLUMN account        text NOT NULL DEFAULT '*',
    ADD COLUMN deadline       timestamptz,
    -- Tokens of the prompt, estimated at submit; and the most that may come back, if the caller said so.
    ADD COLUMN prompt_tokens  integer NOT NULL DEFAULT 0,
    ADD COLUMN max_tokens     integer,
    -- Tokens set aside for it since it was let through.
    ADD COLUMN reserved       integer NOT NULL DEFAULT 0,
    -- Times in a row that Mistral has sent it away (429): these count as no failure.
    ADD COLUMN refusals       integer NOT NULL DEFAULT 0,
    -- Of all its attempts, by the price table of the day it ended.
    ADD COLUMN cost           numeric,
    ADD COLUMN currency       text,
    ADD COLUMN schedule_id    uuid,
    -- W3C `traceparent` of the submit.
    ADD COLUMN trace_context  text;

DROP INDEX jobs_waiting;
-- What admission chooses from: of each tenant, kind and model in the order they are wanted.
CREATE INDEX jobs_waiting ON jobs (tenant_id, kind, model, priority DESC, (coalesce(deadline, 'infinity')), id)
    WHERE state = 'queued' AND due AND admitted_at IS NULL;
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE state = 'queued' AND deadline IS NOT NULL;
CREATE INDEX jobs_retries ON jobs (tenant_id, retry_of) WHERE retry_of IS NOT NULL;

-- What each attempt took from which bucket, and when: the count that limits are kept by.
ALTER TABLE job_attempts
    ADD COLUMN account  text NOT NULL DEFAULT '*',
    ADD COLUMN model    text NOT NULL DEFAULT '',
    ADD COLUMN tokens   integer,
    ADD COLUMN cost     numeric;

CREATE INDEX job_attempts_by_start ON job_attempts (account, model, started_at);
CREATE INDEX job_attempts_by_end ON job_attempts (account, model, ended_at) INCLUDE (tokens) WHERE ended_at IS NOT NULL;

-- What is known of Mistral's limits for one key and model. Learned from its headers; NULL is unknown.
CREATE TABLE buckets (
    account            text NOT NULL,
    model              text NOT NULL,
    limit_requests     integer,
    limit_tokens       integer,
    -- What others who share the workspace had used of the window when that was last seen.
    foreign_requests   integer NOT NULL DEFAULT 0,
    foreign_tokens     integer NOT NULL DEFAULT 0,
    observed_at        timestamptz,
    -- A 429: nothing before this time, and then carefully, from this share of the limits upwards.
    blocked_until      timestamptz,
    caution            double precision NOT NULL DEFAULT 1,
    -- Tokens of an answer, on average.
    answer_tokens      double precision,
    PRIMARY KEY (account, model)
);

-- Seconds that Mistral's limits are counted over.
INSERT INTO limits (tenant_id, name, rate) VALUES ('*', 'window', 60);

-- How much of a bucket a tenant has had, in windows' worth by its weight: whoever has had least comes first. The tenant
-- `*` is the bucket's own time, where newcomers start; the bucket without a name is the fleet's, which counts starts.
CREATE TABLE shares (
    account       text NOT NULL,
    model         text NOT NULL,
    tenant_id     text NOT NULL,
    virtual_time  double precision NOT NULL,
    PRIMARY KEY (account, model, tenant_id)
) WITH (fillfactor = 50);

CREATE TABLE tenants (
    id              text PRIMARY KEY,
    description     text NOT NULL DEFAULT '',
    weight          double precision NOT NULL DEFAULT 1 CHECK (weight > 0),
    -- Jobs of theirs that run at a time; the highest priority they may ask for; jobs that may wait. NULL: no limit.
    concurrency     integer,
    top_priority    integer,
    queue_limit     integer,
    -- Budgets of a day (UTC).
    daily_tokens    bigint,
    daily_cost      numeric,
    on_budget       text NOT NULL DEFAULT 'queue' CHECK (on_budget IN ('queue', 'fail')),
    -- A Mistral key of their own, encrypted.
    mistral_key     bytea,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL
);

-- What a tenant has used in a day (UTC).
CREATE TABLE spendings (
    tenant_id          text NOT NULL,
    day                date NOT NULL,
    model              text NOT NULL,
    attempts           bigint NOT NULL DEFAULT 0,
    prompt_tokens      bigint NOT NULL DEFAULT 0,
    completion_tokens  bigint NOT NULL DEFAULT 0,
    cost               numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, day, model)
);

-- Keys to our own API. Of a key only its hash is kept.
CREATE TABLE api_keys (
    tenant_id   text NOT NULL,
    id          uuid NOT NULL,
    name        text NOT NULL,
    hash        bytea NOT NULL UNIQUE,
    scopes      text[] NOT NULL,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz,
    revoked_at  timestamptz,
    used_at     timestamptz,
    PRIMARY KEY (tenant_id, id)
);

-- What is not let through for now: of a tenant, of a kind, of a model; `*` stands for every one of them.
CREATE TABLE pauses (
    tenant_id  text NOT NULL,
    id         uuid NOT NULL UNIQUE,
    kind       text NOT NULL,
    model      text NOT NULL,
    reason     text NOT NULL DEFAULT '',
    paused_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, kind, model)
);

-- Jobs that come again.
CREATE TABLE schedules (
    tenant_id   text NOT NULL,
    id          uuid NOT NULL,
    name        text NOT NULL,
    cron        text NOT NULL,
    timezone    text NOT NULL,
    -- The body of the submit as it was given, but for secrets; and what it became, which is what is submitted.
    job         json NOT NULL,
    template    json NOT NULL,
    catch_up    text NOT NULL CHECK (catch_up IN ('skip', 'one', 'all')),
    state       text NOT NULL CHECK (state IN ('active', 'paused')),
    -- Why it is paused, when that was not asked for.
    reason      text,
    next_at     timestamptz,
    last_at     timestamptz,
    last_job    uuid,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE INDEX schedules_next ON schedules (next_at) WHERE state = 'active';

-- When what a job asked and answered was deleted by retention; the row stays for the books.
ALTER TABLE jobs ADD COLUMN contents_pruned_at timestamptz;

CREATE INDEX jobs_with_contents ON jobs (completed_at) WHERE completed_at IS NOT NULL AND contents_pruned_at IS NULL;
CREATE INDEX jobs_without_contents ON jobs (completed_at) WHERE completed_at IS NOT NULL AND contents_pruned_at IS NOT NULL;

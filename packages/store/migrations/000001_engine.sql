-- The truth about pipelines, runs, step runs and attempts, and what the engine needs around it.
--
-- What must stay true:
--   * every fact of a user carries project_id;
--   * a step run has a row from the moment it becomes ready, not before; run.summaries counts the rows;
--   * rows of run are locked in id order before anything of the run changes, so that run_event.seq has no
--     gaps and no two commits meet in one run;
--   * lease_until and seen_at change often and are in no index, so that those updates stay on their page.

create table project (
  id uuid primary key,
  name text not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint project_name_unique unique (name),
  constraint project_name_format check (name ~ '^[a-z0-9][a-z0-9-]{0,62}$')
);

-- A token is shown once; only its digest is kept. read, submit and deploy belong to a project, worker and
-- admin to the installation.
create table token (
  id uuid primary key,
  project_id uuid references project (id),
  name text not null,
  scope text not null,
  secret_sha256 bytea not null,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  revoked_at timestamptz,
  constraint token_secret_unique unique (secret_sha256),
  constraint token_scope_known check (scope in ('read', 'submit', 'deploy', 'worker', 'admin')),
  constraint token_project_by_scope check ((scope in ('worker', 'admin')) = (project_id is null))
);

-- Single use, five minutes: `coppice dev` prints one so that a browser may sign in.
create table sign_in_code (
  code_sha256 bytea primary key,
  token_id uuid not null references token (id) on delete cascade,
  expires_at timestamptz not null
);

create table session (
  secret_sha256 bytea primary key,
  token_id uuid not null references token (id) on delete cascade,
  expires_at timestamptz not null
);

create table idempotency (
  project_id uuid not null references project (id) on delete cascade,
  key text not null,
  request_sha256 bytea not null,
  status smallint not null,
  response jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (project_id, key)
);

create table bundle (
  project_id uuid not null references project (id) on delete cascade,
  digest text not null,
  size_bytes bigint not null,
  manifest jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (project_id, digest),
  constraint bundle_digest_format check (digest ~ '^[0-9a-f]{64}$')
);

create table pipeline_version (
  id uuid primary key,
  project_id uuid not null references project (id) on delete cascade,
  name text not null,
  version integer not null,
  ir jsonb not null,
  ir_sha256 text not null,
  bundle_digest text not null,
  created_at timestamptz not null default clock_timestamp(),
  constraint pipeline_version_number_unique unique (project_id, name, version),
  constraint pipeline_version_content_unique unique (project_id, name, ir_sha256, bundle_digest),
  constraint pipeline_version_bundle_exists foreign key (project_id, bundle_digest)
    references bundle (project_id, digest)
);

-- A class is a set of labels and a GPU count; one queue each, at most 32.
create table class (
  id smallint primary key,
  key text not null,
  labels jsonb not null,
  gpu smallint not null,
  constraint class_key_unique unique (key),
  constraint class_count_limit check (id between 1 and 32)
);
-- Every worker serves it, so that the very first run finds them listening.
insert into class (id, key, labels, gpu) values (1, 'cpu', '{}', 0);

create table run (
  id uuid primary key,
  project_id uuid not null references project (id) on delete cascade,
  pipeline_version_id uuid not null references pipeline_version (id),
  parent_run_id uuid,
  reason text,
  state text not null default 'running',
  priority smallint not null default 0,
  params jsonb not null,
  traceparent text,
  -- One encoded summary per step, in the pipeline's order.
  summaries jsonb not null,
  next_seq bigint not null default 1,
  cancel_requested_at timestamptz,
  cancel_error jsonb,
  error jsonb,
  created_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  deadline_at timestamptz,
  constraint run_state_known check (state in ('running', 'succeeded', 'failed', 'cancelled'))
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
create index run_by_project on run (project_id, id desc);
create index run_by_pipeline on run (pipeline_version_id, id desc);
create index run_deadline on run (deadline_at) where state = 'running' and deadline_at is not null;

create table step_run (
  run_id uuid not null,
  step smallint not null,
  item integer not null,
  project_id uuid not null,
  class_id smallint not null,
  priority smallint not null,
  -- Whether it takes from pools: such rows are admitted apart, so that a full pool blocks nobody else.
  is_pooled boolean not null default false,
  -- [{"name", "weight"}], so that admission can pass over what waits for a full pool.
  pools jsonb,
  state text not null,
  attempt smallint not null default 1,
  ring smallint not null default 0,
  failed smallint not null default 0,
  lost smallint not null default 0,
  name text,
  ready_at timestamptz,
  queued_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,
  -- Whatever has to happen to this row by itself: backoff over, queue or run timeout.
  due_at timestamptz,
  worker_id uuid,
  lease_token uuid,
  lease_until timestamptz,
  cancel_requested boolean not null default false,
  checkpoint text,
  output jsonb,
  error jsonb,
  primary key (run_id, step, item),
  constraint step_run_state_known check (
    state in ('ready', 'queued', 'running', 'retrying', 'succeeded', 'failed', 'upstream_failed',
              'skipped', 'cancelled', 'quarantined', 'pruned'))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- Admission reads ready and queued rows in this order; the reconciler reads the rest of the open ones.
create index step_run_open on step_run (class_id, state, is_pooled, priority desc, ready_at)
  where state in ('ready', 'queued', 'running', 'retrying');
create index step_run_due on step_run (due_at) where due_at is not null;

-- How every attempt ended; the live one is its step run's row. granted: the attempt that the finish started
-- in its slot, so that the same finish sent again gets the same answer.
create table attempt (
  run_id uuid not null,
  step smallint not null,
  item integer not null,
  attempt smallint not null,
  project_id uuid not null,
  outcome text not null,
  worker_id uuid,
  lease_token uuid,
  started_at timestamptz,
  finished_at timestamptz not null,
  error jsonb,
  usage jsonb,
  granted jsonb,
  primary key (run_id, step, item, attempt),
  constraint attempt_outcome_known check (
    outcome in ('succeeded', 'failed', 'cancelled', 'pruned', 'lost', 'released'))
);

-- State changes only. One row per run and commit holds changes first_seq … last_seq.
create table run_event (
  run_id uuid not null,
  last_seq bigint not null,
  first_seq bigint not null,
  project_id uuid not null,
  at timestamptz not null,
  changes jsonb not null,
  primary key (run_id, last_seq)
);

-- Bells that a commit decided on and that nobody has rung for sure; the committer deletes its row after ringing.
create table outbox (
  id bigint generated always as identity primary key,
  created_at timestamptz not null default clock_timestamp(),
  claimed_until timestamptz,
  bells jsonb not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create table worker (
  id uuid primary key,
  token_id uuid not null references token (id),
  name text not null,
  host text not null,
  version text not null,
  labels jsonb not null,
  slots integer not null,
  gpus integer not null,
  devices jsonb not null,
  clock_skew_ms double precision not null default 0,
  free_slots integer not null,
  free_gpus integer not null,
  is_draining boolean not null default false,
  registered_at timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- API and scheduler processes stamp themselves; a lease is only expired while some API process has answered
-- without a gap for a whole lease.
create table server_process (
  id uuid primary key,
  kind text not null,
  up_since timestamptz not null,
  seen_at timestamptz not null,
  constraint server_process_kind_known check (kind in ('api', 'scheduler'))
);

create table pool (
  project_id uuid not null references project (id) on delete cascade,
  name text not null,
  capacity integer not null,
  used integer not null default 0,
  primary key (project_id, name),
  constraint pool_capacity_positive check (capacity >= 0)
);

create table log_chunk (
  run_id uuid not null,
  step smallint not null,
  item integer not null,
  attempt smallint not null,
  byte_offset bigint not null,
  project_id uuid not null,
  at timestamptz not null default clock_timestamp(),
  size_bytes integer not null,
  body text not null,
  primary key (run_id, step, item, attempt, byte_offset)
);

create table metric (
  run_id uuid not null,
  step smallint not null,
  item integer not null,
  attempt smallint not null,
  key text not null,
  metric_step bigint not null,
  project_id uuid not null,
  value double precision not null,
  at timestamptz not null,
  primary key (run_id, step, item, attempt, key, metric_step)
);

-- Bytes are reached only through a reference of the caller's project. An upload becomes a reference when the
-- attempt's outcome commits; what never does is collected.
create table artifact_upload (
  project_id uuid not null references project (id) on delete cascade,
  sha256 text not null,
  size_bytes bigint not null,
  at timestamptz not null default clock_timestamp(),
  primary key (project_id, sha256)
);

create table artifact_ref (
  run_id uuid not null,
  step smallint not null,
  item integer not null,
  attempt smallint not null,
  name text not null,
  project_id uuid not null,
  sha256 text not null,
  size_bytes bigint not null,
  kind text not null,
  metadata jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (run_id, step, item, name)
);
create index artifact_ref_by_digest on artifact_ref (project_id, sha256);

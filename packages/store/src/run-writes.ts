/**
 * Set-wise reads and writes of runs, step runs and attempts inside one commit of the engine.
 *
 * What must stay true: only the engine calls these; `lockRuns` comes first and locks in id order, rows of
 * other runs are locked with `lockRunsIfFree`, which never waits, so two commits can't deadlock. Every
 * time that is stored is the database's clock.
 */
import type {
  AttemptOutcome,
  ErrorRecord,
  LeaseToken,
  PipelineVersionId,
  ProjectId,
  RunId,
  RunState,
  StepRunRef,
  StepState,
  WorkerId,
} from "@coppice/core";
import type { EncodedSummary } from "@coppice/pipeline";

import type { Queryable, Row } from "./client.ts";

// ── runs ──────────────────────────────────────────────────────────────────────────────────────────

export interface LockedRun {
  readonly id: RunId;
  readonly versionId: PipelineVersionId;
  readonly state: RunState;
  readonly priority: number;
  readonly summaries: readonly EncodedSummary[];
  readonly nextSeq: number;
  readonly isCancelled: boolean;
  /** Why it is cancelled; CPC_RUN_TIMEOUT makes it end as failed. */
  readonly cancelError: ErrorRecord | null;
}

interface RunRow extends Row {
  id: RunId;
  pipeline_version_id: PipelineVersionId;
  state: RunState;
  priority: number;
  summaries: EncodedSummary[];
  next_seq: number;
  is_cancelled: boolean;
  cancel_error: ErrorRecord | null;
}

const RUN_COLUMNS = `id, pipeline_version_id, state, priority, summaries, next_seq,
  cancel_requested_at is not null as is_cancelled, cancel_error`;

const LOCK_RUNS = {
  name: "lock-runs",
  text: `select ${RUN_COLUMNS} from run where id = any($1::uuid[]) order by id for no key update`,
};
const LOCK_RUNS_IF_FREE = {
  name: "lock-runs-if-free",
  text: `select ${RUN_COLUMNS} from run where id = any($1::uuid[]) order by id
         for no key update skip locked`,
};

const toLockedRun = (row: RunRow): LockedRun => ({
  id: row.id,
  versionId: row.pipeline_version_id,
  state: row.state,
  priority: row.priority,
  summaries: row.summaries,
  nextSeq: row.next_seq,
  isCancelled: row.is_cancelled,
  cancelError: row.cancel_error,
});

/** Waits for other commits in these runs; in id order, so that nobody waits in a circle. */
export const lockRuns = async (tx: Queryable, ids: readonly RunId[]): Promise<LockedRun[]> =>
  (await tx.query<RunRow>(LOCK_RUNS, [ids])).map(toLockedRun);

/** Leaves out the runs that another commit holds: never waits. */
export const lockRunsIfFree = async (tx: Queryable, ids: readonly RunId[]): Promise<LockedRun[]> =>
  (await tx.query<RunRow>(LOCK_RUNS_IF_FREE, [ids])).map(toLockedRun);

const READ_RUNS = {
  name: "read-runs",
  text: `select ${RUN_COLUMNS} from run where id = any($1::uuid[])`,
};

/** Without a lock, only to look. */
export const readRuns = async (db: Queryable, ids: readonly RunId[]): Promise<LockedRun[]> =>
  ids.length === 0 ? [] : (await db.query<RunRow>(READ_RUNS, [ids])).map(toLockedRun);

export interface NewRun {
  readonly id: RunId;
  readonly projectId: ProjectId;
  readonly versionId: PipelineVersionId;
  readonly parentRunId: RunId | null;
  readonly reason: string | null;
  readonly priority: number;
  readonly params: string;
  readonly traceparent: string | null;
  readonly timeoutMs: number | null;
}

/** A new run as it stands after its first plan. */
export interface FirstRunState extends NewRun {
  readonly state: RunState;
  readonly summaries: readonly EncodedSummary[];
  readonly nextSeq: number;
}

const INSERT_RUNS = {
  name: "insert-runs",
  text: `insert into run (id, project_id, pipeline_version_id, parent_run_id, reason, priority, params,
           traceparent, deadline_at, state, summaries, next_seq, finished_at)
         select id, project_id, version_id, parent_run_id, reason, priority, params::jsonb, traceparent,
           clock_timestamp() + timeout_ms * interval '1 millisecond', state, summaries::jsonb, next_seq,
           case when state <> 'running' then clock_timestamp() end
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::smallint[],
           $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[], $12::bigint[])
           as u(id, project_id, version_id, parent_run_id, reason, priority, params, traceparent,
             timeout_ms, state, summaries, next_seq)`,
};

export const insertRuns = async (tx: Queryable, runs: readonly FirstRunState[]): Promise<void> => {
  if (runs.length === 0) return;
  await tx.query(INSERT_RUNS, [
    runs.map((run) => run.id),
    runs.map((run) => run.projectId),
    runs.map((run) => run.versionId),
    runs.map((run) => run.parentRunId),
    runs.map((run) => run.reason),
    runs.map((run) => run.priority),
    runs.map((run) => run.params),
    runs.map((run) => run.traceparent),
    runs.map((run) => run.timeoutMs),
    runs.map((run) => run.state),
    runs.map((run) => JSON.stringify(run.summaries)),
    runs.map((run) => run.nextSeq),
  ]);
};

export interface RunUpdate {
  readonly id: RunId;
  readonly state: RunState;
  readonly summaries: readonly EncodedSummary[];
  readonly nextSeq: number;
  readonly error: ErrorRecord | null;
  /** Set where the run was asked to stop in this commit. */
  readonly cancelError: ErrorRecord | null;
}

const UPDATE_RUNS = {
  name: "update-runs",
  text: `update run set state = u.state, summaries = u.summaries::jsonb, next_seq = u.next_seq,
           error = coalesce(u.error::jsonb, run.error),
           cancel_error = coalesce(run.cancel_error, u.cancel_error::jsonb),
           cancel_requested_at = case when u.cancel_error is null then run.cancel_requested_at
             else coalesce(run.cancel_requested_at, clock_timestamp()) end,
           finished_at = case when u.state = 'running' then null
             else coalesce(run.finished_at, clock_timestamp()) end
         from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
           as u(id, state, summaries, next_seq, error, cancel_error)
         where run.id = u.id`,
};

export const updateRuns = async (tx: Queryable, runs: readonly RunUpdate[]): Promise<void> => {
  if (runs.length === 0) return;
  await tx.query(UPDATE_RUNS, [
    runs.map((run) => run.id),
    runs.map((run) => run.state),
    runs.map((run) => JSON.stringify(run.summaries)),
    runs.map((run) => run.nextSeq),
    runs.map((run) => jsonOrNull(run.error)),
    runs.map((run) => jsonOrNull(run.cancelError)),
  ]);
};

const jsonOrNull = (value: unknown): string | null =>
  value === null ? null : JSON.stringify(value);

export interface NewEvents {
  readonly runId: RunId;
  readonly projectId: ProjectId;
  readonly firstSeq: number;
  readonly lastSeq: number;
  /** JSON array with one element per sequence number. */
  readonly changes: string;
}

const INSERT_EVENTS = {
  name: "insert-events",
  text: `insert into run_event (run_id, last_seq, first_seq, project_id, at, changes)
         select run_id, last_seq, first_seq, project_id, clock_timestamp(), changes::jsonb
         from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::uuid[], $5::text[])
           as u(run_id, last_seq, first_seq, project_id, changes)`,
};

export const insertEvents = async (tx: Queryable, events: readonly NewEvents[]): Promise<void> => {
  if (events.length === 0) return;
  await tx.query(INSERT_EVENTS, [
    events.map((event) => event.runId),
    events.map((event) => event.lastSeq),
    events.map((event) => event.firstSeq),
    events.map((event) => event.projectId),
    events.map((event) => event.changes),
  ]);
};

// ── step runs ─────────────────────────────────────────────────────────────────────────────────────

export interface StepRunRow {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly state: StepState;
  readonly attempt: number;
  readonly ring: number;
  readonly failed: number;
  readonly lost: number;
  readonly name: string | null;
  readonly workerId: WorkerId | null;
  readonly lease: LeaseToken | null;
  readonly isLeaseExpired: boolean;
  readonly isDue: boolean;
  readonly isCancelRequested: boolean;
  /** The database's text for it: microseconds survive the way through JavaScript. */
  readonly startedAt: string | null;
  /** Since it became ready. */
  readonly waitedMs: number;
  readonly checkpoint: string | null;
}

interface StepRunSqlRow extends Row {
  run_id: RunId;
  step: number;
  item: number;
  state: StepState;
  attempt: number;
  ring: number;
  failed: number;
  lost: number;
  name: string | null;
  worker_id: WorkerId | null;
  lease_token: LeaseToken | null;
  is_lease_expired: boolean | null;
  is_due: boolean | null;
  cancel_requested: boolean;
  started_at: string | null;
  waited_ms: number | null;
  checkpoint: string | null;
}

const STEP_RUN_COLUMNS = `s.run_id, s.step, s.item, s.state, s.attempt, s.ring, s.failed, s.lost, s.name,
  s.worker_id, s.lease_token, s.lease_until < clock_timestamp() as is_lease_expired,
  s.due_at <= clock_timestamp() as is_due, s.cancel_requested, s.started_at::text as started_at,
  (extract(epoch from clock_timestamp() - s.ready_at) * 1000)::float8 as waited_ms, s.checkpoint`;

const LOAD_STEP_RUNS = {
  name: "load-step-runs",
  text: `select ${STEP_RUN_COLUMNS}
         from unnest($1::uuid[], $2::smallint[], $3::int[]) as u(run_id, step, item)
         join step_run s on s.run_id = u.run_id and s.step = u.step and s.item = u.item`,
};

const toStepRunRow = (row: StepRunSqlRow): StepRunRow => ({
  runId: row.run_id,
  step: row.step,
  item: row.item,
  state: row.state,
  attempt: row.attempt,
  ring: row.ring,
  failed: row.failed,
  lost: row.lost,
  name: row.name,
  workerId: row.worker_id,
  lease: row.lease_token,
  isLeaseExpired: row.is_lease_expired === true,
  isDue: row.is_due === true,
  isCancelRequested: row.cancel_requested,
  startedAt: row.started_at,
  waitedMs: row.waited_ms ?? 0,
  checkpoint: row.checkpoint,
});

export const loadStepRuns = async (
  tx: Queryable,
  refs: readonly StepRunRef[],
): Promise<StepRunRow[]> =>
  refs.length === 0
    ? []
    : (
        await tx.query<StepRunSqlRow>(LOAD_STEP_RUNS, [
          refs.map((ref) => ref.runId),
          refs.map((ref) => ref.step),
          refs.map((ref) => ref.item),
        ])
      ).map(toStepRunRow);

/** Rows of these runs in these states; used where a whole run or step is cancelled. */
const LOAD_OPEN_STEP_RUNS = {
  name: "load-open-step-runs",
  text: `select ${STEP_RUN_COLUMNS} from step_run s
         where s.run_id = $1 and s.state in ('ready', 'queued', 'running', 'retrying')`,
};

export const loadOpenStepRuns = async (tx: Queryable, runId: RunId): Promise<StepRunRow[]> =>
  (await tx.query<StepRunSqlRow>(LOAD_OPEN_STEP_RUNS, [runId])).map(toStepRunRow);

/** One step run's row as it shall stand after the commit. */
export interface StepRunWrite {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly state: StepState;
  readonly attempt: number;
  readonly ring: number;
  readonly failed: number;
  readonly lost: number;
  readonly workerId: WorkerId | null;
  readonly lease: LeaseToken | null;
  readonly isCancelRequested: boolean;
  /** Milliseconds from now until the row has to move by itself; null where it need not. */
  readonly dueInMs: number | null;
  /** Whether a new waiting time begins: sets ready_at. */
  readonly isNewlyReady: boolean;
  readonly output: string | null;
  readonly error: string | null;
}

export interface NewStepRun extends StepRunWrite {
  readonly projectId: ProjectId;
  readonly classId: number;
  readonly priority: number;
  readonly isPooled: boolean;
  readonly name: string | null;
}

const INSERT_STEP_RUNS = {
  name: "insert-step-runs",
  text: `insert into step_run (run_id, step, item, state, attempt, ring, worker_id, lease_token,
           lease_until, due_at, ready_at, queued_at, started_at, finished_at, error,
           project_id, class_id, priority, is_pooled, name)
         select run_id, step, item, state, attempt, ring, worker_id, lease_token,
           case when state = 'running' then now_at + $16 * interval '1 millisecond' end,
           now_at + due_in_ms * interval '1 millisecond',
           case when is_ready then now_at end,
           case when state = 'queued' then now_at end,
           case when state = 'running' then now_at end,
           case when state not in ('ready', 'queued', 'running', 'retrying') then now_at end,
           error::jsonb, project_id, class_id, priority, is_pooled, name
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::text[], $5::smallint[], $6::smallint[],
           $7::uuid[], $8::uuid[], $9::bigint[], $10::boolean[], $11::text[],
           $12::uuid[], $13::smallint[], $14::smallint[], $15::boolean[], $17::text[])
           as u(run_id, step, item, state, attempt, ring, worker_id, lease_token, due_in_ms, is_ready,
             error, project_id, class_id, priority, is_pooled, name),
           (select clock_timestamp() as now_at) as clock`,
};

export const insertStepRuns = async (
  tx: Queryable,
  rows: readonly NewStepRun[],
  leaseMs: number,
): Promise<void> => {
  if (rows.length === 0) return;
  await tx.query(INSERT_STEP_RUNS, [
    rows.map((row) => row.runId),
    rows.map((row) => row.step),
    rows.map((row) => row.item),
    rows.map((row) => row.state),
    rows.map((row) => row.attempt),
    rows.map((row) => row.ring),
    rows.map((row) => row.workerId),
    rows.map((row) => row.lease),
    rows.map((row) => row.dueInMs),
    rows.map((row) => row.isNewlyReady),
    rows.map((row) => row.error),
    rows.map((row) => row.projectId),
    rows.map((row) => row.classId),
    rows.map((row) => row.priority),
    rows.map((row) => row.isPooled),
    leaseMs,
    rows.map((row) => row.name),
  ]);
};

/** The two changes that nearly every step run goes through have statements of their own: a third of the
 * parameters, hence of the work on both sides of the wire. */
const START_STEP_RUNS = {
  name: "start-step-runs",
  text: `update step_run s set state = 'running', worker_id = u.worker_id, lease_token = u.lease_token,
           lease_until = now_at + $7 * interval '1 millisecond', started_at = now_at,
           due_at = now_at + u.due_in_ms * interval '1 millisecond'
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::uuid[], $5::uuid[], $6::bigint[])
           as u(run_id, step, item, worker_id, lease_token, due_in_ms),
           (select clock_timestamp() as now_at) as clock
         where s.run_id = u.run_id and s.step = u.step and s.item = u.item`,
};

/** Rows that were ready or queued and run now; nothing else of them changed. */
export const startStepRuns = async (
  tx: Queryable,
  rows: readonly StepRunWrite[],
  leaseMs: number,
): Promise<void> => {
  if (rows.length === 0) return;
  await tx.query(START_STEP_RUNS, [
    rows.map((row) => row.runId),
    rows.map((row) => row.step),
    rows.map((row) => row.item),
    rows.map((row) => row.workerId),
    rows.map((row) => row.lease),
    rows.map((row) => row.dueInMs),
    leaseMs,
  ]);
};

const SUCCEED_STEP_RUNS = {
  name: "succeed-step-runs",
  text: `update step_run s set state = 'succeeded', output = u.output::jsonb, error = null,
           lease_token = null, lease_until = null, due_at = null, finished_at = clock_timestamp()
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::text[])
           as u(run_id, step, item, output)
         where s.run_id = u.run_id and s.step = u.step and s.item = u.item`,
};

export const succeedStepRuns = async (
  tx: Queryable,
  rows: readonly StepRunWrite[],
): Promise<void> => {
  if (rows.length === 0) return;
  await tx.query(SUCCEED_STEP_RUNS, [
    rows.map((row) => row.runId),
    rows.map((row) => row.step),
    rows.map((row) => row.item),
    rows.map((row) => row.output),
  ]);
};

const UPDATE_STEP_RUNS = {
  name: "update-step-runs",
  text: `update step_run s set state = u.state, attempt = u.attempt, ring = u.ring, failed = u.failed,
           lost = u.lost, worker_id = u.worker_id, lease_token = u.lease_token,
           lease_until = case when u.state <> 'running' then null
             when s.state = 'running' and s.lease_token = u.lease_token then s.lease_until
             else now_at + $14 * interval '1 millisecond' end,
           cancel_requested = u.cancel_requested,
           due_at = case when s.state = 'running' and u.state = 'running' and s.lease_token = u.lease_token
             then s.due_at else now_at + u.due_in_ms * interval '1 millisecond' end,
           ready_at = case when u.is_ready then now_at else s.ready_at end,
           queued_at = case when u.state = 'queued' then now_at else s.queued_at end,
           started_at = case when u.state = 'running' and s.lease_token is distinct from u.lease_token
             then now_at else s.started_at end,
           finished_at = case when u.state not in ('ready', 'queued', 'running', 'retrying')
             then now_at end,
           output = coalesce(u.output::jsonb, s.output), error = u.error::jsonb
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::text[], $5::smallint[], $6::smallint[],
           $7::smallint[], $8::smallint[], $9::uuid[], $10::uuid[], $11::boolean[], $12::bigint[],
           $13::boolean[], $15::text[], $16::text[])
           as u(run_id, step, item, state, attempt, ring, failed, lost, worker_id, lease_token,
             cancel_requested, due_in_ms, is_ready, output, error),
           (select clock_timestamp() as now_at) as clock
         where s.run_id = u.run_id and s.step = u.step and s.item = u.item`,
};

export const updateStepRuns = async (
  tx: Queryable,
  rows: readonly StepRunWrite[],
  leaseMs: number,
): Promise<void> => {
  if (rows.length === 0) return;
  await tx.query(UPDATE_STEP_RUNS, [
    rows.map((row) => row.runId),
    rows.map((row) => row.step),
    rows.map((row) => row.item),
    rows.map((row) => row.state),
    rows.map((row) => row.attempt),
    rows.map((row) => row.ring),
    rows.map((row) => row.failed),
    rows.map((row) => row.lost),
    rows.map((row) => row.workerId),
    rows.map((row) => row.lease),
    rows.map((row) => row.isCancelRequested),
    rows.map((row) => row.dueInMs),
    rows.map((row) => row.isNewlyReady),
    leaseMs,
    rows.map((row) => row.output),
    rows.map((row) => row.error),
  ]);
};

// ── attempts ──────────────────────────────────────────────────────────────────────────────────────

/** The attempt that a finish started in the slot it gave up. */
export interface Granted {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly lease: LeaseToken;
}

export interface NewAttempt {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly projectId: ProjectId;
  readonly outcome: AttemptOutcome;
  readonly workerId: WorkerId | null;
  readonly lease: LeaseToken | null;
  readonly startedAt: string | null;
  readonly error: string | null;
  readonly usage: string | null;
  readonly granted: Granted | null;
}

const INSERT_ATTEMPTS = {
  name: "insert-attempts",
  text: `insert into attempt (run_id, step, item, attempt, project_id, outcome, worker_id, lease_token,
           started_at, finished_at, error, usage, granted)
         select run_id, step, item, attempt, project_id, outcome, worker_id, lease_token,
           started_at::timestamptz, clock_timestamp(), error::jsonb, usage::jsonb, granted::jsonb
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::uuid[], $6::text[],
           $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::text[], $12::text[])
           as u(run_id, step, item, attempt, project_id, outcome, worker_id, lease_token, started_at,
             error, usage, granted)`,
};

export const insertAttempts = async (
  tx: Queryable,
  attempts: readonly NewAttempt[],
): Promise<void> => {
  if (attempts.length === 0) return;
  await tx.query(INSERT_ATTEMPTS, [
    attempts.map((row) => row.runId),
    attempts.map((row) => row.step),
    attempts.map((row) => row.item),
    attempts.map((row) => row.attempt),
    attempts.map((row) => row.projectId),
    attempts.map((row) => row.outcome),
    attempts.map((row) => row.workerId),
    attempts.map((row) => row.lease),
    attempts.map((row) => row.startedAt),
    attempts.map((row) => row.error),
    attempts.map((row) => row.usage),
    attempts.map((row) => jsonOrNull(row.granted)),
  ]);
};

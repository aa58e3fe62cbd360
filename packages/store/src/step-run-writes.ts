/**
 * Set-wise reads and writes of step runs and of the attempts that ended, inside one commit of the engine.
 *
 * What must stay true: only the engine calls these, under the locks of their runs. Every time that is
 * stored is the database's clock.
 */
import type {
  AttemptOutcome,
  LeaseToken,
  ProjectId,
  RunId,
  StepRunRef,
  StepState,
  WorkerId,
} from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

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
  /** JSON list of names and weights; null where the step takes from no pool. */
  readonly pools: string | null;
  readonly name: string | null;
}

const INSERT_STEP_RUNS = {
  name: "insert-step-runs",
  text: `insert into step_run (run_id, step, item, state, attempt, ring, worker_id, lease_token,
           lease_until, due_at, ready_at, queued_at, started_at, finished_at, error,
           project_id, class_id, priority, is_pooled, pools, name)
         select run_id, step, item, state, attempt, ring, worker_id, lease_token,
           case when state = 'running' then now_at + $16 * interval '1 millisecond' end,
           now_at + due_in_ms * interval '1 millisecond',
           case when is_ready then now_at end,
           case when state = 'queued' then now_at end,
           case when state = 'running' then now_at end,
           case when state not in ('ready', 'queued', 'running', 'retrying') then now_at end,
           error::jsonb, project_id, class_id, priority, pools is not null, pools::jsonb, name
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::text[], $5::smallint[], $6::smallint[],
           $7::uuid[], $8::uuid[], $9::bigint[], $10::boolean[], $11::text[],
           $12::uuid[], $13::smallint[], $14::smallint[], $15::text[], $17::text[])
           as u(run_id, step, item, state, attempt, ring, worker_id, lease_token, due_in_ms, is_ready,
             error, project_id, class_id, priority, pools, name),
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
    rows.map((row) => row.pools),
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
    attempts.map((row) => (row.granted === null ? null : JSON.stringify(row.granted))),
  ]);
};

/**
 * Set-wise reads and writes of runs and their feeds inside one commit of the engine.
 *
 * What must stay true: only the engine calls these; `lockRuns` comes first and locks in id order, rows of
 * other runs are locked with `lockRunsIfFree`, which never waits, so two commits can't deadlock. Every
 * time that is stored is the database's clock.
 */
import type { ErrorRecord, PipelineVersionId, ProjectId, RunId, RunState } from "@coppice/core";
import type { EncodedSummary } from "@coppice/pipeline";

import type { Queryable, Row } from "./client.ts";

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

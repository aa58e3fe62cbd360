/**
 * Runs as people read them. Everything takes the project's id and answers only about that project.
 *
 * What must stay true: pages go by key, never by offset; nothing here locks or changes anything.
 * Rows come as the database has them: the edge turns them into what the API shows.
 */
import type {
  AttemptOutcome,
  ErrorRecord,
  JsonValue,
  ProjectId,
  RunId,
  RunState,
  StepState,
  WorkerId,
} from "@coppice/core";
import type { EncodedSummary } from "@coppice/pipeline";

import type { Queryable, Row } from "./client.ts";

const FIND_RUNS_BETWEEN = {
  name: "find-runs-between",
  text: `select id from run where project_id = $1 and id >= $2 and id <= $3 order by id desc limit 2`,
};
const FIND_RUNS_ENDING = {
  name: "find-runs-ending",
  text: `select id from run where project_id = $1 and id::text like '%' || $2
         order by id desc limit 1000`,
};

/** Up to two runs whose id lies in the range: enough to know whether it names one. */
export const findRunsBetween = async (
  db: Queryable,
  projectId: ProjectId,
  low: RunId,
  high: RunId,
): Promise<RunId[]> =>
  (await db.query<{ id: RunId }>(FIND_RUNS_BETWEEN, [projectId, low, high])).map(({ id }) => id);

/** @param ending hexadecimal digits and hyphens as in the UUID's text */
export const findRunsEnding = async (
  db: Queryable,
  projectId: ProjectId,
  ending: string,
): Promise<RunId[]> =>
  (await db.query<{ id: RunId }>(FIND_RUNS_ENDING, [projectId, ending])).map(({ id }) => id);

export interface RunListRow {
  readonly id: RunId;
  readonly pipeline: string;
  readonly version: number;
  readonly state: RunState;
  readonly priority: number;
  readonly reason: string | null;
  readonly parentRunId: RunId | null;
  readonly createdAt: Date;
  readonly finishedAt: Date | null;
  readonly isCancelRequested: boolean;
  readonly error: ErrorRecord | null;
}

export interface RunDetailRow extends RunListRow {
  readonly params: JsonValue;
  readonly traceparent: string | null;
  readonly versionId: string;
  readonly ir: unknown;
  readonly summaries: readonly EncodedSummary[];
}

const RUN = `r.id, v.name as pipeline, v.version, r.state, r.priority, r.reason,
  r.parent_run_id as "parentRunId", r.created_at as "createdAt", r.finished_at as "finishedAt",
  r.cancel_requested_at is not null as "isCancelRequested", r.error`;

const LIST_RUNS = {
  name: "list-runs",
  text: `select ${RUN} from run r join pipeline_version v on v.id = r.pipeline_version_id
         where r.project_id = $1 and ($2::uuid is null or r.id < $2)
           and ($3::text is null or v.name = $3) and ($4::text is null or r.state = $4)
         order by r.id desc limit $5`,
};

export interface RunFilter {
  readonly before: RunId | null;
  readonly pipeline: string | null;
  readonly state: RunState | null;
  readonly limit: number;
}

/** Newest first. */
export const listRuns = (
  db: Queryable,
  projectId: ProjectId,
  filter: RunFilter,
): Promise<RunListRow[]> =>
  db.query<RunListRow & Row>(LIST_RUNS, [
    projectId,
    filter.before,
    filter.pipeline,
    filter.state,
    filter.limit,
  ]);

const GET_RUN = {
  name: "get-run",
  text: `select ${RUN}, r.params, r.traceparent, v.id as "versionId", v.ir, r.summaries
         from run r join pipeline_version v on v.id = r.pipeline_version_id
         where r.project_id = $1 and r.id = $2`,
};

export const getRun = async (
  db: Queryable,
  projectId: ProjectId,
  runId: RunId,
): Promise<RunDetailRow | undefined> =>
  (await db.query<RunDetailRow & Row>(GET_RUN, [projectId, runId]))[0];

export interface StepTimes {
  readonly step: number;
  readonly startedAt: Date | null;
  readonly finishedAt: Date | null;
}

const STEP_TIMES = {
  name: "step-times",
  text: `select step, min(started_at) as "startedAt", max(finished_at) as "finishedAt"
         from step_run where project_id = $1 and run_id = $2 group by step`,
};

export const listStepTimes = (
  db: Queryable,
  projectId: ProjectId,
  runId: RunId,
): Promise<StepTimes[]> => db.query<StepTimes & Row>(STEP_TIMES, [projectId, runId]);

export interface StepRunReadRow {
  readonly item: number;
  readonly name: string | null;
  readonly state: StepState;
  readonly attempt: number;
  readonly failed: number;
  readonly lost: number;
  readonly workerId: WorkerId | null;
  readonly readyAt: Date | null;
  readonly queuedAt: Date | null;
  readonly startedAt: Date | null;
  readonly finishedAt: Date | null;
  readonly dueAt: Date | null;
  readonly error: ErrorRecord | null;
}

const STEP_RUN = `item, name, state, attempt, failed, lost, worker_id as "workerId",
  ready_at as "readyAt", queued_at as "queuedAt", started_at as "startedAt",
  finished_at as "finishedAt", due_at as "dueAt", error`;

const LIST_STEP_RUNS = {
  name: "list-step-runs",
  text: `select ${STEP_RUN} from step_run
         where project_id = $1 and run_id = $2 and step = $3 and item > $4 order by item limit $5`,
};

export const listStepRuns = (
  db: Queryable,
  projectId: ProjectId,
  ref: { readonly runId: RunId; readonly step: number },
  afterItem: number,
  limit: number,
): Promise<StepRunReadRow[]> =>
  db.query<StepRunReadRow & Row>(LIST_STEP_RUNS, [
    projectId,
    ref.runId,
    ref.step,
    afterItem,
    limit,
  ]);

const GET_STEP_RUN = {
  name: "get-step-run",
  text: `select ${STEP_RUN}, output from step_run
         where project_id = $1 and run_id = $2 and step = $3 and item = $4`,
};

interface ItemRef {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
}

export const getStepRun = async (
  db: Queryable,
  projectId: ProjectId,
  ref: ItemRef,
): Promise<(StepRunReadRow & { readonly output: JsonValue | null }) | undefined> =>
  (
    await db.query<StepRunReadRow & { output: JsonValue | null } & Row>(GET_STEP_RUN, [
      projectId,
      ref.runId,
      ref.step,
      ref.item,
    ])
  )[0];

export interface AttemptReadRow {
  readonly attempt: number;
  /** null: it is running. */
  readonly outcome: AttemptOutcome | null;
  readonly workerId: WorkerId | null;
  readonly workerName: string | null;
  readonly startedAt: Date | null;
  readonly finishedAt: Date | null;
  readonly error: ErrorRecord | null;
  readonly usage: JsonValue | null;
}

const LIST_ATTEMPTS = {
  name: "list-attempts",
  text: `select a.attempt, a.outcome, a.worker_id as "workerId", w.name as "workerName",
           a.started_at as "startedAt", a.finished_at as "finishedAt", a.error, a.usage
         from (
           select attempt, outcome, worker_id, started_at, finished_at, error, usage from attempt
           where project_id = $1 and run_id = $2 and step = $3 and item = $4
           union all
           select attempt, null, worker_id, started_at, null, null, null from step_run
           where project_id = $1 and run_id = $2 and step = $3 and item = $4 and state = 'running'
         ) a left join worker w on w.id = a.worker_id order by a.attempt`,
};

/** Ended ones and, as the last, the one that is running. */
export const listAttempts = (
  db: Queryable,
  projectId: ProjectId,
  ref: ItemRef,
): Promise<AttemptReadRow[]> =>
  db.query<AttemptReadRow & Row>(LIST_ATTEMPTS, [projectId, ref.runId, ref.step, ref.item]);

export interface EventRow {
  readonly firstSeq: number;
  readonly lastSeq: number;
  readonly at: Date;
  /** One element per sequence number. */
  readonly changes: readonly JsonValue[];
}

const LIST_EVENTS = {
  name: "list-events",
  text: `select first_seq as "firstSeq", last_seq as "lastSeq", at, changes from run_event
         where project_id = $1 and run_id = $2 and last_seq > $3 order by last_seq limit $4`,
};

/** Rows that hold a change after `afterSeq`; the first may begin before it. */
export const listEvents = (
  db: Queryable,
  projectId: ProjectId,
  runId: RunId,
  afterSeq: number,
  limit: number,
): Promise<EventRow[]> =>
  db.query<EventRow & Row>(LIST_EVENTS, [projectId, runId, afterSeq, limit]);

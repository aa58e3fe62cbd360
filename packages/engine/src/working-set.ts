/**
 * One commit's view of the runs and step runs that it changes.
 *
 * What must stay true: a row changes only through `move`, which keeps the step's summary and the row in
 * step; what changed is written once, at the end, as the row then stands, and told once in the run's feed.
 */
import {
  type ErrorRecord,
  type JsonValue,
  type LeaseToken,
  type RunId,
  type RunState,
  type StepRunRef,
  stepRunKey,
  type StepState,
  type WorkerId,
} from "@coppice/core";
import { decodeSummary, moveItems, type StepSummary } from "@coppice/pipeline";
import type {
  Granted,
  LockedRun,
  NewArtifactRef,
  NewAttempt,
  NewRun,
  StepRunRow,
} from "@coppice/store";

import type { VersionFacts } from "./facts.ts";

export interface RunWork {
  readonly id: RunId;
  readonly version: VersionFacts;
  readonly priority: number;
  /** The row to insert, where the run begins in this commit. */
  readonly first: NewRun | undefined;
  state: RunState;
  summaries: readonly StepSummary[];
  nextSeq: number;
  isCancelled: boolean;
  cancelError: ErrorRecord | null;
  error: ErrorRecord | null;
  /** Whether something of the run changed, so that the planner has to look. */
  isTouched: boolean;
  readonly changes: JsonValue[];
  /** Rows in the order in which they first changed. */
  readonly changedRows: Set<RowWork>;
}

export interface RowWork {
  readonly run: RunWork;
  readonly step: number;
  readonly item: number;
  readonly isNew: boolean;
  readonly name: string | null;
  readonly startedAt: string | null;
  readonly isLeaseExpired: boolean;
  readonly isDue: boolean;
  readonly checkpoint: string | null;
  /** As it stands in the database. */
  readonly savedState: StepState | undefined;
  readonly savedAttempt: number;
  state: StepState;
  attempt: number;
  ring: number;
  failed: number;
  lost: number;
  workerId: WorkerId | null;
  lease: LeaseToken | null;
  waitedMs: number;
  isCancelRequested: boolean;
  isNewlyReady: boolean;
  /** Not to be admitted in this commit: its worker has just said that it has no room. */
  isHeldBack: boolean;
  dueInMs: number | null;
  output: JsonValue | undefined;
  error: ErrorRecord | null;
}

export interface AttemptWork extends Omit<NewAttempt, "granted"> {
  granted: Granted | null;
}

export interface WorkingSet {
  readonly runs: Map<RunId, RunWork>;
  readonly rows: Map<string, RowWork>;
  readonly attempts: AttemptWork[];
  readonly artifacts: NewArtifactRef[];
}

export const newWorkingSet = (): WorkingSet => ({
  runs: new Map(),
  rows: new Map(),
  attempts: [],
  artifacts: [],
});

export const addRun = (
  set: WorkingSet,
  locked: LockedRun,
  version: VersionFacts,
  first?: NewRun,
): RunWork => {
  const run: RunWork = {
    id: locked.id,
    version,
    priority: locked.priority,
    first,
    state: locked.state,
    summaries: locked.summaries.map(decodeSummary),
    nextSeq: locked.nextSeq,
    isCancelled: locked.isCancelled,
    cancelError: locked.cancelError,
    error: null,
    isTouched: false,
    changes: [],
    changedRows: new Set(),
  };
  set.runs.set(run.id, run);
  return run;
};

export const findRow = (set: WorkingSet, ref: StepRunRef): RowWork | undefined =>
  set.rows.get(stepRunKey(ref));

export const addRow = (set: WorkingSet, run: RunWork, stored: StepRunRow): RowWork => {
  const row: RowWork = {
    run,
    step: stored.step,
    item: stored.item,
    isNew: false,
    name: stored.name,
    startedAt: stored.startedAt,
    isLeaseExpired: stored.isLeaseExpired,
    isDue: stored.isDue,
    checkpoint: stored.checkpoint,
    savedState: stored.state,
    savedAttempt: stored.attempt,
    state: stored.state,
    attempt: stored.attempt,
    ring: stored.ring,
    failed: stored.failed,
    lost: stored.lost,
    workerId: stored.workerId,
    lease: stored.lease,
    waitedMs: stored.waitedMs,
    isCancelRequested: stored.isCancelRequested,
    isNewlyReady: false,
    isHeldBack: false,
    dueInMs: null,
    output: undefined,
    error: null,
  };
  set.rows.set(stepRunKey({ runId: run.id, step: row.step, item: row.item }), row);
  return row;
};

/** A step run that has no row yet; the planner has counted it already. */
export const makeRow = (
  set: WorkingSet,
  run: RunWork,
  step: number,
  item: number,
  state: StepState,
  name: string | null,
): RowWork => {
  const row: RowWork = {
    run,
    step,
    item,
    isNew: true,
    name,
    startedAt: null,
    isLeaseExpired: false,
    isDue: false,
    checkpoint: null,
    savedState: undefined,
    savedAttempt: 1,
    state,
    attempt: 1,
    ring: 0,
    failed: 0,
    lost: 0,
    workerId: null,
    lease: null,
    waitedMs: 0,
    isCancelRequested: false,
    isNewlyReady: state === "ready",
    isHeldBack: false,
    dueInMs: null,
    output: undefined,
    error: null,
  };
  set.rows.set(stepRunKey({ runId: run.id, step, item }), row);
  run.changedRows.add(row);
  return row;
};

/** Moves a row to another state (or to the same one with another attempt) and counts it. */
export const move = (row: RowWork, to: StepState): void => {
  const { run } = row;
  if (row.state !== to) {
    const summaries = [...run.summaries];
    const summary = summaries[row.step];
    if (summary !== undefined) summaries[row.step] = moveItems(summary, row.state, to, 1);
    run.summaries = summaries;
  }
  row.state = to;
  row.isNewlyReady = to === "ready";
  run.isTouched = true;
  run.changedRows.add(row);
};

/** Marks a row for writing although its state stays: nothing to count, nothing to tell. */
export const touch = (row: RowWork): void => {
  row.run.changedRows.add(row);
};

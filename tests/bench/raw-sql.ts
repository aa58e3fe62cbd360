/**
 * SQL alone: the rows that the engine writes, with the engine's own statements, in transactions as
 * large as its average batch, but without deciding anything and without a doorbell. So fast could
 * an engine be that costs nothing on these servers.
 */
import { randomUUID } from "node:crypto";
import type { LeaseToken, PipelineVersionId, ProjectId, RunId, WorkerId } from "@coppice/core";
import { type EncodedSummary, emptySummary, encodeSummary } from "@coppice/pipeline";
import {
  type Database,
  insertAttempts,
  insertEvents,
  insertRuns,
  insertStepRuns,
  loadStepRuns,
  lockRuns,
  type NewAttempt,
  type NewStepRun,
  type Queryable,
  updateRuns,
  updateStepRuns,
} from "@coppice/store";
import { freshId } from "./engine-rig.ts";

const LEASE_MS = 15_000;
/** As many connections as the engine commits on. */
const LANES = 2;

/** Steps that end in the same transaction, wave after wave: here the first, the ten, the last. */
export type Waves = readonly (readonly number[])[];
const FAN: Waves = [[0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11]];

interface Owner {
  readonly projectId: ProjectId;
  readonly versionId: PipelineVersionId;
  readonly workerId: WorkerId;
}

export interface RawSqlOptions extends Owner {
  readonly db: Database;
  readonly runs: number;
  /** The engine's average, in events. */
  readonly batchSize: number;
}

interface Lot extends Owner {
  readonly runIds: readonly RunId[];
  readonly waves: Waves;
  readonly summaries: readonly EncodedSummary[];
}

const lotOf = (owner: Owner, waves: Waves, size: number): Lot => ({
  projectId: owner.projectId,
  versionId: owner.versionId,
  workerId: owner.workerId,
  waves,
  runIds: Array.from({ length: size }, () => freshId<RunId>()).toSorted(),
  summaries: waves.flat().map(() => encodeSummary(emptySummary(false))),
});

const rowOf = (lot: Lot, runId: RunId, step: number, isRunning: boolean): NewStepRun => ({
  runId,
  step,
  item: 0,
  state: isRunning ? "running" : "succeeded",
  attempt: 1,
  ring: 0,
  failed: 0,
  lost: 0,
  workerId: lot.workerId,
  lease: isRunning ? (randomUUID() as LeaseToken) : null,
  isCancelRequested: false,
  dueInMs: null,
  isNewlyReady: isRunning,
  output: isRunning ? null : "null",
  error: null,
  projectId: lot.projectId,
  classId: 1,
  priority: 0,
  pools: null,
  name: null,
});

const attemptOf = (lot: Lot, runId: RunId, step: number): NewAttempt => ({
  runId,
  step,
  item: 0,
  attempt: 1,
  projectId: lot.projectId,
  outcome: "succeeded",
  workerId: lot.workerId,
  lease: randomUUID() as LeaseToken,
  startedAt: "2026-01-01 00:00:00.000001+00",
  error: null,
  usage: null,
  granted: null,
});

const changesOf = (steps: readonly number[], state: string, worker: WorkerId) =>
  steps.map((step) => ({ step, item: 0, state, attempt: 1, worker }));

const writeEvents = async (
  tx: Queryable,
  lot: Lot,
  firstSeq: number,
  changes: readonly unknown[],
): Promise<number> => {
  const lastSeq = firstSeq + changes.length - 1;
  const text = JSON.stringify(changes);
  const { projectId } = lot;
  await insertEvents(
    tx,
    lot.runIds.map((runId) => ({ runId, projectId, firstSeq, lastSeq, changes: text })),
  );
  return lastSeq + 1;
};

const begin = async (tx: Queryable, lot: Lot): Promise<number> => {
  const [first = []] = lot.waves;
  const { summaries } = lot;
  const changes = [{ run: "running" }, ...changesOf(first, "running", lot.workerId)];
  await insertRuns(
    tx,
    lot.runIds.map((id) => ({
      id,
      projectId: lot.projectId,
      versionId: lot.versionId,
      parentRunId: null,
      reason: null,
      priority: 0,
      params: "{}",
      traceparent: null,
      timeoutMs: null,
      state: "running",
      summaries,
      nextSeq: 1 + changes.length,
    })),
  );
  const rows = lot.runIds.flatMap((id) => first.map((step) => rowOf(lot, id, step, true)));
  await insertStepRuns(tx, rows, LEASE_MS);
  return writeEvents(tx, lot, 1, changes);
};

/** One wave's steps end, the next wave's begin. */
const advance = async (
  tx: Queryable,
  lot: Lot,
  wave: number,
  firstSeq: number,
): Promise<number> => {
  const ending = lot.waves[wave] ?? [];
  const beginning = lot.waves[wave + 1] ?? [];
  const state = beginning.length === 0 ? "succeeded" : "running";
  await lockRuns(tx, lot.runIds);
  const refs = lot.runIds.flatMap((runId) => ending.map((step) => ({ runId, step, item: 0 })));
  await loadStepRuns(tx, refs);
  const started = lot.runIds.flatMap((id) => beginning.map((step) => rowOf(lot, id, step, true)));
  await insertStepRuns(tx, started, LEASE_MS);
  const ended = refs.map(({ runId, step }) => rowOf(lot, runId, step, false));
  await updateStepRuns(tx, ended, LEASE_MS);
  await insertAttempts(
    tx,
    refs.map(({ runId, step }) => attemptOf(lot, runId, step)),
  );
  const changes = [
    ...changesOf(ending, "succeeded", lot.workerId),
    ...changesOf(beginning, "running", lot.workerId),
  ];
  const nextSeq = firstSeq + changes.length;
  const { summaries } = lot;
  const rest = { state, summaries, nextSeq, error: null, cancelError: null } as const;
  await updateRuns(
    tx,
    lot.runIds.map((id) => ({ id, ...rest })),
  );
  return writeEvents(tx, lot, firstSeq, changes);
};

const writeLot = async (db: Database, lot: Lot): Promise<void> => {
  let seq = await db.transaction((tx) => begin(tx, lot));
  for (const wave of lot.waves.keys()) {
    seq = await db.transaction((tx) => advance(tx, lot, wave, seq));
  }
};

/** Many 1 → 10 → 1 runs. @returns steps per second */
export const measureRawSql = async (options: RawSqlOptions): Promise<number> => {
  const { db, runs, batchSize } = options;
  const steps = FAN.flat().length;
  // Events per run in the engine's batches: one submit and a finish per step.
  const perLot = Math.max(1, Math.round((batchSize * (1 + FAN.length)) / (1 + steps)));
  let left = runs;
  const lane = async (): Promise<void> => {
    while (left > 0) {
      const size = Math.min(perLot, left);
      left -= size;
      await writeLot(db, lotOf(options, FAN, size));
    }
  };
  const startedAt = performance.now();
  await Promise.all(Array.from({ length: LANES }, lane));
  return (runs * steps) / ((performance.now() - startedAt) / 1000);
};

/** Runs of steps in a row, one run after the other. @returns milliseconds of each run */
export const timeRawChains = async (
  db: Database,
  owner: Owner,
  steps: number,
  runs: number,
): Promise<number[]> => {
  const waves = Array.from({ length: steps }, (_, step) => [step]);
  const times: number[] = [];
  for (let run = 0; run < runs; run += 1) {
    const startedAt = performance.now();
    await writeLot(db, lotOf(owner, waves, 1));
    times.push(performance.now() - startedAt);
  }
  return times;
};

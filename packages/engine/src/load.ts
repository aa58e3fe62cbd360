/**
 * First part of a commit: locks the runs of a batch and reads the rows that its events name.
 *
 * What must stay true: runs are locked in id order and before anything else of them is read.
 */
import { attemptKey, type RunId, type StepRunRef, stepRunKey } from "@coppice/core";
import { emptySummary } from "@coppice/pipeline";
import {
  loadAttempts,
  loadOpenStepRuns,
  loadStepRuns,
  lockRuns,
  type PastAttempt,
  type Queryable,
  readRuns,
} from "@coppice/store";

import type { Begun, EngineEvent, EventResult, FinishEvent, SubmitEvent } from "./events.ts";
import type { Facts } from "./facts.ts";
import { addRow, addRun, findRow, type WorkingSet } from "./working-set.ts";

const refsOf = (event: EngineEvent): StepRunRef[] => {
  switch (event.type) {
    case "submit":
    case "cancelRun":
    case "cancelStep":
    case "nudge":
      return [];
    default:
      return [event.ref];
  }
};

export const load = async (
  facts: Facts,
  tx: Queryable,
  set: WorkingSet,
  events: readonly EngineEvent[],
  replays: ReadonlyMap<SubmitEvent, EventResult>,
): Promise<Past> => {
  const runIds = new Set<RunId>();
  const refs = new Map<string, StepRunRef>();
  for (const event of events) {
    if (event.type === "submit") {
      if (!replays.has(event)) beginRun(set, event);
    } else if ("runId" in event && event.runId !== undefined) runIds.add(event.runId);
    for (const ref of refsOf(event)) {
      runIds.add(ref.runId);
      refs.set(stepRunKey(ref), ref);
    }
  }
  // The lock goes first on the wire, so the rows are read under it, in one round trip.
  const [locked, stored] = await Promise.all([
    runIds.size === 0 ? [] : lockRuns(tx, [...runIds]),
    loadStepRuns(tx, [...refs.values()]),
  ]);
  for (const run of locked) addRun(set, run, await facts.version(tx, run.versionId));
  for (const row of stored) {
    const run = set.runs.get(row.runId);
    if (run !== undefined) addRow(set, run, row);
  }
  for (const event of events) {
    if (event.type !== "cancelRun" && event.type !== "cancelStep") continue;
    const run = set.runs.get(event.runId);
    if (run === undefined) continue;
    for (const row of await loadOpenStepRuns(tx, run.id)) {
      if (findRow(set, row) === undefined) addRow(set, run, row);
    }
  }
  return loadPast(facts, tx, set, events);
};

export interface Past {
  readonly past: ReadonlyMap<string, PastAttempt>;
  readonly stillGranted: ReadonlyMap<string, Begun>;
}

/** History is read only for finishes whose fence does not hold: second copies and late ones. */
const loadPast = async (
  facts: Facts,
  tx: Queryable,
  set: WorkingSet,
  events: readonly EngineEvent[],
): Promise<Past> => {
  const unsure = events.filter((event): event is FinishEvent => {
    if (event.type !== "finish") return false;
    const row = findRow(set, event.ref);
    return (
      row?.state !== "running" || row.attempt !== event.ref.attempt || row.lease !== event.lease
    );
  });
  if (unsure.length === 0) return { past: new Map(), stillGranted: new Map() };
  const attempts = await loadAttempts(
    tx,
    unsure.map((event) => event.ref),
  );
  return {
    past: new Map(attempts.map((attempt) => [attemptKey(attempt), attempt])),
    stillGranted: await loadStillGranted(facts, tx, attempts),
  };
};

/** What a finish started may belong to a run that is not locked here: it is only looked at. */
const loadStillGranted = async (
  facts: Facts,
  tx: Queryable,
  attempts: readonly PastAttempt[],
): Promise<Map<string, Begun>> => {
  const granting = attempts.filter((attempt) => attempt.granted !== null);
  const granted = granting.flatMap(({ granted: next }) => (next === null ? [] : [next]));
  const rows = new Map((await loadStepRuns(tx, granted)).map((row) => [stepRunKey(row), row]));
  const runs = new Map(
    (await readRuns(tx, [...new Set(granted.map((next) => next.runId))])).map((run) => [
      run.id,
      run,
    ]),
  );
  const still = new Map<string, Begun>();
  for (const attempt of granting) {
    const next = attempt.granted;
    const row = next === null ? undefined : rows.get(stepRunKey(next));
    const run = next === null ? undefined : runs.get(next.runId);
    if (next === null || run === undefined || row?.state !== "running" || row.lease !== next.lease)
      continue;
    still.set(attemptKey(attempt), {
      ...next,
      version: await facts.version(tx, run.versionId),
      name: row.name,
      checkpoint: row.checkpoint,
    });
  }
  return still;
};

const beginRun = (set: WorkingSet, event: SubmitEvent): void => {
  const run = addRun(
    set,
    {
      id: event.run.id,
      versionId: event.run.versionId,
      state: "running",
      priority: event.run.priority,
      summaries: [],
      nextSeq: 1,
      isCancelled: false,
      cancelError: null,
    },
    event.version,
    event.run,
  );
  run.summaries = event.version.graph.pipeline.steps.map((step) =>
    emptySummary(step.map !== undefined),
  );
  run.isTouched = true;
  run.changes.push({ run: "running" });
};

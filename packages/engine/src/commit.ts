/**
 * The one writer of run state: a batch of events becomes one transaction.
 *
 * The order is the house's lock order: idempotency keys, runs in id order, then rows; pools last. Then every
 * event is decided, every touched run planned, what became ready admitted, and all of it written set-wise,
 * with the feed and the outbox. What must stay true: nothing outside this file writes those tables.
 */
import {
  attemptKey,
  CoppiceError,
  type JsonValue,
  type Metrics,
  type RunId,
  type StepRunRef,
  stepRunKey,
} from "@coppice/core";
import { emptySummary, encodeSummary } from "@coppice/pipeline";
import type { Bell } from "@coppice/queue";
import {
  addToPools,
  deleteOutbox,
  insertArtifactRefs,
  insertAttempts,
  insertEvents,
  insertOutbox,
  insertRuns,
  insertStepRuns,
  loadAttempts,
  loadOpenStepRuns,
  loadStepRuns,
  loadUploaded,
  lockRuns,
  type NewStepRun,
  type PastAttempt,
  type Queryable,
  readRuns,
  updateRuns,
  updateStepRuns,
} from "@coppice/store";

import { admit, classIdOf, poolsOf, priorityOf } from "./admit.ts";
import type { Capacity } from "./capacity.ts";
import { decide, type Decision, type OpenOffer } from "./decide.ts";
import type { Begun, EngineEvent, EventResult, FinishEvent, SubmitEvent } from "./events.ts";
import type { Facts } from "./facts.ts";
import { claimKeys } from "./idempotency.ts";
import type { OutputCache } from "./outputs.ts";
import { planRun } from "./plan-run.ts";
import {
  addRow,
  addRun,
  findRow,
  newWorkingSet,
  type RowWork,
  type RunWork,
  type WorkingSet,
} from "./working-set.ts";

export interface CommitContext {
  readonly facts: Facts;
  readonly capacity: Capacity;
  readonly outputs: OutputCache;
  readonly metrics: Metrics;
  readonly leaseMs: number;
  readonly random: () => number;
  /** For the negative controls of the invariant checker only. */
  readonly controls: EngineControls;
  readonly failpoint: (label: string) => void;
}

/** Safety nets that a test may take away to prove that the checker sees the fall. */
export interface EngineControls {
  readonly isFencingOff?: boolean;
  readonly isReconcilerOff?: boolean;
  readonly isOutboxOff?: boolean;
  readonly isRingAgainOff?: boolean;
}

export interface Committed {
  readonly results: readonly EventResult[];
  readonly bells: readonly Bell[];
  /** The row that stands for these bells until they are rung; 0 where there are none. */
  readonly outboxId: number;
  readonly runIds: readonly RunId[];
}

/** @param rungOutboxIds rows of earlier commits whose bells were rung: deleted along */
export const commitBatch = async (
  context: CommitContext,
  tx: Queryable,
  events: readonly EngineEvent[],
  rungOutboxIds: readonly number[],
): Promise<Committed & { readonly afterCommit: () => void }> => {
  const set = newWorkingSet();
  const replays = await claimKeys(tx, events.filter((event) => event.type === "submit"));
  const { past, stillGranted } = await load(context, tx, set, events, replays);
  context.failpoint("commit.locked");
  const unfit = await findMissingArtifacts(tx, set, events);

  const results: EventResult[] = [];
  const offers: OpenOffer[] = [];
  const decideContext = {
    set,
    past,
    stillGranted,
    random: context.random,
    isFencingOff: context.controls.isFencingOff === true,
  };
  for (const event of events) {
    const early = earlyResult(event, replays, unfit);
    const decision: Decision = early === undefined ? decide(decideContext, event) : { result: early };
    results.push(decision.result);
    if (decision.offer !== undefined) offers.push(decision.offer);
  }

  const params = await paramsOf(context, tx, set);
  for (const run of [...set.runs.values()]) {
    if (!run.isTouched) continue;
    await planRun({ db: tx, set, outputs: context.outputs, paramsOf: params }, run);
  }

  const nudged = events.flatMap((event) => (event.type === "nudge" ? event.classIds : []));
  const { rung, granted } = await admit(
    { tx, set, facts: context.facts, capacity: context.capacity },
    offers,
    nudged,
  );
  grantResults(events, results, granted);

  const bells = rung.map((row) => bellOf(context.facts, row));
  const isOutboxOff = context.controls.isOutboxOff === true;
  const outboxId = await write(context, tx, set, isOutboxOff ? [] : bells, rungOutboxIds);
  context.failpoint("commit.written");
  const afterCommit = noteChanges(context, set);
  return { results, bells, outboxId, runIds: changedRunIds(set), afterCommit };
};

const changedRunIds = (set: WorkingSet): RunId[] =>
  [...set.runs.values()].filter((run) => run.changes.length > 0).map((run) => run.id);

// ── load ──────────────────────────────────────────────────────────────────────────────────────────

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

const load = async (
  context: CommitContext,
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
  if (runIds.size > 0) {
    for (const locked of await lockRuns(tx, [...runIds])) {
      addRun(set, locked, await context.facts.version(tx, locked.versionId));
    }
  }
  await loadRows(tx, set, [...refs.values()]);
  for (const event of events) {
    if (event.type !== "cancelRun" && event.type !== "cancelStep") continue;
    const run = set.runs.get(event.runId);
    if (run === undefined) continue;
    for (const stored of await loadOpenStepRuns(tx, run.id)) {
      if (findRow(set, stored) === undefined) addRow(set, run, stored);
    }
  }
  return loadPast(context, tx, set, events);
};

const loadRows = async (tx: Queryable, set: WorkingSet, refs: readonly StepRunRef[]): Promise<void> => {
  for (const stored of await loadStepRuns(tx, refs)) {
    const run = set.runs.get(stored.runId);
    if (run !== undefined && findRow(set, stored) === undefined) addRow(set, run, stored);
  }
};

interface Past {
  readonly past: ReadonlyMap<string, PastAttempt>;
  readonly stillGranted: ReadonlyMap<string, Begun>;
}

/** History is read only for finishes whose fence does not hold: second copies and late ones. */
const loadPast = async (
  context: CommitContext,
  tx: Queryable,
  set: WorkingSet,
  events: readonly EngineEvent[],
): Promise<Past> => {
  const unsure = events.filter((event): event is FinishEvent => {
    if (event.type !== "finish") return false;
    const row = findRow(set, event.ref);
    return row?.state !== "running" || row.attempt !== event.ref.attempt || row.lease !== event.lease;
  });
  if (unsure.length === 0) return { past: new Map(), stillGranted: new Map() };
  const attempts = await loadAttempts(tx, unsure.map((event) => event.ref));
  return {
    past: new Map(attempts.map((attempt) => [attemptKey(attempt), attempt])),
    stillGranted: await loadStillGranted(context, tx, attempts),
  };
};

/** What a finish started may belong to a run that is not locked here: it is only looked at. */
const loadStillGranted = async (
  context: CommitContext,
  tx: Queryable,
  attempts: readonly PastAttempt[],
): Promise<Map<string, Begun>> => {
  const granting = attempts.filter((attempt) => attempt.granted !== null);
  const granted = granting.flatMap(({ granted: next }) => (next === null ? [] : [next]));
  const rows = new Map((await loadStepRuns(tx, granted)).map((row) => [stepRunKey(row), row]));
  const runs = new Map(
    (await readRuns(tx, [...new Set(granted.map((next) => next.runId))])).map((run) => [run.id, run]),
  );
  const still = new Map<string, Begun>();
  for (const attempt of granting) {
    const next = attempt.granted;
    const row = next === null ? undefined : rows.get(stepRunKey(next));
    const run = next === null ? undefined : runs.get(next.runId);
    if (next === null || run === undefined || row?.state !== "running" || row.lease !== next.lease) continue;
    still.set(attemptKey(attempt), {
      ...next,
      version: await context.facts.version(tx, run.versionId),
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
  run.summaries = event.version.graph.pipeline.steps.map((step) => emptySummary(step.map !== undefined));
  run.isTouched = true;
  run.changes.push({ run: "running" });
};

/**
 * Results that are known before deciding: replays of a key, and outcomes that name bytes nobody uploaded.
 */
const earlyResult = (
  event: EngineEvent,
  replays: ReadonlyMap<SubmitEvent, EventResult>,
  unfit: ReadonlyMap<FinishEvent, CoppiceError>,
): EventResult | undefined => {
  if (event.type === "submit") return replays.get(event);
  if (event.type !== "finish") return undefined;
  const error = unfit.get(event);
  return error === undefined ? undefined : { type: "refused", error };
};

const findMissingArtifacts = async (
  tx: Queryable,
  set: WorkingSet,
  events: readonly EngineEvent[],
): Promise<Map<FinishEvent, CoppiceError>> => {
  const named = events.flatMap((event) => {
    if (event.type !== "finish" || event.outcome.type !== "succeeded") return [];
    const projectId = set.runs.get(event.ref.runId)?.version.projectId;
    if (projectId === undefined) return [];
    return event.outcome.artifacts.map(({ sha256 }) => ({ event, projectId, sha256 }));
  });
  const unfit = new Map<FinishEvent, CoppiceError>();
  if (named.length === 0) return unfit;
  const uploaded = await loadUploaded(tx, named);
  for (const { event, projectId, sha256 } of named) {
    if (uploaded.has(`${projectId}/${sha256}`)) continue;
    unfit.set(
      event,
      new CoppiceError("CPC_ARTIFACT_NOT_FOUND", { detail: `Upload ${sha256} before the outcome names it.` }),
    );
  }
  return unfit;
};

const paramsOf = async (
  context: CommitContext,
  tx: Queryable,
  set: WorkingSet,
): Promise<(run: RunWork) => JsonValue> => {
  const needed = [...set.runs.values()].filter((run) => run.isTouched && run.first === undefined);
  const stored = await context.facts.runs(
    tx,
    needed.map((run) => run.id),
  );
  return (run) =>
    run.first === undefined
      ? (stored.get(run.id)?.params ?? null)
      : (JSON.parse(run.first.params) as JsonValue);
};

const grantResults = (
  events: readonly EngineEvent[],
  results: EventResult[],
  granted: ReadonlyMap<FinishEvent, Begun>,
): void => {
  for (const [index, event] of events.entries()) {
    const next = event.type === "finish" ? granted.get(event) : undefined;
    if (next !== undefined) results[index] = { type: "accepted", next };
  }
};

// ── write ─────────────────────────────────────────────────────────────────────────────────────────

const bellOf = (facts: Facts, row: RowWork): Bell => ({
  classKey: facts.classById(classIdOf(row))?.key ?? "cpu",
  runId: row.run.id,
  step: row.step,
  item: row.item,
  attempt: row.attempt,
  ring: row.ring,
  priority: priorityOf(row),
});

const toWrite = (row: RowWork): NewStepRun => ({
  runId: row.run.id,
  step: row.step,
  item: row.item,
  state: row.state,
  attempt: row.attempt,
  ring: row.ring,
  failed: row.failed,
  lost: row.lost,
  workerId: row.workerId,
  lease: row.lease,
  isCancelRequested: row.isCancelRequested,
  dueInMs: row.dueInMs,
  isNewlyReady: row.isNewlyReady,
  output: row.output === undefined ? null : JSON.stringify(row.output),
  error: row.error === null ? null : JSON.stringify(row.error),
  projectId: row.run.version.projectId,
  classId: classIdOf(row),
  priority: priorityOf(row),
  isPooled: poolsOf(row).length > 0,
  name: row.name,
});

/** One row's new state, as it stands in the run's feed. */
const changeOf = (row: RowWork): JsonValue => ({
  step: row.step,
  item: row.item,
  state: row.state,
  attempt: row.attempt,
  ...(row.name === null ? {} : { name: row.name }),
  ...(row.workerId === null ? {} : { worker: row.workerId }),
  ...(row.error === null ? {} : { error: { code: row.error.code, message: row.error.message } }),
});

const isTold = (row: RowWork): boolean => row.isNew || row.state !== row.savedState;

const write = async (
  context: CommitContext,
  tx: Queryable,
  set: WorkingSet,
  bells: readonly Bell[],
  rungOutboxIds: readonly number[],
): Promise<number> => {
  const runs = [...set.runs.values()].filter(
    (run) => run.changedRows.size > 0 || run.changes.length > 0 || run.isTouched,
  );
  const changed = runs.flatMap((run) => [...run.changedRows]);
  for (const run of runs) {
    for (const row of run.changedRows) if (isTold(row)) run.changes.push(changeOf(row));
    if (run.state !== "running") run.changes.push(endChange(run));
  }
  await insertRuns(
    tx,
    runs.flatMap((run) => (run.first === undefined ? [] : [{ ...run.first, ...afterState(run) }])),
  );
  await insertStepRuns(tx, changed.filter((row) => row.isNew).map(toWrite), context.leaseMs);
  await updateStepRuns(tx, changed.filter((row) => !row.isNew).map(toWrite), context.leaseMs);
  await insertAttempts(tx, set.attempts);
  await insertArtifactRefs(tx, set.artifacts);
  await updateRuns(
    tx,
    runs.filter((run) => run.first === undefined).map((run) => ({ id: run.id, ...afterState(run) })),
  );
  await insertEvents(
    tx,
    runs
      .filter((run) => run.changes.length > 0)
      .map((run) => ({
        runId: run.id,
        projectId: run.version.projectId,
        firstSeq: run.nextSeq,
        lastSeq: run.nextSeq + run.changes.length - 1,
        changes: JSON.stringify(run.changes),
      })),
  );
  await addToPools(tx, poolChanges(changed));
  await deleteOutbox(tx, rungOutboxIds);
  return bells.length === 0 ? 0 : insertOutbox(tx, bells.map((bell) => ({ ...bell })));
};

const endChange = (run: RunWork): JsonValue => ({
  run: run.state,
  ...(run.error === null ? {} : { error: { code: run.error.code, message: run.error.message } }),
});

const afterState = (run: RunWork) => ({
  state: run.state,
  summaries: run.summaries.map(encodeSummary),
  nextSeq: run.nextSeq + run.changes.length,
  error: run.error,
  cancelError: run.cancelError,
});

/** A row holds its weight while it is queued or running. */
const poolChanges = (rows: readonly RowWork[]): { projectId: string; name: string; delta: number }[] => {
  const deltas = new Map<string, { projectId: string; name: string; delta: number }>();
  for (const row of rows) {
    const sign = Number(holdsPools(row.state)) - Number(holdsPools(row.savedState));
    if (sign === 0) continue;
    for (const { projectId, name, weight } of poolsOf(row)) {
      const key = `${projectId}/${name}`;
      const entry = deltas.get(key) ?? { projectId, name, delta: 0 };
      entry.delta += sign * weight;
      deltas.set(key, entry);
    }
  }
  return [...deltas.values()].filter((entry) => entry.delta !== 0);
};

const holdsPools = (state: string | undefined): boolean => state === "queued" || state === "running";

/** What the process learns from a commit, once it stands. */
const noteChanges = (context: CommitContext, set: WorkingSet) => (): void => {
  const { capacity, metrics } = context;
  for (const run of set.runs.values()) {
    for (const row of run.changedRows) {
      if (!isTold(row)) continue;
      metrics.count("coppice_transitions_total", { to: row.state });
      const classId = classIdOf(row);
      if (row.savedState === "queued") capacity.noteQueued(classId, -1);
      if (row.state === "queued") capacity.noteQueued(classId, 1);
      if (row.state === "running" && row.workerId !== null) capacity.noteRunning(row.workerId, 1);
    }
  }
  for (const attempt of set.attempts) {
    metrics.count("coppice_attempts_total", { outcome: attempt.outcome });
    if (attempt.workerId !== null) capacity.noteRunning(attempt.workerId, -1);
  }
};

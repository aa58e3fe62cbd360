/**
 * Admission: which ready step runs get a slot that was just offered, which get a bell.
 *
 * What must stay true: priority, then age, decide, over all runs; a pool's weight is taken in the
 * same transaction that admits; rows of runs that another commit holds are left to it.
 */
import {
  isCoppiceError,
  type LeaseToken,
  type PipelineVersionId,
  type ProjectId,
  type RunId,
  type StepState,
  type WorkerId,
} from "@coppice/core";
import {
  loadStepRuns,
  loadWaiting,
  lockPools,
  lockRunsIfFree,
  type PoolState,
  type Queryable,
  type WaitingStepRun,
} from "@coppice/store";

import type { Capacity } from "./capacity.ts";
import { begin, begunOf, type OpenOffer, queueTimeoutLeftMs, stepOf } from "./decide.ts";
import type { Begun, FinishEvent } from "./events.ts";
import type { Facts, VersionFacts } from "./facts.ts";
import { addRow, addRun, findRow, move, type RowWork, type WorkingSet } from "./working-set.ts";

export interface AdmitContext {
  readonly tx: Queryable;
  readonly set: WorkingSet;
  readonly facts: Facts;
  readonly capacity: Capacity;
}

export interface Admission {
  /** Rows whose bell is to be rung. */
  readonly rung: readonly RowWork[];
  /** By finish event: what starts in the slot that it offered. */
  readonly granted: ReadonlyMap<FinishEvent, Begun>;
}

interface Candidate {
  readonly row: RowWork;
  readonly classId: number;
  readonly priority: number;
  /** Text that sorts like time; rows of this commit are the youngest. */
  readonly readyAt: string;
}

/** A bell that was rung less than this ago is about to be answered: leave its row alone. */
const BELL_SILENT_MS = 1000;
const YOUNGEST = "9999";

export const poolsOf = (row: RowWork): { projectId: ProjectId; name: string; weight: number }[] =>
  stepOf(row).pools.map((pool) => ({
    projectId: row.run.version.projectId,
    name: pool.name,
    weight: pool.weight,
  }));

export const classIdOf = (row: RowWork): number => row.run.version.classIds[row.step] ?? 0;

export const admit = async (
  context: AdmitContext,
  offers: readonly OpenOffer[],
  nudged: readonly number[],
): Promise<Admission> => {
  const own = ownCandidates(context.set);
  const classIds = new Set([...nudged, ...own.map((candidate) => candidate.classId)]);
  // Who waits for the room that was just given back is most often of the same class.
  for (const row of changedRows(context.set)) {
    if (poolsOf(row).length > 0 && !holdsPools(row.state)) classIds.add(classIdOf(row));
  }
  for (const offer of offers) {
    for (const classId of context.capacity.servedBy(offer.event.workerId)) classIds.add(classId);
  }
  const windows = new Map([...classIds].map((id) => [id, context.capacity.window(id)]));
  const limits = [...classIds].map((classId) => ({
    classId,
    limit:
      (windows.get(classId) ?? 0) +
      offers.filter(({ event }) => context.capacity.servedBy(event.workerId).has(classId)).length,
  }));
  const open = limits.filter((entry) => entry.limit > 0);
  if (open.length === 0) return { rung: [], granted: new Map() };

  const others = await otherCandidates(
    context,
    open.filter(({ classId }) => context.capacity.hasWaiting(classId)),
  );
  const candidates = [...own, ...others].toSorted(byOrder);
  const pools = await openPools(context, candidates);
  return distribute(context, candidates, offers, windows, pools);
};

const byOrder = (left: Candidate, right: Candidate): number =>
  right.priority - left.priority ||
  (left.readyAt < right.readyAt ? -1 : left.readyAt > right.readyAt ? 1 : 0);

const ownCandidates = (set: WorkingSet): Candidate[] => {
  const candidates: Candidate[] = [];
  for (const run of set.runs.values()) {
    for (const row of run.changedRows) {
      if (row.state !== "ready" || row.isHeldBack) continue;
      candidates.push({
        row,
        classId: classIdOf(row),
        priority: priorityOf(row),
        readyAt: YOUNGEST,
      });
    }
  }
  return candidates;
};

/** The run's plus the step's, inside what a doorbell can carry. */
export const priorityOf = (row: RowWork): number =>
  Math.max(-100, Math.min(100, row.run.priority + stepOf(row).priority));

/** Rows that wait in the database, their runs locked where nobody else holds them. */
const otherCandidates = async (
  context: AdmitContext,
  limits: readonly { classId: number; limit: number }[],
): Promise<Candidate[]> => {
  const { tx, set } = context;
  if (limits.length === 0) return [];
  const waiting = (await loadWaiting(tx, limits, BELL_SILENT_MS)).filter(
    (entry) => findRow(set, entry) === undefined,
  );
  if (waiting.length === 0) return [];
  const unlocked = new Set<RunId>();
  for (const entry of waiting) if (!set.runs.has(entry.runId)) unlocked.add(entry.runId);
  if (unlocked.size > 0) {
    for (const run of await lockRunsIfFree(tx, [...unlocked])) {
      const version = await readableVersion(context, run.versionId);
      if (version !== undefined) addRun(set, run, version);
    }
  }
  const reachable = waiting.filter((entry) => {
    const run = set.runs.get(entry.runId);
    return run !== undefined && run.state === "running";
  });
  return readAgain(context, reachable);
};

/**
 * A version that this program can't read is left to another: it must not cost this commit its own
 * events.
 */
const readableVersion = async (
  { tx, facts }: AdmitContext,
  id: PipelineVersionId,
): Promise<VersionFacts | undefined> => {
  try {
    return await facts.version(tx, id);
  } catch (error) {
    const isPassing = isCoppiceError(error) ? error.isRetryable : "severity" in Object(error);
    if (isPassing) throw error;
    return undefined;
  }
};

/** Between the look and the lock another commit may have moved them. */
const readAgain = async (
  { tx, set }: AdmitContext,
  waiting: readonly WaitingStepRun[],
): Promise<Candidate[]> => {
  const byKey = new Map(
    waiting.map((entry) => [`${entry.runId}/${entry.step}/${entry.item}`, entry]),
  );
  const candidates: Candidate[] = [];
  for (const stored of await loadStepRuns(tx, waiting)) {
    const entry = byKey.get(`${stored.runId}/${stored.step}/${stored.item}`);
    const run = set.runs.get(stored.runId);
    if (entry === undefined || run === undefined) continue;
    if (stored.state !== entry.state || stored.attempt !== entry.attempt) continue;
    if (run.isCancelled && run.version.graph.pipeline.steps[stored.step]?.finally !== true)
      continue;
    const row = addRow(set, run, stored);
    candidates.push({
      row,
      classId: entry.classId,
      priority: entry.priority,
      readyAt: entry.readyAt,
    });
  }
  return candidates;
};

type Pools = Map<string, { readonly state: PoolState; used: number }>;

const poolKey = (pool: { readonly projectId: string; readonly name: string }): string =>
  `${pool.projectId}/${pool.name}`;

const changedRows = (set: WorkingSet): RowWork[] =>
  [...set.runs.values()].flatMap((run) => [...run.changedRows]);

/** All pools of the commit at once, in order; what this commit gives back is free already. */
const openPools = async (
  { tx, set }: AdmitContext,
  candidates: readonly Candidate[],
): Promise<Pools> => {
  const changed = changedRows(set);
  const wanted = new Map<string, { projectId: string; name: string }>();
  for (const row of [...candidates.map((candidate) => candidate.row), ...changed]) {
    for (const pool of poolsOf(row)) wanted.set(poolKey(pool), pool);
  }
  if (wanted.size === 0) return new Map();
  const states = await lockPools(tx, [...wanted.values()]);
  const pools: Pools = new Map(
    states.map((state) => [poolKey(state), { state, used: state.used }]),
  );
  for (const row of changed) {
    const givesBack = holdsPools(row.savedState) && !holdsPools(row.state);
    if (!givesBack) continue;
    for (const pool of poolsOf(row)) {
      const known = pools.get(poolKey(pool));
      if (known !== undefined) known.used = Math.max(0, known.used - pool.weight);
    }
  }
  return pools;
};

/** A row holds its weight while it is queued or running. */
export const holdsPools = (state: StepState | undefined): boolean =>
  state === "queued" || state === "running";

/** A queued row holds its weight already; a pool that nobody made has no room. */
const hasRoom = (pools: Pools, row: RowWork): boolean =>
  row.state === "queued" ||
  poolsOf(row).every((pool) => {
    const known = pools.get(poolKey(pool));
    return known !== undefined && known.used + pool.weight <= known.state.capacity;
  });

const takeRoom = (pools: Pools, row: RowWork): void => {
  if (row.state === "queued") return;
  for (const pool of poolsOf(row)) {
    const known = pools.get(poolKey(pool));
    if (known !== undefined) known.used += pool.weight;
  }
};

const distribute = (
  { capacity }: AdmitContext,
  candidates: readonly Candidate[],
  offers: readonly OpenOffer[],
  windows: Map<number, number>,
  pools: Pools,
): Admission => {
  const free = [...offers];
  const rung: RowWork[] = [];
  const granted = new Map<FinishEvent, Begun>();
  for (const { row, classId } of candidates) {
    if (!hasRoom(pools, row)) continue;
    const at = free.findIndex((offer) => suits(offer, row, classId, capacity));
    const offer = free[at];
    if (offer !== undefined) {
      free.splice(at, 1);
      takeRoom(pools, row);
      grant(row, offer, granted);
      continue;
    }
    const window = windows.get(classId) ?? 0;
    if (row.state === "ready" && window > 0) {
      windows.set(classId, window - 1);
      takeRoom(pools, row);
      row.ring = nextRing(row.ring);
      row.dueInMs = queueTimeoutLeftMs(row);
      const isNewlyReady = row.isNewlyReady;
      move(row, "queued");
      row.isNewlyReady = isNewlyReady;
      rung.push(row);
    }
  }
  return { rung, granted };
};

/** A bell's number fits PostgreSQL's smallint for ever: one that returns was forgotten long ago. */
const RING_MAX = 32_000;
const nextRing = (ring: number): number => (ring >= RING_MAX ? 1 : ring + 1);

/** One slot was offered: it takes a step of one slot and no more GPUs than came free with it. */
const suits = (offer: OpenOffer, row: RowWork, classId: number, capacity: Capacity): boolean => {
  const { resources } = stepOf(row);
  return (
    resources.slots === 1 &&
    resources.gpu <= (offer.event.offer?.gpus ?? 0) &&
    capacity.servedBy(offer.event.workerId).has(classId)
  );
};

const grant = (row: RowWork, offer: OpenOffer, granted: Map<FinishEvent, Begun>): void => {
  const lease = offer.event.offer?.lease as LeaseToken;
  const workerId: WorkerId = offer.event.workerId;
  const isNewlyReady = row.isNewlyReady;
  begin(row, { lease, workerId });
  row.isNewlyReady = isNewlyReady;
  offer.attempt.granted = {
    runId: row.run.id,
    step: row.step,
    item: row.item,
    attempt: row.attempt,
    lease,
  };
  granted.set(offer.event, begunOf(row));
};

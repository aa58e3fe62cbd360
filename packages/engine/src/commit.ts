/**
 * The one writer of run state: a batch of events becomes one transaction.
 *
 * The order is the house's lock order: idempotency keys, runs in id order, then rows; pools last.
 * Then every event is decided, every touched run planned, what became ready admitted, and all of it
 * written set-wise, with the feed and the outbox. What must stay true: nothing outside this file
 * writes those tables.
 */
import { attemptKey, CoppiceError, type JsonValue, type Metrics, type RunId } from "@coppice/core";
import type { Bell } from "@coppice/queue";
import { loadUploaded, type Queryable } from "@coppice/store";

import { admit, classIdOf } from "./admit.ts";
import type { Capacity } from "./capacity.ts";
import { decide, type DecideContext, type Decision, type OpenOffer } from "./decide.ts";
import type { Begun, EngineEvent, EventResult, FinishEvent, SubmitEvent } from "./events.ts";
import type { Facts } from "./facts.ts";
import { claimKeys } from "./idempotency.ts";
import { load } from "./load.ts";
import type { OutputCache } from "./outputs.ts";
import { planRun } from "./plan-run.ts";
import { newWorkingSet, type RunWork, type WorkingSet } from "./working-set.ts";
import { bellOf, isTold, write } from "./write.ts";

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
  const replays = await claimKeys(
    tx,
    events.filter((event) => event.type === "submit"),
  );
  const { past, stillGranted } = await load(context.facts, tx, set, events, replays);
  context.failpoint("commit.locked");
  const unfit = await findMissingArtifacts(tx, set, events);
  const { results, offers } = decideAll(
    {
      set,
      past,
      stillGranted,
      random: context.random,
      isFencingOff: context.controls.isFencingOff === true,
    },
    events,
    (event) => earlyResult(event, replays, unfit),
  );

  const params = await paramsOf(context, tx, set);
  for (const run of set.runs.values()) {
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
  const outboxId = await write(tx, set, isOutboxOff ? [] : bells, rungOutboxIds, context.leaseMs);
  context.failpoint("commit.written");
  const afterCommit = noteChanges(context, set);
  return { results, bells, outboxId, runIds: changedRunIds(set), afterCommit };
};

const decideAll = (
  context: DecideContext,
  events: readonly EngineEvent[],
  early: (event: EngineEvent) => EventResult | undefined,
): { readonly results: EventResult[]; readonly offers: OpenOffer[] } => {
  const results: EventResult[] = [];
  const offers: OpenOffer[] = [];
  const copies = copiesOfFinishes(events);
  for (const event of events) {
    const known = copies.has(event) ? SENT_TWICE : early(event);
    const decision: Decision = known === undefined ? decide(context, event) : { result: known };
    results.push(decision.result);
    if (decision.offer !== undefined) offers.push(decision.offer);
  }
  return { results, offers };
};

/** Stands in for a second copy's result until its original is answered. */
const SENT_TWICE: EventResult = { type: "done" };

/** Finishes that came twice in this very batch, with their originals. */
const copiesOfFinishes = (
  events: readonly EngineEvent[],
): ReadonlyMap<EngineEvent, FinishEvent> => {
  const originals = new Map<string, FinishEvent>();
  const copies = new Map<EngineEvent, FinishEvent>();
  for (const event of events) {
    if (event.type !== "finish") continue;
    const key = `${attemptKey(event.ref)}/${event.lease}`;
    const original = originals.get(key);
    if (original === undefined) originals.set(key, event);
    else copies.set(event, original);
  }
  return copies;
};

const changedRunIds = (set: WorkingSet): RunId[] =>
  [...set.runs.values()].filter((run) => run.changes.length > 0).map((run) => run.id);

/**
 * Results that are known before deciding: replays of a key, and outcomes that name bytes nobody
 * uploaded.
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
      new CoppiceError("CPC_ARTIFACT_NOT_FOUND", {
        detail: `Upload ${sha256} before the outcome names it.`,
      }),
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
  const copies = copiesOfFinishes(events);
  for (const [index, event] of events.entries()) {
    const original = copies.get(event);
    const answer = original === undefined ? undefined : results[events.indexOf(original)];
    if (answer !== undefined) results[index] = answer;
  }
};

/** What the process learns from a commit, once it stands. */
const noteChanges = (context: CommitContext, set: WorkingSet) => (): void => {
  const { capacity, metrics } = context;
  for (const run of set.runs.values()) {
    for (const row of run.changedRows) {
      if (!isTold(row)) continue;
      if (row.output !== undefined && !isMapped(run, row.step)) {
        context.outputs.remember(run.id, row.step, row.output);
      }
      metrics.count("coppice_transitions_total", { to: row.state });
      const classId = classIdOf(row);
      if (row.savedState === "ready") capacity.noteReady(classId, -1);
      if (row.state === "ready") capacity.noteReady(classId, 1);
      if (row.savedState === "queued") capacity.noteQueued(classId, -1);
      if (row.state === "queued") capacity.noteQueued(classId, 1);
      if (row.state === "running" && row.workerId !== null) {
        capacity.noteRunning(row.workerId, 1, gpusOf(run, row.step));
      }
    }
  }
  for (const attempt of set.attempts) {
    metrics.count("coppice_attempts_total", { outcome: attempt.outcome });
    const run = set.runs.get(attempt.runId);
    if (attempt.workerId !== null && run !== undefined) {
      capacity.noteRunning(attempt.workerId, -1, gpusOf(run, attempt.step));
    }
  }
};

const isMapped = (run: RunWork, step: number): boolean =>
  run.version.graph.pipeline.steps[step]?.map !== undefined;

const gpusOf = (run: RunWork, step: number): number =>
  run.version.graph.pipeline.steps[step]?.resources.gpu ?? 0;

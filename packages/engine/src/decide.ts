/**
 * What one event does to the working set, and what its sender is told.
 *
 * What must stay true: the fence is (attempt, lease); whoever does not hold it changes nothing. An event
 * that comes a second time changes nothing and is answered as before. No I/O here: whatever an event needs
 * is in the working set already.
 */
import {
  attemptKey,
  CoppiceError,
  type ErrorRecord,
  isFinalStepState,
  toErrorRecord,
} from "@coppice/core";
import { type AttemptEnd, decideOutcome, type StepIr } from "@coppice/pipeline";
import type { PastAttempt } from "@coppice/store";

import type {
  Begun,
  CancelRunEvent,
  CancelStepEvent,
  EngineEvent,
  EventResult,
  FinishEvent,
  NoSlotEvent,
  StartEvent,
  TimerEvent,
} from "./events.ts";
import {
  type AttemptWork,
  findRow,
  makeRow,
  move,
  type RowWork,
  type RunWork,
  touch,
  type WorkingSet,
} from "./working-set.ts";

export interface DecideContext {
  readonly set: WorkingSet;
  /** Ended attempts of finishes whose fence no longer holds, by `attemptKey`. */
  readonly past: ReadonlyMap<string, PastAttempt>;
  /** What those finishes started and still runs, by `attemptKey` of the finished attempt. */
  readonly stillGranted: ReadonlyMap<string, Begun>;
  /** In [0, 1), for the jitter of backoffs. */
  readonly random: () => number;
  /** For the negative control of the invariant checker only. */
  readonly isFencingOff: boolean;
}

/** An accepted finish that gives up a slot; admission may start an attempt in it. */
export interface OpenOffer {
  readonly event: FinishEvent;
  readonly attempt: AttemptWork;
}

export interface Decision {
  readonly result: EventResult;
  readonly offer?: OpenOffer;
}

const DONE: Decision = { result: { type: "done" } };
const SUPERSEDED: Decision = { result: { type: "superseded" } };
/** Past this, the server itself ends an attempt whose worker did not enforce the timeout. */
const RUN_TIMEOUT_SLACK_MS = 30_000;

export const stepOf = (row: { readonly run: RunWork; readonly step: number }): StepIr => {
  const step = row.run.version.graph.pipeline.steps[row.step];
  if (step === undefined) {
    throw new CoppiceError("CPC_STEP_NOT_FOUND", {
      detail: `The pipeline "${row.run.version.name}" has no step with index ${row.step}.`,
    });
  }
  return step;
};

export const begunOf = (row: RowWork): Begun => {
  if (row.lease === null)
    throw new CoppiceError("CPC_INTERNAL", { detail: "A begun attempt has a lease." });
  return {
    runId: row.run.id,
    step: row.step,
    item: row.item,
    attempt: row.attempt,
    lease: row.lease,
    version: row.run.version,
    name: row.name,
    checkpoint: row.checkpoint,
  };
};

/** Starts the row's attempt under this lease. */
export const begin = (row: RowWork, event: Pick<StartEvent, "lease" | "workerId">): void => {
  const { timeouts } = stepOf(row);
  row.lease = event.lease;
  row.workerId = event.workerId;
  row.dueInMs =
    timeouts.runMs === undefined ? null : timeouts.runMs + timeouts.graceMs + RUN_TIMEOUT_SLACK_MS;
  move(row, "running");
};

/** What is left of the time that the row may wait for a worker. */
export const queueTimeoutLeftMs = (row: RowWork): number | null => {
  const { queuedMs } = stepOf(row).timeouts;
  return queuedMs === undefined ? null : Math.max(0, Math.round(queuedMs - row.waitedMs));
};

const decideStart = (set: WorkingSet, event: StartEvent): Decision => {
  const row = findRow(set, event.ref);
  if (row === undefined || row.attempt !== event.ref.attempt) return SUPERSEDED;
  if (row.state === "running" && row.lease === event.lease) {
    return { result: { type: "started", begun: begunOf(row) } };
  }
  if (row.state !== "queued") return SUPERSEDED;
  begin(row, event);
  return { result: { type: "started", begun: begunOf(row) } };
};

const decideNoSlot = (set: WorkingSet, event: NoSlotEvent): Decision => {
  const row = findRow(set, event.ref);
  // An older ring's bell says nothing about the newest one.
  if (row?.state === "queued" && row.attempt === event.ref.attempt && row.ring === event.ring) {
    row.dueInMs = queueTimeoutLeftMs(row);
    move(row, "ready");
    // It keeps its place in the line.
    row.isNewlyReady = false;
    row.isHeldBack = true;
  }
  return DONE;
};

const endOf = (event: FinishEvent): AttemptEnd => {
  const { outcome } = event;
  if (outcome.type !== "failed") return { type: outcome.type };
  return outcome.retryAfterMs === undefined
    ? { type: "failed", isRetryable: outcome.isRetryable }
    : { type: "failed", isRetryable: outcome.isRetryable, retryAfterMs: outcome.retryAfterMs };
};

/** Ends the row's attempt: the step run moves on, the attempt becomes history. */
const endAttempt = (
  context: DecideContext,
  row: RowWork,
  end: AttemptEnd,
  error: ErrorRecord | null,
  usage: string | null,
): AttemptWork => {
  const decision = decideOutcome({
    step: stepOf(row),
    attempt: row.attempt,
    failedCount: row.failed,
    lostCount: row.lost,
    isCancelled: row.run.isCancelled || row.isCancelRequested,
    outcome: end,
    random: context.random(),
  });
  const attempt: AttemptWork = {
    runId: row.run.id,
    step: row.step,
    item: row.item,
    attempt: row.attempt,
    projectId: row.run.version.projectId,
    outcome: decision.attemptOutcome,
    workerId: row.workerId,
    lease: row.lease,
    startedAt: row.startedAt,
    error: error === null ? null : JSON.stringify(error),
    usage,
    granted: null,
  };
  context.set.attempts.push(attempt);
  if (decision.attemptOutcome === "failed") row.failed += 1;
  if (decision.attemptOutcome === "lost") row.lost += 1;
  row.lease = null;
  row.dueInMs = null;
  row.error = decision.state === "succeeded" ? null : error;
  if (decision.state === "retrying" || decision.state === "ready") {
    row.attempt += 1;
    row.ring = 0;
    row.workerId = null;
    row.waitedMs = 0;
    row.dueInMs = decision.state === "retrying" ? (decision.delayMs ?? 0) : queueTimeoutLeftMs(row);
  }
  if (decision.state === "quarantined") {
    row.error = toErrorRecord(
      new CoppiceError("CPC_QUARANTINED", { detail: `It was lost ${row.lost} times.` }),
    );
  }
  if (decision.state === "cancelled" && row.error === null) row.error = row.run.cancelError;
  move(row, decision.state);
  return attempt;
};

const decideFinish = (context: DecideContext, event: FinishEvent): Decision => {
  const { set } = context;
  const row = findRow(set, event.ref);
  const holdsFence =
    row?.state === "running" &&
    (context.isFencingOff || (row.attempt === event.ref.attempt && row.lease === event.lease));
  if (row === undefined || !holdsFence) return answerAgain(context, event);

  const { outcome } = event;
  const attempt = endAttempt(
    context,
    row,
    endOf(event),
    outcome.type === "failed" ? (outcome.error as ErrorRecord) : null,
    event.usage === undefined ? null : JSON.stringify(event.usage),
  );
  if (outcome.type === "succeeded" && row.state === "succeeded") {
    row.output = outcome.output;
    for (const artifact of outcome.artifacts) {
      set.artifacts.push({
        runId: row.run.id,
        step: row.step,
        item: row.item,
        attempt: attempt.attempt,
        name: artifact.name,
        projectId: row.run.version.projectId,
        sha256: artifact.sha256,
        sizeBytes: artifact.sizeBytes,
        kind: artifact.kind,
        metadata: JSON.stringify(artifact.metadata),
      });
    }
  }
  const result: EventResult = { type: "accepted" };
  return event.offer === undefined ? { result } : { result, offer: { event, attempt } };
};

/** A finish whose fence does not hold: sent again, or of an attempt that was superseded. */
const answerAgain = (context: DecideContext, event: FinishEvent): Decision => {
  const key = attemptKey(event.ref);
  const past = context.past.get(key);
  if (past === undefined || past.lease !== event.lease || past.outcome === "lost")
    return SUPERSEDED;
  const next = context.stillGranted.get(key);
  const isAnswer = next !== undefined && next.lease === event.offer?.lease;
  return { result: isAnswer ? { type: "accepted", next } : { type: "accepted" } };
};

const decideTimer = (context: DecideContext, event: TimerEvent): Decision => {
  const row = findRow(context.set, event.ref);
  if (row === undefined || row.attempt !== event.ref.attempt || isFinalStepState(row.state))
    return DONE;
  // Another event of this batch has moved it: what was due of it as it was read says nothing any more.
  if (row.run.changedRows.has(row)) return DONE;
  switch (event.type) {
    case "lost":
      if (row.state === "running" && row.isLeaseExpired) {
        const error = toErrorRecord(new CoppiceError("CPC_WORKER_LOST"));
        endAttempt(context, row, { type: "lost" }, error, null);
      }
      return DONE;
    case "ringAgain":
      // The order of things stays; only its bell is rung once more, under a new number.
      if (row.state !== "queued" || row.ring !== (event.ring ?? row.ring)) return DONE;
      row.dueInMs = queueTimeoutLeftMs(row);
      move(row, "ready");
      row.isNewlyReady = false;
      return DONE;
    case "due":
      if (row.isDue) decideDue(context, row);
      return DONE;
  }
};

const decideDue = (context: DecideContext, row: RowWork): void => {
  if (row.state === "retrying") {
    row.waitedMs = 0;
    row.dueInMs = queueTimeoutLeftMs(row);
    move(row, "ready");
  } else if (row.state === "running") {
    const error = toErrorRecord(new CoppiceError("CPC_STEP_TIMEOUT"));
    endAttempt(context, row, { type: "failed", isRetryable: true }, error, null);
  } else {
    row.error = toErrorRecord(new CoppiceError("CPC_QUEUE_TIMEOUT"));
    row.dueInMs = null;
    move(row, "failed");
  }
};

const decideCancelRun = (context: DecideContext, event: CancelRunEvent): Decision => {
  const run = context.set.runs.get(event.runId);
  if (run === undefined) return refuse(new CoppiceError("CPC_RUN_NOT_FOUND"));
  if (run.state !== "running" || run.isCancelled) return DONE;
  run.isCancelled = true;
  run.cancelError = event.error;
  run.isTouched = true;
  run.changes.push({ run: "cancelling", reason: event.error.message });
  for (const row of context.set.rows.values()) {
    if (row.run === run && !stepOf(row).finally) cancelRow(row, event.error);
  }
  return DONE;
};

const cancelRow = (row: RowWork, error: ErrorRecord): void => {
  if (row.state === "running") {
    row.isCancelRequested = true;
    touch(row);
  } else if (!isFinalStepState(row.state)) {
    row.error = error;
    row.dueInMs = null;
    move(row, "cancelled");
  }
};

const decideCancelStep = (context: DecideContext, event: CancelStepEvent): Decision => {
  const run = context.set.runs.get(event.runId);
  if (run === undefined) return refuse(new CoppiceError("CPC_RUN_NOT_FOUND"));
  const summary = run.summaries[event.step];
  if (summary === undefined) return refuse(new CoppiceError("CPC_STEP_NOT_FOUND"));
  if (run.state !== "running") return DONE;
  if (event.item !== undefined && event.item >= summary.made) {
    return refuse(
      new CoppiceError("CPC_STEP_NOT_FOUND", {
        detail: `Item ${event.item} has not been made yet; ${summary.made} have.`,
        hint: "Cancel the whole step, or wait until the item is ready.",
      }),
    );
  }
  for (const row of context.set.rows.values()) {
    const isMeant =
      row.step === event.step && (event.item === undefined || row.item === event.item);
    if (row.run === run && isMeant) cancelRow(row, event.error);
  }
  if (event.item === undefined) {
    const summaries = [...run.summaries];
    const after = summaries[event.step] ?? summary;
    if (after.made === 0 && !after.isOpen) {
      summaries[event.step] = { total: 1, isOpen: false, made: 1, counts: { cancelled: 1 } };
      makeRow(context.set, run, event.step, 0, "cancelled", null).error = event.error;
    } else {
      // What has no row yet is never made.
      summaries[event.step] = { ...after, total: after.made };
    }
    run.summaries = summaries;
    run.isTouched = true;
  }
  return DONE;
};

const refuse = (error: CoppiceError): Decision => ({ result: { type: "refused", error } });

export const decide = (context: DecideContext, event: EngineEvent): Decision => {
  switch (event.type) {
    case "start":
      return decideStart(context.set, event);
    case "noSlot":
      return decideNoSlot(context.set, event);
    case "finish":
      return decideFinish(context, event);
    case "lost":
    case "due":
    case "ringAgain":
      return decideTimer(context, event);
    case "cancelRun":
      return decideCancelRun(context, event);
    case "cancelStep":
      return decideCancelStep(context, event);
    case "submit":
      return { result: { type: "submitted", isReplay: false } };
    case "nudge": {
      const run = event.runId === undefined ? undefined : context.set.runs.get(event.runId);
      if (run?.state === "running") run.isTouched = true;
      return DONE;
    }
  }
};

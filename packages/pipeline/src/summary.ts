/**
 * One summary per step of a run: all that the planner ever sees of its items.
 *
 * What must stay true: `made` equals the number of step-run rows, `counts` their number per state
 * (invariant I5 recounts them). Rows are made when they become ready, not before, so a step run that
 * has no row is pending, and a map of 10,000 items costs nothing until its items start.
 */
import { CoppiceError, STEP_STATES, type StepState } from "@coppice/core";

import type { Graph } from "./graph.ts";

export interface StepSummary {
  /** How many items the step has: 1 without a map, null while a map's length is unknown. */
  readonly total: number | null;
  /** Whether its rule held, its condition was true and its items may be made. */
  readonly isOpen: boolean;
  /** Items 0 … made-1 have a row. */
  readonly made: number;
  readonly counts: Readonly<Partial<Record<StepState, number>>>;
}

export const emptySummary = (isMapped: boolean): StepSummary => ({
  total: isMapped ? null : 1,
  isOpen: false,
  made: 0,
  counts: {},
});

/** Compact and stable: [total or -1, isOpen, made, index of state, count, index of state, count…]. */
export type EncodedSummary = readonly number[];

export const encodeSummary = (summary: StepSummary): EncodedSummary => {
  const encoded = [summary.total ?? -1, summary.isOpen ? 1 : 0, summary.made];
  for (let index = 0; index < STEP_STATES.length; index += 1) {
    const state = STEP_STATES[index];
    const count = state === undefined ? undefined : summary.counts[state];
    if (count !== undefined && count !== 0) encoded.push(index, count);
  }
  return encoded;
};

export const decodeSummary = (encoded: EncodedSummary): StepSummary => {
  const counts: Partial<Record<StepState, number>> = {};
  for (let at = 3; at + 1 < encoded.length; at += 2) {
    const state = STEP_STATES[encoded[at] ?? -1];
    if (state !== undefined) counts[state] = encoded[at + 1] ?? 0;
  }
  const total = encoded[0] ?? -1;
  return {
    total: total < 0 ? null : total,
    isOpen: encoded[1] === 1,
    made: encoded[2] ?? 0,
    counts,
  };
};

/** How many rows are not final. */
export const unfinished = ({ counts }: StepSummary): number =>
  (counts.ready ?? 0) + (counts.queued ?? 0) + (counts.running ?? 0) + (counts.retrying ?? 0);

/** Whether all its items are known, made and final. A map over an empty list is final once open. */
export const isFinal = (summary: StepSummary): boolean =>
  summary.made === summary.total && unfinished(summary) === 0;

/** Whether any item ended in a state that downstream rules count as a failure. */
export const hasFailed = ({ counts }: StepSummary): boolean =>
  (counts.failed ?? 0) +
    (counts.upstream_failed ?? 0) +
    (counts.quarantined ?? 0) +
    (counts.cancelled ?? 0) >
  0;

/** Whether the step is final, something of it succeeded and nothing failed. */
export const hasSucceeded = (summary: StepSummary): boolean =>
  isFinal(summary) &&
  !hasFailed(summary) &&
  (summary.counts.succeeded ?? 0) + (summary.counts.pruned ?? 0) > 0;

/** With `count` rows moved from one state to another; states without rows have no entry. */
export const moveItems = (
  summary: StepSummary,
  from: StepState,
  to: StepState,
  count = 1,
): StepSummary => {
  const available = summary.counts[from] ?? 0;
  if (count > available || count < 0) {
    throw new CoppiceError("CPC_INTERNAL", {
      detail: `Expected 0 to ${available} items in state ${from} to move. Received: ${count}.`,
    });
  }
  if (count === 0 || from === to) return summary;
  const counts: Partial<Record<StepState, number>> = {};
  for (const state of STEP_STATES) {
    const change = state === from ? -count : state === to ? count : 0;
    const after = (summary.counts[state] ?? 0) + change;
    if (after !== 0) counts[state] = after;
  }
  return { ...summary, counts };
};

const WAITING_STATES = ["ready", "queued", "retrying"] as const satisfies readonly StepState[];

export interface MovedItems {
  readonly step: number;
  readonly from: (typeof WAITING_STATES)[number];
  readonly count: number;
}

/**
 * A cancelled run: what waits in ordinary steps becomes cancelled. Running items stay until their
 * workers answer, `finally` steps are left alone; `planNext` does the rest.
 */
export const cancelWaiting = (
  graph: Graph,
  summaries: readonly StepSummary[],
): { readonly summaries: readonly StepSummary[]; readonly moved: readonly MovedItems[] } => {
  const moved: MovedItems[] = [];
  const after = summaries.map((summary, step) => {
    if (graph.pipeline.steps[step]?.finally !== false) return summary;
    let changed = summary;
    for (const from of WAITING_STATES) {
      const count = summary.counts[from] ?? 0;
      if (count === 0) continue;
      moved.push({ step, from, count });
      changed = moveItems(changed, from, "cancelled", count);
    }
    return changed;
  });
  return { summaries: after, moved };
};

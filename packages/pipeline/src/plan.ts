/**
 * What happens next in a run: the one planner.
 *
 * Pure and set-wise: it sees one summary per step and the few facts that it asked for, never the
 * items, so its cost is that of the graph. `planNext` may be called any number of times; what it
 * wants done a second time is nothing.
 */
import {
  CoppiceError,
  type ErrorRecord,
  type FinalStepState,
  type RunState,
  toErrorRecord,
} from "@coppice/core";

import type { Graph } from "./graph.ts";
import { MAP_WINDOW, type MapSpec, type StepIr } from "./ir.ts";
import { acceptsFailure, decideRule, tallyOf } from "./rules.ts";
import { hasFailed, hasSucceeded, isFinal, type StepSummary, unfinished } from "./summary.ts";

/** A fact about a step that is due: a map's length, a condition's truth, or why there is none. */
export type Fact<T> = { readonly value: T } | { readonly error: ErrorRecord };

export interface PlanInput {
  readonly graph: Graph;
  readonly run: { readonly state: RunState; readonly isCancelled: boolean };
  /** By step index; the batch's transitions are already counted in. */
  readonly summaries: readonly StepSummary[];
  readonly mapLengths: ReadonlyMap<number, Fact<number>>;
  readonly whenTruths: ReadonlyMap<number, Fact<boolean>>;
}

export type SettledState = Extract<
  FinalStepState,
  "skipped" | "upstream_failed" | "failed" | "cancelled"
>;

export interface Plan {
  /** Facts without which these steps can't go on: load them and plan again. */
  readonly needs: { readonly whens: readonly number[]; readonly lengths: readonly number[] };
  /** Items [from, to) of these steps become ready: make their rows. */
  readonly make: readonly { readonly step: number; readonly from: number; readonly to: number }[];
  /** Steps that end without running: one row, item 0, in this state. */
  readonly settle: readonly {
    readonly step: number;
    readonly state: SettledState;
    readonly error?: ErrorRecord;
  }[];
  /** The run's final state, where all its steps are final. */
  readonly end: Exclude<RunState, "running"> | undefined;
  /**
   * With everything above counted in (rows of `make` as ready). A step whose summary did not change
   * keeps the very object of the input; where none changed, so does the whole list.
   */
  readonly summaries: readonly StepSummary[];
}

/** A plan while it is being made. */
interface Draft {
  readonly input: PlanInput;
  readonly whens: number[];
  readonly lengths: number[];
  readonly make: { step: number; from: number; to: number }[];
  readonly settle: { step: number; state: SettledState; error?: ErrorRecord }[];
  /** The input's own list until the first change, a copy from then on. */
  summaries: readonly StepSummary[];
  copy: StepSummary[] | undefined;
}

const write = (draft: Draft, step: number, summary: StepSummary): void => {
  draft.copy ??= [...draft.summaries];
  draft.copy[step] = summary;
  draft.summaries = draft.copy;
};

const settle = (draft: Draft, step: number, state: SettledState, error?: ErrorRecord): void => {
  draft.settle.push(error === undefined ? { step, state } : { step, state, error });
  write(draft, step, { total: 1, isOpen: false, made: 1, counts: { [state]: 1 } });
};

/** Makes as many further items of an open step as its window has room for. */
const makeItems = (draft: Draft, step: number, spec: StepIr, summary: StepSummary): void => {
  const { total, made, counts } = summary;
  const room = (spec.map?.concurrency ?? MAP_WINDOW) - unfinished(summary);
  const to = Math.min(total ?? 0, made + room);
  if (to <= made) return;
  draft.make.push({ step, from: made, to });
  write(draft, step, {
    ...summary,
    made: to,
    counts: { ...counts, ready: (counts.ready ?? 0) + to - made },
  });
};

const openWith = (draft: Draft, step: number, spec: StepIr, total: number): void => {
  const summary: StepSummary = { total, isOpen: true, made: 0, counts: {} };
  // A map over an empty list makes nothing and is final by being open.
  write(draft, step, summary);
  makeItems(draft, step, spec, summary);
};

/** Runs the step's only item or, where it is mapped, as many items as its list has. */
const open = (draft: Draft, step: number, spec: StepIr): void => {
  if (spec.map === undefined) {
    openWith(draft, step, spec, 1);
    return;
  }
  const length = draft.input.mapLengths.get(step);
  if (length === undefined) draft.lengths.push(step);
  else if ("error" in length) settle(draft, step, "failed", length.error);
  else if (length.value > spec.map.itemsMax) {
    settle(draft, step, "failed", tooLarge(spec, spec.map, length.value));
  } else openWith(draft, step, spec, length.value);
};

const tooLarge = (spec: StepIr, map: MapSpec, length: number): ErrorRecord =>
  toErrorRecord(
    new CoppiceError("CPC_MAP_TOO_LARGE", {
      detail: `Step "${spec.key}" takes at most ${map.itemsMax} items. Received: ${length}.`,
      data: { itemsMax: map.itemsMax, length },
    }),
  );

/** A step of which nothing has been decided yet. */
const decide = (draft: Draft, step: number, spec: StepIr): void => {
  const verdict = decideRule(
    spec.rule,
    tallyOf(draft.input.graph.upstream[step] ?? [], draft.summaries),
  );
  if (verdict === "wait") return;
  if (verdict === "skip") settle(draft, step, "skipped");
  else if (verdict === "upstream_failed") settle(draft, step, "upstream_failed");
  else if (spec.when === undefined) open(draft, step, spec);
  else {
    const truth = draft.input.whenTruths.get(step);
    if (truth === undefined) draft.whens.push(step);
    else if ("error" in truth) settle(draft, step, "failed", truth.error);
    else if (truth.value) open(draft, step, spec);
    else settle(draft, step, "skipped");
  }
};

/** @returns whether the step is final now */
const advance = (draft: Draft, step: number): boolean => {
  const summary = draft.summaries[step];
  const spec = draft.input.graph.pipeline.steps[step];
  if (summary === undefined || spec === undefined) {
    throw new CoppiceError("CPC_INTERNAL", {
      detail: `Expected one summary per step. Received: none for the step with index ${step}.`,
    });
  }
  if (isFinal(summary)) return true;
  const isUndecided = !summary.isOpen && summary.made === 0;
  if (draft.input.run.isCancelled && !spec.finally) {
    if (isUndecided) settle(draft, step, "cancelled");
    // Items of an open map that have no row yet are never made.
    else if (summary.total !== summary.made)
      write(draft, step, { ...summary, total: summary.made });
  } else if (isUndecided) decide(draft, step, spec);
  else if (summary.total !== summary.made) makeItems(draft, step, spec, summary);
  const after = draft.summaries[step];
  return after !== undefined && isFinal(after);
};

/**
 * What an ended run, or the ordinary part of one, came to: this is `run.status` for its `finally`
 * steps, and together with theirs its final state.
 *
 * A step has failed where any of its items failed, was upstream_failed, quarantined or cancelled. It
 * is excused where a direct successor whose rule accepts failure (`acceptsFailure`) succeeded.
 * `finally` steps excuse nobody: a report of a failure doesn't undo it.
 */
export const ordinaryStatus = (
  graph: Graph,
  summaries: readonly StepSummary[],
  isCancelled: boolean,
): Exclude<RunState, "running"> => {
  if (isCancelled) return "cancelled";
  const { steps } = graph.pipeline;
  const takesUpon = (step: number): boolean => {
    const spec = steps[step];
    const summary = summaries[step];
    if (spec === undefined || summary === undefined || spec.finally) return false;
    return acceptsFailure(spec.rule) && hasSucceeded(summary);
  };
  const hasFailure = graph.ordinary.some((step) => {
    const summary = summaries[step];
    if (summary === undefined || !hasFailed(summary)) return false;
    return !(graph.downstream[step] ?? []).some(takesUpon);
  });
  return hasFailure ? "failed" : "succeeded";
};

const endOf = (draft: Draft): Exclude<RunState, "running"> => {
  const { graph, run } = draft.input;
  const status = ordinaryStatus(graph, draft.summaries, run.isCancelled);
  if (status !== "succeeded") return status;
  const hasFailure = graph.finallySteps.some((step) => {
    const summary = draft.summaries[step];
    return summary !== undefined && hasFailed(summary);
  });
  return hasFailure ? "failed" : "succeeded";
};

/**
 * Everything that may be done now, cascades included. Of a run that is over: nothing.
 *
 * Ordinary steps come in index order, upstream first, so that one pass settles whole chains; then,
 * if all of them are final, the `finally` steps in the same way.
 */
export const planNext = (input: PlanInput): Plan => {
  const draft: Draft = {
    input,
    whens: [],
    lengths: [],
    make: [],
    settle: [],
    summaries: input.summaries,
    copy: undefined,
  };
  let end: Plan["end"];
  if (input.run.state === "running") {
    let isDone = true;
    for (const step of input.graph.ordinary) if (!advance(draft, step)) isDone = false;
    if (isDone) {
      for (const step of input.graph.finallySteps) if (!advance(draft, step)) isDone = false;
    }
    if (isDone) end = endOf(draft);
  }
  return {
    needs: { whens: draft.whens, lengths: draft.lengths },
    make: draft.make,
    settle: draft.settle,
    end,
    summaries: draft.summaries,
  };
};

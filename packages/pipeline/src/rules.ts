/**
 * The twelve trigger rules, as pure functions of counts.
 *
 * The verdicts are Airflow's, with one difference made on purpose. Under `all_success` Airflow ends
 * a step as skipped as soon as one upstream is skipped, and as upstream_failed as soon as one
 * failed: whichever came first wins. Here a failure still decides at once, but a skip decides only
 * when everything upstream is done. So what must stay true is: a verdict is never given while a
 * later completion could change it, and the order of completions never changes what a rule says.
 */
import type { TriggerRule } from "./ir.ts";
import { isFinal, type StepSummary } from "./summary.ts";

/** What is known of all items of all steps directly upstream. */
export interface Tally {
  /** How many steps there are directly upstream. */
  readonly steps: number;
  /** Whether all their items are known and final. */
  readonly isClosed: boolean;
  /** Pruned items count here: stopping a trial early is no failure. */
  readonly succeeded: number;
  /** Cancelled and quarantined items count here. */
  readonly failed: number;
  readonly upstreamFailed: number;
  /** A map over an empty list counts as one skipped item. */
  readonly skipped: number;
}

export type RuleVerdict = "wait" | "fire" | "skip" | "upstream_failed";

export const tallyOf = (upstream: readonly number[], summaries: readonly StepSummary[]): Tally => {
  let isClosed = true;
  let succeeded = 0;
  let failed = 0;
  let upstreamFailed = 0;
  let skipped = 0;
  for (const step of upstream) {
    const summary = summaries[step];
    if (summary === undefined) {
      isClosed = false;
      continue;
    }
    const { counts } = summary;
    succeeded += (counts.succeeded ?? 0) + (counts.pruned ?? 0);
    failed += (counts.failed ?? 0) + (counts.quarantined ?? 0) + (counts.cancelled ?? 0);
    upstreamFailed += counts.upstream_failed ?? 0;
    skipped += summary.total === 0 ? 1 : (counts.skipped ?? 0);
    if (isClosed && !isFinal(summary)) isClosed = false;
  }
  return { steps: upstream.length, isClosed, succeeded, failed, upstreamFailed, skipped };
};

/**
 * A step without upstream fires at once, and so does `always`. A rule that can't be met any more
 * says how its step ends: `skip` or `upstream_failed`.
 */
export const decideRule = (rule: TriggerRule, tally: Tally): RuleVerdict => {
  if (tally.steps === 0) return "fire";
  const { isClosed, succeeded, failed, upstreamFailed, skipped } = tally;
  const notSucceeded = failed + upstreamFailed;
  switch (rule) {
    case "always":
      return "fire";
    case "all_success":
      if (notSucceeded > 0) return "upstream_failed";
      if (!isClosed) return "wait";
      return skipped > 0 ? "skip" : "fire";
    case "all_failed":
      if (succeeded + skipped > 0) return "skip";
      return isClosed ? "fire" : "wait";
    case "all_done":
      return isClosed ? "fire" : "wait";
    case "all_done_min_one_success":
      if (skipped > 0) return "skip";
      if (!isClosed) return "wait";
      return succeeded > 0 ? "fire" : "upstream_failed";
    case "all_skipped":
      if (succeeded + notSucceeded > 0) return "skip";
      return isClosed ? "fire" : "wait";
    case "one_failed":
      if (notSucceeded > 0) return "fire";
      return isClosed ? "skip" : "wait";
    case "one_success":
      if (succeeded > 0) return "fire";
      if (!isClosed) return "wait";
      return notSucceeded > 0 ? "upstream_failed" : "skip";
    case "one_done":
      // An upstream_failed step never ran, so it is not "done" here.
      if (succeeded + failed > 0) return "fire";
      return isClosed ? "skip" : "wait";
    case "none_failed":
      if (notSucceeded > 0) return "upstream_failed";
      return isClosed ? "fire" : "wait";
    case "none_failed_min_one_success":
      if (notSucceeded > 0) return "upstream_failed";
      if (!isClosed) return "wait";
      return succeeded > 0 ? "fire" : "skip";
    case "none_skipped":
      if (skipped > 0) return "skip";
      return isClosed ? "fire" : "wait";
  }
};

/**
 * Rules that may fire although an upstream step failed. A step with such a rule takes its upstream's
 * failure upon itself: where it succeeds, the run does not fail by that failure.
 */
const FAILURE_ACCEPTING: ReadonlySet<TriggerRule> = new Set<TriggerRule>([
  "all_failed",
  "all_done",
  "all_done_min_one_success",
  "one_failed",
  "one_success",
  "one_done",
  "none_skipped",
  "always",
]);

/** The other four (`all_success`, `all_skipped`, both `none_failed`s) never fire after a failure. */
export const acceptsFailure = (rule: TriggerRule): boolean => FAILURE_ACCEPTING.has(rule);

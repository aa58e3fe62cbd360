/**
 * What becomes of a step run when one of its attempts ends.
 *
 * What must stay true: failures by the user's code and losses of workers have budgets of their own;
 * giving an attempt back costs nothing; after a cancellation nothing but `cancelled` is recorded,
 * except in `finally` steps, which a cancellation does not touch.
 */
import type { AttemptOutcome, StepState } from "@coppice/core";

import type { RetryPolicy, StepIr } from "./ir.ts";

export type AttemptEnd =
  | { readonly type: "succeeded" }
  | { readonly type: "failed"; readonly isRetryable: boolean; readonly retryAfterMs?: number }
  | { readonly type: "cancelled" }
  | { readonly type: "released" }
  | { readonly type: "lost" };

export interface OutcomeInput {
  readonly step: Pick<StepIr, "retry" | "finally">;
  /** The number of the attempt that ended, from 1. */
  readonly attempt: number;
  /** How many earlier attempts failed, this one not counted. */
  readonly failedCount: number;
  /** How many earlier attempts were lost, this one not counted. */
  readonly lostCount: number;
  /** Whether the run is being cancelled. */
  readonly isCancelled: boolean;
  readonly outcome: AttemptEnd;
  /** In [0, 1), for the backoff's jitter. */
  readonly random: number;
}

export interface OutcomeDecision {
  readonly state: Extract<
    StepState,
    "succeeded" | "failed" | "retrying" | "ready" | "cancelled" | "quarantined"
  >;
  readonly attemptOutcome: AttemptOutcome;
  /** With `retrying`: until it becomes ready. */
  readonly delayMs?: number;
}

/**
 * The delay after a step's nth failure: exponential up to the policy's limit, then spread by its
 * jitter, so that steps that failed together don't come back together, even at the limit.
 * @param failureNumber from 1
 * @param random in [0, 1)
 */
export const backoffMs = (
  failureNumber: number,
  policy: Pick<RetryPolicy, "backoffMs" | "factor" | "backoffMaxMs" | "jitterRatio">,
  random: number,
): number => {
  const exponential = policy.backoffMs * policy.factor ** Math.max(0, failureNumber - 1);
  const limited = Math.min(exponential, policy.backoffMaxMs);
  return Math.max(0, Math.round(limited * (1 + policy.jitterRatio * (2 * random - 1))));
};

const decideFailure = (
  input: OutcomeInput,
  outcome: Extract<AttemptEnd, { readonly type: "failed" }>,
): OutcomeDecision => {
  const { retry } = input.step;
  const failures = input.failedCount + 1;
  if (!outcome.isRetryable || failures >= retry.attemptsMax) {
    return { state: "failed", attemptOutcome: "failed" };
  }
  const delayMs = outcome.retryAfterMs ?? backoffMs(failures, retry, input.random);
  return delayMs <= 0
    ? { state: "ready", attemptOutcome: "failed" }
    : { state: "retrying", attemptOutcome: "failed", delayMs };
};

export const decideOutcome = (input: OutcomeInput): OutcomeDecision => {
  const { outcome, step } = input;
  if (input.isCancelled && !step.finally) {
    // Of a lost attempt nobody has heard how it ended; all others are answered as cancelled.
    return {
      state: "cancelled",
      attemptOutcome: outcome.type === "lost" ? "lost" : "cancelled",
    };
  }
  switch (outcome.type) {
    case "succeeded":
      return { state: "succeeded", attemptOutcome: "succeeded" };
    case "failed":
      return decideFailure(input, outcome);
    case "cancelled":
      return { state: "cancelled", attemptOutcome: "cancelled" };
    case "released":
      return { state: "ready", attemptOutcome: "released" };
    case "lost":
      return input.lostCount + 1 >= step.retry.lostMax
        ? { state: "quarantined", attemptOutcome: "lost" }
        : { state: "ready", attemptOutcome: "lost" };
  }
};

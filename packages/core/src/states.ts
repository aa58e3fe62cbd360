/**
 * The states of runs, step runs and attempts: one vocabulary, lower case, past participle when final.
 */
export const RUN_STATES = ["running", "succeeded", "failed", "cancelled"] as const;
export type RunState = (typeof RUN_STATES)[number];

/**
 * pending → ready (its rule holds) → queued (its bell was rung) → running → a final state;
 * retrying waits for its backoff and becomes ready again.
 */
export const STEP_STATES = [
  "pending",
  "ready",
  "queued",
  "running",
  "retrying",
  "succeeded",
  "failed",
  "upstream_failed",
  "skipped",
  "cancelled",
  "quarantined",
  "pruned",
] as const;
export type StepState = (typeof STEP_STATES)[number];

export const FINAL_STEP_STATES = [
  "succeeded",
  "failed",
  "upstream_failed",
  "skipped",
  "cancelled",
  "quarantined",
  "pruned",
] as const satisfies readonly StepState[];
export type FinalStepState = (typeof FINAL_STEP_STATES)[number];

export const isFinalStepState = (state: StepState): state is FinalStepState =>
  (FINAL_STEP_STATES as readonly StepState[]).includes(state);

/** How an attempt ended; a live one is its step run's row in state `running`. */
export const ATTEMPT_OUTCOMES = [
  "succeeded",
  "failed",
  "cancelled",
  "pruned",
  "lost",
  "released",
] as const;
export type AttemptOutcome = (typeof ATTEMPT_OUTCOMES)[number];

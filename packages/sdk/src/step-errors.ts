/**
 * Errors that tell the engine what to do next. The child recognises them by `name`, not by class: a
 * bundle carries its own copy of this module.
 */
import { parseDurationMs } from "@coppice/core";

/** Trying again is useless: the step fails at once, whatever attempts it has left. */
export class NonRetryableError extends Error {
  readonly code = "CPC_NON_RETRYABLE";

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "NonRetryableError";
  }
}

/** The attempt failed; the next one, if one is left, starts after this delay, not by backoff. */
export class RetryAfterError extends Error {
  readonly code = "CPC_STEP_FAILED";
  readonly retryAfterMs: number;

  /** @param delay "30s", "5m" or milliseconds */
  constructor(message: string, delay: string | number, options?: ErrorOptions) {
    super(message, options);
    this.name = "RetryAfterError";
    this.retryAfterMs = parseDurationMs(delay);
  }
}

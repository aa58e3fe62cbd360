/**
 * What an attempt's end means: the table from "why it was told to stop" and "how the child ended"
 * to the outcome that is reported. Pure.
 */
import type { Outcome } from "@coppice/contract";
import { type ErrorCode, ERRORS, isCoppiceError } from "@coppice/core";

import type { ChildExit } from "./child-process.ts";
import type { AbortWord, ChildEnd, ChildFailure } from "./child-wire.ts";

/**
 * - cancelled, superseded: the server said so
 * - timeout, heartbeat, memory: a limit of the step
 * - drain: the worker stops; fence: an exclusive step whose lease may have run out
 * - kill: the worker stops at once and reports nothing
 */
export type StopKind = AbortWord | "superseded" | "memory" | "fence" | "kill";

export type AttemptEnd =
  | { readonly type: "ended"; readonly end: ChildEnd }
  | { readonly type: "exited"; readonly exit: ChildExit }
  /** It never came to the step's code. */
  | { readonly type: "unstarted"; readonly failure: ChildFailure };

export interface StopLimits {
  readonly runMs?: number | undefined;
  readonly heartbeatMs?: number | undefined;
  readonly memoryMb?: number | undefined;
}

/** @returns undefined where nothing may be reported */
export const outcomeOf = (
  stop: StopKind | undefined,
  attemptEnd: AttemptEnd,
  limits: StopLimits,
): Outcome | undefined => {
  switch (stop) {
    case "superseded":
    case "kill":
      return undefined;
    case "cancelled":
      return { type: "cancelled" };
    case "timeout":
      return failed("CPC_STEP_TIMEOUT", `The limit is ${limits.runMs} ms.`);
    case "heartbeat":
      return failed("CPC_HEARTBEAT_TIMEOUT", `The limit is ${limits.heartbeatMs} ms.`);
    case "memory":
      return failed("CPC_OUT_OF_MEMORY", `The limit is ${limits.memoryMb} MB.`);
    case "fence":
      return { type: "released" };
    case "drain": {
      // What was finished in the grace time counts; all else starts again elsewhere.
      const ownOutcome = outcomeOfEnd(attemptEnd);
      return ownOutcome.type === "succeeded" ? ownOutcome : { type: "released" };
    }
    case undefined:
      return outcomeOfEnd(attemptEnd);
  }
};

const outcomeOfEnd = (attemptEnd: AttemptEnd): Outcome => {
  if (attemptEnd.type === "unstarted") return outcomeOfFailure(attemptEnd.failure);
  if (attemptEnd.type === "exited") return outcomeOfExit(attemptEnd.exit);
  const { result } = attemptEnd.end;
  return result.type === "succeeded" ? result : outcomeOfFailure(result.failure);
};

const outcomeOfFailure = ({ isRetryable, retryAfterMs, ...error }: ChildFailure): Outcome => ({
  type: "failed",
  error,
  isRetryable,
  ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
});

const failed = (code: ErrorCode, detail: string, isRetryable = true): Outcome => ({
  type: "failed",
  error: { code, message: `${ERRORS[code].summary} ${detail}` },
  isRetryable,
});

/** V8 ends the process by SIGABRT; the kernel kills by SIGKILL; shells report 128 + signal. */
const outcomeOfExit = ({ code, signal, lastWords }: ChildExit): Outcome => {
  const isHeapFull = /heap out of memory|Reached heap limit/.test(lastWords);
  if (isHeapFull) return failed("CPC_OUT_OF_MEMORY", "The heap of the process was full.");
  if (signal === "SIGKILL" || code === 137 || code === 134) {
    return failed("CPC_OUT_OF_MEMORY", "The process was killed from outside, usually for memory.");
  }
  const how = signal === null ? `exit code ${code}` : signal;
  const words = lastWords.trim().slice(-1000);
  return failed(
    "CPC_CHILD_EXITED",
    words === "" ? `It ended by ${how}.` : `It ended by ${how}: ${words}`,
  );
};

/** What went wrong before the step's code could run. */
export const failureOfStart = (error: unknown): ChildFailure => {
  if (isCoppiceError(error)) {
    return { code: error.code, message: error.message, isRetryable: isRetryableStart(error.code) };
  }
  const message = error instanceof Error ? error.message : String(error);
  return {
    code: "CPC_CHILD_START_FAILED",
    message: `${ERRORS.CPC_CHILD_START_FAILED.summary} ${message}`,
    isRetryable: true,
  };
};

/** Starting may work on another try or another worker, unless the operator or the bytes say no. */
const isRetryableStart = (code: ErrorCode): boolean =>
  code === "CPC_CHILD_START_FAILED" || ERRORS[code].isRetryable;

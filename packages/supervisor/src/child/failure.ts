/**
 * What a thrown value becomes on the wire.
 *
 * Errors are recognised by `name` and `code`, never by `instanceof`: a bundle carries its own copy
 * of the classes. Stacks are mapped to the user's sources by `--enable-source-maps`.
 */
import { type ErrorCode, ERRORS, isErrorCode, isJsonObject, parseDurationMs } from "@coppice/core";

import type { ChildFailure } from "../child-wire.ts";

const MESSAGE_CHARS_MAX = 16_000;
const STACK_CHARS_MAX = 32_000;

export const failure = (
  code: ErrorCode,
  message: string,
  options: { stack?: string | undefined; isRetryable?: boolean; name?: string } = {},
): ChildFailure => ({
  code,
  message: message.slice(0, MESSAGE_CHARS_MAX),
  ...(options.stack === undefined ? {} : { stack: options.stack.slice(0, STACK_CHARS_MAX) }),
  ...(options.name === undefined ? {} : { data: { name: options.name } }),
  isRetryable: options.isRetryable ?? ERRORS[code].isRetryable,
});

/** What the step's code threw. */
export const failureOfThrown = (thrown: unknown): ChildFailure => {
  if (typeof thrown !== "object" || thrown === null) {
    return failure("CPC_STEP_FAILED", `The step threw ${describe(thrown)}.`, { isRetryable: true });
  }
  const error = thrown as Record<string, unknown>;
  const name = typeof error["name"] === "string" ? error["name"] : "Error";
  const text = typeof error["message"] === "string" ? error["message"] : describe(thrown);
  const stack = typeof error["stack"] === "string" ? error["stack"] : undefined;
  if (name === "NonRetryableError") {
    return failure("CPC_NON_RETRYABLE", text, { stack, isRetryable: false, name });
  }
  if (name === "RetryAfterError") {
    const retryAfterMs = retryAfterOf(error);
    const record = failure("CPC_STEP_FAILED", text, { stack, isRetryable: true, name });
    return retryAfterMs === undefined ? record : { ...record, retryAfterMs };
  }
  // Our own refusals inside the child carry a code of the catalogue.
  if (isErrorCode(error["code"])) {
    const record = failure(error["code"], text, { stack });
    const data = error["data"];
    if (!isJsonObject(data) || Object.keys(data).length === 0) return record;
    return { ...record, data: { ...data } as NonNullable<ChildFailure["data"]> };
  }
  return failure("CPC_STEP_FAILED", text, { stack, isRetryable: true, name });
};

const retryAfterOf = (error: Record<string, unknown>): number | undefined => {
  for (const key of ["retryAfterMs", "retryAfter", "delayMs", "delay"]) {
    const value = error[key];
    if (typeof value === "number" && value >= 0) return Math.round(value);
    if (typeof value === "string") {
      try {
        return parseDurationMs(value);
      } catch {
        return undefined;
      }
    }
  }
  return undefined;
};

const describe = (value: unknown): string => {
  try {
    return typeof value === "string" ? JSON.stringify(value) : String(value);
  } catch {
    return `a value of type ${typeof value}`;
  }
};

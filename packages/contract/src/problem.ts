/**
 * Errors on the wire: RFC 9457 problems that carry our code. The only place that knows which code
 * has which HTTP status.
 */
import { CoppiceError, type ErrorCode, ERRORS, isErrorCode } from "@coppice/core";
import { z } from "zod";

export const PROBLEM_CONTENT_TYPE = "application/problem+json";

/** A code that is not here is an outcome of a step, not of a request; it would be a 500. */
const STATUS: Partial<Record<ErrorCode, number>> = {
  CPC_INVALID_INPUT: 400,
  CPC_INVALID_PARAMS: 422,
  CPC_UNAUTHENTICATED: 401,
  CPC_FORBIDDEN: 403,
  CPC_HOST_NOT_ALLOWED: 421,
  CPC_ORIGIN_NOT_ALLOWED: 403,
  CPC_NOT_FOUND: 404,
  CPC_RATE_LIMITED: 429,
  CPC_BODY_TOO_LARGE: 413,
  CPC_IDEMPOTENCY_MISMATCH: 422,
  CPC_INTERNAL: 500,
  CPC_PIPELINE_INVALID: 422,
  CPC_PIPELINE_CYCLE: 422,
  CPC_UNKNOWN_REFERENCE: 422,
  CPC_DUPLICATE_ID: 422,
  CPC_WHEN_INVALID: 422,
  CPC_MAP_INVALID: 422,
  CPC_BUNDLE_TOO_LARGE: 413,
  CPC_BUNDLE_NOT_FOUND: 404,
  CPC_BUNDLE_CORRUPT: 422,
  CPC_PROTOCOL_VERSION: 400,
  CPC_PIPELINE_NOT_FOUND: 404,
  CPC_RUN_NOT_FOUND: 404,
  CPC_RUN_AMBIGUOUS: 409,
  CPC_STEP_NOT_FOUND: 404,
  CPC_ATTEMPT_NOT_FOUND: 404,
  CPC_WORKER_NOT_FOUND: 404,
  CPC_ARTIFACT_NOT_FOUND: 404,
  CPC_ARTIFACT_CORRUPT: 422,
  CPC_TOO_MANY_CLASSES: 422,
  CPC_CANCELLED: 409,
  CPC_SUPERSEDED: 409,
  CPC_DATABASE_UNREACHABLE: 503,
  CPC_REDIS_UNREACHABLE: 503,
  CPC_DOORBELL_LOCAL_ONLY: 409,
  CPC_DISK_FULL: 507,
};

export const statusOf = (code: ErrorCode): number => STATUS[code] ?? 500;

export const problemSchema = z.object({
  type: z.string(),
  title: z.string(),
  status: z.number().int(),
  detail: z.string().optional(),
  instance: z.string().optional(),
  code: z.string(),
  /** Where in the body, query or parameters: JSON pointers. */
  errors: z.array(z.object({ pointer: z.string(), message: z.string() })).optional(),
  hint: z.string().optional(),
});
export type Problem = z.infer<typeof problemSchema>;

export interface FieldError {
  readonly pointer: string;
  readonly message: string;
}

const isFieldError = (value: unknown): value is FieldError =>
  typeof value === "object" && value !== null && "pointer" in value && "message" in value;

/** @param instance the request's path, without its query */
export const toProblem = (error: CoppiceError, instance?: string): Problem => {
  const fields = error.data["errors"];
  const errors = Array.isArray(fields) ? fields.filter(isFieldError) : [];
  return {
    type: `urn:coppice:error:${error.code}`,
    title: ERRORS[error.code].summary,
    status: statusOf(error.code),
    ...(error.detail === undefined ? {} : { detail: error.detail }),
    ...(instance === undefined ? {} : { instance }),
    code: error.code,
    ...(errors.length === 0
      ? {}
      : { errors: errors.map(({ pointer, message }) => ({ pointer, message })) }),
    ...(error.hint === undefined ? {} : { hint: error.hint }),
  };
};

/** A reply that is not a problem of ours (a proxy's page, say) becomes CPC_INTERNAL. */
export const fromProblem = (status: number, body: unknown): CoppiceError => {
  const parsed = problemSchema.safeParse(body);
  if (!parsed.success || !isErrorCode(parsed.data.code)) {
    const code = status === 401 ? "CPC_UNAUTHENTICATED" : "CPC_INTERNAL";
    return new CoppiceError(code, {
      detail: `expected a problem of Coppice. Received: HTTP status ${status}`,
      data: { status },
    });
  }
  const { code, detail, hint, errors } = parsed.data;
  return new CoppiceError(code, {
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
    data: { status, ...(errors === undefined ? {} : { errors }) },
  });
};

/** zod's issues as problem fields; `pointer` is prefixed with the part of the request. */
export const fieldErrors = (
  issues: readonly { readonly path: readonly PropertyKey[]; readonly message: string }[],
  prefix = "",
): FieldError[] =>
  issues.slice(0, 50).map(({ path, message }) => ({
    pointer:
      prefix +
      path.map((part) => `/${String(part).replaceAll("~", "~0").replaceAll("/", "~1")}`).join(""),
    message,
  }));

/**
 * The one error class and the catalogue of every code it may carry.
 *
 * Callers match on `error.code`, never on `instanceof` across packages: two copies of a module
 * would break it. What must stay true: a code is never renamed or reused; each has a sentence that
 * says what happened and, where something can be done, a hint that says what to try. HTTP status
 * and exit codes are not domain facts: they are mapped at the edges (`contract`, `cli`).
 */
export interface ErrorEntry {
  /** What happened, as one sentence without the particulars. */
  readonly summary: string;
  /** What the reader can do about it. */
  readonly hint?: string;
  /** Whether the same request may succeed later without a change by the caller. */
  readonly isRetryable: boolean;
}

const permanent = (summary: string, hint?: string): ErrorEntry =>
  hint === undefined ? { summary, isRetryable: false } : { summary, hint, isRetryable: false };
const transient = (summary: string, hint?: string): ErrorEntry =>
  hint === undefined ? { summary, isRetryable: true } : { summary, hint, isRetryable: true };

export const ERRORS = {
  // Requests
  CPC_INVALID_INPUT: permanent("The request does not have the expected shape."),
  CPC_INVALID_PARAMS: permanent(
    "The parameters do not fit the pipeline's schema.",
    "Read the pipeline's parameters with `coppice pipelines`.",
  ),
  CPC_INVALID_CONFIG: permanent("The configuration is not valid."),
  CPC_UNAUTHENTICATED: permanent(
    "No valid token came with the request.",
    "Send `authorization: Bearer <token>`; `coppice token create` makes one.",
  ),
  CPC_FORBIDDEN: permanent("The token lacks the scope that this needs."),
  CPC_HOST_NOT_ALLOWED: permanent("The Host header is not on the allow list."),
  CPC_ORIGIN_NOT_ALLOWED: permanent("A change by cookie must come from our own origin."),
  CPC_NOT_FOUND: permanent("There is nothing at this address."),
  CPC_RATE_LIMITED: transient("Too many requests came with this token."),
  CPC_BODY_TOO_LARGE: permanent("The body is larger than this route accepts."),
  CPC_IDEMPOTENCY_MISMATCH: permanent(
    "The Idempotency-Key was used before with another body.",
    "Use a new key for a new request.",
  ),
  CPC_INTERNAL: transient("Something unexpected happened on our side."),
  // Definitions
  CPC_PIPELINE_INVALID: permanent("The pipeline's definition is not valid."),
  CPC_PIPELINE_CYCLE: permanent("The steps of the pipeline depend on each other in a circle."),
  CPC_UNKNOWN_REFERENCE: permanent("A step refers to something that the pipeline does not have."),
  CPC_DUPLICATE_ID: permanent("Two definitions have the same name.", "Rename one of them."),
  CPC_PROJECT_NOT_FOUND: permanent(
    "No coppice project was found here.",
    "Run the command inside a folder that has a coppice.config.ts or pass --project.",
  ),
  CPC_INDEX_FAILED: permanent("The project's code could not be loaded."),
  CPC_BUNDLE_FAILED: permanent("The project's code could not be bundled."),
  CPC_BUNDLE_TOO_LARGE: permanent("The bundle is over its limit."),
  CPC_BUNDLE_NOT_FOUND: permanent("No such bundle was uploaded to this project."),
  CPC_BUNDLE_CORRUPT: permanent("The bundle's bytes do not have the digest they are named by."),
  CPC_EXTERNAL_MISSING: permanent(
    "The worker lacks a package that the bundle leaves outside.",
    "Install the package on the worker in the version that the bundle names.",
  ),
  CPC_PROTOCOL_VERSION: permanent("The two sides speak different versions of the protocol."),
  // Runs
  CPC_PIPELINE_NOT_FOUND: permanent(
    "No pipeline has this name.",
    "`coppice pipelines` lists them.",
  ),
  CPC_RUN_NOT_FOUND: permanent("No run has this id.", "`coppice runs` lists them."),
  CPC_RUN_AMBIGUOUS: permanent("More than one run begins or ends with this text."),
  CPC_STEP_NOT_FOUND: permanent("The run has no such step."),
  CPC_ATTEMPT_NOT_FOUND: permanent("The step run has no such attempt."),
  CPC_WORKER_NOT_FOUND: permanent("No worker has this id."),
  CPC_ARTIFACT_NOT_FOUND: permanent("The project has no such artifact."),
  CPC_TOO_MANY_CLASSES: permanent(
    "The installation has too many classes of workers.",
    "Use fewer different sets of labels: a class is one set of labels and a GPU count.",
  ),
  // Attempts
  CPC_STEP_FAILED: permanent("The step's code threw an error."),
  CPC_NON_RETRYABLE: permanent("The step's code said that trying again is useless."),
  CPC_STEP_TIMEOUT: permanent("The attempt ran longer than its timeout."),
  CPC_QUEUE_TIMEOUT: permanent("The step waited longer for a worker than its timeout."),
  CPC_HEARTBEAT_TIMEOUT: permanent("The step's code gave no sign of life for its timeout."),
  CPC_RUN_TIMEOUT: permanent("The run took longer than its timeout."),
  CPC_OUT_OF_MEMORY: permanent("The attempt used more memory than its limit."),
  CPC_CHILD_EXITED: permanent("The process that ran the step's code ended by itself."),
  CPC_CHILD_START_FAILED: permanent("The process for the step's code could not be started."),
  CPC_OUTPUT_INVALID: permanent("The step's output can't be written as JSON."),
  CPC_OUTPUT_TOO_LARGE: permanent("The step's output is over its limit."),
  CPC_INPUT_UNAVAILABLE: permanent("An input of the step can't be had."),
  CPC_MAP_INVALID: permanent("The list that the step maps over is not a list."),
  CPC_MAP_TOO_LARGE: permanent("The list that the step maps over is over its limit."),
  CPC_WHEN_INVALID: permanent("The step's condition can't be evaluated over these outputs."),
  CPC_WORKER_LOST: transient("The worker's lease ran out: it stopped answering."),
  CPC_QUARANTINED: permanent("The step was lost with its worker too often and is kept apart."),
  CPC_CANCELLED: permanent("The run or the step was cancelled."),
  CPC_SUPERSEDED: permanent("Another attempt has taken this one's place."),
  CPC_ENV_REFUSED: permanent(
    "The step wants an environment variable that the worker's operator did not allow.",
    "Start the worker with --allow-env <project>:<NAME>.",
  ),
  CPC_ISOLATION_BREACH: permanent("The step's code used its context after the attempt had ended."),
  // Services
  CPC_DATABASE_UNREACHABLE: transient(
    "PostgreSQL can't be reached.",
    "Check COPPICE_DATABASE_URL and that the server runs; `coppice doctor` looks at both.",
  ),
  CPC_DATABASE_TOO_NEW: permanent(
    "The database's schema is newer than this program.",
    "Start the newer version of Coppice.",
  ),
  CPC_DATABASE_TOO_OLD: permanent(
    "The database's schema is older than this program.",
    "Run `coppice migrate`.",
  ),
  CPC_MIGRATION_FAILED: permanent("A migration could not be applied; nothing of it was kept."),
  CPC_REDIS_UNREACHABLE: transient(
    "Redis can't be reached.",
    "Check COPPICE_REDIS_URL and that the server runs; `coppice doctor` looks at both.",
  ),
  CPC_REDIS_EVICTS: permanent(
    "Redis may evict keys under memory pressure, which loses messages.",
    "Set `maxmemory-policy noeviction` in Redis.",
  ),
  CPC_DOORBELL_LOCAL_ONLY: permanent(
    "The embedded doorbell serves only workers on the server's own machine.",
    "Set COPPICE_REDIS_URL on the server to take workers from other machines.",
  ),
  CPC_SERVER_UNREACHABLE: transient("The Coppice server can't be reached."),
  CPC_ARTIFACTS_UNREACHABLE: transient(
    "The artifact store can't be reached.",
    "Check COPPICE_ARTIFACTS, COPPICE_S3_ENDPOINT and the store's credentials.",
  ),
  CPC_ARTIFACT_CORRUPT: permanent("The bytes do not have the digest they are named by."),
  CPC_DISK_FULL: transient("The disk has no space left.", "Free space, then try again."),
  CPC_PATH_ESCAPES: permanent("The path leaves the folder that it must stay in."),
  CPC_EMBEDDED_START_FAILED: transient("The embedded PostgreSQL could not be started."),
  CPC_PORT_IN_USE: transient("The port is in use by another program."),
  CPC_PROCESS_EXITED: transient("A process of Coppice ended unexpectedly."),
  CPC_NO_DEVICE: permanent("No device of this kind was found."),
  CPC_DATA_INVALID: permanent("The data does not pass its checks."),
  CPC_QUERY_FAILED: permanent("The query could not be run."),
  CPC_MODEL_INVALID: permanent("The model's file is not valid."),
} as const satisfies Record<string, ErrorEntry>;

export type ErrorCode = keyof typeof ERRORS;

export const isErrorCode = (value: unknown): value is ErrorCode =>
  typeof value === "string" && Object.hasOwn(ERRORS, value);

export interface CoppiceErrorOptions {
  /** The particulars: what was expected, what came. Goes to logs and clients: never a secret. */
  readonly detail?: string;
  /** Machine-readable particulars, JSON values only. */
  readonly data?: Readonly<Record<string, unknown>>;
  /** Overrides the catalogue's hint where the place knows better. */
  readonly hint?: string;
  readonly cause?: unknown;
}

export class CoppiceError extends Error {
  readonly code: ErrorCode;
  readonly detail: string | undefined;
  readonly data: Readonly<Record<string, unknown>>;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, options: CoppiceErrorOptions = {}) {
    const entry: ErrorEntry = ERRORS[code];
    super(
      options.detail === undefined ? entry.summary : `${entry.summary} ${options.detail}`,
      options.cause === undefined ? undefined : { cause: options.cause },
    );
    this.name = "CoppiceError";
    this.code = code;
    this.detail = options.detail;
    this.data = options.data ?? {};
    this.hint = options.hint ?? entry.hint;
  }

  get isRetryable(): boolean {
    return ERRORS[this.code].isRetryable;
  }
}

export const isCoppiceError = (error: unknown): error is CoppiceError =>
  error instanceof Error &&
  error.name === "CoppiceError" &&
  "code" in error &&
  isErrorCode(error.code);

/** How an error travels in tables and messages: no stack of ours, no cause chain. */
export interface ErrorRecord {
  readonly code: ErrorCode;
  readonly message: string;
  /** The user's stack, mapped to the sources, where the error came from user code. */
  readonly stack?: string;
  readonly data?: Readonly<Record<string, unknown>>;
}

export const toErrorRecord = (
  error: unknown,
  fallback: ErrorCode = "CPC_INTERNAL",
): ErrorRecord => {
  if (isCoppiceError(error)) {
    return Object.keys(error.data).length === 0
      ? { code: error.code, message: error.message }
      : { code: error.code, message: error.message, data: error.data };
  }
  return { code: fallback, message: error instanceof Error ? error.message : String(error) };
};

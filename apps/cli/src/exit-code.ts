/** What a command's end says to a script. The README's table is this file. */
import type { ErrorCode } from "@coppice/core";

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  notFound: 3,
  authentication: 4,
  unreachable: 5,
  interrupted: 130,
} as const;
export type ExitCode = number;

/** The caller can put these right: arguments, configuration, or the project's own code. */
const USAGE: readonly ErrorCode[] = [
  "CPC_INVALID_INPUT",
  "CPC_INVALID_PARAMS",
  "CPC_INVALID_CONFIG",
  "CPC_IDEMPOTENCY_MISMATCH",
  "CPC_PIPELINE_INVALID",
  "CPC_PIPELINE_CYCLE",
  "CPC_UNKNOWN_REFERENCE",
  "CPC_DUPLICATE_ID",
  "CPC_INDEX_FAILED",
  "CPC_BUNDLE_FAILED",
  "CPC_BUNDLE_TOO_LARGE",
  "CPC_EXTERNAL_MISSING",
  "CPC_PATH_ESCAPES",
  "CPC_RUN_AMBIGUOUS",
];
const AUTHENTICATION: readonly ErrorCode[] = ["CPC_UNAUTHENTICATED", "CPC_FORBIDDEN"];
const UNREACHABLE: readonly ErrorCode[] = ["CPC_SERVER_UNREACHABLE", "CPC_DATABASE_UNREACHABLE"];

export const exitCodeOf = (code: ErrorCode): ExitCode => {
  if (USAGE.includes(code)) return EXIT.usage;
  if (code.endsWith("_NOT_FOUND")) return EXIT.notFound;
  if (AUTHENTICATION.includes(code)) return EXIT.authentication;
  return UNREACHABLE.includes(code) ? EXIT.unreachable : EXIT.failed;
};

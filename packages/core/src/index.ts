/** The nouns: what every other room speaks about. */
export { type Clock, fixedClock, type FixedClock } from "./clock.ts";
export { formatDuration, parseDurationMs } from "./duration.ts";
export {
  CoppiceError,
  type CoppiceErrorOptions,
  type ErrorCode,
  type ErrorEntry,
  type ErrorRecord,
  ERRORS,
  isCoppiceError,
  isErrorCode,
  toErrorRecord,
} from "./errors.ts";
export {
  attemptKey,
  type AttemptRef,
  formatId,
  type IdByPrefix,
  type IdPrefix,
  type LeaseToken,
  parseId,
  type PipelineVersionId,
  type ProjectId,
  requireId,
  type RunId,
  stepRunKey,
  type StepRunRef,
  type TokenId,
  uuidV7,
  type WorkerId,
} from "./ids.ts";
export { canonicalJson, isJsonObject, type JsonObject, type JsonValue, valueAt } from "./json.ts";
export { type LogFn, type Logger, silentLogger } from "./logger.ts";
export {
  type CounterName,
  type GaugeName,
  type HistogramName,
  type MetricLabels,
  type MetricName,
  METRICS,
  type Metrics,
  silentMetrics,
} from "./metrics.ts";
export { type Rng, rngFromState, type RngState, seededRng } from "./rng.ts";
export {
  ATTEMPT_OUTCOMES,
  type AttemptOutcome,
  FINAL_STEP_STATES,
  type FinalStepState,
  isFinalStepState,
  RUN_STATES,
  type RunState,
  STEP_STATES,
  type StepState,
} from "./states.ts";
export {
  childTraceparent,
  formatTraceparent,
  newTraceparent,
  parseTraceparent,
  type TraceParent,
} from "./trace.ts";

/** Logger, metrics, tracer and configuration: how a process sees its surroundings and is seen. */
export {
  type ConfigOf,
  type ConfigProblem,
  type ConfigRow,
  defineFragment,
  describeConfig,
  type Environment,
  type Fragment,
  loadConfig,
  processEnvironment,
  type Variable,
} from "./config.ts";
export {
  artifactConfig,
  bootstrapConfig,
  databaseConfig,
  doorbellConfig,
  engineConfig,
  failpointConfig,
  httpConfig,
  logConfig,
  workerConfig,
} from "./config-fragments.ts";
export type { AllowedEnv } from "./config-values.ts";
export { createLogger, LOG_LEVELS, type LoggerOptions, type LogLevel } from "./logger.ts";
export { createMetrics, type MetricsOptions, type MetricsRegistry } from "./metrics.ts";
export { scrubText } from "./scrub.ts";
export { type SpanAttributes, withSpan } from "./tracer.ts";

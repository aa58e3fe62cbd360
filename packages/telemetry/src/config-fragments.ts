/**
 * Every variable that a process of Coppice understands, in the groups that processes pick from.
 * Names end with their unit; a description is a sentence for the table of the documentation.
 */
import { type ConfigProblem, defineFragment } from "./config.ts";
import {
  allowedEnv,
  choice,
  commaList,
  labelPairs,
  optional,
  optionalSecret,
  requiredSecret,
  text,
  urlWith,
  wholeNumber,
  withDefault,
} from "./config-values.ts";
import { LOG_LEVELS } from "./logger.ts";

const postgresUrl = urlWith(["postgres", "postgresql"]);
const port = wholeNumber(0, 65_535);
const httpUrl = urlWith(["http", "https"]);
const tokenKind = { ...text, expected: "a token such as cpc_…" };

export const databaseConfig = defineFragment({
  databaseUrl: requiredSecret(
    "COPPICE_DATABASE_URL",
    postgresUrl,
    "The PostgreSQL database that holds the truth.",
  ),
});

/** Redis only where its URL is set; never because a server happens to be there. */
export const doorbellConfig = defineFragment(
  {
    redisUrl: optionalSecret(
      "COPPICE_REDIS_URL",
      urlWith(["redis", "rediss"]),
      "Redis for the doorbell. Without it the embedded doorbell on PostgreSQL is used.",
    ),
    doorbellDatabaseUrl: optionalSecret(
      "COPPICE_DOORBELL_DATABASE_URL",
      postgresUrl,
      "The embedded doorbell's own PostgreSQL database. Used where COPPICE_REDIS_URL is not set.",
    ),
  },
  ({ redisUrl, doorbellDatabaseUrl }): ConfigProblem[] =>
    redisUrl === undefined && doorbellDatabaseUrl === undefined
      ? [
          {
            variable: "COPPICE_REDIS_URL",
            expected:
              "COPPICE_REDIS_URL, or COPPICE_DOORBELL_DATABASE_URL for the embedded doorbell",
            received: "neither",
          },
        ]
      : [],
);

export const httpConfig = defineFragment({
  host: withDefault("COPPICE_HOST", text, "127.0.0.1", "The address that the server binds to."),
  port: withDefault(
    "COPPICE_PORT",
    port,
    "4600",
    "The port that the server binds to; 0 takes any.",
  ),
  allowedHosts: withDefault(
    "COPPICE_ALLOWED_HOSTS",
    commaList(/^[A-Za-z0-9.[\]:-]+$/, "host names"),
    "",
    "Host headers that are answered, besides loopback and the host of COPPICE_PUBLIC_URL.",
  ),
  publicUrl: optional(
    "COPPICE_PUBLIC_URL",
    httpUrl,
    "The URL under which people and workers reach the server.",
  ),
});

export const artifactConfig = defineFragment({
  artifacts: withDefault(
    "COPPICE_ARTIFACTS",
    text,
    ".coppice/artifacts",
    "Where artifacts are kept: a folder, or s3://bucket/prefix.",
  ),
  s3Endpoint: optional(
    "COPPICE_S3_ENDPOINT",
    httpUrl,
    "The endpoint of an S3-compatible store. Without it, AWS's own.",
  ),
});

export const logConfig = defineFragment({
  logLevel: withDefault("COPPICE_LOG_LEVEL", choice(LOG_LEVELS), "info", "How much is logged."),
});

export const engineConfig = defineFragment(
  {
    leaseMs: withDefault(
      "COPPICE_LEASE_MS",
      wholeNumber(100, 3_600_000),
      "15000",
      "How long a worker's lease lasts without a heartbeat.",
    ),
    heartbeatMs: withDefault(
      "COPPICE_HEARTBEAT_MS",
      wholeNumber(10, 600_000),
      "4000",
      "How often a worker renews its leases.",
    ),
    reconcileMs: withDefault(
      "COPPICE_RECONCILE_MS",
      wholeNumber(10, 600_000),
      "2000",
      "How often the scheduler looks for what was lost.",
    ),
  },
  ({ leaseMs, heartbeatMs }): ConfigProblem[] =>
    leaseMs > 3 * heartbeatMs
      ? []
      : [
          {
            variable: "COPPICE_LEASE_MS",
            expected: `more than three times COPPICE_HEARTBEAT_MS (${heartbeatMs})`,
            received: String(leaseMs),
          },
        ],
);

export const workerConfig = defineFragment({
  serverUrl: withDefault(
    "COPPICE_SERVER_URL",
    httpUrl,
    "http://127.0.0.1:4600",
    "The server that the worker works for.",
  ),
  token: requiredSecret("COPPICE_TOKEN", tokenKind, "The worker's token."),
  slots: optional(
    "COPPICE_WORKER_SLOTS",
    wholeNumber(1, 1024),
    "How many attempts run at once. Without it, one for each core.",
  ),
  labels: withDefault(
    "COPPICE_WORKER_LABELS",
    labelPairs,
    "",
    "What steps may ask for by label, such as zone=a,disk=ssd.",
  ),
  workerDir: withDefault(
    "COPPICE_WORKER_DIR",
    text,
    ".coppice/worker",
    "The worker's own folder: bundles, spooled outcomes, scratch space.",
  ),
  allowEnv: withDefault(
    "COPPICE_ALLOW_ENV",
    allowedEnv,
    "",
    "Environment variables that a project's steps may read, as project:NAME.",
  ),
  metricsPort: optional(
    "COPPICE_METRICS_PORT",
    port,
    "The port of the worker's /metrics. Without it there is none.",
  ),
});

export const bootstrapConfig = defineFragment({
  bootstrapToken: optionalSecret(
    "COPPICE_BOOTSTRAP_TOKEN",
    tokenKind,
    "A file that holds the first admin token; it is taken in where no token exists yet.",
    "file",
  ),
});

export const failpointConfig = defineFragment({
  failpoints: withDefault(
    "COPPICE_FAILPOINTS",
    commaList(/^[A-Za-z0-9._:=@-]+$/, "names of failpoints"),
    "",
    "Places where the process breaks on purpose. For tests only.",
  ),
});

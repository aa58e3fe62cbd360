/**
 * The worker's configuration: variables of the environment, over which flags win.
 *
 * A flag is another spelling of a variable, so that each rule and each default stands once.
 */
import { hostname } from "node:os";
import { parseArgs } from "node:util";

import { CoppiceError } from "@coppice/core";
import {
  type ConfigOf,
  defineFragment,
  type Environment,
  loadConfig,
  logConfig,
  workerConfig,
} from "@coppice/telemetry";
import { z } from "zod";

const workerOwnConfig = defineFragment({
  name: {
    name: "COPPICE_WORKER_NAME",
    schema: z
      .string()
      .default(hostname().slice(0, 100))
      .pipe(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/))
      .describe("What people call this worker. Without it, the machine's name."),
    expected: "letters, digits, dots, _ and -, at most 100",
    defaultText: undefined,
    source: "value",
  },
  drainMs: {
    name: "COPPICE_WORKER_DRAIN_MS",
    schema: z
      .string()
      .default("30000")
      .pipe(z.string().regex(/^\d{1,9}$/))
      .transform(Number)
      .describe("How long attempts may go on after SIGTERM before they are told to stop."),
    expected: "whole milliseconds",
    defaultText: "30000",
    source: "value",
  },
});

type Fragments = readonly [typeof workerConfig, typeof logConfig, typeof workerOwnConfig];
export type WorkerConfig = ConfigOf<Fragments>;

const FLAGS = {
  server: { type: "string" },
  "token-file": { type: "string" },
  slots: { type: "string" },
  label: { type: "string", multiple: true },
  "allow-env": { type: "string", multiple: true },
  name: { type: "string" },
  dir: { type: "string" },
  "metrics-port": { type: "string" },
  "drain-ms": { type: "string" },
  "log-level": { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

const VARIABLES: Readonly<Record<string, string>> = {
  server: "COPPICE_SERVER_URL",
  "token-file": "COPPICE_TOKEN_FILE",
  slots: "COPPICE_WORKER_SLOTS",
  label: "COPPICE_WORKER_LABELS",
  "allow-env": "COPPICE_ALLOW_ENV",
  name: "COPPICE_WORKER_NAME",
  dir: "COPPICE_WORKER_DIR",
  "metrics-port": "COPPICE_METRICS_PORT",
  "drain-ms": "COPPICE_WORKER_DRAIN_MS",
  "log-level": "COPPICE_LOG_LEVEL",
};

export const WORKER_USAGE = `coppice-worker: takes steps from a Coppice server and runs them

  --server <url>               COPPICE_SERVER_URL
  --token-file <file>          COPPICE_TOKEN_FILE
  --slots <n>                  how many attempts run at once; without it, one for each core
  --label <name=value>         may be given several times
  --allow-env <project:NAME>   a variable that a project's steps may read; several times
  --name <name>                what people call this worker
  --dir <folder>               the worker's own folder
  --metrics-port <port>        /metrics, /livez and /readyz on 127.0.0.1
  --drain-ms <ms>              how long attempts may go on after SIGTERM
  --log-level <level>
`;

/** @throws CPC_INVALID_CONFIG with every problem; undefined where only help is asked for */
export const loadWorkerConfig = (
  args: readonly string[],
  env: Environment,
): WorkerConfig | undefined => {
  const flags = parseFlags(args);
  if (flags["help"] === true) return undefined;
  const overlay: Record<string, string | undefined> = { ...env };
  for (const [flag, value] of Object.entries(flags)) {
    const variable = VARIABLES[flag];
    if (variable !== undefined)
      overlay[variable] = Array.isArray(value) ? value.join(",") : String(value);
  }
  // A file given by flag stands for the token, whatever the environment says.
  if (flags["token-file"] !== undefined) delete overlay["COPPICE_TOKEN"];
  return loadConfig(overlay, workerConfig, logConfig, workerOwnConfig);
};

const parseFlags = (args: readonly string[]): Record<string, unknown> => {
  try {
    return { ...parseArgs({ args: [...args], options: FLAGS, strict: true }).values };
  } catch (cause) {
    throw new CoppiceError("CPC_INVALID_CONFIG", {
      detail: cause instanceof Error ? cause.message : String(cause),
      hint: "`coppice-worker --help` lists the flags.",
      cause,
    });
  }
};

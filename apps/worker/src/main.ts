/** `coppice-worker`: config → adapters → start → signals → close. */
import { availableParallelism, hostname } from "node:os";
import { resolve } from "node:path";
import process from "node:process";

import { unpackBundle } from "@coppice/bundle/format";
import { isCoppiceError } from "@coppice/core";
import { queueBells, startSupervisor, type Supervisor } from "@coppice/supervisor";
import { createLogger, createMetrics, processEnvironment } from "@coppice/telemetry";

import { startHealthServer } from "./health-server.ts";
import { loadWorkerConfig, WORKER_USAGE, type WorkerConfig } from "./worker-config.ts";

const VERSION = "0.1.0";
const SAME_SIGNAL_MS = 200;

const work = async (config: WorkerConfig): Promise<void> => {
  const logger = createLogger({ name: "worker", level: config.logLevel });
  const metrics = createMetrics();
  const stopping = new AbortController();
  let supervisor: Supervisor | undefined;
  let signals = 0;
  let heardAtMs = Number.NEGATIVE_INFINITY;
  const ended = new Promise<void>((end, fail) => {
    const onSignal = (signal: NodeJS.Signals): void => {
      // One Ctrl-C may come twice: from the terminal, and through `coppice` or npx that pass it on.
      const nowMs = performance.now();
      if (nowMs - heardAtMs < SAME_SIGNAL_MS) return;
      heardAtMs = nowMs;
      signals += 1;
      logger.info({ signal, signals }, "the worker was told to stop");
      stopping.abort();
      // The second signal means: now.
      if (signals > 1) supervisor?.kill().then(() => process.exit(1), fail);
      else supervisor?.drain().then(end, fail);
    };
    process.on("SIGTERM", onSignal);
    process.on("SIGINT", onSignal);
  });
  const health =
    config.metricsPort === undefined
      ? undefined
      : await startHealthServer({
          port: config.metricsPort,
          metrics,
          stats: () => supervisor?.stats(),
        });
  const options = {
    api: { server: config.serverUrl, token: config.token },
    bells: queueBells(logger),
    name: config.name,
    host: hostname(),
    version: VERSION,
    slots: config.slots ?? availableParallelism(),
    labels: config.labels,
    dir: resolve(config.workerDir),
    unpackBundle,
    allowEnv: config.allowEnv,
    hostEnv: processEnvironment(),
    drainMs: config.drainMs,
    logger,
    metrics,
    signal: stopping.signal,
  };
  supervisor = await startSupervisor(options).catch((error: unknown) => {
    // Told to stop before a server was found: that is no error.
    if (stopping.signal.aborted) return undefined;
    throw error;
  });
  // A signal may have come between the registration and now.
  if (stopping.signal.aborted) await supervisor?.drain();
  else await ended;
  await health?.close();
};

const main = async (): Promise<void> => {
  try {
    const config = loadWorkerConfig(process.argv.slice(2), processEnvironment());
    if (config === undefined) process.stdout.write(WORKER_USAGE);
    else await work(config);
    process.exit(0);
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const hint = isCoppiceError(error) && error.hint !== undefined ? `\n${error.hint}` : "";
    process.stderr.write(`${isCoppiceError(error) ? `${error.code}: ` : ""}${text}${hint}\n`);
    process.exit(1);
  }
};

await main();

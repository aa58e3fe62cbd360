/** The scheduler as a process: config → adapters → maintenance → signals → close. */
import type { Logger } from "@coppice/core";
import { createFailpoint, openEngine, startMaintenance } from "@coppice/engine";
import { openDoorbell } from "@coppice/queue";
import { assertSchema, openDatabase } from "@coppice/store";
import {
  createMetrics,
  databaseConfig,
  doorbellConfig,
  type Environment,
  engineConfig,
  failpointConfig,
  httpConfig,
  loadConfig,
} from "@coppice/telemetry";
import { startHealthServer } from "./health-server.ts";
import { doorbellAddressOf, schedulerConfig } from "./scheduler-config.ts";

const CONNECTIONS_MAX = 4;

/** @returns what ends it: the round under way is finished, then everything closed */
export const serve = async (env: Environment, logger: Logger): Promise<() => Promise<void>> => {
  const config = loadConfig(
    env,
    databaseConfig,
    doorbellConfig,
    httpConfig,
    engineConfig,
    failpointConfig,
    schedulerConfig,
  );
  const db = openDatabase({
    url: config.databaseUrl,
    connectionsMax: CONNECTIONS_MAX,
    applicationName: "coppice-scheduler",
    logger,
  });
  await assertSchema(db);
  const doorbell = await openDoorbell(doorbellAddressOf(config), { logger });
  const metrics = createMetrics();
  const failpoint = createFailpoint(config.failpoints);
  const { leaseMs, reconcileMs, host, allowedHosts } = config;
  const engine = await openEngine({ db, doorbell, logger, metrics, leaseMs, failpoint });
  const maintenance = startMaintenance(engine, { reconcileMs, logger });
  const health = await startHealthServer({
    host,
    port: config.schedulerPort,
    allowedHosts,
    metrics,
  });
  logger.info({ port: health.port }, "scheduler is running");
  return async () => {
    await health.close();
    await maintenance.stop();
    await engine.close();
    await doorbell.close();
    await db.close();
  };
};

/** The server as a process: config → adapters → app → listen → signals → close. */
import { openArtifactStore } from "@coppice/artifacts";
import { CoppiceError, type Logger, type ProjectId } from "@coppice/core";
import { createFailpoint, openEngine, startStamping } from "@coppice/engine";
import {
  type DoorbellAddress,
  openBoard,
  openDoorbell,
  openWorkerAddress,
  type WorkerAddress,
} from "@coppice/queue";
import { assertSchema, ensureProject, openDatabase } from "@coppice/store";
import {
  artifactConfig,
  createMetrics,
  databaseConfig,
  doorbellConfig,
  type Environment,
  engineConfig,
  failpointConfig,
  httpConfig,
  loadConfig,
} from "@coppice/telemetry";
import { DEFAULT_PROJECT } from "./access.ts";
import { allowedHostsOf, apiConfig, doorbellAddressOf } from "./api-config.ts";
import { buildApp } from "./app.ts";
import { ensureBootstrapToken } from "./bootstrap-token.ts";
import { newId } from "./token.ts";

/** For the answers that are under way when the end comes. */
const CLOSE_MS = 2000;

const addressForWorkers = async (
  address: DoorbellAddress,
  url: string | undefined,
  logger: Logger,
): Promise<WorkerAddress> =>
  address.kind === "redis" && url !== undefined
    ? { address: { ...address, url }, close: async () => undefined }
    : await openWorkerAddress(address, { logger });

/** @returns what ends it: no new requests, those under way answered, then everything closed */
export const serve = async (env: Environment, logger: Logger): Promise<() => Promise<void>> => {
  const config = loadConfig(
    env,
    databaseConfig,
    doorbellConfig,
    httpConfig,
    artifactConfig,
    engineConfig,
    failpointConfig,
    apiConfig,
  );
  const address = doorbellAddressOf(config);
  const db = openDatabase({ url: config.databaseUrl, applicationName: "coppice-api", logger });
  await assertSchema(db);
  await ensureProject(db, newId<ProjectId>(), DEFAULT_PROJECT);
  if (config.bootstrapTokenFile !== undefined) {
    await ensureBootstrapToken(db, config.bootstrapTokenFile, logger);
  }
  const artifacts = await openArtifactStore(config.artifacts, { endpoint: config.s3Endpoint });
  const doorbell = await openDoorbell(address, { logger });
  const metrics = createMetrics();
  const failpoint = createFailpoint(config.failpoints);
  const { leaseMs, heartbeatMs } = config;
  const engine = await openEngine({ db, doorbell, logger, metrics, leaseMs, failpoint });
  const forWorkers = await addressForWorkers(address, config.workerRedisUrl, logger);
  const app = await buildApp({
    db,
    engine,
    artifacts,
    doorbellAddress: forWorkers.address,
    openBoard: (isReadOnly) =>
      openBoard({
        address,
        basePath: "/queues",
        readOnly: (request) => isReadOnly(request.caller?.scope ?? "read"),
        logger,
      }),
    logger,
    metrics,
    leaseMs,
    heartbeatMs,
    allowedHosts: allowedHostsOf(config),
    isSecure: config.publicUrl?.startsWith("https:") ?? false,
  });
  const stamping = startStamping(engine, "api", newId(), logger);
  const listening = await app
    .listen({ host: config.host, port: config.port })
    .catch((error: unknown) => {
      if (!(error instanceof Error && "code" in error && error.code === "EADDRINUSE")) throw error;
      throw new CoppiceError("CPC_PORT_IN_USE", {
        detail: `${config.host}:${config.port}`,
        hint: "Set COPPICE_PORT to another port.",
        cause: error,
      });
    });
  logger.info({ url: listening }, "api is listening");
  return async () => {
    // A stream ends with its reader, and a connection without a request counts as busy: both get a
    // moment, then they are cut. Clients take a cut stream up again elsewhere.
    const cut = setTimeout(() => app.server.closeAllConnections(), CLOSE_MS);
    await app.close();
    clearTimeout(cut);
    await stamping.stop();
    await engine.close();
    await forWorkers.close();
    await doorbell.close();
    await artifacts.close();
    await db.close();
  };
};

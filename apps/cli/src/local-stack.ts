/**
 * A whole installation on this machine, for `coppice dev` and the demo: embedded PostgreSQL, the
 * API, the scheduler and one worker, each a process of its own, all on 127.0.0.1.
 *
 * What must stay true: everything lies under the project's `.coppice` folder; secrets are in files
 * of mode 0600; `stop` leaves nothing running, in whatever state the start was; what the processes
 * say goes to `.coppice/logs`.
 */
import { existsSync } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

import { type Client, createClient, type Worker } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";
import {
  createProcessTree,
  DOORBELL_DATABASE,
  type EmbeddedPostgres,
  freePort,
  MAIN_DATABASE,
  type ProcessExit,
  type ProcessTree,
  startEmbeddedPostgres,
} from "@coppice/local";

import { DEV_FILE, type DevFile, type Environment, findDevFile } from "./connection.ts";
import { makeProjectToken, makeWorkerToken, requireAdminToken } from "./dev-tokens.ts";
import { createFileLogger } from "./file-logger.ts";
import { type AppName, findAppBin } from "./find-bin.ts";

export interface LocalStackOptions {
  readonly projectDir: string;
  readonly env: Environment;
  /** The API's port; left out: any free one. */
  readonly port?: number;
  readonly slots?: number;
  /** A process that should run has ended. */
  readonly onExit: (exit: ProcessExit) => void;
  /** A sentence for people: what is being started. */
  readonly onStage?: (stage: string) => void;
}

export interface LocalStack {
  readonly server: string;
  readonly logDir: string;
  readonly worker: Worker;
  /** Which doorbell rings, for people. */
  readonly doorbell: string;
  /** Makes the project known and writes `.coppice/dev.json`, by which other commands find it. */
  openProject(name: string): Promise<Client>;
  stop(): Promise<void>;
}

const STOP_TIMEOUT_MS = 15_000;
const WORKER_TIMEOUT_MS = 30_000;
/** A person waits for the end: steps get a moment, then they save their checkpoint and are released. */
const WORKER_DRAIN_MS = 2000;

/** What any program needs; nothing of the user's secrets goes to the servers. */
const baseEnvironment = (env: Environment): Record<string, string> => {
  const names = ["PATH", "HOME", "TMPDIR", "LANG", "TZ", "USER", "NODE_EXTRA_CA_CERTS"];
  const settings = Object.keys(env).filter((name) =>
    /^COPPICE_(LOG_LEVEL|LEASE_MS|HEARTBEAT_MS|RECONCILE_MS|S3_.*|FAILPOINTS)$/.test(name),
  );
  return Object.fromEntries(
    [...names, ...settings].flatMap((name) => {
      const value = env[name];
      return value === undefined ? [] : [[name, value]];
    }),
  );
};

/** The worker of `dev` is the user's own: steps may ask for what the user allows. */
const workerEnvironment = (env: Environment): Record<string, string> =>
  Object.fromEntries(
    Object.entries(env).filter(
      (entry): entry is [string, string] =>
        entry[1] !== undefined &&
        !/^COPPICE_(DATABASE|DOORBELL|REDIS|TOKEN|BOOTSTRAP)/.test(entry[0]),
    ),
  );

const prepareFolder = async (dir: string): Promise<void> => {
  await mkdir(join(dir, "logs"), { recursive: true });
  const ignore = join(dir, ".gitignore");
  if (!existsSync(ignore)) await writeFile(ignore, "*\n");
};

const requireAlone = (projectDir: string): void => {
  const running = findDevFile(projectDir);
  if (running === undefined || running.path !== join(projectDir, DEV_FILE)) return;
  throw new CoppiceError("CPC_INVALID_CONFIG", {
    detail: `expected a folder of its own. Process ${running.content.pid} already runs here.`,
    hint: `Stop it, or use it: ${running.content.server}`,
  });
};

const awaitWorker = async (client: Client, logFile: string): Promise<Worker> => {
  const giveUpAt = Date.now() + WORKER_TIMEOUT_MS;
  while (Date.now() < giveUpAt) {
    const { items } = await client.workers.list();
    const worker = items.find(({ isAlive, isDraining }) => isAlive && !isDraining);
    if (worker !== undefined) return worker;
    await pause(50);
  }
  throw new CoppiceError("CPC_PROCESS_EXITED", {
    detail: "The worker did not register.",
    hint: `Read ${logFile}.`,
  });
};

const doorbellOf = (env: Environment, postgres: EmbeddedPostgres) => {
  const redisUrl = env["COPPICE_REDIS_URL"];
  return redisUrl === undefined || redisUrl === ""
    ? {
        name: "embedded PostgreSQL",
        env: { COPPICE_DOORBELL_DATABASE_URL: postgres.url(DOORBELL_DATABASE) },
      }
    : { name: "Redis", env: { COPPICE_REDIS_URL: redisUrl } };
};

type Undo = (() => Promise<void>)[];

const createSpec =
  (projectDir: string) => (name: string, app: AppName, args: readonly string[]) => ({
    name,
    command: process.execPath,
    args: [findAppBin(app), ...args],
    cwd: projectDir,
    logFile: join(projectDir, ".coppice", "logs", `${name}.log`),
  });

/** Migrates first: neither of the servers starts on an older schema. */
const startServers = async (
  tree: ProcessTree,
  { projectDir, onStage }: LocalStackOptions,
  env: Readonly<Record<string, string>>,
  port: number,
): Promise<string> => {
  const spec = createSpec(projectDir);
  const server = `http://127.0.0.1:${port}`;
  const schedulerPort = await freePort();
  onStage?.("migrating the database");
  await tree.start({ ...spec("migrate", "api", ["migrate"]), env, ready: { kind: "done" } });
  onStage?.("starting API and scheduler");
  await Promise.all([
    tree.start({
      ...spec("api", "api", []),
      env: { ...env, COPPICE_HOST: "127.0.0.1", COPPICE_PORT: String(port) },
      ready: { kind: "http", url: `${server}/readyz` },
    }),
    tree.start({
      ...spec("scheduler", "scheduler", []),
      env: { ...env, COPPICE_SCHEDULER_PORT: String(schedulerPort) },
      ready: { kind: "http", url: `http://127.0.0.1:${schedulerPort}/livez` },
    }),
  ]);
  return server;
};

const startWorker = async (
  tree: ProcessTree,
  { projectDir, env, slots, onStage }: LocalStackOptions,
  admin: Client,
): Promise<Worker> => {
  onStage?.("starting the worker");
  const spec = createSpec(projectDir)("worker", "worker", []);
  await tree.start({
    ...spec,
    env: {
      COPPICE_WORKER_DRAIN_MS: String(WORKER_DRAIN_MS),
      ...workerEnvironment(env),
      COPPICE_SERVER_URL: admin.server,
      COPPICE_TOKEN: await makeWorkerToken(admin),
      COPPICE_WORKER_DIR: join(projectDir, ".coppice", "worker"),
      ...(slots === undefined ? {} : { COPPICE_WORKER_SLOTS: String(slots) }),
    },
    ready: { kind: "started" },
  });
  return awaitWorker(admin, spec.logFile);
};

/** Starts in order; `undo` collects what has to be stopped, also where a later start fails. */
const startAll = async (options: LocalStackOptions, undo: Undo) => {
  const { projectDir, env, onExit, onStage } = options;
  const dir = join(projectDir, ".coppice");
  const logDir = join(dir, "logs");
  await prepareFolder(dir);
  const logger = createFileLogger(join(logDir, "coppice.log"));
  const adminTokenFile = join(dir, "admin-token");
  const token = await requireAdminToken(adminTokenFile);
  onStage?.("starting PostgreSQL");
  const postgres = await startEmbeddedPostgres({
    dataDir: join(dir, "postgres"),
    logFile: join(logDir, "postgres.log"),
    logger,
  });
  undo.push(() => postgres.stop());
  const tree = createProcessTree({ logger, onExit, stopTimeoutMs: STOP_TIMEOUT_MS });
  undo.push(() => tree.stop());
  const doorbell = doorbellOf(env, postgres);
  const servers = {
    ...baseEnvironment(env),
    ...doorbell.env,
    COPPICE_DATABASE_URL: postgres.url(MAIN_DATABASE),
    COPPICE_ARTIFACTS: join(dir, "artifacts"),
    COPPICE_BOOTSTRAP_TOKEN_FILE: adminTokenFile,
  };
  const port = options.port ?? (await freePort());
  const server = await startServers(tree, options, servers, port);
  const admin = createClient({ server, token });
  const worker = await startWorker(tree, options, admin);
  return { server, logDir, worker, doorbell: doorbell.name, admin };
};

/**
 * @throws CPC_EMBEDDED_START_FAILED, CPC_PROCESS_EXITED with the log file's name; nothing is left
 * running then
 */
export const startLocalStack = async (options: LocalStackOptions): Promise<LocalStack> => {
  requireAlone(options.projectDir);
  const devFile = join(options.projectDir, DEV_FILE);
  const undo: Undo = [];
  const stop = async (): Promise<void> => {
    await rm(devFile, { force: true });
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) await step();
  };
  try {
    const { admin, ...stack } = await startAll(options, undo);
    return {
      ...stack,
      stop,
      openProject: async (project) => {
        const { server } = stack;
        const token = await makeProjectToken(admin, project);
        const content: DevFile = { server, token, project, pid: process.pid };
        await rm(devFile, { force: true });
        await writeFile(devFile, `${JSON.stringify(content)}\n`, { mode: 0o600, flag: "wx" });
        return createClient({ server, token });
      },
    };
  } catch (error) {
    await stop();
    throw error;
  }
};

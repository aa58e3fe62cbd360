/**
 * A PostgreSQL server for one project: started on 127.0.0.1, stopped with us.
 *
 * What must stay true: durability is never switched off here (a caller's `settings` may, for tests of
 * its own); one process owns the folder at a time; the server's end is told to whoever waits for it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, open, readFile, rm } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { CoppiceError, type Logger } from "@coppice/core";
import { freePort, isPortFree } from "./free-port.ts";
import { guardAgainstOrphan, type ParentGuard } from "./parent-guard.ts";
import { locatePostgres } from "./postgres-binaries.ts";
import type { ClusterPlace, Credentials } from "./postgres-cluster.ts";
import { createCluster, DOORBELL_DATABASE, MAIN_DATABASE } from "./postgres-cluster.ts";
import { placeCluster, readCredentials, saveCredentials, SUPERUSER } from "./postgres-cluster.ts";
import { readPostmasterFile, stopStaleServer, takeOwnership } from "./postgres-owner.ts";
import { asAccount, toolEnv } from "./run-tool.ts";
import { waitFor } from "./wait-for.ts";

export interface EmbeddedPostgresOptions {
  /** The project's own folder for it, such as `.coppice/postgres`. */
  readonly dataDir: string;
  readonly logFile: string;
  /** Exactly this port; left out: the one used last if it is still free, else any. */
  readonly port?: number;
  readonly logger: Logger;
  /** Server settings over ours, as in postgresql.conf. */
  readonly settings?: Readonly<Record<string, string | number>>;
}

export interface EmbeddedPostgres {
  /** The address as the role that owns this database; any other database: as the superuser. */
  url(database: string): string;
  /** The address as superuser: for tests and repairs, not for our processes. */
  adminUrl(database: string): string;
  readonly port: number;
  readonly pid: number;
  readonly superuser: string;
  readonly password: string;
  /** Resolves when the server's process ends, asked or not. */
  readonly exited: Promise<void>;
  stop(): Promise<void>;
  /** Stops and deletes the database, also where it lies outside `dataDir`: for tests. */
  destroy(): Promise<void>;
}

const DEFAULT_SETTINGS: Readonly<Record<string, string | number>> = {
  max_connections: 100,
  shared_buffers: "128MB",
  fsync: "on",
  synchronous_commit: "on",
  full_page_writes: "on",
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  log_timezone: "UTC",
  timezone: "UTC",
};

const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 20_000;

interface Started {
  readonly child: ChildProcess;
  readonly pid: number;
  readonly guard: ParentGuard;
  readonly exited: Promise<void>;
}

interface LaunchOptions {
  readonly postgres: string;
  readonly place: ClusterPlace;
  readonly port: number;
  readonly options: EmbeddedPostgresOptions;
}

const launch = async ({ postgres, place, port, options }: LaunchOptions): Promise<Started> => {
  const settings = { ...DEFAULT_SETTINGS, ...options.settings, port };
  const args = ["-D", place.cluster];
  for (const [name, value] of Object.entries(settings)) args.push("-c", `${name}=${value}`);
  await mkdir(dirname(options.logFile), { recursive: true });
  const log = await open(options.logFile, "a", 0o600);
  try {
    const child = spawn(postgres, args, {
      ...asAccount(place.account),
      cwd: place.cluster,
      env: toolEnv,
      stdio: ["ignore", log.fd, log.fd],
      // Its own session: a Ctrl+C in the terminal reaches us, and we stop it in our order.
      detached: true,
    });
    const exited = new Promise<void>((settle) => {
      child.once("exit", () => settle());
      child.once("error", () => settle());
    });
    const { pid } = child;
    if (pid === undefined) {
      throw new CoppiceError("CPC_EMBEDDED_START_FAILED", { detail: `${postgres} does not run.` });
    }
    const guard = guardAgainstOrphan({ pid, signal: "INT", killAfterMs: STOP_TIMEOUT_MS });
    child.once("exit", () => guard.release());
    return { child, pid, guard, exited };
  } finally {
    await log.close();
  }
};

const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null;

/** "ready", or the last lines of the log of a server that ended or never got ready. */
const awaitReady = async (started: Started, cluster: string, logFile: string) => {
  const outcome = await waitFor(async () => {
    if (hasEnded(started.child)) return "ended" as const;
    const file = await readPostmasterFile(cluster);
    return file?.pid === started.pid && file.status === "ready" ? ("ready" as const) : undefined;
  }, READY_TIMEOUT_MS);
  if (outcome === "ready") return { isReady: true, said: "" } as const;
  const said = (await readFile(logFile, "utf8")).trim().split("\n").slice(-6).join(" | ");
  return { isReady: false, said } as const;
};

const stopServer = async (started: Started): Promise<void> => {
  for (const [signal, timeoutMs] of [
    ["SIGINT", STOP_TIMEOUT_MS],
    ["SIGQUIT", 5_000],
    ["SIGKILL", 5_000],
  ] as const) {
    if (hasEnded(started.child)) break;
    started.child.kill(signal);
    await waitFor(() => (hasEnded(started.child) ? true : undefined), timeoutMs);
  }
  started.guard.release();
};

const choosePort = async (
  asked: number | undefined,
  last: number | undefined,
  round: number,
): Promise<number> => {
  if (asked !== undefined) {
    if (await isPortFree(asked)) return asked;
    throw new CoppiceError("CPC_PORT_IN_USE", { detail: `127.0.0.1:${asked}`, data: { asked } });
  }
  if (round === 0 && last !== undefined && (await isPortFree(last))) return last;
  return freePort();
};

// A port taken under our feet, or memory that the backends of a killed server still hold: both pass.
const PASSING = /could not bind|could not create any TCP\/IP sockets|pre-existing shared memory/;

interface Running {
  readonly cluster: string;
  readonly started: Started;
  readonly credentials: Credentials;
}

const startServer = async (options: EmbeddedPostgresOptions): Promise<Running> => {
  const dataDir = resolve(options.dataDir);
  const place = await placeCluster(dataDir, options.logger);
  const binaries = await locatePostgres(place.account);
  await stopStaleServer(place.cluster, options.logger);
  if (place.isLeftover) {
    // The project's folder was deleted to begin anew; nobody has the passwords of what lies here.
    options.logger.warn({ cluster: place.cluster }, "a database without its project is removed");
    await rm(place.cluster, { recursive: true, force: true });
  }
  let credentials = await readCredentials(dataDir);
  const exists = existsSync(place.cluster);
  if (exists && credentials === undefined) {
    throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
      detail: `There is a database in ${place.cluster}, but no credentials.json in ${dataDir}.`,
    });
  }
  if (!exists && credentials !== undefined) {
    options.logger.warn({ cluster: place.cluster }, "the database is gone: an empty one is made");
  }
  let said = "";
  for (let round = 0; round < 20; round += 1) {
    const port = await choosePort(options.port, credentials?.port, round);
    if (credentials === undefined || !existsSync(place.cluster)) {
      const isSynced = options.settings?.["fsync"] !== "off";
      credentials = await createCluster({ dataDir, place, binaries, port, isSynced });
    } else if (credentials.port !== port) {
      credentials = { ...credentials, port };
      await saveCredentials(dataDir, credentials);
    }
    const started = await launch({ postgres: binaries.postgres, place, port, options });
    const result = await awaitReady(started, place.cluster, options.logFile);
    if (result.isReady) return { cluster: place.cluster, started, credentials };
    await stopServer(started);
    said = result.said;
    if (!PASSING.test(said)) break;
    await waitFor(() => undefined, 250);
  }
  throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    detail: `It said: ${said}`,
    hint: `Read ${options.logFile}.`,
  });
};

const makeUrl = (user: string, password: string, port: number, database: string): string =>
  `postgres://${user}:${encodeURIComponent(password)}@127.0.0.1:${port}/${database}`;

export const startEmbeddedPostgres = async (
  options: EmbeddedPostgresOptions,
): Promise<EmbeddedPostgres> => {
  const dataDir = resolve(options.dataDir);
  await mkdir(dataDir, { recursive: true });
  const giveBack = await takeOwnership(dataDir);
  let running: Running;
  try {
    running = await startServer(options);
  } catch (error) {
    await giveBack();
    throw error;
  }
  const { cluster, started, credentials } = running;
  const { port, superuserPassword, mainPassword, doorbellPassword } = credentials;
  const adminUrl = (database: string): string =>
    makeUrl(SUPERUSER, superuserPassword, port, database);
  let stopping: Promise<void> | undefined;
  const stop = async (): Promise<void> => {
    stopping ??= stopServer(started).then(giveBack);
    await stopping;
  };
  return {
    adminUrl,
    url: (database) => {
      if (database === MAIN_DATABASE) return makeUrl(MAIN_DATABASE, mainPassword, port, database);
      return database.startsWith(DOORBELL_DATABASE)
        ? makeUrl(DOORBELL_DATABASE, doorbellPassword, port, database)
        : adminUrl(database);
    },
    port,
    pid: started.pid,
    superuser: SUPERUSER,
    password: superuserPassword,
    exited: started.exited,
    stop,
    destroy: async () => {
      await stop();
      for (const path of [cluster, dataDir]) await rm(path, { recursive: true, force: true });
    },
  };
};

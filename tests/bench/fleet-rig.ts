/**
 * A fleet as an operator would start it: API, scheduler and workers as processes of their own that
 * meet over HTTP and the doorbell. This process is a client and looks into the database to see
 * what is done.
 */
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { bundleProject } from "@coppice/bundle";
import { type Client, createClient } from "@coppice/contract";
import type { PipelineVersionId, ProjectId } from "@coppice/core";
import { createProcessTree, freePort, type ProcessExit } from "@coppice/local";
import { type Database, openDatabase } from "@coppice/store";
import { startMeter, type Usage } from "./machine.ts";
import { CHILDREN } from "./row.ts";
import { benchLogger, type DoorbellKind, type Servers, startServers } from "./servers.ts";

const POLL_MS = 10;
const POLL_MAX_MS = 500;
const STALLED_MS = 30_000;
const STOP_TIMEOUT_MS = 15_000;

type App = "api" | "scheduler" | "worker";

/** "noop": only the protocol, no children; for what the fleet costs without user code. */
export type WorkerKind = "noop" | "children";

export interface Fleet {
  readonly servers: Servers;
  readonly db: Database;
  readonly server: string;
  readonly token: string;
  readonly client: Client;
  readonly projectId: ProjectId;
  versionOf(pipeline: string): Promise<PipelineVersionId>;
  startWorker(kind: WorkerKind, slots: number): Promise<void>;
  /** Resolves when no run is open and so many step runs have ended since the database was made. */
  awaitSteps(total: number): Promise<void>;
  finishedSteps(): Promise<number>;
  /** CPU of every process of the fleet, and of this one as "client". */
  meter(): { stop(): Usage };
  /** The engine's average batch in the API, in events. */
  batchSize(): Promise<number>;
  close(): Promise<void>;
}

const require = createRequire(import.meta.url);

const binOf = async (app: App): Promise<string> => {
  const path = require.resolve(`@coppice/${app}/package.json`);
  const { bin } = JSON.parse(await readFile(path, "utf8")) as { bin: Record<string, string> };
  return join(dirname(path), bin[`coppice-${app}`] ?? "");
};

const died = ({ name, exitCode, signal, lastLines }: ProcessExit): void => {
  process.stderr.write(`  ! ${name} ended (${exitCode ?? signal}):\n${lastLines.join("\n")}\n`);
};

const deploy = async (
  admin: Client,
  server: string,
): Promise<{ client: Client; token: string }> => {
  await admin.projects.create({ body: { name: "bench" } });
  const body = { name: "bench", scope: "deploy", project: "bench" } as const;
  const { token } = await admin.tokens.create({ body });
  const client = createClient({ server, token });
  const projectDir = fileURLToPath(new URL("project", import.meta.url));
  const { digest, bytes, manifest } = await bundleProject(projectDir);
  await client.bundles.put({ params: { digest }, body: new Uint8Array(bytes) });
  const pipelines = [...manifest.pipelines];
  await client.pipelines.deploy({ body: { bundleDigest: digest, pipelines } });
  return { client, token };
};

export const openFleet = async (kind: DoorbellKind): Promise<Fleet> => {
  const servers = await startServers(kind);
  const { dir, address, databaseUrl } = servers;
  const tree = createProcessTree({
    logger: benchLogger,
    onExit: died,
    stopTimeoutMs: STOP_TIMEOUT_MS,
  });
  const db = openDatabase({ url: databaseUrl, applicationName: "bench", logger: benchLogger });
  const pids: Record<string, number | undefined> = { ...servers.pids };
  const [port, schedulerPort] = [await freePort(), await freePort()];
  const server = `http://127.0.0.1:${port}`;
  const adminTokenFile = join(dir, "admin-token");
  const path = { PATH: process.env["PATH"] ?? "/usr/bin:/bin" };
  const env = {
    ...path,
    COPPICE_LOG_LEVEL: "warn",
    COPPICE_DATABASE_URL: databaseUrl,
    ...(address.kind === "redis"
      ? { COPPICE_REDIS_URL: address.url }
      : { COPPICE_DOORBELL_DATABASE_URL: address.url }),
    COPPICE_ARTIFACTS: join(dir, "artifacts"),
    COPPICE_BOOTSTRAP_TOKEN_FILE: adminTokenFile,
    COPPICE_PORT: String(port),
    COPPICE_SCHEDULER_PORT: String(schedulerPort),
  };
  const start = async (name: string, args: readonly string[], more: object): Promise<void> => {
    const command = process.execPath;
    // With our own flags: what is profiled here is profiled there.
    const logFile = join(dir, `${name.replaceAll(" ", "-")}.log`);
    const ready = { kind: "started" } as const;
    const spec = {
      name,
      command,
      args: [...process.execArgv, ...args],
      env,
      cwd: dir,
      logFile,
      ready,
      ...more,
    };
    pids[name] = (await tree.start(spec)).pid;
  };
  const isUp = (url: string) => ({ ready: { kind: "http", url } });
  const close = async (): Promise<void> => {
    await tree.stop();
    await db.close();
    await servers.close();
  };
  try {
    await start("api", [await binOf("api")], isUp(`${server}/readyz`));
    const livez = `http://127.0.0.1:${schedulerPort}/livez`;
    await start("scheduler", [await binOf("scheduler")], isUp(livez));
    const adminToken = (await readFile(adminTokenFile, "utf8")).trim();
    const admin = createClient({ server, token: adminToken });
    const { client, token } = await deploy(admin, server);
    const created = await admin.tokens.create({ body: { name: "workers", scope: "worker" } });
    const [project] = await db.query<{ id: ProjectId }>(
      "select id from project where name = 'bench'",
    );
    if (project === undefined) throw new Error("expected the project that was just made");
    let workers = 0;
    const startWorker = async (kindOfWorker: WorkerKind, slots: number): Promise<void> => {
      workers += 1;
      const workerDir = join(dir, `worker-${workers}`);
      await mkdir(workerDir);
      const program =
        kindOfWorker === "children"
          ? [await binOf("worker")]
          : [fileURLToPath(new URL("noop-worker.ts", import.meta.url))];
      const name = `worker ${workers}${kindOfWorker === "children" ? CHILDREN : ""}`;
      await start(name, program, {
        env: {
          ...path,
          COPPICE_LOG_LEVEL: "warn",
          COPPICE_SERVER_URL: server,
          COPPICE_TOKEN: created.token,
          COPPICE_WORKER_SLOTS: String(slots),
          COPPICE_WORKER_DIR: workerDir,
        },
      });
      const giveUpAt = Date.now() + STALLED_MS;
      while ((await client.workers.list()).items.filter((one) => one.isAlive).length < workers) {
        if (Date.now() > giveUpAt) throw new Error(`worker ${workers} did not register`);
        await pause(POLL_MS);
      }
    };
    const finishedSteps = async (): Promise<number> => {
      const [row] = await db.query<{ count: number }>("select count(*) as count from attempt");
      return row?.count ?? 0;
    };
    return {
      servers,
      db,
      server,
      token,
      client,
      projectId: project.id,
      versionOf: async (name) => {
        const [row] = await db.query<{ id: PipelineVersionId }>(
          "select id from pipeline_version where name = $1 order by version desc limit 1",
          [name],
        );
        if (row === undefined) throw new Error(`no pipeline ${name}`);
        return row.id;
      },
      startWorker,
      finishedSteps,
      awaitSteps: (total) => awaitCount(finishedSteps, total),
      meter: () => startMeter(pids, "client"),
      batchSize: () => readBatchSize(server, adminToken),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
};

/** Looks seldom while much is left and often near the end: counting costs the database time. */
const awaitCount = async (count: () => Promise<number>, total: number): Promise<void> => {
  const first = await count();
  const startedAt = performance.now();
  let last = first;
  let movedAt = startedAt;
  for (;;) {
    const now = await count();
    const at = performance.now();
    if (now >= total) return;
    if (now !== last) movedAt = at;
    last = now;
    if (at - movedAt > STALLED_MS) {
      throw new Error(`nothing finished for ${STALLED_MS / 1000} s: ${now} of ${total}`);
    }
    const leftMs = ((total - now) / (now - first)) * (at - startedAt);
    await pause(Math.min(POLL_MAX_MS, Math.max(POLL_MS, leftMs / 4)));
  }
};

const readBatchSize = async (server: string, token: string): Promise<number> => {
  const response = await fetch(`${server}/metrics`, {
    headers: { authorization: `Bearer ${token}` },
  });
  const text = await response.text();
  const read = (name: string): number =>
    Number(new RegExp(`^${name}(?:\\{\\})? (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
  return read("coppice_commit_batch_size_sum") / read("coppice_commit_batch_size_count");
};

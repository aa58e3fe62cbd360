/**
 * A whole installation of real processes over servers of its own: PostgreSQL, a doorbell, an API,
 * two schedulers and two workers, with leases short enough for tests.
 *
 * What must stay true: a run counts as accepted only once the server has answered 2xx; a submission
 * is repeated under the same Idempotency-Key until then, as a user's client would.
 */
import { randomUUID } from "node:crypto";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openArtifactStore } from "@coppice/artifacts";
import { bundleProject } from "@coppice/bundle";
import { type Client, createClient } from "@coppice/contract";
import { parseId, type Rng, type RunId, seededRng, silentLogger } from "@coppice/core";
import {
  DOORBELL_DATABASE,
  type EmbeddedPostgres,
  freePort,
  MAIN_DATABASE,
  type PrivateRedis,
  startEmbeddedPostgres,
  startPrivateRedis,
} from "@coppice/local";
import { type DoorbellAddress, migrateDoorbell } from "@coppice/queue";
import { type Database, migrate, openDatabase, type Row } from "@coppice/store";
import { type DoorbellKind, redisCacheDir, tempDir, waitUntil } from "@coppice/testing";
import { createProgram, type Program } from "./programs.ts";

export const LEASE_MS = 3000;
const SETTINGS = {
  COPPICE_LEASE_MS: String(LEASE_MS),
  COPPICE_HEARTBEAT_MS: "800",
  COPPICE_RECONCILE_MS: "500",
  COPPICE_LOG_LEVEL: "warn",
} as const;
const SLOTS = 4;
const PATIENCE_MS = 60_000;

export interface Execution {
  readonly event: "begin" | "end";
  readonly run: string;
  readonly key: string;
  readonly item: number;
  readonly attempt: number;
  readonly pid: number;
}

export interface Cluster extends AsyncDisposable {
  readonly kind: DoorbellKind;
  readonly rng: Rng;
  readonly dir: string;
  readonly address: DoorbellAddress;
  readonly api: Program;
  readonly schedulers: readonly [Program, Program];
  readonly workers: readonly [Program, Program];
  readonly redis: PrivateRedis | undefined;
  /** Every run that the server has acknowledged. */
  readonly accepted: ReadonlySet<RunId>;
  /** The test's own look into the database; asks again while the server is away. */
  ask<R extends Row = Row>(text: string, values?: readonly unknown[]): Promise<R[]>;
  readonly db: Database;
  /** Until it is accepted. */
  submit(pipeline: string, ms: number): Promise<RunId>;
  /** A seeded mix of pipelines. */
  submitMix(count: number): Promise<RunId[]>;
  makeWorker(name: string, more?: Readonly<Record<string, string>>): Program;
  /** One more API over the same database, doorbell and artifacts. */
  makeApi(name: string): Promise<{ readonly program: Program; readonly server: string }>;
  /** Starts again whatever does not run. */
  revive(): Promise<void>;
  restartPostgres(): Promise<void>;
  /** As superuser, in no database of ours. */
  askAsAdmin(text: string): Promise<void>;
  executions(): Promise<Execution[]>;
  hasBytes(projectId: string, sha256: string): Promise<boolean>;
}

interface Servers {
  postgres: EmbeddedPostgres;
  readonly redis: PrivateRedis | undefined;
  readonly address: DoorbellAddress;
  readonly databaseUrl: string;
  startPostgres(): Promise<EmbeddedPostgres>;
}

const startServers = async (dir: string, kind: DoorbellKind): Promise<Servers> => {
  const port = await freePort();
  const startPostgres = async (): Promise<EmbeddedPostgres> =>
    startEmbeddedPostgres({
      dataDir: join(dir, "postgres"),
      logFile: join(dir, "postgres.log"),
      logger: silentLogger,
      port,
    });
  const postgres = await startPostgres();
  const databaseUrl = postgres.url(MAIN_DATABASE);
  await migrate(databaseUrl, silentLogger);
  if (kind === "postgres") {
    const address = { kind, url: postgres.url(DOORBELL_DATABASE) };
    await migrateDoorbell(address);
    return { postgres, redis: undefined, address, databaseUrl, startPostgres };
  }
  const redis = await startPrivateRedis({
    dir: join(dir, "redis"),
    cacheDir: redisCacheDir(),
    logger: silentLogger,
  });
  const address = { kind, url: redis.url, prefix: "coppice" };
  return { postgres, redis, address, databaseUrl, startPostgres };
};

const isOk = async (url: string): Promise<boolean> =>
  fetch(url, { signal: AbortSignal.timeout(1000) }).then(
    async (response) => {
      await response.body?.cancel();
      return response.ok;
    },
    () => false,
  );

interface Programs {
  readonly api: Program;
  readonly makeApi: (name: string) => Promise<{ program: Program; server: string }>;
  readonly schedulers: readonly [Program, Program];
  readonly server: string;
  readonly adminTokenFile: string;
}

const makePrograms = async (dir: string, servers: Servers): Promise<Programs> => {
  const { address, databaseUrl } = servers;
  const env = {
    ...SETTINGS,
    COPPICE_DATABASE_URL: databaseUrl,
    ...(address.kind === "redis"
      ? { COPPICE_REDIS_URL: address.url }
      : { COPPICE_DOORBELL_DATABASE_URL: address.url }),
  };
  const adminTokenFile = join(dir, "admin-token");
  const makeApi = async (name: string): Promise<{ program: Program; server: string }> => {
    const port = await freePort();
    const server = `http://127.0.0.1:${port}`;
    const program = createProgram({
      name,
      app: "api",
      dir,
      env: {
        ...env,
        COPPICE_PORT: String(port),
        COPPICE_ARTIFACTS: join(dir, "artifacts"),
        COPPICE_BOOTSTRAP_TOKEN_FILE: adminTokenFile,
      },
      isReady: async () => isOk(`${server}/readyz`),
    });
    return { program, server };
  };
  const { program: api, server } = await makeApi("api");
  const scheduler = async (name: string): Promise<Program> => {
    const ownPort = await freePort();
    return createProgram({
      name,
      app: "scheduler",
      dir,
      env: { ...env, COPPICE_SCHEDULER_PORT: String(ownPort) },
      isReady: async () => isOk(`http://127.0.0.1:${ownPort}/livez`),
    });
  };
  return {
    api,
    makeApi,
    schedulers: [await scheduler("scheduler-1"), await scheduler("scheduler-2")],
    server,
    adminTokenFile,
  };
};

const deploy = async (
  server: string,
  adminToken: string,
): Promise<{ client: Client; workerToken: string }> => {
  const admin = createClient({ server, token: adminToken });
  await admin.projects.create({ body: { name: "faults" } });
  const { token } = await admin.tokens.create({
    body: { name: "faults", scope: "deploy", project: "faults" },
  });
  const client = createClient({ server, token });
  const projectDir = fileURLToPath(new URL("project", import.meta.url));
  const { digest, bytes, manifest } = await bundleProject(projectDir);
  await client.bundles.put({ params: { digest }, body: new Uint8Array(bytes) });
  const pipelines = [...manifest.pipelines];
  await client.pipelines.deploy({ body: { bundleDigest: digest, pipelines } });
  const workers = await admin.tokens.create({ body: { name: "workers", scope: "worker" } });
  return { client, workerToken: workers.token };
};

const MIX = ["short", "short", "short", "dag", "dag", "maps", "checkpoints"];

export const openCluster = async (kind: DoorbellKind, seed: number): Promise<Cluster> => {
  const folder = await tempDir(`faults-${kind}`);
  const dir = folder.path;
  await chmod(dir, 0o711);
  const rng = seededRng(`${seed}/${kind}`);
  const servers = await startServers(dir, kind);
  const { api, makeApi, schedulers, server, adminTokenFile } = await makePrograms(dir, servers);
  const programs: Program[] = [api, ...schedulers];
  const db = openDatabase({
    url: servers.databaseUrl,
    applicationName: "faults",
    logger: silentLogger,
  });
  const close = async (): Promise<void> => {
    await Promise.all(
      programs.map(async (program) => {
        program.signal("SIGCONT");
        await program.end("SIGKILL").catch(() => undefined);
      }),
    );
    await db.close();
    await servers.redis?.stop();
    await servers.postgres.destroy();
    await folder.remove();
  };
  try {
    await Promise.all([api.start(), ...schedulers.map(async (one) => one.start())]);
    const adminToken = (await readFile(adminTokenFile, "utf8")).trim();
    const { client, workerToken } = await deploy(server, adminToken);

    const ask = async <R extends Row = Row>(
      text: string,
      values: readonly unknown[] = [],
    ): Promise<R[]> =>
      waitUntil(async () => db.query<R>(text, values), {
        what: "PostgreSQL to answer",
        timeoutMs: PATIENCE_MS,
      });
    const makeWorker = (name: string, more: Readonly<Record<string, string>> = {}): Program => {
      const workerDir = join(dir, name);
      const worker = createProgram({
        name,
        app: "worker",
        dir,
        env: {
          COPPICE_LOG_LEVEL: "warn",
          COPPICE_SERVER_URL: server,
          COPPICE_TOKEN: workerToken,
          COPPICE_WORKER_NAME: name,
          COPPICE_WORKER_SLOTS: String(SLOTS),
          COPPICE_WORKER_DIR: workerDir,
          ...more,
        },
        isReady: async () => true,
      });
      programs.push(worker);
      return worker;
    };
    const workers = [makeWorker("worker-1"), makeWorker("worker-2")] as const;
    await Promise.all(workers.map(async (worker) => worker.start()));

    const accepted = new Set<RunId>();
    const journal = join(dir, "journal");
    await writeFile(journal, "");
    await mkdir(join(dir, "artifacts"), { recursive: true });
    const submit = async (pipeline: string, ms: number): Promise<RunId> => {
      const key = randomUUID();
      const run = await waitUntil(
        async () =>
          client.runs.submit({
            body: { pipeline, params: { journal, ms } },
            headers: { "idempotency-key": key },
            signal: AbortSignal.timeout(5000),
          }),
        { what: `a run of ${pipeline} to be accepted`, timeoutMs: PATIENCE_MS, everyMs: 100 },
      );
      const id = parseId("run", run.id);
      if (id === undefined) throw new Error(`expected a run's id, not ${run.id}`);
      accepted.add(id);
      return id;
    };
    const artifacts = await openArtifactStore(join(dir, "artifacts"));
    return {
      kind,
      rng,
      dir,
      address: servers.address,
      api,
      schedulers,
      workers,
      redis: servers.redis,
      accepted,
      ask,
      db,
      submit,
      submitMix: async (count) =>
        Promise.all(
          Array.from({ length: count }, async () => {
            const pipeline = MIX[Math.floor(rng.next() * MIX.length)] ?? "short";
            return submit(pipeline, 20 + Math.floor(rng.next() * 80));
          }),
        ),
      makeWorker,
      makeApi: async (name) => {
        const made = await makeApi(name);
        programs.push(made.program);
        return made;
      },
      revive: async () => {
        const own = [api, ...schedulers, ...workers];
        const dead = own.filter((program) => !program.isRunning());
        await Promise.all(dead.map(async (program) => program.start()));
      },
      restartPostgres: async () => {
        process.kill(servers.postgres.pid, "SIGQUIT");
        await servers.postgres.exited;
        await servers.postgres.stop();
        servers.postgres = await servers.startPostgres();
      },
      askAsAdmin: async (text) => {
        const url = servers.postgres.adminUrl("postgres");
        const admin = openDatabase({ url, applicationName: "faults", logger: silentLogger });
        try {
          await admin.query(text);
        } finally {
          await admin.close();
        }
      },
      executions: async () =>
        (await readFile(journal, "utf8"))
          .split("\n")
          .filter((line) => line !== "")
          .map((line) => JSON.parse(line) as Execution),
      hasBytes: async (_projectId, sha256) => artifacts.has(sha256),
      [Symbol.asyncDispose]: close,
    };
  } catch (error) {
    await close();
    throw error;
  }
};

/**
 * A fleet as docker-compose.yml has it, as plain processes on 127.0.0.1: any number of APIs,
 * schedulers and workers around one PostgreSQL and one doorbell.
 *
 * What must stay true: the servers get the database's address and the workers never do; on Redis the
 * workers get a credential of their own that can only listen.
 */
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Client, createClient } from "@coppice/contract";
import { DEFAULT_PREFIX, doorbellAclRules } from "@coppice/queue";
import {
  type DoorbellKind,
  ownRedis,
  tempDir,
  testDoorbellDatabase,
  testPostgres,
  waitUntil,
} from "@coppice/testing";
import { Redis } from "ioredis";
import { BASE_ENV, type Environment, type Program, run, start } from "./program.ts";
import type { Project } from "./project.ts";

export interface Fleet extends AsyncDisposable {
  readonly dir: string;
  readonly databaseUrl: string;
  /** The environment of api, scheduler and the commands beside the database. */
  readonly serverEnv: Environment;
  startApi(): Promise<Api>;
  startScheduler(): Promise<Program>;
  /** Resolves when the server knows it. */
  startWorker(api: Api, name: string, env?: Environment): Promise<Program>;
}

export interface Api {
  readonly server: string;
  readonly program: Program;
  /** Every right there is. */
  readonly admin: Client;
  readonly adminToken: string;
}

const limitedRedis = async (url: string): Promise<string> => {
  const password = "worker-password";
  const admin = new Redis(url, { maxRetriesPerRequest: 1 });
  await admin.call("ACL", ...doorbellAclRules(DEFAULT_PREFIX, "coppice-worker", password));
  await admin.quit();
  const limited = new URL(url);
  limited.username = "coppice-worker";
  limited.password = password;
  return limited.toString();
};

const openDoorbell = async (
  kind: DoorbellKind,
): Promise<{ env: Environment; dispose: () => Promise<void> }> => {
  if (kind === "redis") {
    const redis = await ownRedis();
    const { url } = redis.server;
    return {
      env: { COPPICE_REDIS_URL: url, COPPICE_WORKER_REDIS_URL: await limitedRedis(url) },
      dispose: async () => redis[Symbol.asyncDispose](),
    };
  }
  const { url, drop } = await testDoorbellDatabase();
  return { env: { COPPICE_DOORBELL_DATABASE_URL: url }, dispose: drop };
};

export interface FleetOptions {
  readonly doorbell: DoorbellKind;
  readonly env?: Environment;
}

export const openFleet = async (options: FleetOptions): Promise<Fleet> => {
  const folder = await tempDir("fleet");
  const dir = folder.path;
  const database = await testPostgres();
  const doorbell = await openDoorbell(options.doorbell);
  const adminTokenFile = join(dir, "admin-token");
  const serverEnv = {
    COPPICE_DATABASE_URL: database.url,
    ...doorbell.env,
    COPPICE_ARTIFACTS: join(dir, "artifacts"),
    COPPICE_BOOTSTRAP_TOKEN_FILE: adminTokenFile,
    COPPICE_PORT: "0",
    COPPICE_SCHEDULER_PORT: "0",
    // A worker that is killed is missed soon.
    COPPICE_LEASE_MS: "4000",
    COPPICE_HEARTBEAT_MS: "1000",
    COPPICE_RECONCILE_MS: "500",
    ...options.env,
  };
  const programs: Program[] = [];
  const keep = (program: Program): Program => {
    programs.push(program);
    return program;
  };
  const migrated = await run("coppice-api", ["migrate"], { cwd: dir, env: serverEnv });
  if (migrated.code !== 0) throw new Error(migrated.stderr);
  return {
    dir,
    databaseUrl: database.url,
    serverEnv,
    startApi: async () => {
      const program = keep(start("coppice-api", [], { cwd: dir, env: serverEnv }));
      const [server] = await program.said(/http:\/\/127\.0\.0\.1:\d+/);
      const adminToken = (await readFile(adminTokenFile, "utf8")).trim();
      return { server, program, adminToken, admin: createClient({ server, token: adminToken }) };
    },
    startScheduler: async () => {
      const program = keep(start("coppice-scheduler", [], { cwd: dir, env: serverEnv }));
      await program.said(/scheduler is running/);
      return program;
    },
    startWorker: async ({ server, admin }, name, env = {}) => {
      const { token } = await admin.tokens.create({ body: { name, scope: "worker" } });
      await mkdir(join(dir, name), { recursive: true });
      const program = keep(
        start("coppice-worker", ["--server", server, "--name", name], {
          cwd: dir,
          env: {
            ...BASE_ENV,
            COPPICE_TOKEN: token,
            COPPICE_WORKER_DIR: join(dir, name),
            COPPICE_WORKER_SLOTS: "2",
            ...env,
          },
        }),
      );
      const isKnown = async (): Promise<boolean> =>
        (await admin.workers.list()).items.some((one) => one.name === name && one.isAlive);
      await waitUntil(isKnown, { what: `${name} to register`, timeoutMs: 30_000 });
      return program;
    },
    [Symbol.asyncDispose]: async () => {
      for (const program of programs.toReversed()) await program[Symbol.asyncDispose]();
      await doorbell.dispose();
      await database.drop();
      await folder.remove();
    },
  };
};

/** A token of this project with which everything of it may be done. */
export const projectToken = async ({ admin }: Api, project: string): Promise<string> => {
  await admin.projects.create({ body: { name: project } });
  const body = { name: "user", scope: "deploy", project } as const;
  return (await admin.tokens.create({ body })).token;
};

/** `coppice deploy` in the project, as a person does it. */
export const deploy = async (project: Project, api: Api, token: string): Promise<void> => {
  const env = { COPPICE_SERVER_URL: api.server, COPPICE_TOKEN: token };
  const { code, stdout, stderr } = await run("coppice", ["deploy"], { cwd: project.dir, env });
  if (code !== 0) throw new Error(stdout + stderr);
};

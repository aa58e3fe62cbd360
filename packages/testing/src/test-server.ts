/**
 * The real services behind a test run, held by the run's main process: one PostgreSQL, one Redis,
 * each started when the first test asks for it, so that tests of pure rooms pay for neither.
 *
 * Test processes ask over loopback HTTP at COPPICE_TEST_SERVICES, an address with a secret in it.
 * What must stay true: nothing that was started here outlives `stop`.
 */
import { randomBytes } from "node:crypto";
import { readdirSync, rmSync } from "node:fs";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLogger } from "@coppice/core";
import { DOORBELL_DATABASE, MAIN_DATABASE } from "@coppice/local";
import { startEmbeddedPostgres, startPrivateRedis } from "@coppice/local";
import { closeDatabases, makeTemplate } from "./test-database.ts";

export interface PostgresService {
  /** May create and drop databases. */
  readonly adminUrl: string;
  /** As the role that owns the main database. */
  readonly mainUrl: string;
  readonly doorbellUrl: string;
  /** The migrated database that each test gets a clone of. */
  readonly template: string;
  /** Begins the name of every database of this run. */
  readonly prefix: string;
}

export interface RedisService {
  readonly url?: string;
  /** Why there is none. */
  readonly missing?: string;
}

export interface TestServerOptions {
  /** Applies the schema to the database behind this address. */
  readonly migrate: (url: string) => Promise<void>;
  readonly redisCacheDir: string;
  /** Instead of our own servers. */
  readonly databaseUrl?: string | undefined;
  readonly redisUrl?: string | undefined;
  /** In CI a missing Redis is a failure. */
  readonly isCi: boolean;
  /** Takes the one line that says why Redis tests are skipped. */
  readonly say: (line: string) => void;
}

export interface TestServer {
  /** For COPPICE_TEST_SERVICES. */
  readonly url: string;
  /** For COPPICE_TEST_DIR. */
  readonly dir: string;
  stop(): Promise<void>;
}

type Stop = () => Promise<void>;

const FOLDER = /^coppice-test-(\d+)-/;

/** Runs that were killed leave their folders; their servers have ended by themselves. */
const sweepOldFolders = (): void => {
  for (const name of readdirSync(tmpdir())) {
    const pid = Number(FOLDER.exec(name)?.[1] ?? 0);
    if (pid === 0) continue;
    try {
      process.kill(pid, 0);
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code !== "ESRCH") continue;
      rmSync(join(tmpdir(), name), { recursive: true, force: true });
    }
  }
};

const startPostgres = async (
  dir: string,
  options: TestServerOptions,
  stops: Stop[],
): Promise<PostgresService> => {
  const prefix = `coppice_test_${randomBytes(4).toString("hex")}`;
  const template = `${prefix}_template`;
  let service: PostgresService;
  if (options.databaseUrl === undefined) {
    const postgres = await startEmbeddedPostgres({
      dataDir: join(dir, "postgres"),
      logFile: join(dir, "postgres.log"),
      logger: silentLogger,
      // Without fsync a killed server still has every commit; only the machine's own end loses
      // some.
      settings: { max_connections: 300, fsync: "off" },
    });
    stops.push(async () => postgres.stop());
    const adminUrl = postgres.adminUrl("postgres");
    const mainUrl = postgres.url(MAIN_DATABASE);
    const doorbellUrl = postgres.url(DOORBELL_DATABASE);
    service = { adminUrl, mainUrl, doorbellUrl, template, prefix };
  } else {
    const url = options.databaseUrl;
    service = { adminUrl: url, mainUrl: url, doorbellUrl: url, template, prefix };
    stops.push(async () => closeDatabases(service));
  }
  await makeTemplate(service, options.migrate);
  return service;
};

const startRedis = async (
  dir: string,
  options: TestServerOptions,
  stops: Stop[],
): Promise<RedisService> => {
  if (options.redisUrl !== undefined) return { url: options.redisUrl };
  try {
    const redis = await startPrivateRedis({
      dir: join(dir, "redis"),
      cacheDir: options.redisCacheDir,
      logger: silentLogger,
    });
    stops.push(async () => redis.stop());
    return { url: redis.url };
  } catch (error) {
    if (options.isCi) throw error;
    const missing = error instanceof Error ? error.message : String(error);
    options.say(`Tests that need Redis are skipped. ${missing}`);
    return { missing };
  }
};

const listen = async (server: Server): Promise<number> =>
  new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host: "127.0.0.1", port: 0 }, () => {
      const address = server.address();
      if (typeof address === "object" && address !== null) resolve(address.port);
    });
  });

const once = <T>(make: () => Promise<T>): (() => Promise<T>) => {
  let made: Promise<T> | undefined;
  return async () => (made ??= make());
};

export const startTestServer = async (options: TestServerOptions): Promise<TestServer> => {
  sweepOldFolders();
  const dir = await mkdtemp(join(tmpdir(), `coppice-test-${process.pid}-`));
  // As root, PostgreSQL runs as another user, who must be able to walk through here.
  await chmod(dir, 0o711);
  const stops: Stop[] = [];
  const postgres = once(async () => startPostgres(dir, options, stops));
  const redis = once(async () => startRedis(dir, options, stops));
  const secret = randomBytes(18).toString("base64url");
  const routes = new Map<string, () => Promise<unknown>>([
    [`/${secret}/postgres`, postgres],
    [`/${secret}/redis`, redis],
  ]);
  const server = createServer((request, response) => {
    const route = routes.get(request.url ?? "");
    const answer = route === undefined ? Promise.reject(new Error("no such service")) : route();
    answer.then(
      (body) => response.end(JSON.stringify(body)),
      (error: unknown) => {
        response.statusCode = 500;
        response.end(JSON.stringify({ error: error instanceof Error ? error.message : "failed" }));
      },
    );
  });
  const port = await listen(server);
  return {
    url: `http://127.0.0.1:${port}/${secret}`,
    dir,
    stop: async () => {
      server.close();
      server.closeAllConnections();
      await Promise.all(stops.map(async (stop) => stop()));
      await rm(dir, { recursive: true, force: true });
    },
  };
};

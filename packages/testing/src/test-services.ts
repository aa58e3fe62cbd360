/**
 * What a test asks for: a database, a doorbell's database, a Redis with a key prefix of its own; or
 * whole servers of its own, for tests that kill them.
 *
 * Everything made here is disposable (`await using`), and what a test forgets goes with the run.
 */
import { randomBytes } from "node:crypto";
import { chmod, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { silentLogger } from "@coppice/core";
import { type EmbeddedPostgres, type PrivateRedis } from "@coppice/local";
import { startEmbeddedPostgres, startPrivateRedis } from "@coppice/local";
import { tempDir } from "./temp-dir.ts";
import { cloneTemplate, createDoorbell, dropDatabase } from "./test-database.ts";
import type { PostgresService, RedisService } from "./test-server.ts";

interface Services {
  readonly postgres: PostgresService;
  readonly redis: RedisService;
}

const ask = async <Name extends keyof Services>(service: Name): Promise<Services[Name]> => {
  const url = process.env["COPPICE_TEST_SERVICES"];
  if (url === undefined) {
    throw new Error("No test services run: use `vitest run --config tests/vitest.config.ts`.");
  }
  const response = await fetch(`${url}/${service}`);
  if (!response.ok) throw new Error(`The test ${service}: ${await response.text()}`);
  // The other side is test-server.ts of this same checkout.
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion
  return (await response.json()) as Services[Name];
};

export interface TestDatabase extends AsyncDisposable {
  readonly url: string;
  readonly name: string;
  drop(): Promise<void>;
}

const disposable = (
  service: PostgresService,
  created: { readonly name: string; readonly url: string },
): TestDatabase => {
  const drop = async (): Promise<void> => dropDatabase(service, created.name);
  return { ...created, drop, [Symbol.asyncDispose]: drop };
};

/** A fresh database with the schema in it, owned by the role that we run as. */
export const testPostgres = async (): Promise<TestDatabase> => {
  const service = await ask("postgres");
  return disposable(service, await cloneTemplate(service));
};

/** A fresh empty database for BullMQ's PostgreSQL backend, under the doorbell's role. */
export const testDoorbellDatabase = async (): Promise<TestDatabase> => {
  const service = await ask("postgres");
  return disposable(service, await createDoorbell(service));
};

export interface TestRedis {
  readonly url: string;
  /** Begins every key of this test: the server is shared. */
  readonly prefix: string;
}

export const testRedis = async (): Promise<TestRedis> => {
  const { url, missing } = await ask("redis");
  if (url === undefined) throw new Error(missing ?? "There is no Redis.");
  return { url, prefix: `test-${randomBytes(6).toString("hex")}` };
};

/** For `describe.skipIf(!(await hasRedis()))`. In CI a missing Redis is an error instead. */
export const hasRedis = async (): Promise<boolean> => (await ask("redis")).url !== undefined;

export interface OwnPostgres extends AsyncDisposable {
  readonly server: EmbeddedPostgres;
}

/** A PostgreSQL server of this test alone, not migrated. */
export const ownPostgres = async (): Promise<OwnPostgres> => {
  const dir = await tempDir("postgres");
  await chmod(dir.path, 0o711);
  const server = await startEmbeddedPostgres({
    dataDir: join(dir.path, "postgres"),
    logFile: join(dir.path, "postgres.log"),
    logger: silentLogger,
  });
  const dispose = async (): Promise<void> => {
    await server.destroy();
    await dir.remove();
  };
  return { server, [Symbol.asyncDispose]: dispose };
};

/** Where a downloaded Redis is kept: beside the other caches of the installation. */
export const redisCacheDir = (): string => {
  const manifest = createRequire(import.meta.url).resolve("vitest/package.json");
  return join(dirname(dirname(manifest)), ".cache", "coppice-redis");
};

export interface OwnRedis extends AsyncDisposable {
  readonly server: PrivateRedis;
}

/** A Redis of this test alone. */
export const ownRedis = async (): Promise<OwnRedis> => {
  const dir = await tempDir("redis");
  const server = await startPrivateRedis({
    dir: dir.path,
    cacheDir: redisCacheDir(),
    logger: silentLogger,
  });
  const dispose = async (): Promise<void> => {
    await server.stop();
    await rm(dir.path, { recursive: true, force: true });
  };
  return { server, [Symbol.asyncDispose]: dispose };
};

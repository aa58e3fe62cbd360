/**
 * What the doorbell's tests stand on: a private Redis and an embedded PostgreSQL, real servers that
 * a test may kill, and bells to ring.
 */
import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type LogFn, type Logger, requireId, silentLogger } from "@coppice/core";
import {
  DOORBELL_DATABASE,
  type PrivateRedis,
  startEmbeddedPostgres,
  startPrivateRedis,
} from "@coppice/local";
import type { DoorbellAddress } from "../src/address.ts";
import type { Bell } from "../src/bell.ts";

export interface DoorbellServer {
  readonly address: DoorbellAddress;
  /** Ends the server for good. */
  stop(): Promise<void>;
}

export interface RedisServer extends DoorbellServer {
  readonly redis: PrivateRedis;
}

/** Beside the other caches of the installation, where every test run finds what one has fetched. */
const redisCacheDir = join(
  dirname(dirname(createRequire(import.meta.url).resolve("vitest/package.json"))),
  ".cache",
  "coppice-redis",
);

export const startRedisServer = async (): Promise<RedisServer> => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-queue-redis-"));
  const redis = await startPrivateRedis({ dir, cacheDir: redisCacheDir, logger: silentLogger });
  return {
    redis,
    address: { kind: "redis", url: redis.url, prefix: "coppice" },
    stop: async () => {
      await redis.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

/** Without a Redis on the machine or in reach its tests are skipped; in CI that is a failure. */
export const isRedisAvailable = async (): Promise<boolean> => {
  try {
    const server = await startRedisServer();
    await server.stop();
    return true;
  } catch (error) {
    if (process.env["CI"] !== undefined) throw error;
    return false;
  }
};

export interface PostgresServer extends DoorbellServer {
  /** Stops the server and starts it again on the same port. */
  restart(): Promise<void>;
}

export const startPostgresServer = async (): Promise<PostgresServer> => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-queue-postgres-"));
  const options = {
    dataDir: join(dir, "data"),
    logFile: join(dir, "postgres.log"),
    logger: silentLogger,
  };
  let server = await startEmbeddedPostgres(options);
  return {
    address: { kind: "postgres", url: server.url(DOORBELL_DATABASE) },
    restart: async () => {
      const { port } = server;
      await server.stop();
      server = await startEmbeddedPostgres({ ...options, port });
    },
    stop: async () => {
      await server.destroy();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

export const newClass = (): string => `cpu.test=${randomUUID()}`;

export const makeBells = (
  classKey: string,
  count: number,
  fields: Partial<Bell> = {},
): readonly Bell[] => {
  const runId = requireId("run", randomUUID());
  return Array.from({ length: count }, (_, item) => ({
    classKey,
    runId,
    step: 0,
    item,
    attempt: 1,
    ring: 0,
    priority: 0,
    ...fields,
  }));
};

/** Collects what arrives; `until` resolves when the condition holds, checked at every arrival. */
export class Collected<T> {
  readonly items: T[] = [];
  readonly #waiters = new Set<() => void>();

  add(item: T): void {
    this.items.push(item);
    for (const check of this.#waiters) check();
  }

  async until(condition: (items: readonly T[]) => boolean, deadlineMs = 15_000): Promise<void> {
    if (condition(this.items)) return;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiters.delete(check);
        reject(new Error(`not within ${deadlineMs} ms; ${this.items.length} arrived`));
      }, deadlineMs);
      const check = (): void => {
        if (!condition(this.items)) return;
        clearTimeout(timer);
        this.#waiters.delete(check);
        resolve();
      };
      this.#waiters.add(check);
    });
  }

  async untilCount(count: number, deadlineMs?: number): Promise<void> {
    await this.until((items) => items.length >= count, deadlineMs);
  }
}

export interface RecordedLog {
  readonly logger: Logger;
  readonly warnings: Collected<string>;
}

export const recordWarnings = (): RecordedLog => {
  const warnings = new Collected<string>();
  const warn: LogFn = (_fields, message) => warnings.add(message);
  const logger: Logger = { ...silentLogger, warn, child: () => logger };
  return { logger, warnings };
};

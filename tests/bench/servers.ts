/**
 * The servers of one row: PostgreSQL as the product embeds it, with its ordinary durability, and a
 * private Redis with an append-only file. What must stay true: everything lies in one temporary
 * folder and goes with it.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Logger } from "@coppice/core";
import {
  DOORBELL_DATABASE,
  MAIN_DATABASE,
  startEmbeddedPostgres,
  startPrivateRedis,
} from "@coppice/local";
import { type DoorbellAddress, migrateDoorbell } from "@coppice/queue";
import { migrate } from "@coppice/store";
import { redisCacheDir } from "@coppice/testing";

export type DoorbellKind = "redis" | "postgres";

export interface Servers {
  readonly dir: string;
  readonly databaseUrl: string;
  readonly adminUrl: string;
  readonly address: DoorbellAddress;
  readonly pids: { readonly postgres: number; readonly redis: number | undefined };
  close(): Promise<void>;
}

/** Warnings and errors go to stderr: a bench that quietly retries measures the wrong thing. */
export const benchLogger: Logger = {
  debug: () => undefined,
  info: () => undefined,
  warn: (fields, message) => complain(fields, message),
  error: (fields, message) => complain(fields, message),
  child: () => benchLogger,
};

/** From then on broken connections are what is to be expected. */
let isClosing = false;

const complain = (fields: Readonly<Record<string, unknown>>, message: string): void => {
  if (isClosing) return;
  const { err } = fields;
  const reason = err instanceof Error ? `: ${err.stack ?? err.message}` : "";
  process.stderr.write(`  ! ${message}${reason}\n`);
};

export const startServers = async (kind: DoorbellKind): Promise<Servers> => {
  isClosing = false;
  const dir = await mkdtemp(join(tmpdir(), "coppice-bench-"));
  const logger = benchLogger;
  // "The folder's owner changes" and the like are no news here.
  const calm: Logger = { ...logger, warn: () => undefined };
  const postgres = await startEmbeddedPostgres({
    dataDir: join(dir, "postgres"),
    logFile: join(dir, "postgres.log"),
    logger: calm,
  });
  const databaseUrl = postgres.url(MAIN_DATABASE);
  await migrate(databaseUrl, logger);
  const redis =
    kind === "redis"
      ? await startPrivateRedis({ dir: join(dir, "redis"), cacheDir: redisCacheDir(), logger })
      : undefined;
  const address: DoorbellAddress =
    redis === undefined
      ? { kind: "postgres", url: postgres.url(DOORBELL_DATABASE) }
      : { kind: "redis", url: redis.url, prefix: "coppice" };
  if (redis === undefined) await migrateDoorbell(address);
  return {
    dir,
    databaseUrl,
    adminUrl: postgres.adminUrl(MAIN_DATABASE),
    address,
    pids: { postgres: postgres.pid, redis: redis?.pid() },
    close: async () => {
      isClosing = true;
      await redis?.stop();
      await postgres.destroy();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

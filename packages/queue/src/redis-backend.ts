/**
 * BullMQ on Redis. What must stay true: Redis never evicts our keys; every key begins with the
 * prefix; a producer fails at once while Redis is away; a listener reconnects within two seconds of
 * Redis coming back.
 */
import { CoppiceError, type Logger } from "@coppice/core";
import { createRedisBackend, Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { type DoorbellAddress, describeAddress } from "./address.ts";
import {
  type Backend,
  type BackendOptions,
  COMPLETED_AGE_S,
  FAILED_AGE_S,
  processorOf,
  queueOptions,
  type Side,
  workerOptions,
} from "./backend.ts";
import { orDeadline, withinMs, DEADLINE } from "./deadline.ts";

export type RedisAddress = Extract<DoorbellAddress, { kind: "redis" }>;

const CONNECT_TIMEOUT_MS = 2000;
const COMMAND_TIMEOUT_MS = 3000;
/** A socket that is silent for so long with a command open is dead: half-open, or behind a hole. */
const SOCKET_TIMEOUT_MS = 10_000;
const RECONNECT_CAP_MS = 1000;
/** Finished bells kept per class: an hour of them at full speed would be gigabytes. */
const COMPLETED_KEPT = 5000;

const redisOptions = (side: Side) => ({
  lazyConnect: true,
  connectTimeout: CONNECT_TIMEOUT_MS,
  socketTimeout: SOCKET_TIMEOUT_MS,
  keepAlive: 10_000,
  retryStrategy: (times: number) => Math.min(50 * 2 ** Math.min(times, 10), RECONNECT_CAP_MS),
  // BullMQ wants null: a command is then never given up by count, only by the limits here.
  maxRetriesPerRequest: null,
  ...(side === "producer"
    ? { enableOfflineQueue: false, commandTimeout: COMMAND_TIMEOUT_MS }
    : { enableOfflineQueue: true }),
});

const infoField = (info: string, field: string): string | undefined =>
  info
    .split(/\r?\n/)
    .find((line) => line.startsWith(`${field}:`))
    ?.slice(field.length + 1);

/** @throws CPC_REDIS_EVICTS */
const checkSettings = async (client: Redis, logger: Logger): Promise<void> => {
  // INFO rather than CONFIG GET: managed servers and ACLs often forbid the latter.
  const info = await client.info("memory", "persistence").catch((error: unknown) => {
    logger.warn({ err: error }, "Redis does not show its settings: eviction and AOF unchecked");
    return undefined;
  });
  if (info === undefined) return;
  const policy = infoField(info, "maxmemory_policy");
  if (policy === undefined) {
    logger.warn({}, "Redis does not say its maxmemory-policy: eviction unchecked");
  } else if (policy !== "noeviction") {
    throw new CoppiceError("CPC_REDIS_EVICTS", {
      detail: `expected maxmemory-policy noeviction. Received: ${policy}`,
    });
  }
  if (infoField(info, "aof_enabled") === "0") {
    logger.warn(
      {},
      "Redis keeps no append-only file: after a restart of Redis, waiting steps are rung again " +
        "from the database, seconds later than with `appendonly yes`",
    );
  }
};

export const openRedisBackend = (address: RedisAddress, options: BackendOptions): Backend => {
  const { logger, side } = options;
  const client = new Redis(address.url, redisOptions(side));
  let isAway = false;
  client.on("error", (error: unknown) => {
    if (!isAway) logger.warn({ err: error, redis: describeAddress(address) }, "Redis is away");
    isAway = true;
  });
  client.on("ready", () => {
    if (isAway) logger.info({ redis: describeAddress(address) }, "Redis is back");
    isAway = false;
  });
  const connecting = client.connect().catch((error: unknown) => error);
  const base = { connection: client, prefix: address.prefix };

  return {
    kind: "redis",
    unreachable: "CPC_REDIS_UNREACHABLE",
    keep: {
      attempts: 1,
      removeOnComplete: { age: COMPLETED_AGE_S, count: COMPLETED_KEPT },
      removeOnFail: { age: FAILED_AGE_S },
    },
    addSingly: 1,
    // Redis wakes one waiter per bell: if that one just lost its slot, another finds the bell after
    // this time at the latest.
    waitSeconds: 2,
    check: async () => {
      const failure = await orDeadline(connecting, CONNECT_TIMEOUT_MS);
      if (failure === DEADLINE || failure !== undefined) {
        throw new CoppiceError("CPC_REDIS_UNREACHABLE", {
          detail: `No connection to ${describeAddress(address)}.`,
          ...(failure === DEADLINE ? {} : { cause: failure }),
        });
      }
      await checkSettings(client, logger);
    },
    isConnected: () => client.status === "ready",
    openQueue: (name) => new Queue(name, { ...base, ...queueOptions }, createRedisBackend),
    openWorker: (name, loop) =>
      new Worker(name, processorOf(loop), { ...base, ...workerOptions(loop) }, createRedisBackend),
    close: async (deadlineMs) => {
      if (client.status === "ready") await withinMs(client.quit(), deadlineMs);
      client.disconnect();
    },
  };
};

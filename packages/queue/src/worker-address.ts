/**
 * The address that workers get: the server's own, with a credential that can only listen.
 *
 * Where the server's Redis user may administer users, it makes the user `coppice-worker` itself and
 * makes it again whenever Redis comes back, because users are forgotten by a restart. The password
 * follows from the server's own, so that several servers agree without telling each other, and it
 * stands nowhere. What must stay true: who knows the worker's password can't tell the server's; a
 * Redis where this is forbidden, or without a password, works as before, with a warning.
 */
import { createHmac } from "node:crypto";
import { CoppiceError, type Logger, silentLogger } from "@coppice/core";
import { Redis } from "ioredis";
import { doorbellAclRules } from "./acl.ts";
import { type DoorbellAddress, describeAddress } from "./address.ts";
import { orDeadline, withinMs, DEADLINE } from "./deadline.ts";

export const WORKER_USER = "coppice-worker";

const CONNECT_TIMEOUT_MS = 2000;
const ANSWER_MS = 3000;
const RECONNECT_CAP_MS = 1000;

export interface WorkerAddress {
  readonly address: DoorbellAddress;
  close(): Promise<void>;
}

type RedisAddress = Extract<DoorbellAddress, { kind: "redis" }>;

const plain = (address: DoorbellAddress): WorkerAddress => ({
  address,
  close: async () => Promise.resolve(),
});

const passwordFor = (own: string, prefix: string): string =>
  createHmac("sha256", own).update(`coppice doorbell for workers, ${prefix}`).digest("base64url");

/** @throws CPC_REDIS_UNREACHABLE; a `ReplyError` where Redis refuses */
const grant = async (client: Redis, rules: readonly string[]): Promise<void> => {
  const answer = await orDeadline(client.call("ACL", ...rules), ANSWER_MS);
  if (answer !== DEADLINE) return;
  throw new CoppiceError("CPC_REDIS_UNREACHABLE", { detail: `no answer within ${ANSWER_MS} ms` });
};

const limited = async (
  address: RedisAddress,
  own: string,
  logger: Logger,
): Promise<WorkerAddress> => {
  const url = new URL(address.url);
  url.username = WORKER_USER;
  url.password = passwordFor(own, address.prefix);
  const rules = doorbellAclRules(address.prefix, WORKER_USER, url.password);
  const client = new Redis(address.url, {
    lazyConnect: true,
    connectTimeout: CONNECT_TIMEOUT_MS,
    maxRetriesPerRequest: null,
    retryStrategy: (times) => Math.min(50 * 2 ** Math.min(times, 10), RECONNECT_CAP_MS),
  });
  // That Redis is away is told by the doorbell itself.
  client.on("error", () => undefined);
  try {
    await orDeadline(
      client.connect().catch(() => undefined),
      CONNECT_TIMEOUT_MS,
    );
    await grant(client, rules);
  } catch (error) {
    client.disconnect();
    throw error;
  }
  client.on("ready", () => {
    grant(client, rules).catch((error: unknown) => {
      logger.warn({ err: error }, "Redis came back and did not take the workers' user");
    });
  });
  return {
    address: { ...address, url: url.href },
    close: async () => {
      if (client.status === "ready") await withinMs(client.quit(), ANSWER_MS);
      client.disconnect();
    },
  };
};

/**
 * What workers are to be told of this doorbell; to be closed with the server.
 * @throws CPC_REDIS_UNREACHABLE
 */
export const openWorkerAddress = async (
  address: DoorbellAddress,
  { logger = silentLogger }: { readonly logger?: Logger } = {},
): Promise<WorkerAddress> => {
  // The embedded doorbell's role reaches nothing else as it is.
  if (address.kind === "postgres") return plain(address);
  const own = decodeURIComponent(new URL(address.url).password);
  const redis = describeAddress(address);
  if (own === "") {
    logger.warn({ redis }, "Redis asks for no password: workers can do all that the server can");
    return plain(address);
  }
  try {
    return await limited(address, own, logger);
  } catch (error) {
    // Only a refusal: a Redis that is slow or away must not make us hand out more than we should.
    if (!(error instanceof Error && error.name === "ReplyError")) throw error;
    logger.warn(
      { err: error, redis },
      "the server may not make a Redis user for workers: they get its own credential. " +
        "Set COPPICE_WORKER_REDIS_URL to one that is limited to our keys.",
    );
    return plain(address);
  }
};

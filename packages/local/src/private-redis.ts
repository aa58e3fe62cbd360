/**
 * A Redis of our own for tests: loopback, a random password, an append-only file, no eviction. It can
 * be killed and started again on the same port with what it had written, as fault tests want.
 *
 * The product itself never comes here: it uses Redis only by COPPICE_REDIS_URL.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { CoppiceError, type Logger } from "@coppice/core";
import { freePort } from "./free-port.ts";
import { guardAgainstOrphan } from "./parent-guard.ts";
import { locateRedis, type RedisBinary, type RedisSource } from "./redis-binaries.ts";
import { askRedis, type RedisAddress } from "./redis-command.ts";
import { waitFor } from "./wait-for.ts";

export interface PrivateRedisOptions extends RedisSource {
  /** For its data and its log. */
  readonly dir: string;
  readonly logger: Logger;
}

export interface PrivateRedis {
  readonly url: string;
  readonly port: number;
  /** Of the server that runs now; undefined while none does. */
  pid(): number | undefined;
  /** SIGKILL, as a crash; `restart` brings it back with what it had written. */
  kill(): Promise<void>;
  restart(): Promise<void>;
  flushAll(): Promise<void>;
  stop(): Promise<void>;
}

const START_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 10_000;

const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null;

const writeConfig = async (dir: string, address: RedisAddress): Promise<string> => {
  const file = join(dir, "redis.conf");
  const lines = [
    "bind 127.0.0.1",
    `port ${address.port}`,
    `requirepass ${address.password}`,
    `dir "${dir}"`,
    "appendonly yes",
    "appendfsync everysec",
    "maxmemory-policy noeviction",
    'save ""',
    "daemonize no",
  ];
  // The password travels in this file rather than in the arguments, which everyone can list.
  await writeFile(file, `${lines.join("\n")}\n`, { mode: 0o600 });
  return file;
};

const launch = async (
  binary: RedisBinary,
  dir: string,
  address: RedisAddress,
): Promise<ChildProcess> => {
  const config = await writeConfig(dir, address);
  const logFile = join(dir, "redis.log");
  const log = await open(logFile, "a", 0o600);
  try {
    const child = spawn(binary.command, [config], {
      argv0: "redis-server",
      cwd: dir,
      env: binary.env,
      stdio: ["ignore", log.fd, log.fd],
      detached: true,
    });
    let isUnable = false;
    child.once("error", () => (isUnable = true));
    if (child.pid !== undefined) {
      const killAfterMs = STOP_TIMEOUT_MS;
      const guard = guardAgainstOrphan({ pid: child.pid, signal: "TERM", killAfterMs });
      child.once("exit", () => guard.release());
    }
    const outcome = await waitFor(async () => {
      if (isUnable || hasEnded(child)) return "ended";
      return (await askRedis(address, "PING")) === "+PONG" ? "ready" : undefined;
    }, START_TIMEOUT_MS);
    if (outcome === "ready") return child;
    child.kill("SIGKILL");
    const said = (await readFile(logFile, "utf8")).trim().split("\n").slice(-3).join(" | ");
    throw new CoppiceError("CPC_REDIS_UNREACHABLE", {
      detail: `${binary.command} did not start: ${said}`,
      hint: `Read ${logFile}.`,
    });
  } finally {
    await log.close();
  }
};

const end = async (child: ChildProcess, signal: "SIGTERM" | "SIGKILL"): Promise<void> => {
  if (!hasEnded(child)) child.kill(signal);
  const ended = await waitFor(() => (hasEnded(child) ? true : undefined), STOP_TIMEOUT_MS);
  if (ended === undefined) child.kill("SIGKILL");
};

/** A port found free may be lost to someone else before Redis binds it: then another is tried. */
const launchOnFreePort = async (binary: RedisBinary, dir: string) => {
  const password = randomBytes(18).toString("base64url");
  for (let round = 0; ; round += 1) {
    const address: RedisAddress = { port: await freePort(), password };
    try {
      return { address, child: await launch(binary, dir, address) };
    } catch (error) {
      if (round >= 2) throw error;
    }
  }
};

export const startPrivateRedis = async (options: PrivateRedisOptions): Promise<PrivateRedis> => {
  const dir = resolve(options.dir);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const binary = await locateRedis(options);
  const first = await launchOnFreePort(binary, dir);
  const { address } = first;
  let child: ChildProcess | undefined = first.child;
  options.logger.debug({ port: address.port, command: binary.command }, "a private Redis is up");
  const finish = async (signal: "SIGTERM" | "SIGKILL"): Promise<void> => {
    if (child !== undefined) await end(child, signal);
    child = undefined;
  };
  return {
    url: `redis://:${address.password}@127.0.0.1:${address.port}/0`,
    port: address.port,
    pid: () => child?.pid,
    kill: async () => finish("SIGKILL"),
    restart: async () => {
      await finish("SIGTERM");
      child = await launch(binary, dir, address);
    },
    flushAll: async () => {
      const answer = await askRedis(address, "FLUSHALL");
      if (answer === "+OK") return;
      throw new CoppiceError("CPC_REDIS_UNREACHABLE", {
        detail: `FLUSHALL: ${answer ?? "silence"}`,
      });
    },
    stop: async () => finish("SIGTERM"),
  };
};

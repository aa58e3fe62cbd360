/** The credential that a server makes for its workers, on a real Redis that is killed as well. */
import { readFileSync } from "node:fs";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  Collected,
  isRedisAvailable,
  makeBells,
  newClass,
  recordWarnings,
  type RedisServer,
  startRedisServer,
} from "../testing/services.ts";
import { doorbellAclRules } from "./acl.ts";
import type { DoorbellAddress } from "./address.ts";
import type { Bell } from "./bell.ts";
import { openDoorbell } from "./doorbell.ts";
import { listen } from "./listener.ts";
import { createSlots } from "./slots.ts";
import { openWorkerAddress, WORKER_USER, type WorkerAddress } from "./worker-address.ts";

const passwordOf = (address: DoorbellAddress): string => new URL(address.url).password;

it("is limited in docker-compose.yml by the same rules as here", () => {
  const file = new URL("../../../docker-compose.yml", import.meta.url);
  const rules = doorbellAclRules("coppice", WORKER_USER, "secret").slice(5).join(" ");
  expect(readFileSync(file, "utf8")).toContain(`$$WORKER_PASSWORD ${rules}\n`);
});

describe.skipIf(!(await isRedisAvailable()))("what workers are told of Redis", () => {
  let server: RedisServer;
  let admin: Redis;
  const cleanups: (() => Promise<void>)[] = [];

  beforeAll(async () => {
    server = await startRedisServer();
    admin = new Redis(server.redis.url);
    admin.on("error", () => undefined);
  }, 60_000);

  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
  });

  afterAll(async () => {
    admin.disconnect();
    await server.stop();
  }, 30_000);

  const open = async (
    address: DoorbellAddress = server.address,
  ): Promise<WorkerAddress & { readonly warnings: readonly string[] }> => {
    const { logger, warnings } = recordWarnings();
    const opened = await openWorkerAddress(address, { logger });
    cleanups.push(async () => opened.close());
    return { ...opened, warnings: warnings.items };
  };

  const connect = (url: string): Redis => {
    const client = new Redis(url);
    client.on("error", () => undefined);
    cleanups.push(async () => Promise.resolve(client.disconnect()));
    return client;
  };

  it("is a user that can do nothing outside our keys, nor anything that has no keys", async () => {
    const { address, warnings } = await open();
    expect(warnings).toEqual([]);
    expect(new URL(address.url).username).toBe(WORKER_USER);
    expect(passwordOf(address)).not.toBe(passwordOf(server.address));
    const worker = connect(address.url);
    expect(await worker.call("ACL", "WHOAMI").catch((error: Error) => error.message)).toMatch(
      /NOPERM/,
    );
    await admin.set("elsewhere", "secret");
    const tries = [
      ...[0, 1, 2, 3, 4, 5].map((count) => Array.from({ length: count }, () => "elsewhere")),
      // Commands that say first how many keys follow, some of them after the key they write to.
      ["1", "elsewhere", "elsewhere", "elsewhere"],
      ["elsewhere", "1", "elsewhere", "elsewhere"],
    ];
    const allowed: string[] = [];
    for (const command of (await admin.call("COMMAND", "LIST")) as string[]) {
      const verdicts = await Promise.all(
        tries.map(async (words) =>
          admin
            .call("ACL", "DRYRUN", WORKER_USER, command, ...words)
            .then(String, (error: Error) => error.message),
        ),
      );
      const isRefused = verdicts.some((verdict) => /no permissions|NOPERM/.test(verdict));
      if (!isRefused && verdicts.includes("OK")) allowed.push(command);
    }
    expect(allowed.toSorted()).toEqual(
      "auth hello info lolwut ping quit reset select time".split(" "),
    );
  });

  it("is the same for every server, and follows from the server's own password", async () => {
    const [one, two] = [await open(), await open()];
    expect(one.address).toEqual(two.address);
    const other = await open({ ...server.address, prefix: "coppice2" } as DoorbellAddress);
    expect(passwordOf(other.address)).not.toBe(passwordOf(one.address));
  });

  it("listens, and goes on after Redis was restarted and had forgotten its users", async () => {
    const { address } = await open();
    const doorbell = await openDoorbell(server.address);
    cleanups.push(async () => doorbell.close());
    const classKey = newClass();
    const heard = new Collected<Bell>();
    const listener = await listen(address, {
      slots: createSlots(4),
      classKeys: [classKey],
      onBell: async (bell, slot) => {
        heard.add(bell);
        slot.release();
        return Promise.resolve("started" as const);
      },
    });
    cleanups.push(async () => listener.close(3000));
    await doorbell.ring(makeBells(classKey, 20));
    await heard.untilCount(20);
    await server.redis.kill();
    await server.redis.restart();
    const backMs = performance.now();
    await expect
      .poll(
        async () =>
          doorbell.ring(makeBells(classKey, 20, { ring: 1 })).then(
            () => "rung",
            () => "away",
          ),
        { timeout: 10_000, interval: 50 },
      )
      .toBe("rung");
    await heard.until((items) => items.filter(({ ring }) => ring === 1).length >= 20);
    expect(performance.now() - backMs).toBeLessThan(5000);
  }, 30_000);

  it("is the server's own address, with a warning, where users may not be made", async () => {
    const words = "on >modest ~coppice:* &* +@all -@admin -@dangerous +info".split(" ");
    await admin.call("ACL", "SETUSER", "modest", "reset", ...words);
    const url = new URL(server.redis.url);
    url.username = "modest";
    url.password = "modest";
    const { address, warnings } = await open({ ...server.address, url: url.href } as never);
    expect(address.url).toBe(url.href);
    expect(warnings).toEqual([expect.stringContaining("COPPICE_WORKER_REDIS_URL")]);
  });

  it("is never more than asked for because Redis was away", async () => {
    const url = new URL(server.redis.url);
    url.port = "1";
    const address = { ...server.address, url: url.href } as DoorbellAddress;
    await expect(openWorkerAddress(address)).rejects.toMatchObject({
      code: "CPC_REDIS_UNREACHABLE",
    });
  });

  it("says that a Redis without a password keeps nobody out", async () => {
    const url = new URL(server.redis.url);
    url.password = "";
    url.username = "";
    const { warnings } = await open({ ...server.address, url: url.href } as DoorbellAddress);
    expect(warnings).toEqual([expect.stringContaining("no password")]);
  });
});

/** What only Redis has: settings to check, credentials to limit, restarts, flushes. */
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
import { type Doorbell, openDoorbell } from "./doorbell.ts";
import { listen, type Listener } from "./listener.ts";
import { createSlots, type Slots } from "./slots.ts";

/** Rings until it succeeds, as the engine does, and tells how long that took. */
const ringUntilRung = async (doorbell: Doorbell, bells: readonly Bell[]): Promise<void> => {
  await expect
    .poll(
      async () =>
        doorbell.ring(bells).then(
          () => "rung",
          (error: { code: string }) => error.code,
        ),
      { timeout: 10_000, interval: 50 },
    )
    .toBe("rung");
};

describe.skipIf(!(await isRedisAvailable()))("the doorbell on Redis alone", () => {
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

  const open = async (): Promise<Doorbell> => {
    const doorbell = await openDoorbell(server.address);
    cleanups.push(async () => doorbell.close());
    return doorbell;
  };

  const hear = async (
    classKey: string,
    address: DoorbellAddress = server.address,
    slots: Slots = createSlots(4),
  ): Promise<{ heard: Collected<Bell>; listener: Listener }> => {
    const heard = new Collected<Bell>();
    const listener = await listen(address, {
      slots,
      classKeys: [classKey],
      onBell: async (bell, slot) => {
        heard.add(bell);
        slot.release();
        return Promise.resolve("started" as const);
      },
    });
    cleanups.push(async () => listener.close(3000));
    return { heard, listener };
  };

  it("refuses a Redis that evicts", async () => {
    await admin.config("SET", "maxmemory-policy", "allkeys-lru");
    try {
      await expect(openDoorbell(server.address)).rejects.toMatchObject({
        code: "CPC_REDIS_EVICTS",
        detail: expect.stringContaining("allkeys-lru"),
      });
    } finally {
      await admin.config("SET", "maxmemory-policy", "noeviction");
    }
  });

  it("warns of a Redis that keeps no append-only file", async () => {
    await admin.config("SET", "appendonly", "no");
    const { logger, warnings } = recordWarnings();
    const doorbell = await openDoorbell(server.address, { logger });
    await doorbell.close();
    await admin.config("SET", "appendonly", "yes");
    expect(warnings.items).toEqual([expect.stringContaining("append-only file")]);
  });

  it("rings again within three seconds of a restart", async () => {
    const classKey = newClass();
    const doorbell = await open();
    const { heard } = await hear(classKey);
    await doorbell.ring(makeBells(classKey, 5));
    await heard.untilCount(5);
    await server.redis.kill();
    await expect(doorbell.ring(makeBells(classKey, 1))).rejects.toMatchObject({
      code: "CPC_REDIS_UNREACHABLE",
    });
    await server.redis.restart();
    const backMs = performance.now();
    const late = makeBells(classKey, 5, { step: 9 });
    await ringUntilRung(doorbell, late);
    await heard.until((items) => items.filter((bell) => bell.step === 9).length >= 5);
    expect(performance.now() - backMs).toBeLessThan(3000);
  }, 30_000);

  it("starts listening while Redis is away", async () => {
    const classKey = newClass();
    await server.redis.kill();
    const { heard } = await hear(classKey);
    await server.redis.restart();
    const doorbell = await open();
    await doorbell.ring(makeBells(classKey, 1));
    await heard.untilCount(1);
    expect(heard.items).toHaveLength(1);
  }, 30_000);

  it("goes on after everything in Redis was flushed", async () => {
    const classKey = newClass();
    const doorbell = await open();
    const slots = createSlots(0);
    const { heard } = await hear(classKey, server.address, slots);
    await doorbell.ring(makeBells(classKey, 3));
    await server.redis.flushAll();
    slots.resize(4);
    await doorbell.ring(makeBells(classKey, 4, { ring: 1 }));
    await heard.untilCount(4);
    expect(heard.items.map((bell) => bell.ring)).toEqual([1, 1, 1, 1]);
    // A slot is in hand for as long as the listener asks whether there is another bell.
    await expect.poll(() => slots.free()).toBe(4);
  });

  it("fails loudly when Redis has no memory left", async () => {
    const doorbell = await open();
    const classKey = newClass();
    await admin.config("SET", "maxmemory", "1mb");
    try {
      const ringing = doorbell.ring(makeBells(classKey, 5000));
      await expect(ringing).rejects.toThrow(/OOM/);
    } finally {
      await admin.config("SET", "maxmemory", "0");
    }
    await doorbell.ring(makeBells(classKey, 1));
  });

  it("gives a worker a credential that listens, and does nothing else", async () => {
    await admin.call("ACL", ...doorbellAclRules("coppice", "worker", "a-secret"));
    const url = new URL(server.redis.url);
    url.username = "worker";
    url.password = "a-secret";
    const classKey = newClass();
    const doorbell = await open();
    const address = { kind: "redis", url: url.href, prefix: "coppice" } as const;
    const { heard } = await hear(classKey, address);
    await doorbell.ring(makeBells(classKey, 50));
    await heard.untilCount(50);
    await expect
      .poll(async () => (await doorbell.depth()).get(classKey))
      .toEqual({ waiting: 0, active: 0 });

    await admin.set("elsewhere", "secret");
    const worker = new Redis(url.href);
    cleanups.push(async () => {
      worker.disconnect();
      await Promise.resolve();
    });
    const refused = /NOPERM|ACL|can't access at least one of the keys/;
    await expect(worker.get("elsewhere")).rejects.toThrow(refused);
    await expect(worker.eval("return redis.call('get', KEYS[1])", 1, "elsewhere")).rejects.toThrow(
      refused,
    );
    await expect(worker.eval("return redis.call('get', 'elsewhere')", 0)).rejects.toThrow(refused);
    for (const command of [
      ["FLUSHALL"],
      ["FLUSHDB"],
      ["CONFIG", "GET", "*"],
      ["KEYS", "*"],
      ["SCAN", "0"],
      ["RANDOMKEY"],
      ["ACL", "LIST"],
      ["CLIENT", "LIST"],
      ["CLIENT", "KILL", "TYPE", "normal"],
      ["SCRIPT", "FLUSH"],
      ["SHUTDOWN"],
      ["MONITOR"],
      ["SWAPDB", "0", "1"],
      ["MOVE", "elsewhere", "1"],
      ["PUBLISH", "anything", "x"],
    ]) {
      const [name = "", ...parameters] = command;
      await expect(worker.call(name, ...parameters)).rejects.toThrow(refused);
    }
  });
});

/** One behaviour, two backends: every test here runs over Redis and over PostgreSQL. */
import { once } from "node:events";
import { type BackendFactory, createPostgresBackend, createRedisBackend, Queue } from "bullmq";
import { Redis } from "ioredis";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  Collected,
  type DoorbellServer,
  isRedisAvailable,
  makeBells,
  newClass,
  recordWarnings,
  startPostgresServer,
  startRedisServer,
} from "../testing/services.ts";
import { type DoorbellAddress, queueName } from "./address.ts";
import { type Bell, bellJobId } from "./bell.ts";
import { type Doorbell, openDoorbell } from "./doorbell.ts";
import { listen, type Listener, type ListenOptions } from "./listener.ts";
import { migrateDoorbell } from "./open-backend.ts";
import { createSlots, type Slot } from "./slots.ts";

const backends = [
  ...((await isRedisAvailable()) ? [{ name: "Redis", start: startRedisServer }] : []),
  { name: "PostgreSQL", start: startPostgresServer },
];

/** A job that no version of ours has rung, put there with BullMQ itself. */
const addForeignJob = async (address: DoorbellAddress, classKey: string): Promise<void> => {
  if (address.kind === "redis") {
    const connection = new Redis(address.url, { maxRetriesPerRequest: null });
    const options = { connection, prefix: address.prefix };
    const queue = new Queue(queueName(classKey), options, createRedisBackend);
    await queue.add("bell", { v: 99, hello: "from the future" });
    await queue.close();
    connection.disconnect();
    return;
  }
  const connection = { connectionString: address.url };
  const factory: BackendFactory = (name, options, kind) =>
    createPostgresBackend(name, { ...options, connection }, kind);
  const queue = new Queue(queueName(classKey), { connection: {} }, factory);
  await queue.add("bell", { v: 99, hello: "from the future" });
  await queue.close();
};

const answerAll = (heard: Collected<Bell>): Pick<ListenOptions, "onBell"> => ({
  onBell: async (bell: Bell, slot: Slot) => {
    heard.add(bell);
    slot.release();
    return Promise.resolve("started" as const);
  },
});

const byItem = (a: Bell, b: Bell): number => a.item - b.item;

describe.each(backends)("the doorbell on $name", ({ start }) => {
  let server: DoorbellServer;
  let doorbell: Doorbell;
  const listeners: Listener[] = [];

  beforeAll(async () => {
    server = await start();
    await migrateDoorbell(server.address);
    doorbell = await openDoorbell(server.address);
  }, 60_000);

  afterEach(async () => {
    await Promise.all(listeners.splice(0).map(async (listener) => listener.close(3000)));
  });

  afterAll(async () => {
    await doorbell.close();
    await server.stop();
  }, 30_000);

  const open = async (options: ListenOptions): Promise<Listener> => {
    const listener = await listen(server.address, options);
    listeners.push(listener);
    return listener;
  };

  it("brings every bell to a listener, as it was rung", async () => {
    const classKey = newClass();
    const heard = new Collected<Bell>();
    await open({ slots: createSlots(8), classKeys: [classKey], ...answerAll(heard) });
    const bells = makeBells(classKey, 300, { attempt: 3, ring: 2, step: 7, priority: -5 });
    await doorbell.ring(bells.slice(0, 1));
    await doorbell.ring(bells.slice(1));
    await heard.until((items) => new Set(items.map(bellJobId)).size === 300);
    expect(heard.items.toSorted(byItem)).toEqual(bells);
  });

  it("brings the bell with the higher priority first", async () => {
    const classKey = newClass();
    const heard = new Collected<Bell>();
    await doorbell.ring(
      [0, 100, -100, 50, -1, 1].flatMap((priority) => makeBells(classKey, 1, { priority })),
    );
    // One slot, which each bell keeps until it was recorded: they arrive in the queue's order.
    await open({ slots: createSlots(1), classKeys: [classKey], ...answerAll(heard) });
    await heard.untilCount(6);
    expect(heard.items.map((bell) => bell.priority)).toEqual([100, 50, 1, 0, -1, -100]);
  });

  it("takes no bell while no slot is free", async () => {
    const classKey = newClass();
    const slots = createSlots(2);
    const held = new Collected<Slot>();
    await open({
      slots,
      classKeys: [classKey],
      onBell: async (_bell, slot) => {
        held.add(slot);
        return Promise.resolve("started" as const);
      },
    });
    await doorbell.ring(makeBells(classKey, 5));
    for (const taken of [2, 3, 4, 5]) {
      await held.untilCount(taken);
      const waiting = (await doorbell.depth([classKey])).get(classKey)?.waiting;
      expect([held.items.length, waiting]).toEqual([taken, 5 - taken]);
      held.items[taken - 2]?.release();
    }
  });

  it("lets several classes share the slots of one worker", async () => {
    const classKeys = [newClass(), newClass(), newClass()];
    const slots = createSlots(2);
    let running = 0;
    let mostRunning = 0;
    const heard = new Collected<Bell>();
    await open({
      slots,
      classKeys,
      onBell: async (bell, slot) => {
        running += 1;
        mostRunning = Math.max(mostRunning, running);
        setImmediate(() => {
          running -= 1;
          slot.release();
          heard.add(bell);
        });
        return Promise.resolve("started" as const);
      },
    });
    await doorbell.ring(classKeys.flatMap((classKey) => makeBells(classKey, 20)));
    await heard.untilCount(60);
    expect(mostRunning).toBeLessThanOrEqual(2);
    expect(new Set(heard.items.map((bell) => bell.classKey))).toEqual(new Set(classKeys));
  });

  it("rings a waiting bell once however often it is rung, and again under a new ring", async () => {
    const classKey = newClass();
    const bells = makeBells(classKey, 1);
    await doorbell.ring([...bells, ...bells]);
    await doorbell.ring(bells);
    expect((await doorbell.depth()).get(classKey)).toEqual({ waiting: 1, active: 0 });
    const heard = new Collected<Bell>();
    await open({ slots: createSlots(2), classKeys: [classKey], ...answerAll(heard) });
    await heard.untilCount(1);
    const again = bells.map((bell) => ({ ...bell, ring: 1 }));
    await doorbell.ring(again);
    await heard.untilCount(2);
    expect(heard.items.map(bellJobId)).toEqual([...bells, ...again].map(bellJobId));
  });

  it("drops a message it can't read, says so, and keeps the slot", async () => {
    const classKey = newClass();
    const { logger, warnings } = recordWarnings();
    const heard = new Collected<Bell>();
    await addForeignJob(server.address, classKey);
    await open({ slots: createSlots(1), classKeys: [classKey], logger, ...answerAll(heard) });
    await warnings.until((items) => items.some((text) => text.includes("not a bell")));
    await doorbell.ring(makeBells(classKey, 1));
    await heard.untilCount(1);
    expect(heard.items).toHaveLength(1);
  });

  it("answers the bell and frees its slot when the worker can't", async () => {
    const classKey = newClass();
    const slots = createSlots(1);
    const heard = new Collected<Bell>();
    await open({
      slots,
      classKeys: [classKey],
      onBell: async (bell) => {
        heard.add(bell);
        return Promise.reject(new Error("the API is away"));
      },
    });
    await doorbell.ring(makeBells(classKey, 3));
    await heard.untilCount(3);
    await expect
      .poll(async () => (await doorbell.depth([classKey])).get(classKey), { timeout: 5000 })
      .toEqual({ waiting: 0, active: 0 });
    expect(new Set(heard.items.map(bellJobId)).size).toBe(3);
    await expect.poll(() => slots.free()).toBe(1);
  });

  it("shares the bells between two listeners, each to one of them", async () => {
    const classKey = newClass();
    const heard = new Collected<{ by: number; bell: Bell }>();
    const held: [Slot[], Slot[]] = [[], []];
    for (const by of [0, 1] as const) {
      await open({
        slots: createSlots(10),
        classKeys: [classKey],
        onBell: async (bell, slot) => {
          held[by].push(slot);
          heard.add({ by, bell });
          return Promise.resolve("started" as const);
        },
      });
    }
    await doorbell.ring(makeBells(classKey, 20));
    await heard.untilCount(20);
    expect([held[0].length, held[1].length]).toEqual([10, 10]);
    expect(new Set(heard.items.map(({ bell }) => bellJobId(bell))).size).toBe(20);
  });

  it("starts and stops listening to classes while it runs", async () => {
    const [first, second] = [newClass(), newClass()];
    const heard = new Collected<Bell>();
    const listener = await open({ slots: createSlots(4), ...answerAll(heard) });
    await doorbell.ring([...makeBells(first, 2), ...makeBells(second, 2)]);
    await listener.setClasses([first]);
    await heard.untilCount(2);
    expect(heard.items.map((bell) => bell.classKey)).toEqual([first, first]);
    await listener.setClasses([second]);
    await heard.untilCount(4);
    await doorbell.ring([...makeBells(first, 1), ...makeBells(second, 1)]);
    await heard.untilCount(5);
    expect(heard.items.slice(2).map((bell) => bell.classKey)).toEqual([second, second, second]);
    expect((await doorbell.depth([first])).get(first)?.waiting).toBe(1);
  });

  it("leaves the bells that it does not take to others, when it closes amid them", async () => {
    const classKey = newClass();
    const heard = new Collected<Bell>();
    await doorbell.ring(makeBells(classKey, 200));
    const slots = createSlots(16);
    const leaving = await listen(server.address, {
      slots,
      classKeys: [classKey],
      ...answerAll(heard),
    });
    await heard.untilCount(20);
    await leaving.close(5000);
    const taken = heard.items.length;
    await expect.poll(() => slots.free()).toBe(16);
    await open({ slots: createSlots(16), classKeys: [classKey], ...answerAll(heard) });
    await heard.untilCount(200);
    expect(taken).toBeLessThan(200);
    expect(new Set(heard.items.map(bellJobId)).size).toBe(200);
  });

  it("waits on close for the bells in hand, and takes no other", async () => {
    const classKey = newClass();
    const finish = new AbortController();
    const heard = new Collected<Bell>();
    const listener = await listen(server.address, {
      slots: createSlots(1),
      classKeys: [classKey],
      onBell: async (bell, slot) => {
        heard.add(bell);
        await once(finish.signal, "abort");
        slot.release();
        return "started";
      },
    });
    await doorbell.ring(makeBells(classKey, 2));
    await heard.untilCount(1);
    const closing = listener.close(10_000);
    finish.abort();
    await closing;
    expect(heard.items).toHaveLength(1);
    expect((await doorbell.depth([classKey])).get(classKey)).toEqual({ waiting: 1, active: 0 });
  });
});

describe.each(backends)("without a server, the doorbell on $name", ({ name, start }) => {
  const code = name === "Redis" ? "CPC_REDIS_UNREACHABLE" : "CPC_DATABASE_UNREACHABLE";

  it("fails fast, and closes within its deadline", async () => {
    const server = await start();
    await migrateDoorbell(server.address);
    const classKey = newClass();
    const doorbell = await openDoorbell(server.address);
    const heard = new Collected<Bell>();
    const listener = await listen(server.address, {
      slots: createSlots(1),
      classKeys: [classKey],
      onBell: async (bell, slot) => {
        heard.add(bell);
        slot.release();
        return Promise.resolve("started" as const);
      },
    });
    await doorbell.ring(makeBells(classKey, 1));
    await heard.untilCount(1);
    await server.stop();

    const startMs = performance.now();
    await expect(doorbell.ring(makeBells(classKey, 1))).rejects.toMatchObject({ code });
    await expect(doorbell.ring(makeBells(newClass(), 1))).rejects.toMatchObject({ code });
    await expect(doorbell.depth()).rejects.toMatchObject({ code });
    await expect(openDoorbell(server.address)).rejects.toMatchObject({ code });
    expect(performance.now() - startMs).toBeLessThan(10_000);

    const closeMs = performance.now();
    await Promise.all([listener.close(3000), doorbell.close(3000)]);
    expect(performance.now() - closeMs).toBeLessThan(4500);
  }, 60_000);
});

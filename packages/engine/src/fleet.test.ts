/**
 * Many runs, workers and engines at once: order, pools, doubled and lost bells, on both doorbells.
 */
import { seededRng } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import type { Bell, Doorbell } from "@coppice/queue";
import { putPool } from "@coppice/store";
import {
  checkAtRest,
  checkInvariants,
  type DoorbellKind,
  failed,
  hasRedis,
  openEngineWorld,
  startInlineWorker,
  succeeded,
  waitUntil,
} from "@coppice/testing";
import { describe, expect, it } from "vitest";

const kinds: DoorbellKind[] = (await hasRedis()) ? ["postgres", "redis"] : ["postgres"];
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const fanOut: PipelineIrInput = {
  irVersion: 1,
  name: "fan-out",
  params: {},
  steps: [
    { key: "first" },
    {
      key: "each",
      map: { over: { from: "literal", value: [0, 1, 2, 3, 4] } },
      after: ["first"],
    },
    { key: "last", after: ["each"] },
  ],
};
const STEPS_OF_FAN_OUT = 7;

/** Rings every bell up to five times, under other ring numbers, late and in any order. */
const unruly =
  (seed: number) =>
  (inner: Doorbell): Doorbell => {
    const rng = seededRng(seed);
    return {
      ...inner,
      depth: (keys) => inner.depth(keys),
      close: (deadlineMs) => inner.close(deadlineMs),
      ring: async (bells) => {
        const copies: Bell[] = bells.flatMap((bell) =>
          Array.from({ length: 1 + Math.floor(rng.next() * 5) }, (_, copy) => ({
            ...bell,
            ring: bell.ring + 1000 * copy,
          })),
        );
        for (const bell of copies.toSorted(() => rng.next() - 0.5)) {
          void pause(rng.next() * 30)
            .then(async () => inner.ring([bell]))
            .catch(() => undefined);
        }
      },
    };
  };

describe.each(kinds)("on the %s doorbell", (kind) => {
  it("two engines and their workers run every step exactly once", async () => {
    await using world = await openEngineWorld({ kind });
    const version = await world.deploy(fanOut);
    await using other = await world.openAnother();
    const executed = new Map<string, number>();
    const execute = async (assignment: { runId: string; step: number; item: number }) => {
      const key = `${assignment.runId}/${assignment.step}/${assignment.item}`;
      executed.set(key, (executed.get(key) ?? 0) + 1);
      // The step works for a moment, so that attempts overlap.
      await pause(1);
      return succeeded(null);
    };
    for (const engine of [world.engine, other.engine]) {
      await world.startWorker(4, execute, { engine });
      await world.startWorker(4, execute, { engine, isOffering: false });
    }
    const engines = [world.engine, other.engine];
    const submitted = await Promise.all(
      Array.from({ length: 40 }, async (_, index) =>
        engines[index % 2]?.submit({
          projectId: world.projectId,
          pipelineVersionId: version,
          params: {},
        }),
      ),
    );
    const accepted = submitted.map((run) => run?.runId ?? "");
    const { doorbell } = world;
    expect(await checkAtRest(world.db, { accepted, doorbell })).toEqual([]);
    expect(executed.size).toBe(40 * STEPS_OF_FAN_OUT);
    expect([...executed.values()].every((times) => times === 1)).toBe(true);
  });

  it("bells that come up to five times, late and shuffled, start every step once", async () => {
    await using world = await openEngineWorld({ kind, wrapDoorbell: unruly(7) });
    const version = await world.deploy(fanOut);
    let [executions, fenced] = [0, 0];
    const execute = () => {
      executions += 1;
      return succeeded(null);
    };
    for (let index = 0; index < 2; index += 1) {
      await world.startWorker(4, execute, {
        onAnswer: (item, answer) => {
          if (item.type === "start" && answer.type === "superseded") fenced += 1;
        },
      });
    }
    for (let index = 0; index < 20; index += 1) await world.submit(version);
    expect(await checkAtRest(world.db, { doorbell: world.doorbell })).toEqual([]);
    expect(executions).toBe(20 * STEPS_OF_FAN_OUT);
    expect(fenced).toBeGreaterThan(0);
  });

  it("an engine whose bells are lost is saved by the next ring", async () => {
    let dropped = 0;
    await using world = await openEngineWorld({
      kind,
      leaseMs: 500,
      reconcileMs: 100,
      wrapDoorbell: (inner) => ({
        ...inner,
        depth: (keys) => inner.depth(keys),
        close: (deadlineMs) => inner.close(deadlineMs),
        ring: async (bells) => {
          const kept = bells.filter((bell) => bell.ring > 1);
          dropped += bells.length - kept.length;
          await inner.ring(kept);
        },
      }),
    });
    const version = await world.deploy(fanOut);
    await world.startWorker(4, () => succeeded(null), { isOffering: false, heartbeatMs: 100 });
    await world.submit(version);
    expect(await checkAtRest(world.db, { doorbell: world.doorbell })).toEqual([]);
    expect(dropped).toBe(STEPS_OF_FAN_OUT);
  });
});

describe("admission", () => {
  it("goes by priority over all runs, then by age", async () => {
    await using world = await openEngineWorld();
    const version = await world.deploy({
      irVersion: 1,
      name: "one",
      params: {},
      steps: [{ key: "low", priority: -5 }, { key: "a" }],
    });
    const names = new Map<string, string>();
    for (const [name, priority] of [
      ["first", 0],
      ["second", 0],
      ["urgent", 50],
    ] as const) {
      names.set(await world.submit(version, { priority }), name);
    }
    const order: string[] = [];
    await world.startWorker(1, ({ runId, stepKey }) => {
      order.push(`${names.get(runId)} ${stepKey}`);
      return succeeded(null);
    });
    expect(await checkAtRest(world.db, { doorbell: world.doorbell })).toEqual([]);
    expect(order[0]).toBe("urgent a");
    // A bell that is on its way keeps "urgent low" out of the line for a moment; the rest is in
    // order.
    expect(order.filter((name) => name !== "urgent low")).toEqual([
      "urgent a",
      "first a",
      "second a",
      "first low",
      "second low",
    ]);
  });

  it("sends a step only to a worker with its labels, and says while there is none", async () => {
    await using world = await openEngineWorld();
    const version = await world.deploy({
      irVersion: 1,
      name: "labelled",
      params: {},
      steps: [{ key: "a", resources: { labels: { zone: "eu" } } }, { key: "b" }],
    });
    const by: Record<string, string> = {};
    const execute =
      (name: string) =>
      ({ stepKey }: { stepKey: string }) => {
        by[stepKey] = name;
        return succeeded(null);
      };
    await world.startWorker(2, execute("plain"));
    const runId = await world.submit(version);
    await waitUntil(() => by["b"] !== undefined, { what: "the plain step to run" });
    expect((await world.look(runId)).states["a"]).toEqual(["ready"]);
    await world.startWorker(2, execute("labelled"), { labels: { zone: "eu", more: "x" } });
    await world.ended(runId);
    expect(by).toEqual({ a: "labelled", b: "plain" });
  });

  it.each([11, 12, 13])("never lets a pool be over its capacity (seed %i)", async (seed) => {
    const rng = seededRng(seed);
    const capacities: Record<string, number> = { small: 3, large: 7 };
    await using world = await openEngineWorld({ lanes: 4, reconcileMs: 200 });
    await using other = await world.openAnother();
    for (const [name, capacity] of Object.entries(capacities)) {
      await putPool(world.db, world.projectId, name, capacity);
    }
    const weights: Record<string, { name: string; weight: number }[]> = {};
    const steps = Array.from({ length: 6 }, (_, index) => {
      const pools = [];
      if (rng.next() < 0.7) pools.push({ name: "small", weight: 1 + Math.floor(rng.next() * 3) });
      if (rng.next() < 0.7) pools.push({ name: "large", weight: 1 + Math.floor(rng.next() * 5) });
      weights[`s${index}`] = pools;
      const after = index > 2 ? [`s${Math.floor(rng.next() * 3)}`] : [];
      return { key: `s${index}`, pools, after, retry: { attemptsMax: 4, backoffMs: 5 } };
    });
    const version = await world.deploy({ irVersion: 1, name: "pooled", params: {}, steps });
    const used: Record<string, number> = { small: 0, large: 0 };
    const overruns: string[] = [];
    const execute = async ({ stepKey }: { stepKey: string }) => {
      for (const { name, weight } of weights[stepKey] ?? []) {
        used[name] = (used[name] ?? 0) + weight;
        if ((used[name] ?? 0) > (capacities[name] ?? 0)) overruns.push(`${name}: ${used[name]}`);
      }
      // Each step works for a time of its own: the schedule is what is random here.
      await pause(rng.next() * 8);
      for (const { name, weight } of weights[stepKey] ?? [])
        used[name] = (used[name] ?? 0) - weight;
      const chance = rng.next();
      if (chance < 0.1) return { type: "released" as const };
      return chance < 0.2 ? failed("again") : succeeded(null);
    };
    await world.startWorker(8, execute);
    await world.startWorker(8, execute, { engine: other.engine });
    for (let index = 0; index < 25; index += 1) {
      await world.submit(version, { priority: Math.floor(rng.next() * 5) });
      if (rng.next() < 0.2) await pause(20);
      if (index % 5 === 0) {
        const pools = await world.db.query("select 1 from pool where used > capacity");
        expect(pools).toEqual([]);
        expect(await checkInvariants(world.db, { expectAtRest: false })).toEqual([]);
      }
    }
    expect(await checkAtRest(world.db, { doorbell: world.doorbell })).toEqual([]);
    expect(overruns).toEqual([]);
  });
});

it("a worker that vanishes loses what it had to the others", async () => {
  await using world = await openEngineWorld({ leaseMs: 800, reconcileMs: 100 });
  const version = await world.deploy(fanOut);
  const lost = await startInlineWorker({
    engine: world.engine,
    doorbell: world.address,
    tokenId: world.workerTokenId,
    slots: 4,
    heartbeatMs: 100,
    execute: () => new Promise(() => undefined),
  });
  const runId = await world.submit(version);
  await waitUntil(() => lost.running() === 1, { what: "the first worker to have begun" });
  await world.startWorker(4, () => succeeded(null), { heartbeatMs: 100 });
  await lost.vanish();
  expect((await world.ended(runId)).state).toBe("succeeded");
  const [row] = await world.db.query(
    "select count(*)::int as n from attempt where outcome = 'lost'",
  );
  expect(row?.["n"]).toBe(1);
  expect(await checkAtRest(world.db, {})).toEqual([]);
});

/**
 * The topology of docker-compose.yml without containers: two APIs, two schedulers, two workers, one
 * of them with a label and behind the second API, on Redis. One of each is killed at work.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { type Client, createClient, type RunEvent } from "@coppice/contract";
import { silentLogger } from "@coppice/core";
import { openDatabase } from "@coppice/store";
import { checkInvariants, hasRedis, waitUntil } from "@coppice/testing";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Api, deploy, type Fleet, openFleet, projectToken } from "./fleet.ts";
import { type Program, toldTo, treeOf } from "./program.ts";
import { newProject, type Project } from "./project.ts";

const CONFIG = `
import { definePipeline, defineProject, defineStep } from "@coppice/sdk";
import { z } from "zod";

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const list = defineStep({
  inputs: z.object({ count: z.number() }),
  output: z.array(z.number()),
  run: (_ctx, { count }) => Array.from({ length: count }, (_, n) => n),
});
const square = defineStep({
  inputs: z.object({ n: z.number() }),
  output: z.number(),
  run: async (_ctx, { n }) => {
    // A step that takes its time, so that there is something to kill.
    await pause(100);
    return n * n;
  },
});
const sum = defineStep({
  inputs: z.object({ values: z.array(z.number().nullable()) }),
  output: z.number(),
  run: (_ctx, { values }) => values.reduce<number>((total, value) => total + (value ?? 0), 0),
});
const spread = definePipeline({
  name: "spread",
  params: z.object({ count: z.number().int().default(20) }),
  steps: ({ params, step }) => {
    const numbers = step("list", list, { with: { count: params.count } });
    const squares = step("square", square, {
      map: { over: numbers.output },
      with: ({ item }) => ({ n: item }),
      retry: { lost: 5 },
    });
    step("sum", sum, { with: { values: squares.output } });
  },
});

const span = defineStep({
  output: z.object({ from: z.number(), to: z.number() }),
  run: async () => {
    const from = Date.now();
    // A step that takes its time: the spans are compared.
    await pause(150);
    return { from, to: Date.now() };
  },
});
const labelled = (name: string, zone: string) =>
  definePipeline({
    name,
    steps: ({ step }) => void step("here", span, { resources: { labels: { zone } } }),
  });
const pooled = definePipeline({
  name: "pooled",
  steps: ({ step }) => {
    for (const key of ["a", "b", "c", "d", "e"]) step(key, span, { pools: ["narrow"] });
  },
});

export default defineProject({
  name: "fleet",
  pipelines: [spread, labelled("in-eu", "eu"), labelled("on-the-moon", "moon"), pooled],
});
`;

/** Sum of the squares below n. */
const sumBelow = (n: number): number => ((n - 1) * n * (2 * n - 1)) / 6;

const ends = async (client: Client, run: string, timeoutMs = 60_000): Promise<string> => {
  const state = async (): Promise<string> => (await client.runs.get({ params: { run } })).state;
  await waitUntil(async () => (await state()) !== "running", { what: `${run} to end`, timeoutMs });
  return state();
};

const outputOf = async (client: Client, run: string, step: string): Promise<unknown> =>
  (await client.items.get({ params: { run, step, item: 0 } })).output;

const expectWholeFeed = (events: readonly RunEvent[]): void => {
  expect(events.map(({ seq }) => seq)).toEqual(events.map((_event, index) => index + 1));
  expect(events.at(-1)).toMatchObject({ step: null, state: "succeeded" });
};

/** Ports at the other end of the sockets that this process holds. */
const portsReachedBy = (pid: number): Set<number> => {
  const inodes = new Set(
    readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? [];
      } catch {
        return [];
      }
    }),
  );
  const rows = readFileSync(`/proc/${pid}/net/tcp`, "utf8").trim().split("\n").slice(1);
  const reached = rows
    .map((row) => row.trim().split(/\s+/))
    .filter((columns) => inodes.has(columns[9] ?? ""))
    .map((columns) => Number.parseInt(columns[2]?.split(":")[1] ?? "0", 16));
  return new Set(reached);
};

describe.skipIf(!(await hasRedis()))("the fleet of docker-compose.yml, as processes", () => {
  let fleet: Fleet;
  let project: Project;
  let first: Api;
  let second: Api;
  let schedulers: readonly Program[];
  let plain: Program;
  let zoned: Program;
  let viaFirst: Client;
  let viaSecond: Client;

  beforeAll(async () => {
    fleet = await openFleet({ doorbell: "redis" });
    project = await newProject({ "coppice.config.ts": CONFIG });
    [first, second] = await Promise.all([fleet.startApi(), fleet.startApi()]);
    schedulers = await Promise.all([fleet.startScheduler(), fleet.startScheduler()]);
    plain = await fleet.startWorker(first, "plain");
    zoned = await fleet.startWorker(second, "zoned", { COPPICE_WORKER_LABELS: "zone=eu" });
    const token = await projectToken(first, "fleet");
    viaFirst = createClient({ server: first.server, token });
    viaSecond = createClient({ server: second.server, token });
    await deploy(project, first, token);
  }, 120_000);

  afterAll(async () => {
    await project?.[Symbol.asyncDispose]();
    await fleet?.[Symbol.asyncDispose]();
  }, 60_000);

  const submit = async (client: Client, pipeline: string, params = {}): Promise<string> =>
    (await client.runs.submit({ body: { pipeline, params } })).id;

  test("a run submitted to one API is followed through the other, whole and in order", async () => {
    const run = await submit(viaFirst, "spread");
    const events: RunEvent[] = [];
    for await (const event of viaSecond.events(run)) events.push(event);
    expectWholeFeed(events);
    expect(await outputOf(viaSecond, run, "sum")).toBe(sumBelow(20));
    const workers = new Set(events.flatMap(({ workerId }) => workerId ?? []));
    expect(workers.size, "both workers took part").toBe(2);
  }, 60_000);

  test("a step with a label runs where the label is", async () => {
    const run = await submit(viaFirst, "in-eu");
    expect(await ends(viaFirst, run)).toBe("succeeded");
    const { attempts } = await viaFirst.items.get({ params: { run, step: "here", item: 0 } });
    expect(attempts.map(({ workerName }) => workerName)).toEqual(["zoned"]);
  }, 60_000);

  test("a label that no worker has is accepted, waits, and why says so", async () => {
    const run = await submit(viaFirst, "on-the-moon");
    const why = await viaSecond.runs.why({ params: { run } });
    expect(why.steps).toMatchObject([{ step: "here", reason: "no_worker" }]);
    expect(why.steps[0]?.message).toContain("zone=moon");
    await viaSecond.runs.cancel({ params: { run } });
    expect(await ends(viaFirst, run)).toBe("cancelled");
  }, 60_000);

  test("a pool that is missing is named; with one, no more run at once than it holds", async () => {
    const run = await submit(viaFirst, "pooled");
    await waitUntil(
      async () => {
        const { steps } = await viaFirst.runs.why({ params: { run } });
        return steps.length === 5 && steps.every(({ reason }) => reason === "pool_missing");
      },
      { what: "why to name the missing pool" },
    );
    await viaSecond.pools.put({ params: { name: "narrow" }, body: { capacity: 2 } });
    expect(await ends(viaFirst, run)).toBe("succeeded");
    const { items } = await viaFirst.runs.outputs({ params: { run } });
    const spans = items.map(({ output }) => output as unknown as { from: number; to: number });
    const together = spans.map(
      ({ from }) => spans.filter((other) => other.from <= from && from < other.to).length,
    );
    expect(Math.max(...together)).toBeLessThanOrEqual(2);
  }, 60_000);

  test("no process of a worker is told of the database or has a connection to it", async () => {
    const run = await submit(viaFirst, "spread");
    const { port, password } = new URL(fleet.databaseUrl);
    for (const worker of [plain, zoned]) {
      const pids = await waitUntil(
        () => {
          const found = treeOf(worker.pid);
          return found.length > 1 ? found : undefined;
        },
        { what: "the worker to have a child" },
      );
      for (const pid of pids) {
        expect(toldTo(pid)).not.toMatch(/postgres(?:ql)?:\/\/|COPPICE_DATABASE|PGPASSWORD/);
        expect(toldTo(pid)).not.toContain(password);
      }
      const reached = portsReachedBy(worker.pid);
      expect(reached.size).toBeGreaterThan(0);
      expect(reached).not.toContain(Number(port));
    }
    expect(portsReachedBy(first.program.pid), "the check itself works").toContain(Number(port));
    expect(await ends(viaFirst, run)).toBe("succeeded");
  }, 60_000);

  test("one of each is killed at work: every run succeeds, and no reader misses a change", async () => {
    const runs = await Promise.all(
      Array.from({ length: 4 }, async () => submit(viaFirst, "spread", { count: 30 })),
    );
    const [run = ""] = runs;
    const through = async (): Promise<RunEvent[]> => {
      const events: RunEvent[] = [];
      for await (const event of viaSecond.events(run)) events.push(event);
      return events;
    };
    const followed = through();
    // A reader of the first API, which goes on at the second where it was cut off.
    const moved: RunEvent[] = [];
    const reader = new AbortController();
    const moving = (async () => {
      for await (const event of viaFirst.events(run, { signal: reader.signal })) moved.push(event);
    })();
    const isAtWork = async (): Promise<boolean> => {
      const { items } = await viaSecond.workers.list();
      return items.every(({ freeSlots }) => freeSlots === 0) && moved.length > 0;
    };
    await waitUntil(isAtWork, { what: "both workers to be at work", timeoutMs: 30_000 });
    plain.kill("SIGKILL");
    schedulers[0]?.kill("SIGKILL");
    first.program.kill("SIGKILL");
    await first.program.ended;
    reader.abort();
    await moving;
    const after = moved.at(-1)?.seq ?? 0;
    for await (const event of viaSecond.events(run, { after })) moved.push(event);
    for (const id of runs) expect(await ends(viaSecond, id)).toBe("succeeded");
    for (const id of runs) expect(await outputOf(viaSecond, id, "sum")).toBe(sumBelow(30));
    expectWholeFeed(await followed);
    expect(moved).toEqual(await followed);
    const { items } = await viaSecond.workers.list();
    const alive = items.map(({ name, isAlive }) => `${name} ${isAlive ? "alive" : "gone"}`);
    expect(alive.toSorted()).toEqual(["plain gone", "zoned alive"]);
  }, 90_000);

  test("what is left takes work again and the database holds what it promises", async () => {
    await fleet.startWorker(second, "late");
    const run = await submit(viaSecond, "spread", { count: 8 });
    expect(await ends(viaSecond, run)).toBe("succeeded");
    const logger = silentLogger;
    const db = openDatabase({ url: fleet.databaseUrl, applicationName: "test", logger });
    try {
      expect(await checkInvariants(db, { expectAtRest: true })).toEqual([]);
    } finally {
      await db.close();
    }
  }, 60_000);
});

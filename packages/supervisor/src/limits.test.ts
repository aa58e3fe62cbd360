/** What ends an attempt from outside: limits, the server's word, the worker's own end. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { describe, expect, test } from "vitest";

import { type Harness, projectOf, startHarness } from "../testing/harness.ts";

const bundle = projectOf(
  `{
  echo: () => process.pid,
  busy: (ctx) => { ctx.log.info("busy"); for (;;); },
  polite: (ctx) => new Promise((resolve, reject) => {
    ctx.log.info("waiting");
    ctx.signal.addEventListener("abort", () => {
      ctx.log.info("told " + ctx.signal.reason);
      reject(ctx.signal.reason);
    });
  }),
  saves: (ctx) => new Promise((resolve, reject) => {
    ctx.log.info("waiting");
    ctx.signal.addEventListener("abort", async () => {
      await ctx.checkpoint.save(Buffer.from("c"));
      reject(new Error("stopped"));
    });
  }),
  deaf: async (ctx) => {
    ctx.log.info("waiting");
    await new Promise(() => setInterval(() => undefined, 1000));
  },
  beats: async (ctx) => {
    for (let i = 0; i < 5; i += 1) { ctx.heartbeat(); await pause(200); }
    return "done";
  },
  heap: () => { const all = []; for (;;) all.push(new Array(1000).fill({})); },
  buffers: async () => {
    const all = [];
    for (;;) { all.push(Buffer.alloc(8e6, 1)); await pause(5); }
  },
  gated: async (ctx) => {
    ctx.log.info("waiting");
    while (!existsSync(ctx.params.file)) await pause(20);
    return "done";
  },
}`,
  `import { existsSync } from "node:fs";
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));`,
);

const starting = async (house: Harness, input: Parameters<Harness["api"]["add"]>[0]) => {
  const added = house.api.add(input);
  await house.bells.ring(added.assignment);
  await house.api.until(() => house.api.logOf(added.assignment) !== "");
  return added;
};

describe("limits of a step", () => {
  test("the running time ends even a busy loop", async () => {
    await using house = await startHarness({ bundle });
    const { outcome } = await house.run({
      stepKey: "busy",
      spec: { timeouts: { runMs: 300, graceMs: 100 } },
    });
    expect(outcome).toMatchObject({
      type: "failed",
      error: { code: "CPC_STEP_TIMEOUT" },
      isRetryable: true,
    });
  });

  test("silence beyond the heartbeat timeout ends it, a sign of life does not", async () => {
    await using house = await startHarness({ bundle });
    const spec = { timeouts: { heartbeatMs: 600, graceMs: 100 } };
    const [deaf, beats] = await Promise.all([
      house.run({ stepKey: "deaf", item: 0, spec }),
      house.run({ stepKey: "beats", item: 1, spec }),
    ]);
    expect(deaf.outcome).toMatchObject({ error: { code: "CPC_HEARTBEAT_TIMEOUT" } });
    expect(beats.outcome).toMatchObject({ type: "succeeded", output: "done" });
  });

  test.each(["heap", "buffers"])(
    "memory beyond the limit in %s is named as that",
    async (stepKey) => {
      await using house = await startHarness({ bundle });
      const { outcome } = await house.run({ stepKey, spec: { memoryMb: 150 } });
      expect(outcome).toMatchObject({ type: "failed", error: { code: "CPC_OUT_OF_MEMORY" } });
      expect((await house.run({})).outcome.type).toBe("succeeded");
    },
    30_000,
  );
});

describe("the server's word", () => {
  test("a cancelled step hears the signal and ends in its grace time", async () => {
    await using house = await startHarness({ bundle });
    const { assignment, finished } = await starting(house, {
      stepKey: "polite",
      spec: { timeouts: { graceMs: 20_000 } },
    });
    house.api.settle(assignment, "cancelled");
    expect((await finished).outcome).toEqual({ type: "cancelled" });
    expect(house.api.logOf(assignment)).toContain("told cancelled");
  });

  test.each(["busy", "deaf"])(
    "a cancelled step that is %s is killed after its grace time",
    async (stepKey) => {
      await using house = await startHarness({ bundle });
      const { assignment, finished } = await starting(house, { stepKey });
      house.api.settle(assignment, "cancelled");
      expect((await finished).outcome).toEqual({ type: "cancelled" });
    },
  );

  test("a superseded attempt is killed and never reported", async () => {
    await using house = await startHarness({ bundle });
    const { assignment } = await starting(house, { stepKey: "busy" });
    house.api.settle(assignment, "superseded");
    await house.api.until(() => house.supervisor.stats().freeSlots === 2);
    expect(house.api.work.filter(({ type }) => type === "finish")).toEqual([]);
  });

  test("an accepted finish starts the next attempt in its slot without a bell", async () => {
    await using house = await startHarness({ bundle });
    const next = house.api.add({ item: 1 });
    house.api.ready.push(next.assignment);
    await house.run({ item: 0 });
    expect((await next.finished).outcome.type).toBe("succeeded");
    expect(house.api.work.filter(({ type }) => type === "start")).toHaveLength(1);
  });

  test("a bell without a slot within a second is given back", async () => {
    await using house = await startHarness({ bundle, slots: 1 });
    await starting(house, { stepKey: "deaf" });
    const late = house.api.add({ item: 1 });
    expect(await house.bells.ring(late.assignment)).toBe("refused");
    expect(house.api.work).toContainEqual(expect.objectContaining({ type: "noSlot", item: 1 }));
  });

  test("a doubled bell starts one attempt", async () => {
    await using house = await startHarness({ bundle });
    const { assignment, finished } = house.api.add({});
    const answers = await Promise.all([house.bells.ring(assignment), house.bells.ring(assignment)]);
    expect(answers.toSorted()).toEqual(["refused", "started"]);
    await finished;
  });
});

describe("a server that is away", () => {
  test("attempts go on, the outcome is kept on disk and sent when the server is back", async () => {
    await using house = await startHarness({ bundle });
    const file = join(house.dir, "go");
    const { finished, assignment } = await starting(house, { stepKey: "gated", params: { file } });
    house.api.setAway(true);
    await openGate(file);
    const outbox = join(house.dir, "outbox");
    await expect.poll(() => filesOf(outbox), { timeout: 10_000 }).toHaveLength(1);
    house.api.setAway(false);
    expect((await finished).outcome).toMatchObject({ type: "succeeded", output: "done" });
    await expect.poll(() => filesOf(outbox), { timeout: 10_000 }).toEqual([]);
    expect(assignment.attempt).toBe(1);
  });

  test("a killed worker's outcome is sent by the next worker of the folder", async () => {
    const dir = await mkdtemp(join(tmpdir(), "coppice-supervisor-"));
    await using house = await startHarness({ bundle, dir });
    const file = join(dir, "go");
    const { finished } = await starting(house, { stepKey: "gated", params: { file } });
    house.api.setAway(true);
    await openGate(file);
    await expect.poll(() => filesOf(join(dir, "outbox")), { timeout: 10_000 }).toHaveLength(1);
    await house.supervisor.kill();
    house.api.setAway(false);
    const { startSupervisor } = await import("./supervisor.ts");
    const { testBells } = await import("../testing/harness.ts");
    const { unpackBundle } = await import("@coppice/bundle/format");
    const second = await startSupervisor({
      api: { server: house.api.url, token: "token" },
      bells: testBells(),
      name: "second",
      slots: 1,
      dir,
      unpackBundle,
      devices: [],
    });
    expect((await finished).outcome).toMatchObject({ type: "succeeded" });
    await expect.poll(() => filesOf(join(dir, "outbox")), { timeout: 10_000 }).toEqual([]);
    await second.kill();
    await rm(dir, { recursive: true, force: true });
  });

  test("a server that forgot the worker registers it again, and the attempt goes on", async () => {
    await using house = await startHarness({ bundle });
    const file = join(house.dir, "go");
    const { finished } = await starting(house, { stepKey: "gated", params: { file } });
    house.api.forgetWorker();
    await house.api.until(() => house.api.registrations.length === 2);
    await openGate(file);
    expect((await finished).outcome.type).toBe("succeeded");
  });

  test("silence ends an exclusive step before its lease does, and no other", async () => {
    await using house = await startHarness({ bundle, stub: { leaseMs: 1500, heartbeatMs: 200 } });
    const exclusive = await starting(house, {
      stepKey: "deaf",
      item: 0,
      spec: { exclusive: true },
    });
    await starting(house, { stepKey: "deaf", item: 1 });
    house.api.setAway(true);
    await expect.poll(() => house.supervisor.stats().children.all, { timeout: 5000 }).toBe(1);
    house.api.setAway(false);
    expect((await exclusive.finished).outcome).toEqual({ type: "released" });
  });
});

describe("the worker's end", () => {
  test("a drain lets attempts finish, offers no slot and takes no bell", async () => {
    await using house = await startHarness({ bundle });
    const file = join(house.dir, "go");
    const { finished } = await starting(house, { stepKey: "gated", params: { file } });
    const drained = house.supervisor.drain();
    const late = house.api.add({ item: 1 });
    expect(await house.bells.ring(late.assignment)).toBe("refused");
    await openGate(file);
    const finish = await finished;
    expect(finish.outcome.type).toBe("succeeded");
    expect(finish.offer).toBeUndefined();
    await drained;
    expect(house.bells.isClosed).toBe(true);
    expect(house.api.stream).toContainEqual(
      expect.objectContaining({ type: "worker", isDraining: true }),
    );
  });

  test("what does not finish saves a checkpoint and is released", async () => {
    await using house = await startHarness({ bundle, drainMs: 200 });
    const { finished } = await starting(house, { stepKey: "saves" });
    await house.supervisor.drain();
    expect((await finished).outcome).toEqual({ type: "released" });
    expect(house.api.stream.filter(({ type }) => type === "checkpoint")).toHaveLength(1);
  });

  test("a drain ends by its deadline though the step is deaf and the server away", async () => {
    await using house = await startHarness({ bundle, drainMs: 100, drainGraceMs: 500 });
    const { assignment } = await starting(house, { stepKey: "busy" });
    house.api.setAway(true);
    await house.supervisor.drain();
    expect(await filesOf(join(house.dir, "outbox"))).toHaveLength(1);
    expect(assignment.attempt).toBe(1);
  }, 15_000);

  test("a killed supervisor takes its busy child with it within two seconds", async () => {
    const entry = new URL("../testing/lone-supervisor.ts", import.meta.url).pathname;
    const dir = await mkdtemp(join(tmpdir(), "coppice-supervisor-"));
    const lone = spawn(process.execPath, ["--conditions=@coppice/source", entry, dir], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = (await lone.stdout.take(1).toArray()) as Buffer[];
    const pid = Number(/pid (\d+)/.exec(String(line))?.[1]);
    expect(isAlive(pid)).toBe(true);
    lone.kill("SIGKILL");
    await expect.poll(() => isAlive(pid), { timeout: 2000, interval: 20 }).toBe(false);
    await rm(dir, { recursive: true, force: true });
  }, 20_000);
});

const filesOf = async (dir: string): Promise<string[]> =>
  existsSync(dir) ? (await readdir(dir)).filter((name) => name.endsWith(".json")) : [];

const openGate = async (file: string): Promise<void> => {
  const { writeFile } = await import("node:fs/promises");
  await writeFile(file, "");
};

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

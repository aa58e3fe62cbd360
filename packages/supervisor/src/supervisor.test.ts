/** Whole attempts: real HTTP, real children, a hand-written bundle. */
import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { projectOf, startHarness } from "../testing/harness.ts";

const bundle = projectOf(
  `{
  echo: (ctx, inputs) => ({ inputs, item: ctx.step.item, params: ctx.params }),
  draws: () => ({ first: Math.random(), loaded, second: Math.random(), pid: process.pid }),
  pid: () => process.pid,
  exit: () => process.exit(3),
  throws: () => { throw new Error("no such column"); },
  useless: () => { throw Object.assign(new Error("bad label"), { name: "NonRetryableError" }); },
  later: () => {
    throw Object.assign(new Error("busy"), { name: "RetryAfterError", retryAfterMs: 1500 });
  },
  stray: () => new Promise(() => void Promise.reject(new Error("nobody awaits me"))),
  leak: () => { setInterval(() => undefined, 1000); return process.pid; },
  late: (ctx) => { saved ??= ctx; return process.pid; },
  uses: () => {
    try { saved.metric("x", 1); return "allowed"; } catch (error) { return error.code; }
  },
  env: (ctx) => {
    const [token = null, other = null] = [ctx.env("TOKEN"), ctx.env("PATH")];
    return { env: { ...process.env }, token, other };
  },
  returns: (ctx) => eval(ctx.params.code),
  big: () => ({ rows: Array.from({ length: 5000 }, (_, i) => i), small: 1 }),
  huge: () => Array.from({ length: 20000 }, (_, i) => i),
  put: async (ctx) => {
    const ref = await ctx.artifacts.put("model.bin", Buffer.from("weights"), { kind: "model" });
    const unused = await ctx.artifacts.put("scratch", "not in the output");
    const text = Buffer.from(await ctx.artifacts.get(ref)).toString();
    return { ref, text, unused: unused.$artifact.name };
  },
  checkpoint: async (ctx) => {
    const before = await ctx.checkpoint.load();
    await ctx.checkpoint.save(Buffer.from("epoch 2"));
    const after = await ctx.checkpoint.load();
    return [before, after].map((bytes) => (bytes ? Buffer.from(bytes).toString() : null));
  },
  signs: (ctx) => { ctx.metric("loss", NaN, 3); ctx.progress(0.5); ctx.log.info("hello", { n: 1 });
    console.log("plain"); process.stderr.write("raw\\n"); return ctx.dir.length > 0; },
  flood: () => {
    const line = "x".repeat(1023) + "\\n";
    console.log("the beginning");
    for (let i = 0; i < 30000; i += 1) process.stdout.write(line);
    console.log("the end");
  },
}`,
  "const loaded = Math.random(); let saved;",
);

describe("values", () => {
  test("inputs reach the step and its output comes back with its usage", async () => {
    await using house = await startHarness({ bundle });
    const finish = await house.run({
      inputs: { a: { kind: "value", value: [1, { b: 2 }] }, gone: { kind: "missing" } },
      params: { seed: 7 },
      item: 4,
    });
    expect(finish.outcome).toEqual({
      type: "succeeded",
      output: { inputs: { a: [1, { b: 2 }] }, item: 4, params: { seed: 7 } },
      artifacts: [],
    });
    expect(finish.usage?.memoryPeakMb).toBeGreaterThan(10);
  });

  test("spilled values and joins are fetched, wherever in the input they stand", async () => {
    await using house = await startHarness({ bundle });
    const whole = house.api.addArtifact(JSON.stringify({ table: { rows: [1, 2] } }));
    const part = house.api.addArtifact(JSON.stringify([7, 8]));
    const spilled = { $spilled: { sha256: part, sizeBytes: 5, length: 2 } };
    house.api.joins.set(
      2,
      `${JSON.stringify({ m: 1 })}\nnull\n${JSON.stringify({ m: spilled })}\n`,
    );
    const finish = await house.run({
      inputs: {
        followed: { kind: "spilled", sha256: whole, path: ["table", "rows"] },
        inside: { kind: "value", value: { list: spilled } },
        joined: { kind: "join", step: 2, path: ["m"] },
      },
    });
    expect(finish.outcome).toMatchObject({
      output: { inputs: { followed: [1, 2], inside: { list: [7, 8] }, joined: [1, null, [7, 8]] } },
    });
  });

  test("an input that the server does not have fails the attempt without a retry", async () => {
    await using house = await startHarness({ bundle });
    const inputs = { a: { kind: "spilled" as const, sha256: "a".repeat(64), path: [] } };
    const { outcome } = await house.run({ inputs });
    expect(outcome).toMatchObject({
      type: "failed",
      error: { code: "CPC_ARTIFACT_NOT_FOUND" },
      isRetryable: false,
    });
  });

  test("a large key is spilled alone, a large whole as a whole", async () => {
    await using house = await startHarness({ bundle });
    const big = await house.run({ stepKey: "big" });
    if (big.outcome.type !== "succeeded") throw new Error("expected success");
    const rows = JSON.stringify(Array.from({ length: 5000 }, (_, i) => i));
    const sha256 = createHash("sha256").update(rows).digest("hex");
    expect(big.outcome.output).toEqual({
      rows: { $spilled: { sha256, sizeBytes: rows.length, length: 5000 } },
      small: 1,
    });
    expect(big.outcome.artifacts).toMatchObject([{ sha256, name: "output.rows", kind: "spilled" }]);
    expect(house.api.artifacts.get(sha256)?.toString()).toBe(rows);
    const huge = await house.run({ stepKey: "huge" });
    expect(huge.outcome).toMatchObject({ output: { $spilled: { length: 20_000 } } });
  });

  test.each([
    ["({ a: { b: undefined } })", "$.a.b"],
    ["({ f: [() => 1] })", "$.f[0]"],
    ["({ n: NaN })", "$.n"],
    ["({ n: 1n })", "$.n"],
    ["({ when: new Date(0) })", "$.when"],
    ["{ const a = {}; a.self = a; a }", "$.self"],
  ])("the output %s is refused with the path of the value", async (code, path) => {
    await using house = await startHarness({ bundle });
    const { outcome } = await house.run({ stepKey: "returns", params: { code } });
    expect(outcome).toMatchObject({
      type: "failed",
      error: { code: "CPC_OUTPUT_INVALID", data: { path } },
      isRetryable: false,
    });
  });

  test("artifacts are stored and read; those in the output are listed", async () => {
    await using house = await startHarness({ bundle });
    const { outcome } = await house.run({ stepKey: "put" });
    const sha256 = createHash("sha256").update("weights").digest("hex");
    const ref = { sha256, sizeBytes: 7, name: "model.bin", kind: "model", metadata: {} };
    expect(outcome).toEqual({
      type: "succeeded",
      output: { ref: { $artifact: ref }, text: "weights", unused: "scratch" },
      artifacts: [ref],
    });
  });

  test("a checkpoint is loaded from the earlier attempt and announced when saved", async () => {
    await using house = await startHarness({ bundle });
    const checkpoint = house.api.addArtifact("epoch 1");
    const { outcome } = await house.run({ stepKey: "checkpoint", checkpoint, attempt: 2 });
    expect(outcome).toMatchObject({ output: ["epoch 1", "epoch 2"] });
    expect(house.api.stream.filter(({ type }) => type === "checkpoint")).toHaveLength(1);
  });
});

describe("what a step says", () => {
  test("log and metrics have arrived before the finish, the log in one order", async () => {
    await using house = await startHarness({ bundle });
    const { assignment, finished } = house.api.add({ stepKey: "signs" });
    await house.bells.ring(assignment);
    await finished;
    expect(house.api.logOf(assignment)).toBe(
      '{"level":"info","message":"hello","n":1}\nplain\nraw\n',
    );
    const points = house.api.stream.flatMap((item) => (item.type === "metric" ? item.points : []));
    expect(points).toMatchObject([
      { key: "loss", value: "NaN", step: 3 },
      { key: "coppice.progress", value: 0.5 },
    ]);
  });

  test("of a flood the two ends are kept, and how much is missing is said", async () => {
    await using house = await startHarness({ bundle });
    const { assignment, finished } = house.api.add({ stepKey: "flood" });
    await house.bells.ring(assignment);
    await finished;
    const log = house.api.logOf(assignment);
    expect(log.startsWith("the beginning\n")).toBe(true);
    expect(log.endsWith("the end\n")).toBe(true);
    expect(log.length).toBeGreaterThan(9 * 1024 * 1024);
    expect(log.length).toBeLessThan(10.1 * 1024 * 1024);
    const dropped = Number(/"droppedBytes":(\d+)/.exec(log)?.[1]);
    const notice = /\n\{"level":"warn","message":"part of the log[^\n]*\n/.exec(log)?.[0] ?? "";
    expect(dropped + log.length - notice.length).toBe(30_000 * 1024 + 14 + 8);
    const offsets = house.api.stream.flatMap((item) => (item.type === "log" ? [item] : []));
    let at = 0;
    for (const { offset, text } of offsets) {
      expect(offset).toBe(at);
      at += Buffer.byteLength(text);
    }
  });
});

describe("children", () => {
  test("one child serves many attempts, and draws the same numbers in each", async () => {
    await using house = await startHarness({ bundle, slots: 1 });
    const fresh = await house.run({ stepKey: "draws", seed: "s", item: 0 });
    for (let item = 1; item < 29; item += 1) await house.run({ stepKey: "echo", seed: "t", item });
    const thirtieth = await house.run({ stepKey: "draws", seed: "s", item: 29 });
    await house.run({ stepKey: "exit", item: 30 });
    const afterCrash = await house.run({ stepKey: "draws", seed: "s", item: 31 });
    const outputs = [fresh, thirtieth, afterCrash].map(({ outcome }) =>
      outcome.type === "succeeded" ? (outcome.output as { pid: number }) : undefined,
    );
    const pids = outputs.map((output) => output?.pid);
    expect(pids[1]).toBe(pids[0]);
    expect(pids[2]).not.toBe(pids[0]);
    const numbers = outputs.map((output) => ({ ...output, pid: 0 }));
    expect(numbers[1]).toEqual(numbers[0]);
    expect(numbers[2]).toEqual(numbers[0]);
    expect(house.supervisor.stats().children.started).toBe(2);
    expect(house.api.bundleDownloads).toBe(1);
  });

  test("another project, another limit or isolation means another child", async () => {
    await using house = await startHarness({ bundle, slots: 1 });
    const project = { id: "00000000-0000-4000-8000-000000000002", name: "other" };
    await house.run({ stepKey: "pid" });
    await house.run({ stepKey: "pid", project });
    await house.run({ stepKey: "pid", spec: { memoryMb: 512 } });
    await house.run({ stepKey: "pid", spec: { isolation: "fresh" } });
    expect(house.supervisor.stats().children.started).toBe(4);
  });

  test("a step that leaves a timer behind succeeds, and its child is not used again", async () => {
    await using house = await startHarness({ bundle, slots: 1 });
    const leaking = await house.run({ stepKey: "leak" });
    const next = await house.run({ stepKey: "pid" });
    expect(leaking.outcome.type).toBe("succeeded");
    expect(next.outcome).not.toEqual(leaking.outcome);
  });

  test("a context kept beyond its attempt refuses and is reported", async () => {
    await using house = await startHarness({ bundle, slots: 1 });
    await house.run({ stepKey: "late" });
    const { outcome } = await house.run({ stepKey: "uses" });
    expect(outcome).toMatchObject({ output: "CPC_ISOLATION_BREACH" });
    expect(house.warnings).toContainEqual(
      expect.objectContaining({ code: "CPC_ISOLATION_BREACH" }),
    );
    expect(house.api.stream.filter(({ type }) => type === "metric")).toEqual([]);
  });

  test("the environment is built from nothing; a declared and allowed name is given", async () => {
    const hostEnv = {
      PATH: process.env["PATH"],
      COPPICE_TOKEN: "secret",
      NODE_OPTIONS: "--no-warnings",
      LD_PRELOAD: "",
      TOKEN: "t",
      OTHER: "o",
    };
    const allowEnv = [{ project: "demo", name: "TOKEN" }];
    await using house = await startHarness({ bundle, hostEnv, allowEnv });
    const { outcome } = await house.run({ stepKey: "env", spec: { env: ["TOKEN"] } });
    if (outcome.type !== "succeeded") throw new Error("expected success");
    const { env, token, other } = outcome.output as Record<string, Record<string, string>>;
    expect(token).toBe("t");
    expect(other).toBe(null);
    const known = ["CUDA_VISIBLE_DEVICES", "HOME", "LANG", "OMP_NUM_THREADS", "PATH"];
    const tf = ["TF_CPP_MIN_LOG_LEVEL", "TF_FORCE_GPU_ALLOW_GROWTH"];
    const threads = ["TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "TMPDIR", "TOKEN", "TZ"];
    expect(Object.keys(env ?? {}).toSorted()).toEqual([...known, ...tf, ...threads]);
    expect(env?.["HOME"]?.startsWith(house.dir)).toBe(true);
  });

  test.each(["OTHER", "COPPICE_TOKEN", "NODE_OPTIONS"])(
    "the variable %s is refused by name",
    async (name) => {
      const allowEnv = [
        { project: "demo", name: "COPPICE_TOKEN" },
        { project: "other", name: "OTHER" },
      ];
      await using house = await startHarness({ bundle, hostEnv: { [name]: "x" }, allowEnv });
      const { outcome } = await house.run({ stepKey: "env", spec: { env: [name] } });
      expect(outcome).toMatchObject({
        type: "failed",
        error: { code: "CPC_ENV_REFUSED", message: expect.stringContaining(name) },
        isRetryable: false,
      });
    },
  );
});

describe("failures of the step's code", () => {
  test.each([
    [
      "throws",
      { error: { code: "CPC_STEP_FAILED", message: "no such column" }, isRetryable: true },
    ],
    ["useless", { error: { code: "CPC_NON_RETRYABLE", message: "bad label" }, isRetryable: false }],
    ["later", { error: { code: "CPC_STEP_FAILED" }, isRetryable: true, retryAfterMs: 1500 }],
    [
      "stray",
      { error: { code: "CPC_STEP_FAILED", message: "nobody awaits me" }, isRetryable: true },
    ],
    ["exit", { error: { code: "CPC_CHILD_EXITED" }, isRetryable: true }],
    ["missing", { error: { code: "CPC_STEP_NOT_FOUND" }, isRetryable: false }],
  ])("%s", async (stepKey, expected) => {
    await using house = await startHarness({ bundle });
    const { outcome } = await house.run({ stepKey });
    expect(outcome).toMatchObject({ type: "failed", ...expected });
    expect((await house.run({ stepKey: "echo" })).outcome.type).toBe("succeeded");
  });

  test("a package that the worker lacks is named", async () => {
    const lacking = projectOf("{ echo: () => 1 }", 'import "@coppice/not-installed";');
    await using house = await startHarness({ bundle: lacking });
    const { outcome } = await house.run({});
    expect(outcome).toMatchObject({
      type: "failed",
      error: {
        code: "CPC_EXTERNAL_MISSING",
        message: expect.stringContaining("@coppice/not-installed"),
      },
      isRetryable: false,
    });
  });

  test("a bundle whose bytes are not the ones that its digest names is not run", async () => {
    await using house = await startHarness({ bundle });
    const digest = [...house.api.bundles.keys()][0] ?? "";
    house.api.bundles.set(digest, projectOf("{ echo: () => 'other code' }"));
    const { outcome } = await house.run({ bundleDigest: digest });
    expect(outcome).toMatchObject({ type: "failed", error: { code: "CPC_BUNDLE_CORRUPT" } });
  });
});

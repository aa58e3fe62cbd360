/** What the engine promises about the steps of one run, on a real database and a real doorbell. */
import type { Assignment } from "@coppice/contract";
import type { JsonValue } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import {
  checkAtRest,
  type EngineWorld,
  type Execute,
  failed,
  openEngineWorld,
  succeeded,
} from "@coppice/testing";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";

let world: EngineWorld;
/** What each step does, by its key; a step that is not named succeeds with its key. */
let steps: Record<string, Execute> = {};

beforeAll(async () => {
  world = await openEngineWorld();
  // Its class exists before the worker comes.
  await deploy("warm-up", [{ key: "a" }]);
  await world.startWorker(64, (assignment, attempt) =>
    (steps[assignment.stepKey] ?? succeedWithKey)(assignment, attempt),
  );
});
afterEach(async () => {
  expect(await checkAtRest(world.db, { doorbell: world.doorbell })).toEqual([]);
  steps = {};
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

const succeedWithKey: Execute = (assignment) => succeeded(assignment.stepKey);

const deploy = async (name: string, list: PipelineIrInput["steps"], more = {}) =>
  world.deploy({ irVersion: 1, name, params: {}, steps: list, ...more });

const run = async (name: string, list: PipelineIrInput["steps"], params: JsonValue = {}) =>
  world.ended(await world.submit(await deploy(name, list), { params }));

const valueOf = (assignment: Assignment, input: string): JsonValue | undefined => {
  const value = assignment.inputs[input];
  return value?.kind === "value" ? (value.value as JsonValue) : undefined;
};

describe("a graph", () => {
  it("runs each step of a diamond once, after everything upstream of it", async () => {
    const order: string[] = [];
    for (const key of ["a", "b", "c", "d"]) {
      steps[key] = () => {
        order.push(key);
        return succeeded(key);
      };
    }
    const ended = await run("diamond", [
      { key: "a" },
      { key: "b", after: ["a"] },
      { key: "c", after: ["a"] },
      { key: "d", after: ["b", "c"] },
    ]);
    expect(ended.state).toBe("succeeded");
    expect(ended.outputs).toEqual({ a: ["a"], b: ["b"], c: ["c"], d: ["d"] });
    expect([order[0], order.slice(1, 3).toSorted(), order[3]]).toEqual(["a", ["b", "c"], "d"]);
  });

  it("hands a step the values that it refers to", async () => {
    steps["a"] = () => succeeded({ deep: { list: [1, 2] } });
    let seen: (JsonValue | undefined)[] = [];
    steps["b"] = (assignment) => {
      seen = ["one", "two", "three"].map((input) => valueOf(assignment, input));
      return succeeded(null);
    };
    await run(
      "values",
      [
        { key: "a" },
        {
          key: "b",
          inputs: {
            one: { from: "output", step: "a", path: ["deep", "list"] },
            two: { from: "param", path: ["n"] },
            three: { from: "literal", value: "x" },
          },
        },
      ],
      { n: 7 },
    );
    expect(seen).toEqual([[1, 2], 7, "x"]);
  });

  it("gives a finally step the run's status and fails the run where it fails itself", async () => {
    let status: JsonValue | undefined;
    steps["a"] = () => failed("no", false);
    steps["end"] = (assignment) => {
      status = valueOf(assignment, "status");
      return succeeded(null);
    };
    const first = await run("finally", [
      { key: "a" },
      { key: "end", finally: true, inputs: { status: { from: "run", field: "status" } } },
    ]);
    expect([first.state, status, first.states["end"]]).toEqual(["failed", "failed", ["succeeded"]]);
    steps["a"] = succeedWithKey;
    steps["end"] = () => failed("no", false);
    const second = await run("finally-fails", [{ key: "a" }, { key: "end", finally: true }]);
    expect(second.state).toBe("failed");
  });

  it("cascades failures and skips; a rule that accepts failure takes it upon itself", async () => {
    steps["bad"] = () => failed("no", false);
    const ended = await run("cascade", [
      { key: "bad" },
      { key: "ok" },
      { key: "after_bad", after: ["bad"] },
      { key: "deep", after: ["after_bad"] },
      { key: "rescue", after: ["bad"], rule: "one_failed" },
      { key: "unneeded", after: ["ok"], rule: "all_failed" },
      { key: "after_skip", after: ["unneeded"] },
      { key: "any", after: ["bad", "ok"], rule: "all_done" },
    ]);
    const states = Object.fromEntries(
      Object.entries(ended.states).map(([key, list]) => [key, list[0]]),
    );
    expect(states).toEqual({
      bad: "failed",
      ok: "succeeded",
      after_bad: "upstream_failed",
      deep: "upstream_failed",
      rescue: "succeeded",
      unneeded: "skipped",
      after_skip: "skipped",
      any: "succeeded",
    });
    // `deep` failed and nobody took that upon itself.
    expect(ended.state).toBe("failed");
  });
});

describe("when", () => {
  const pipeline = (right: number | string): PipelineIrInput["steps"] => [
    { key: "a" },
    {
      key: "b",
      when: {
        op: "gt",
        left: { from: "output", step: "a", path: ["n"] },
        right: { from: "literal", value: right },
      },
    },
  ];

  it("runs the step where the condition holds and skips it where it does not", async () => {
    steps["a"] = () => succeeded({ n: 5 });
    expect((await run("when-true", pipeline(4))).states["b"]).toEqual(["succeeded"]);
    expect((await run("when-false", pipeline(5))).states["b"]).toEqual(["skipped"]);
  });

  it("fails the step where the condition makes no sense over these values", async () => {
    steps["a"] = () => succeeded({ n: 5 });
    const ended = await run("when-wrong", pipeline("five"));
    expect([ended.state, ended.states["b"], ended.errors["b"]]).toEqual([
      "failed",
      ["failed"],
      ["CPC_WHEN_INVALID"],
    ]);
  });
});

describe("map", () => {
  const mapped = (concurrency?: number): PipelineIrInput["steps"] => [
    { key: "list" },
    {
      key: "each",
      map: {
        over: { from: "output", step: "list", path: [] },
        ...(concurrency === undefined ? {} : { concurrency }),
      },
      inputs: { item: { from: "item", path: [] } },
    },
    { key: "join", inputs: { all: { from: "output", step: "each", path: [] } } },
  ];

  it("runs one step run per item and joins their outputs in order", async () => {
    steps["list"] = () => succeeded(["x", "y", "z"]);
    const names: (string | undefined)[] = [];
    steps["each"] = async (assignment) => {
      names[assignment.item] = assignment.itemName;
      // Later items end first.
      await new Promise((resolve) => setTimeout(resolve, 30 * (2 - assignment.item)));
      return succeeded(`${String(valueOf(assignment, "item"))}!`);
    };
    steps["join"] = (assignment) => succeeded(valueOf(assignment, "all") ?? "nothing");
    const ended = await run("map-three", mapped());
    expect(names).toEqual(["x", "y", "z"]);
    expect(ended.outputs["join"]).toEqual([["x!", "y!", "z!"]]);
  });

  it("over an empty list is skipped, and so is what needs it", async () => {
    steps["list"] = () => succeeded([]);
    const ended = await run("map-empty", mapped());
    expect(ended.states).toEqual({ list: ["succeeded"], each: [], join: ["skipped"] });
    expect(ended.state).toBe("succeeded");
  });

  it("never runs more items at a time than its concurrency", async () => {
    steps["list"] = () => succeeded(Array.from({ length: 20 }, (_, index) => index));
    let [now, most] = [0, 0];
    steps["each"] = async () => {
      now += 1;
      most = Math.max(most, now);
      // The step works for a while; nothing is waited for.
      await new Promise((resolve) => setTimeout(resolve, 10));
      now -= 1;
      return succeeded(null);
    };
    const ended = await run("map-concurrency", mapped(3));
    expect([ended.state, most]).toEqual(["succeeded", 3]);
  });

  it("of 10,000 items runs them all and streams their join", async () => {
    steps["list"] = () => succeeded(Array.from({ length: 10_000 }, (_, index) => index));
    steps["each"] = (assignment) => succeeded(assignment.item * 2);
    let kind: string | undefined;
    steps["join"] = (assignment) => {
      kind = assignment.inputs["all"]?.kind;
      return succeeded(null);
    };
    const runId = await world.submit(await deploy("map-large", mapped()));
    const ended = await world.ended(runId, 60_000);
    expect([ended.state, ended.states["each"]?.length, kind]).toEqual([
      "succeeded",
      10_000,
      "join",
    ]);
    const joined: JsonValue[] = [];
    for await (const value of world.engine.joinOutputs(runId, 1, [])) joined.push(value);
    expect(joined).toEqual(Array.from({ length: 10_000 }, (_, index) => index * 2));
  }, 90_000);

  it("over a list that lies elsewhere plans by its length and points each item at it", async () => {
    const sha256 = "a".repeat(64);
    steps["list"] = () => succeeded({ $spilled: { sha256, sizeBytes: 100_000, length: 3 } });
    const seen: unknown[] = [];
    steps["each"] = (assignment) => {
      seen[assignment.item] = assignment.inputs["item"];
      return succeeded(assignment.item);
    };
    const ended = await run("map-spilled", mapped());
    expect(ended.states["each"]).toHaveLength(3);
    expect(seen).toEqual(["0", "1", "2"].map((at) => ({ kind: "spilled", sha256, path: [at] })));
  });

  it("fails the step where there is no list, and where it is too long", async () => {
    steps["list"] = () => succeeded({ not: "a list" });
    expect((await run("map-none", mapped())).errors["each"]).toEqual(["CPC_MAP_INVALID"]);
    steps["list"] = () => succeeded([1, 2, 3]);
    const [list, each, join] = mapped();
    const limited = [list, { ...each, map: { ...each?.map, itemsMax: 2 } }, join];
    const ended = await run("map-long", limited as PipelineIrInput["steps"]);
    expect([ended.errors["each"], ended.states["join"]]).toEqual([
      ["CPC_MAP_TOO_LARGE"],
      ["upstream_failed"],
    ]);
  });
});

describe("retries", () => {
  const retry = { attemptsMax: 3, backoffMs: 60, jitterRatio: 0, factor: 2 };

  it("repeats what failed after a growing pause, up to its budget", async () => {
    const startedAt: number[] = [];
    steps["a"] = (assignment) => {
      startedAt.push(performance.now());
      return assignment.attempt < 3 ? failed("again") : succeeded(assignment.attempt);
    };
    const ended = await run("retry", [{ key: "a", retry }]);
    expect(ended.outputs["a"]).toEqual([3]);
    const [first = 0, second = 0, third = 0] = startedAt;
    expect(second - first).toBeGreaterThanOrEqual(60);
    expect(third - second).toBeGreaterThanOrEqual(120);
  });

  it("gives up when the budget is spent", async () => {
    let attempts = 0;
    steps["a"] = () => {
      attempts += 1;
      return failed("always");
    };
    const ended = await run("retry-spent", [{ key: "a", retry: { ...retry, backoffMs: 0 } }]);
    expect([ended.state, attempts, ended.errors["a"]]).toEqual(["failed", 3, ["CPC_STEP_FAILED"]]);
  });

  it("does not repeat what can't be helped, and waits as long as the step asks", async () => {
    let attempts = 0;
    steps["a"] = () => {
      attempts += 1;
      return failed("never", false);
    };
    expect((await run("retry-useless", [{ key: "a", retry }])).state).toBe("failed");
    expect(attempts).toBe(1);
    const startedAt: number[] = [];
    steps["a"] = (assignment) => {
      startedAt.push(performance.now());
      if (assignment.attempt > 1) return succeeded(null);
      return { ...failed("later"), retryAfterMs: 300 } as ReturnType<typeof failed>;
    };
    await run("retry-after", [{ key: "a", retry: { attemptsMax: 2, backoffMs: 1 } }]);
    expect((startedAt[1] ?? 0) - (startedAt[0] ?? 0)).toBeGreaterThanOrEqual(300);
  });
});

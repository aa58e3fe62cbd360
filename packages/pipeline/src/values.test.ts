import { describe, expect, test } from "vitest";

import { compilePipeline } from "./compile.ts";
import { locate, readArtifact, readSpilled } from "./placeholders.ts";
import { emptySummary } from "./summary.ts";
import { itemName, knownMapLength, lengthOf, outputRefs, resolveSource } from "./values.ts";

const sha256 = "0123456789abcdef".repeat(4);
const spilledList = { $spilled: { sha256, sizeBytes: 100_000, length: 12 } };
const spilledObject = { $spilled: { sha256, sizeBytes: 100_000 } };

describe("placeholders", () => {
  test("a spilled value is read with or without a length", () => {
    expect(readSpilled(spilledList)).toEqual({ sha256, sizeBytes: 100_000, length: 12 });
    expect(readSpilled(spilledObject)).toEqual({ sha256, sizeBytes: 100_000 });
  });

  test("what only looks like a placeholder is a value", () => {
    const inner = spilledList.$spilled;
    for (const value of [
      undefined,
      null,
      [spilledList],
      { $spilled: inner, more: 1 },
      { $spilled: { ...inner, sha256: "short" } },
      { $spilled: "text" },
    ]) {
      expect(readSpilled(value)).toBeUndefined();
    }
  });

  test("an artifact's reference is read as it stands", () => {
    const reference = { sha256, sizeBytes: 1, name: "m", kind: "model", metadata: {} };
    expect(readArtifact({ $artifact: reference })).toEqual(reference);
    expect(readArtifact({ $artifact: { name: "m" } })).toBeUndefined();
  });

  test("locate walks until a value, a spilled value or nothing", () => {
    const value = { a: { b: [10, 20] }, big: spilledObject };
    expect(locate(value, ["a", "b", "1"])).toEqual({ kind: "value", value: 20 });
    expect(locate(value, ["a", "c"])).toEqual({ kind: "missing" });
    expect(locate(value, ["a", "__proto__"])).toEqual({ kind: "missing" });
    expect(locate(undefined, [])).toEqual({ kind: "missing" });
    expect(locate(value, ["big", "x", "y"])).toEqual({
      kind: "spilled",
      spilled: { sha256, sizeBytes: 100_000 },
      path: ["x", "y"],
    });
  });
});

describe("lengthOf", () => {
  test("is the list's length, and a spilled list's as its placeholder tells", () => {
    expect(lengthOf({ a: [1, 2, 3] }, ["a"])).toEqual({ value: 3 });
    expect(lengthOf([], [])).toEqual({ value: 0 });
    expect(lengthOf({ a: spilledList }, ["a"])).toEqual({ value: 12 });
  });

  test.each([
    [{ a: { b: 1 } }, ["a"], /Received: \{"b":1\} at a/],
    [{ a: "text" }, ["a"], /Received: "text" at a/],
    [{ a: null }, ["a"], /Received: null at a/],
    [{}, ["a", "b"], /Received: nothing at a\.b/],
    [undefined, [], /Received: nothing\./],
    [{ a: spilledObject }, ["a"], /a large value at a that is not a list/],
    [spilledObject, ["a"], /stored as a file.*key of its own/],
  ])("%j at %j is not a list", (value, path, message) => {
    const fact = lengthOf(value, path);
    expect(fact).toMatchObject({
      error: { code: "CPC_MAP_INVALID", message: expect.stringMatching(message) },
    });
  });
});

describe("knownMapLength", () => {
  const over = { from: "output", step: "many", path: ["x"] };
  const { graph } = compilePipeline({
    irVersion: 1,
    name: "maps",
    params: {},
    steps: [
      { key: "one" },
      { key: "many", map: { over: { from: "param", path: ["list"] } } },
      { key: "literal", map: { over: { from: "literal", value: [1, 2] } } },
      { key: "again", map: { over } },
      { key: "plain", map: { over: { from: "output", step: "one", path: [] } } },
    ],
  });
  const summaries = graph.pipeline.steps.map((step) => emptySummary(step.map !== undefined));
  const lengthOfStep = (step: number, list = summaries) =>
    knownMapLength(graph, list, { list: [1, 2, 3] }, step);

  test("is known for parameters and literals, not for the output of an ordinary step", () => {
    expect(lengthOfStep(1)).toEqual({ value: 3 });
    expect(lengthOfStep(2)).toEqual({ value: 2 });
    expect(lengthOfStep(4)).toBeUndefined();
    expect(lengthOfStep(0)).toBeUndefined();
  });

  test("over a mapped step it is the number of that step's items", () => {
    expect(lengthOfStep(3)).toMatchObject({ error: { code: "CPC_MAP_INVALID" } });
    const open = summaries.with(1, { total: 3, isOpen: true, made: 1, counts: { running: 1 } });
    expect(lengthOfStep(3, open)).toEqual({ value: 3 });
    const skipped = summaries.with(1, { total: 1, isOpen: false, made: 1, counts: { skipped: 1 } });
    expect(lengthOfStep(3, skipped)).toEqual({ value: 0 });
  });
});

describe("sources", () => {
  test("outputRefs names each output once", () => {
    const { ir } = compilePipeline({
      irVersion: 1,
      name: "refs",
      params: {},
      steps: [
        { key: "a" },
        {
          key: "b",
          map: { over: { from: "output", step: "a", path: ["list"] } },
          inputs: {
            x: { from: "output", step: "a", path: ["x"] },
            same: { from: "output", step: "a", path: ["x"] },
            y: { from: "output", step: "a", path: ["y"] },
            item: { from: "item", path: [] },
          },
        },
      ],
    });
    const step = ir.steps[1];
    expect(step && outputRefs(step).map(({ path }) => path)).toEqual([["x"], ["y"]]);
  });

  test("resolveSource reads literals, parameters, outputs, items and the run", () => {
    const context = {
      params: { a: { b: 1 } },
      run: { id: "run_1", status: "failed" },
      item: { month: "05" },
      output: (step: string, path: readonly string[]) => `${step}/${path.join("/")}`,
    } as const;
    expect(resolveSource({ from: "literal", value: [1] }, context)).toEqual([1]);
    expect(resolveSource({ from: "param", path: ["a", "b"] }, context)).toBe(1);
    expect(resolveSource({ from: "output", step: "s", path: ["x"] }, context)).toBe("s/x");
    expect(resolveSource({ from: "item", path: ["month"] }, context)).toBe("05");
    expect(resolveSource({ from: "run", field: "id" }, context)).toBe("run_1");
    expect(resolveSource({ from: "run", field: "status" }, context)).toBe("failed");
  });
});

describe("itemName", () => {
  test.each([
    ["2026-05", [], "2026-05"],
    [7, ["ignored"], "7"],
    [{ month: "05", year: 2026 }, ["month"], "05"],
    [{ month: { number: 5 } }, ["month", "number"], "5"],
    [{ month: "05" }, [], "3"],
    [{ month: "05" }, ["absent"], "3"],
    [["05"], ["0"], "05"],
    ["", [], "3"],
    [null, [], "3"],
    [undefined, ["a"], "3"],
    ["x".repeat(100), [], "x".repeat(64)],
    ["🌳".repeat(100), [], "🌳".repeat(64)],
  ])("%j at %j is called %s", (item, path, name) => {
    expect(itemName(item, path, 3)).toBe(name);
  });
});

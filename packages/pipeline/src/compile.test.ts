import { isCoppiceError } from "@coppice/core";
import { describe, expect, test } from "vitest";

import { compilePipeline } from "./compile.ts";
import { buildGraph } from "./graph.ts";

const pipeline = (steps: readonly unknown[], more: object = {}): unknown => ({
  irVersion: 1,
  name: "demo",
  params: {},
  steps,
  ...more,
});

const output = (step: string, ...path: string[]) => ({ from: "output", step, path });

const refusal = (steps: readonly unknown[], more: object = {}) => {
  try {
    compilePipeline(pipeline(steps, more));
  } catch (error) {
    if (isCoppiceError(error))
      return { code: error.code, message: error.message, data: error.data };
    throw error;
  }
  throw new Error("the pipeline was accepted");
};

describe("compilePipeline", () => {
  test("edges come from inputs, map, when and after, each once", () => {
    const { graph } = compilePipeline(
      pipeline([
        { key: "a" },
        { key: "b" },
        { key: "c" },
        { key: "d" },
        {
          key: "e",
          inputs: { one: output("a", "x"), two: output("a", "y") },
          map: { over: output("b", "list") },
          when: {
            op: "and",
            values: [{ op: "not", value: { op: "exists", value: output("c") } }],
          },
          after: ["d"],
        },
      ]),
    );
    expect(graph.upstream).toEqual([[], [], [], [], [0, 1, 2, 3]]);
    expect(graph.downstream).toEqual([[4], [4], [4], [4], []]);
    expect(graph.indexOf.get("e")).toBe(4);
  });

  test("steps already in order keep the author's order", () => {
    const keys = ["c", "a", "d", "b"];
    const steps = [{ key: "c" }, { key: "a" }, { key: "d", after: ["a"] }, { key: "b" }];
    const { ir } = compilePipeline(pipeline(steps));
    expect(ir.steps.map(({ key }) => key)).toEqual(keys);
  });

  test("a step written before its upstream moves behind it, the others stay", () => {
    const steps = [
      { key: "report", after: ["z", "train"] },
      { key: "train", after: ["load"] },
      { key: "load" },
      { key: "z" },
    ];
    const { ir, graph } = compilePipeline(pipeline(steps));
    expect(ir.steps.map(({ key }) => key)).toEqual(["load", "train", "z", "report"]);
    expect(graph.upstream).toEqual([[], [0], [], [1, 2]]);
  });

  test("compiling a compiled pipeline changes nothing, and its graph can be built again", () => {
    const { ir, graph } = compilePipeline(
      pipeline([{ key: "b", after: ["a"] }, { key: "a" }, { key: "end", finally: true }]),
    );
    expect(compilePipeline(JSON.parse(JSON.stringify(ir)))).toEqual({ ir, graph });
    expect(buildGraph(ir)).toEqual(graph);
    expect(graph.ordinary).toEqual([0, 1]);
    expect(graph.finallySteps).toEqual([2]);
  });

  test("every problem of the shape is named with its path", () => {
    const { code, data } = refusal(
      [
        { key: "a", retry: { attemptsMax: 0 } },
        {
          key: "9",
          when: { op: "lt", left: { from: "moon" }, right: { from: "param", path: [] } },
        },
      ],
      { name: "No" },
    );
    expect(code).toBe("CPC_PIPELINE_INVALID");
    const problems = data["problems"] as { path: string }[];
    expect(problems.map(({ path }) => path).toSorted()).toEqual([
      "name",
      "steps[0].retry.attemptsMax",
      "steps[1].key",
      "steps[1].when.left.from",
    ]);
  });

  test("a circle is named in the direction in which values flow", () => {
    const steps = [
      { key: "start" },
      { key: "a", after: ["c", "start"] },
      { key: "b", after: ["a"] },
      { key: "c", inputs: { x: output("b") } },
    ];
    const { code, message } = refusal(steps);
    expect(code).toBe("CPC_PIPELINE_CYCLE");
    expect(message).toContain("a → b → c → a.");
    expect(refusal([{ key: "a", after: ["a"] }]).message).toContain("a → a.");
  });

  test("an unknown step is named with the place and a guess", () => {
    const { code, message, data } = refusal([
      { key: "load" },
      { key: "train", inputs: { table: output("laod", "x") }, after: ["elsewhere"] },
    ]);
    expect(code).toBe("CPC_UNKNOWN_REFERENCE");
    expect(message).toContain('Step "train" refers to laod in inputs.table; did you mean load?');
    expect(message).toContain('Step "train" refers to elsewhere in after[0].');
    expect(data["unknown"]).toHaveLength(2);
  });

  test("an unknown parameter is named where the schema admits no others", () => {
    const steps = [{ key: "a", inputs: { seed: { from: "param", path: ["sed"] } } }];
    const params = { type: "object", properties: { seed: { type: "number" } } };
    expect(() => compilePipeline(pipeline(steps, { params }))).not.toThrow();
    const closed = { params: { ...params, additionalProperties: false } };
    expect(refusal(steps, closed)).toMatchObject({
      code: "CPC_UNKNOWN_REFERENCE",
      message: expect.stringContaining("did you mean params.seed?"),
    });
  });

  test("two steps with one key are refused", () => {
    expect(refusal([{ key: "a" }, { key: "a" }])).toMatchObject({
      code: "CPC_DUPLICATE_ID",
      data: { key: "a" },
    });
  });

  const item = { from: "item", path: [] };
  const list = { from: "literal", value: [1, 2] };
  const status = { from: "run", field: "status" };
  test.each<[string, object, string]>([
    ["item in an ordinary step", { inputs: { x: item } }, "steps[1].inputs.x"],
    ["item as the list", { map: { over: item } }, "steps[1].map.over"],
    [
      "a literal list that is none",
      { map: { over: { from: "literal", value: 3 } } },
      "steps[1].map.over",
    ],
    ["run.id as the list", { map: { over: { from: "run", field: "id" } } }, "steps[1].map.over"],
    [
      "item in a condition",
      { map: { over: list }, when: { op: "exists", value: item } },
      "steps[1].when",
    ],
    ["run.status before the end", { inputs: { x: status } }, "steps[1].inputs.x"],
    ["waiting for a finally step", { after: ["end"] }, "steps[1].after[0]"],
  ])("%s is refused", (_title, fields, path) => {
    const { code, data } = refusal([
      { key: "end", finally: true },
      { key: "a", ...fields },
    ]);
    expect(code).toBe("CPC_PIPELINE_INVALID");
    expect(data["problems"]).toMatchObject([{ path }]);
  });

  test("item in a mapped step, run.status in a finally step and finally after finally are fine", () => {
    const steps = [
      { key: "a", map: { over: list }, inputs: { x: item } },
      { key: "b", finally: true, inputs: { x: status, all: output("a") } },
      { key: "c", finally: true, after: ["b"] },
    ];
    expect(compilePipeline(pipeline(steps)).graph.upstream).toEqual([[], [0], [1]]);
  });
});

describe("buildGraph", () => {
  test("a pipeline whose steps are not in order is refused", () => {
    const { ir } = compilePipeline(pipeline([{ key: "a" }, { key: "b", after: ["a"] }]));
    const turned = { ...ir, steps: ir.steps.toReversed() };
    expect(() => buildGraph(turned)).toThrow(/topological order.*"b" before "a"/);
  });
});

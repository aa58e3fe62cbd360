/** What a user's definitions compile to, and what the compiler refuses. */
import { artifactRefSchema } from "@coppice/contract";
import { describe, expect, expectTypeOf, test } from "vitest";
import { z } from "zod";

import {
  and,
  type ArtifactRef,
  artifactSchema,
  definePipeline,
  defineProject,
  defineStep,
  eq,
  exists,
  type ListRef,
  NonRetryableError,
  oneOf,
  type OutputRef,
  RetryAfterError,
} from "./index.ts";

const join = defineStep({
  inputs: z.object({ seed: z.number(), note: z.string().optional() }),
  output: z.object({ months: z.array(z.string()), table: artifactSchema, rows: z.number() }),
  run: (_ctx, inputs) => ({
    months: [String(inputs.seed)],
    rows: 1,
    table: { $artifact: { sha256: "", sizeBytes: 0, name: "", kind: "", metadata: {} } },
  }),
});
const features = defineStep({
  inputs: z.object({ month: z.string(), joined: artifactSchema }),
  output: z.object({ rows: z.number(), month: z.string() }),
  run: (_ctx, inputs) => ({ rows: 1, month: inputs.month }),
});
const train = defineStep({
  inputs: z.object({ rows: z.array(z.number()), seed: z.number() }),
  output: z.object({ loss: z.number() }),
  run: () => ({ loss: 0.5 }),
});
const report = defineStep({
  inputs: z.object({ status: z.string(), loss: z.number().optional() }),
  run: () => undefined,
});
const ping = defineStep({ run: () => undefined });
const params = z.object({
  seed: z.number().int().default(7),
  tags: z.array(z.string()).default([]),
});

const lateFlights = definePipeline({
  name: "late-flights",
  params,
  timeout: "10m",
  steps: ({ params, step, run }) => {
    const joined = step("join", join, {
      with: { seed: params.seed },
      retry: { attempts: 3, backoff: "2s" },
    });
    const perMonth = step("features", features, {
      map: { over: joined.output.months, concurrency: 4 },
      with: ({ item }) => ({ month: item, joined: joined.output.table }),
    });
    const model = step("train", train, {
      with: { rows: perMonth.output.rows, seed: params.seed },
      when: and(exists(joined.output.rows), oneOf(joined.output.rows, [1, 2])),
      resources: { slots: 2 },
      pools: { db: 2 },
      timeouts: { run: "5m" },
    });
    step("report", report, {
      finally: true,
      with: { status: run.status, loss: model.output.loss },
    });
  },
});

describe("a pipeline's definition", () => {
  test("compiles to plain data that says where every input comes from", () => {
    const ir = lateFlights.ir;
    expect(JSON.parse(JSON.stringify(ir))).toEqual(ir);
    expect(ir.timeoutMs).toBe(600_000);
    expect(ir.steps.map((step) => step.key)).toEqual(["join", "features", "train", "report"]);
    expect(ir.steps[0]).toMatchObject({
      inputs: { seed: { from: "param", path: ["seed"] } },
      retry: { attemptsMax: 3, backoffMs: 2000, lostMax: 3 },
      rule: "all_success",
    });
    expect(ir.steps[1]).toMatchObject({
      map: { over: { from: "output", step: "join", path: ["months"] }, concurrency: 4, name: [] },
      inputs: {
        month: { from: "item", path: [] },
        joined: { from: "output", step: "join", path: ["table"] },
      },
    });
    expect(ir.steps[2]).toMatchObject({
      inputs: { rows: { from: "output", step: "features", path: ["rows"] } },
      pools: [{ name: "db", weight: 2 }],
      timeouts: { runMs: 300_000, graceMs: 10_000 },
      when: { op: "and", values: [{ op: "exists" }, { op: "in", right: { value: [1, 2] } }] },
    });
    expect(ir.steps[3]).toMatchObject({
      finally: true,
      rule: "always",
      inputs: { status: { from: "run", field: "status" } },
    });
  });

  test("writes the parameters as a closed JSON Schema in which defaults are not required", () => {
    expect(lateFlights.ir.params).toMatchObject({
      type: "object",
      additionalProperties: false,
      properties: { seed: { type: "integer", default: 7 } },
    });
    expect(lateFlights.ir.params["required"]).toBeUndefined();
  });

  test("keeps the definitions by key, whose run is the user's function", async () => {
    const definition = lateFlights.steps.get("features");
    expect(definition?.inputs.safeParse({ month: 1 }).success).toBe(false);
    await expect(
      Promise.resolve(definition?.run(undefined as never, { month: "2024-01" } as never)),
    ).resolves.toEqual({ rows: 1, month: "2024-01" });
  });

  test("names both places when two steps share a key", () => {
    const twice = () =>
      definePipeline({
        name: "twice",
        steps: ({ step }) => {
          step("a", ping);
          step("a", ping);
        },
      });
    expect(twice).toThrow(/two steps "a": .*sdk\.test\.ts:\d+ and .*sdk\.test\.ts:\d+/);
    expect(twice).toThrow(expect.objectContaining({ code: "CPC_DUPLICATE_ID" }) as Error);
  });

  test("names both places when two pipelines share a name", () => {
    const one = () => definePipeline({ name: "same", steps: ({ step }) => void step("a", ping) });
    expect(() => defineProject({ name: "p", pipelines: [one(), one()] })).toThrow(
      /"same": .*sdk\.test\.ts:\d+ and .*sdk\.test\.ts:\d+/,
    );
  });

  test("refuses a reference inside a literal, a mistyped input and a missing one", () => {
    const build = (inputs: object) => () =>
      definePipeline({
        name: "p",
        params,
        steps: ({ params, step }) => {
          step("a", join, { with: { seed: params.seed, ...inputs } as never });
        },
      });
    expect(build({ note: { deep: lateFlights.ir } })).not.toThrow();
    expect(build({ nope: 1 })).toThrow(/lacks\. It has: seed, note/);
    expect(build({ seed: undefined })).toThrow(/needs the input "seed"/);
    expect(build({ note: new Date(0) })).toThrow(/an instance of Date/);
    expect(() =>
      definePipeline({
        name: "p",
        params,
        steps: ({ params, step }) => {
          step("a", join, { with: { seed: 1, note: [params.seed] } as never });
        },
      }),
    ).toThrow(/reference inside a literal/);
  });

  test("refuses to compute with a reference", () => {
    expect(() =>
      definePipeline({
        name: "p",
        params,
        steps: ({ params, step }) => {
          step("a", join, { with: { seed: Number(params.seed) + 1 } });
        },
      }),
    ).toThrow(/params\.seed is a reference: it has no value while the pipeline is being defined/);
  });
});

describe("errors that a step throws", () => {
  test("carry what the child needs under plain names", () => {
    expect(new NonRetryableError("no")).toMatchObject({ name: "NonRetryableError", message: "no" });
    expect(new RetryAfterError("later", "30s")).toMatchObject({
      name: "RetryAfterError",
      retryAfterMs: 30_000,
    });
  });
});

test("an artifact's schema accepts exactly what the wire protocol accepts", () => {
  const good = { sha256: "a".repeat(64), sizeBytes: 1, name: "n", kind: "k", metadata: { x: [1] } };
  const variants = [
    good,
    { ...good, sha256: "x" },
    { ...good, sizeBytes: -1 },
    { ...good, more: 1 },
  ];
  for (const inner of variants) {
    expect(artifactSchema.safeParse({ $artifact: inner }).success).toBe(
      artifactRefSchema.safeParse(inner).success,
    );
  }
});

/** Never called: `tsc` judges it; an expected error that does not come is an error itself. */
export const typeTests = (): void => {
  definePipeline({
    name: "types",
    params,
    steps: ({ params, step, run }) => {
      const joined = step("join", join, { with: { seed: params.seed, note: "x" } });
      expectTypeOf(joined.output.rows).toEqualTypeOf<OutputRef<number>>();
      step("literal", join, { with: { seed: 3 } });
      step("nothing", ping);
      step("after", ping, { after: [joined] });

      // @ts-expect-error an input that the definition lacks
      step("name", join, { with: { seed: 1, sed: 2 } });
      // @ts-expect-error a reference of another type
      step("type", join, { with: { seed: joined.output.table } });
      // @ts-expect-error a literal of another type
      step("literal-type", join, { with: { seed: "seven" } });
      // @ts-expect-error a required input is missing
      step("missing", join, { with: {} });
      // @ts-expect-error no options although an input is required
      step("no-options", join);
      // @ts-expect-error no such field of the output
      void joined.output.nothing;
      // @ts-expect-error no such parameter
      void params.sed;

      const mapped = step("features", features, {
        map: { over: joined.output.months },
        with: ({ item }) => ({ month: item, joined: joined.output.table }),
      });
      expectTypeOf(mapped.output.rows).toEqualTypeOf<ListRef<number>>();
      step("list", train, { with: { rows: mapped.output.rows, seed: 1 } });
      step("over-params", features, {
        map: { over: params.tags },
        with: ({ item }) => ({ month: item, joined: joined.output.table }),
      });
      step("over-literal", features, {
        map: { over: ["a", "b"] },
        with: ({ item }) => ({ month: item, joined: joined.output.table }),
      });
      // @ts-expect-error a mapped step's output is a list
      step("not-one", train, { with: { rows: [1], seed: mapped.output.rows } });
      step("item-type", features, {
        map: { over: [1, 2] },
        // @ts-expect-error the item is a number
        with: ({ item }) => ({ month: item, joined: joined.output.table }),
      });
      step("item-name", features, {
        map: { over: joined.output.months },
        // @ts-expect-error an input that the definition lacks
        with: ({ item }) => ({ month: item, joined: joined.output.table, nope: 1 }),
      });
      step("item-missing", features, {
        map: { over: joined.output.months },
        // @ts-expect-error a required input is missing
        with: ({ item }) => ({ month: item }),
      });

      const model = step("train", train, { with: { rows: [1], seed: 1 } });
      step("optional", report, {
        rule: "all_done",
        with: { status: run.status, loss: model.output.loss },
      });
      step("finally", report, {
        finally: true,
        with: { status: run.status, loss: model.output.loss },
      });
      step("strict-in-finally", join, {
        finally: true,
        rule: "all_success",
        with: { seed: model.output.loss },
      });
      step("params-are-there", join, { rule: "all_failed", with: { seed: params.seed } });
      // @ts-expect-error under this rule the output may be missing
      step("loose", join, { rule: "all_done", with: { seed: model.output.loss } });
      // @ts-expect-error so it may in a finally step
      step("loose-finally", join, { finally: true, with: { seed: model.output.loss } });
      // @ts-expect-error under this rule the list may have holes
      step("holes", train, { rule: "none_failed", with: { rows: mapped.output.rows, seed: 1 } });

      step("when", ping, { when: eq(run.status, "failed") });
      // @ts-expect-error no such status
      step("when-type", ping, { when: eq(run.status, "broken") });
    },
  });
  expectTypeOf<z.output<typeof artifactSchema>>().toEqualTypeOf<ArtifactRef>();
};

/**
 * A pipeline as data: what `@coppice/sdk` compiles to, what a run pins, what the planner reads.
 *
 * What must stay true: it is plain JSON, versioned, and holds no code: conditions are typed
 * expressions, inputs are references. Steps stand in topological order, so that an index is a name
 * for life and everything upstream of a step has a smaller index.
 */
import { z } from "zod";

export const IR_VERSION = 1;

export const STEP_KEY = /^[A-Za-z][A-Za-z0-9_-]{0,62}$/;
export const PIPELINE_NAME = /^[a-z][a-z0-9-]{0,62}$/;

/** Limits that keep one run row and one plan small. */
export const STEPS_MAX = 1000;
export const MAP_ITEMS_MAX_DEFAULT = 10_000;
export const MAP_ITEMS_MAX = 100_000;
/** How many items of one map may have unfinished rows at a time, where no concurrency is given. */
export const MAP_WINDOW = 1000;

export const TRIGGER_RULES = [
  "all_success",
  "all_failed",
  "all_done",
  "all_done_min_one_success",
  "all_skipped",
  "one_failed",
  "one_success",
  "one_done",
  "none_failed",
  "none_failed_min_one_success",
  "none_skipped",
  "always",
] as const;
export type TriggerRule = (typeof TRIGGER_RULES)[number];

const stepKey = z.string().regex(STEP_KEY);
const path = z.array(z.string().max(200)).max(20);
const ms = z
  .number()
  .int()
  .min(1)
  .max(90 * 86_400_000);

/** Where a value comes from. */
export const valueSourceSchema = z.discriminatedUnion("from", [
  z.strictObject({ from: z.literal("literal"), value: z.json() }),
  z.strictObject({ from: z.literal("param"), path }),
  /** Of a mapped step: the list of all items' values, in order, null where an item has none. */
  z.strictObject({ from: z.literal("output"), step: stepKey, path }),
  /** The item that this step run of a mapped step stands for. */
  z.strictObject({ from: z.literal("item"), path }),
  z.strictObject({ from: z.literal("run"), field: z.enum(["id", "status"]) }),
]);
export type ValueSource = z.infer<typeof valueSourceSchema>;

/** A typed condition; evaluated by `evaluateWhen`, never by `eval`. */
export type WhenExpression =
  | {
      readonly op: "eq" | "ne" | "lt" | "le" | "gt" | "ge";
      readonly left: ValueSource;
      readonly right: ValueSource;
    }
  | { readonly op: "in"; readonly left: ValueSource; readonly right: ValueSource }
  | { readonly op: "exists"; readonly value: ValueSource }
  | { readonly op: "not"; readonly value: WhenExpression }
  | { readonly op: "and" | "or"; readonly values: readonly WhenExpression[] };

export const whenSchema: z.ZodType<WhenExpression> = z.lazy(() =>
  z.union([
    z.strictObject({
      op: z.enum(["eq", "ne", "lt", "le", "gt", "ge"]),
      left: valueSourceSchema,
      right: valueSourceSchema,
    }),
    z.strictObject({ op: z.literal("in"), left: valueSourceSchema, right: valueSourceSchema }),
    z.strictObject({ op: z.literal("exists"), value: valueSourceSchema }),
    z.strictObject({ op: z.literal("not"), value: whenSchema }),
    z.strictObject({ op: z.enum(["and", "or"]), values: z.array(whenSchema).min(1).max(50) }),
  ]),
);

const labelText = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$/);

export const resourcesSchema = z.strictObject({
  /** Slots of one worker that an attempt occupies. */
  slots: z.number().int().min(1).max(256).default(1),
  /** GPUs of one worker, given to one attempt alone. */
  gpu: z.number().int().min(0).max(64).default(0),
  /** A worker must carry all of these labels with these values. */
  labels: z.record(labelText, labelText).default({}),
});
export type Resources = z.infer<typeof resourcesSchema>;

export const retrySchema = z.strictObject({
  /** Attempts that may fail by the user's code, the first included. */
  attemptsMax: z.number().int().min(1).max(100).default(1),
  /** Attempts that may be lost with their worker before the step is quarantined. */
  lostMax: z.number().int().min(1).max(100).default(3),
  backoffMs: z.number().int().min(0).max(86_400_000).default(1000),
  factor: z.number().min(1).max(10).default(2),
  backoffMaxMs: z.number().int().min(0).max(86_400_000).default(300_000),
  /** The delay is spread over ±this share of itself. */
  jitterRatio: z.number().min(0).max(1).default(0.2),
});
export type RetryPolicy = z.infer<typeof retrySchema>;

export const timeoutsSchema = z.strictObject({
  /** From ready to running. */
  queuedMs: ms.optional(),
  /** One attempt's running time. */
  runMs: ms.optional(),
  /** Longest silence of the user's code: no log, metric, progress or `ctx.heartbeat()`. */
  heartbeatMs: ms.optional(),
  /** From the AbortSignal to the kill of the process group. */
  graceMs: z.number().int().min(0).max(600_000).default(10_000),
});
export type Timeouts = z.infer<typeof timeoutsSchema>;

export const mapSchema = z.strictObject({
  /** The list; of a step's output, a parameter or a literal. */
  over: valueSourceSchema,
  /** Items running or waiting at a time. */
  concurrency: z.number().int().min(1).max(MAP_ITEMS_MAX).optional(),
  itemsMax: z.number().int().min(0).max(MAP_ITEMS_MAX).default(MAP_ITEMS_MAX_DEFAULT),
  /** Path inside an item to its name; the item itself where it is text or a number. */
  name: path.default([]),
});
export type MapSpec = z.infer<typeof mapSchema>;

export const stepSchema = z.strictObject({
  key: stepKey,
  description: z.string().max(2000).optional(),
  inputs: z
    .record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,62}$/), valueSourceSchema)
    .default({}),
  /** Steps that must come before this one although it takes nothing from them. */
  after: z.array(stepKey).max(STEPS_MAX).default([]),
  rule: z.enum(TRIGGER_RULES).default("all_success"),
  when: whenSchema.optional(),
  map: mapSchema.optional(),
  /** Runs after all ordinary steps are final, whatever became of them. */
  finally: z.boolean().default(false),
  resources: resourcesSchema.default({ slots: 1, gpu: 0, labels: {} }),
  pools: z
    .array(
      z.strictObject({
        name: labelText,
        weight: z.number().int().min(1).max(1_000_000).default(1),
      }),
    )
    .max(8)
    .default([]),
  /** Higher first; added to the run's. */
  priority: z.number().int().min(-100).max(100).default(0),
  retry: retrySchema.default({
    attemptsMax: 1,
    lostMax: 3,
    backoffMs: 1000,
    factor: 2,
    backoffMaxMs: 300_000,
    jitterRatio: 0.2,
  }),
  timeouts: timeoutsSchema.default({ graceMs: 10_000 }),
  /** "fresh" gives every attempt a new process. */
  isolation: z.enum(["reuse", "fresh"]).default("reuse"),
  /** The worker kills the child when it can't renew the lease: for effects that must not overlap. */
  exclusive: z.boolean().default(false),
  memoryMb: z.number().int().min(16).max(4_194_304).optional(),
  /** Names of environment variables that the step needs from its worker. */
  env: z
    .array(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/))
    .max(50)
    .default([]),
});
export type StepIr = z.infer<typeof stepSchema>;

export const pipelineSchema = z.strictObject({
  irVersion: z.literal(IR_VERSION),
  name: z.string().regex(PIPELINE_NAME),
  description: z.string().max(10_000).optional(),
  /** JSON Schema (2020-12) of the parameters, an object. */
  params: z.record(z.string(), z.json()),
  steps: z.array(stepSchema).min(1).max(STEPS_MAX),
  /** The whole run's time. */
  timeoutMs: ms.optional(),
});
export type PipelineIr = z.infer<typeof pipelineSchema>;
/** What an author writes: defaults may be left out. */
export type PipelineIrInput = z.input<typeof pipelineSchema>;

/**
 * The class of workers that can run a step: GPU count and sorted labels. One queue per class.
 * `cpu`, `gpu2`, `cpu,zone=eu`, `gpu1,model=h100,zone=eu`.
 */
export const classKeyOf = (resources: Pick<Resources, "gpu" | "labels">): string =>
  [
    resources.gpu === 0 ? "cpu" : `gpu${resources.gpu}`,
    ...Object.keys(resources.labels)
      .toSorted()
      .map((name) => `${name}=${resources.labels[name] ?? ""}`),
  ].join(",");

/** Whether a worker with these labels and this many GPUs can run steps of the class. */
export const workerServesClass = (
  worker: { readonly labels: Readonly<Record<string, string>>; readonly gpus: number },
  needed: Pick<Resources, "gpu" | "labels">,
): boolean =>
  worker.gpus >= needed.gpu &&
  Object.entries(needed.labels).every(([name, value]) => worker.labels[name] === value);

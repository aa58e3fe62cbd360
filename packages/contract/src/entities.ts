/**
 * What the API shows of the nouns: camelCase JSON, ids as `run_…`, times as RFC 3339 text in UTC,
 * null where there is none (never a missing field in a reply).
 */
import { ATTEMPT_OUTCOMES, RUN_STATES, STEP_STATES } from "@coppice/core";
import { z } from "zod";
import { scopeSchema } from "./route.ts";
import { errorRecordSchema, usageSchema } from "./worker-protocol.ts";

const time = z.string().describe("RFC 3339, UTC");
const maybeTime = time.nullable();
const count = z.number().int().min(0);
const runState = z.enum(RUN_STATES);
const stepState = z.enum(STEP_STATES);
const maybeError = errorRecordSchema.nullable();

/** Lists go on with `?cursor=` until `nextCursor` is null; a cursor's text means nothing to you. */
export const pageOf = <S extends z.ZodType>(item: S) =>
  z.object({ items: z.array(item), nextCursor: z.string().nullable() });

export const runSchema = z.object({
  id: z.string(),
  pipeline: z.string(),
  version: z.number().int(),
  state: runState,
  priority: z.number().int(),
  reason: z.string().nullable(),
  parentRunId: z.string().nullable(),
  createdAt: time,
  finishedAt: maybeTime,
  isCancelRequested: z.boolean(),
  error: maybeError,
});
export type Run = z.infer<typeof runSchema>;

export const stepSchema = z.object({
  index: count,
  key: z.string(),
  description: z.string().nullable(),
  /** One word for the whole step; of a map, the state of what is furthest from its end. */
  state: stepState,
  rule: z.string(),
  isMapped: z.boolean(),
  isFinally: z.boolean(),
  upstream: z.array(z.string()),
  /** null while a map's length is unknown. */
  total: count.nullable(),
  counts: z.partialRecord(stepState, count),
  startedAt: maybeTime,
  finishedAt: maybeTime,
});
export type Step = z.infer<typeof stepSchema>;

export const runDetailSchema = runSchema.extend({
  params: z.json(),
  traceparent: z.string().nullable(),
  steps: z.array(stepSchema),
});
export type RunDetail = z.infer<typeof runDetailSchema>;

export const stepRunSchema = z.object({
  item: count,
  name: z.string().nullable(),
  state: stepState,
  /** Number of the newest attempt, from 1. */
  attempt: count,
  failed: count,
  lost: count,
  workerId: z.string().nullable(),
  readyAt: maybeTime,
  queuedAt: maybeTime,
  startedAt: maybeTime,
  finishedAt: maybeTime,
  /** When the row moves by itself: backoff over, a timeout. */
  dueAt: maybeTime,
  error: maybeError,
});
export type StepRun = z.infer<typeof stepRunSchema>;

export const stepDetailSchema = stepSchema.extend({ items: pageOf(stepRunSchema) });
export type StepDetail = z.infer<typeof stepDetailSchema>;

export const attemptSchema = z.object({
  attempt: count,
  outcome: z.enum([...ATTEMPT_OUTCOMES, "running"]),
  workerId: z.string().nullable(),
  workerName: z.string().nullable(),
  startedAt: maybeTime,
  finishedAt: maybeTime,
  error: maybeError,
  usage: usageSchema.nullable(),
});
export type Attempt = z.infer<typeof attemptSchema>;

export const stepRunDetailSchema = stepRunSchema.extend({
  step: z.string(),
  output: z.json(),
  attempts: z.array(attemptSchema),
});
export type StepRunDetail = z.infer<typeof stepRunDetailSchema>;

export const logChunkSchema = z.object({
  /** Byte offset of `text` in the attempt's log; ask again with `nextOffset`. */
  offset: count,
  nextOffset: count,
  text: z.string(),
  /** The attempt has ended and this is its log's last part. */
  isEnd: z.boolean(),
});
export type LogChunk = z.infer<typeof logChunkSchema>;

export const metricPointSchema = z.object({
  key: z.string(),
  step: z.number().int(),
  value: z.union([z.number(), z.literal(["NaN", "Infinity", "-Infinity"])]),
  at: time,
});
export type MetricPoint = z.infer<typeof metricPointSchema>;

export const artifactSchema = z.object({
  step: z.string(),
  item: count,
  attempt: count,
  name: z.string(),
  kind: z.string(),
  sha256: z.string(),
  sizeBytes: count,
  metadata: z.record(z.string(), z.json()),
  createdAt: time,
});
export type Artifact = z.infer<typeof artifactSchema>;

export const outputSchema = z.object({
  step: z.string(),
  item: count,
  name: z.string().nullable(),
  output: z.json(),
});
export type Output = z.infer<typeof outputSchema>;

/** A state change of a run or of one of its step runs; `seq` has no gaps within a run. */
export const runEventSchema = z.object({
  seq: count,
  at: time,
  /** null: the run itself. */
  step: z.string().nullable(),
  item: count.nullable(),
  name: z.string().nullable(),
  attempt: count.nullable(),
  /** A run's also `cancelling`. */
  state: z.string(),
  workerId: z.string().nullable(),
  /** Why it is being cancelled. */
  reason: z.string().nullable(),
  error: maybeError,
});
export type RunEvent = z.infer<typeof runEventSchema>;

/** Why a run waits: what each unfinished step of it lacks. */
export const whySchema = z.object({
  runId: z.string(),
  state: runState,
  steps: z.array(
    z.object({
      step: z.string(),
      /** null where it holds for the step as a whole. */
      item: count.nullable(),
      state: z.string(),
      /** A word such as upstream, no_worker, slots_busy, pool_full, backoff, running. */
      reason: z.string(),
      message: z.string(),
    }),
  ),
});
export type Why = z.infer<typeof whySchema>;

export const workerSchema = z.object({
  id: z.string(),
  name: z.string(),
  host: z.string(),
  version: z.string(),
  labels: z.record(z.string(), z.string()),
  slots: count,
  freeSlots: count,
  gpus: count,
  freeGpus: count,
  isAlive: z.boolean(),
  isDraining: z.boolean(),
  clockSkewMs: z.number(),
  registeredAt: time,
  seenAt: time,
});
export type Worker = z.infer<typeof workerSchema>;

export const queueSchema = z.object({
  class: z.string(),
  ready: count,
  queued: count,
  running: count,
  retrying: count,
  /** 0 where nothing is ready. */
  oldestReadySeconds: z.number(),
  workers: count,
  slots: count,
  freeSlots: count,
});
export type Queue = z.infer<typeof queueSchema>;

export const autoscaleSchema = z.object({
  class: z.string(),
  /** ready + queued + running, so that scaling in never counts running work as nothing. */
  demand: count,
  oldestWaitSeconds: z.number(),
});

export const poolSchema = z.object({ name: z.string(), capacity: count, used: count });
export type Pool = z.infer<typeof poolSchema>;

export const pipelineVersionSchema = z.object({
  id: z.string(),
  version: z.number().int(),
  bundleDigest: z.string(),
  createdAt: time,
});
export const pipelineSummarySchema = z.object({
  name: z.string(),
  description: z.string().nullable(),
  version: z.number().int(),
  stepCount: count,
  createdAt: time,
});
export type PipelineSummary = z.infer<typeof pipelineSummarySchema>;

export const pipelineDetailSchema = pipelineSummarySchema.extend({
  /** JSON Schema (2020-12). */
  params: z.record(z.string(), z.json()),
  steps: z.array(z.object({ key: z.string(), description: z.string().nullable() })),
  versions: z.array(pipelineVersionSchema),
});
export type PipelineDetail = z.infer<typeof pipelineDetailSchema>;

export const tokenSchema = z.object({
  id: z.string(),
  name: z.string(),
  scope: scopeSchema,
  project: z.string().nullable(),
  createdAt: time,
  expiresAt: maybeTime,
  revokedAt: maybeTime,
});
export type Token = z.infer<typeof tokenSchema>;

export const projectSchema = z.object({ id: z.string(), name: z.string(), createdAt: time });
export type Project = z.infer<typeof projectSchema>;

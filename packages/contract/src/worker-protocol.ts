/**
 * What workers and the API say to each other.
 *
 * What must stay true: everything may be sent again and is then answered the same; every item gets an
 * answer of its own, in order; the worker invents lease tokens, the server's database judges them.
 * Only `superseded` and `cancelled` make a worker stop an attempt; silence never does.
 */
import { z } from "zod";

export const PROTOCOL_VERSION = 1;
/** A request of a lane is split below this size. */
export const EXCHANGE_BYTES_MAX = 4 * 1024 * 1024;
export const LOG_CHUNK_BYTES_MAX = 64 * 1024;
export const OUTPUT_INLINE_BYTES_MAX = 64 * 1024;

const uuid = z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const labels = z.record(z.string().max(64), z.string().max(64));

/** Which attempt: run, step's index, item, number from 1, and the token that fences it. */
const attemptFields = {
  runId: uuid,
  step: z.number().int().min(0),
  item: z.number().int().min(0),
  attempt: z.number().int().min(1),
  lease: uuid,
};

export const errorRecordSchema = z.object({
  code: z.string().max(64),
  message: z.string().max(16_384),
  stack: z.string().max(32_768).optional(),
  data: z.record(z.string(), z.json()).optional(),
});

/** Bytes by digest with a kind; inside output values it stands as `{ "$artifact": … }`. */
export const artifactRefSchema = z.strictObject({
  sha256,
  sizeBytes: z.number().int().min(0),
  name: z.string().max(200),
  kind: z.string().max(64),
  metadata: z.record(z.string(), z.json()).default({}),
});
export type ArtifactRef = z.infer<typeof artifactRefSchema>;

/**
 * A value too large to stand inline; inside output values it stands as `{ "$spilled": … }`.
 * `length` is given where the value is a list, so that a map over it can be planned.
 */
export const spilledRefSchema = z.strictObject({
  sha256,
  sizeBytes: z.number().int().min(0),
  length: z.number().int().min(0).optional(),
});
export type SpilledRef = z.infer<typeof spilledRefSchema>;

// ── registration ──────────────────────────────────────────────────────────────────────────────────

export const deviceSchema = z.strictObject({
  index: z.number().int().min(0),
  uuid: z.string().max(100),
  name: z.string().max(200),
  memoryMb: z.number().int().min(0),
});
export type Device = z.infer<typeof deviceSchema>;

export const registerRequestSchema = z.strictObject({
  protocol: z.number().int(),
  name: z.string().min(1).max(100),
  host: z.string().max(255),
  version: z.string().max(50),
  labels,
  slots: z.number().int().min(1).max(4096),
  devices: z.array(deviceSchema).max(64),
  /** Worker's clock when it asked, to report skew; never used for leases. */
  clockMs: z.number(),
});
export type RegisterRequest = z.infer<typeof registerRequestSchema>;

export const doorbellAddressSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("redis"), url: z.string(), prefix: z.string() }),
  z.strictObject({ kind: z.literal("postgres"), url: z.string() }),
]);

export const registerReplySchema = z.object({
  workerId: uuid,
  leaseMs: z.number().int(),
  heartbeatMs: z.number().int(),
  doorbell: doorbellAddressSchema,
  /** Keys of the classes that this worker serves; later ones come with heartbeat replies. */
  classes: z.array(z.string()),
  clockSkewMs: z.number(),
});
export type RegisterReply = z.infer<typeof registerReplySchema>;

// ── lane "work": starts and finishes ──────────────────────────────────────────────────────────────

export const usageSchema = z.strictObject({
  wallMs: z.number().min(0),
  cpuMs: z.number().min(0),
  memoryPeakMb: z.number().min(0),
  gpuPeakRatio: z.number().min(0).max(1).optional(),
  gpuMemoryPeakMb: z.number().min(0).optional(),
});
export type Usage = z.infer<typeof usageSchema>;

export const outcomeSchema = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("succeeded"),
    /** Inline JSON of at most 64 KB; larger parts are `$spilled`. */
    output: z.json(),
    artifacts: z.array(artifactRefSchema).max(1000),
  }),
  z.strictObject({
    type: z.literal("failed"),
    error: errorRecordSchema,
    /** False for NonRetryableError and for failures that can't change by trying again. */
    isRetryable: z.boolean(),
    /** The user's wish for the next attempt's delay. */
    retryAfterMs: z.number().int().min(0).optional(),
  }),
  z.strictObject({ type: z.literal("cancelled") }),
  /** The worker drains: no penalty, the next attempt gets the last checkpoint. */
  z.strictObject({ type: z.literal("released") }),
]);
export type Outcome = z.infer<typeof outcomeSchema>;

export const workItemSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("start"), ...attemptFields, ring: z.number().int().min(0) }),
  /** The bell found no free slot within a second. */
  z.strictObject({ type: z.literal("noSlot"), ...attemptFields, ring: z.number().int().min(0) }),
  z.strictObject({
    type: z.literal("finish"),
    ...attemptFields,
    outcome: outcomeSchema,
    usage: usageSchema.optional(),
    /** The slot that becomes free, with the token of the attempt that may start in it at once. */
    offer: z.strictObject({ lease: uuid, gpus: z.number().int().min(0) }).optional(),
  }),
]);
export type WorkItem = z.infer<typeof workItemSchema>;

/** How the worker gets one input's value. */
export const inputValueSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("value"), value: z.json() }),
  /** `path` inside the JSON value that lies under this digest. */
  z.strictObject({ kind: z.literal("spilled"), sha256, path: z.array(z.string()) }),
  /** All outputs of a mapped step in order, fetched as lines of JSON. */
  z.strictObject({ kind: z.literal("join"), step: z.number().int(), path: z.array(z.string()) }),
  /** The upstream did not succeed and the rule allows it. */
  z.strictObject({ kind: z.literal("missing") }),
]);
export type InputValue = z.infer<typeof inputValueSchema>;

export const assignmentSchema = z.object({
  ...attemptFields,
  project: z.object({ id: uuid, name: z.string() }),
  pipeline: z.object({ name: z.string(), version: z.number().int() }),
  stepKey: z.string(),
  itemName: z.string().optional(),
  bundleDigest: sha256,
  params: z.json(),
  inputs: z.record(z.string(), inputValueSchema),
  spec: z.object({
    slots: z.number().int(),
    gpu: z.number().int(),
    timeouts: z.object({
      runMs: z.number().optional(),
      heartbeatMs: z.number().optional(),
      graceMs: z.number(),
    }),
    isolation: z.enum(["reuse", "fresh"]),
    exclusive: z.boolean(),
    memoryMb: z.number().optional(),
    env: z.array(z.string()),
  }),
  /** Digest of the newest checkpoint of an earlier attempt of this step run. */
  checkpoint: sha256.optional(),
  traceparent: z.string().optional(),
  /** Same for every attempt of the step run: seeds the child's generator. */
  seed: z.string(),
});
export type Assignment = z.infer<typeof assignmentSchema>;

export const workAnswerSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("started"), assignment: assignmentSchema }),
  /** The finish is recorded (or was before); `next` runs in the offered slot. */
  z.object({ type: z.literal("accepted"), next: assignmentSchema.optional() }),
  z.object({ type: z.literal("superseded") }),
  z.object({ type: z.literal("cancelled") }),
  /** This item failed for a reason of its own; `isRetryable` says whether to send it again. */
  z.object({
    type: z.literal("problem"),
    code: z.string(),
    message: z.string(),
    isRetryable: z.boolean(),
  }),
]);
export type WorkAnswer = z.infer<typeof workAnswerSchema>;

// ── lane "stream": heartbeats, logs, metrics, checkpoints ─────────────────────────────────────────

/** JSON has no NaN or infinities; they travel as words and are kept exactly. */
export const metricValueSchema = z.union([z.number(), z.literal(["NaN", "Infinity", "-Infinity"])]);

export const streamItemSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("heartbeat"), ...attemptFields }),
  z.strictObject({
    type: z.literal("log"),
    ...attemptFields,
    /** Byte offset of this chunk in the attempt's log: sent again, it is stored once. */
    offset: z.number().int().min(0),
    text: z.string().max(LOG_CHUNK_BYTES_MAX),
  }),
  z.strictObject({
    type: z.literal("metric"),
    ...attemptFields,
    points: z
      .array(
        z.strictObject({
          key: z.string().min(1).max(250),
          step: z.number().int(),
          value: metricValueSchema,
          atMs: z.number().int(),
        }),
      )
      .max(5000),
  }),
  z.strictObject({
    type: z.literal("checkpoint"),
    ...attemptFields,
    sha256,
    sizeBytes: z.number().int().min(0),
  }),
  /** The worker itself is alive; sent at every heartbeat, with or without attempts. */
  z.strictObject({
    type: z.literal("worker"),
    freeSlots: z.number().int().min(0),
    freeGpus: z.number().int().min(0),
    isDraining: z.boolean(),
  }),
]);
export type StreamItem = z.infer<typeof streamItemSchema>;

export const streamAnswerSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ok") }),
  /** Stop the attempt: abort signal, grace, kill. A finish `cancelled` or `failed` follows. */
  z.object({ type: z.literal("cancelled"), reason: z.string() }),
  z.object({ type: z.literal("superseded") }),
  z.object({ type: z.literal("classes"), classes: z.array(z.string()) }),
  z.object({
    type: z.literal("problem"),
    code: z.string(),
    message: z.string(),
    isRetryable: z.boolean(),
  }),
]);
export type StreamAnswer = z.infer<typeof streamAnswerSchema>;

export const exchangeRequestSchema = z.discriminatedUnion("lane", [
  z.strictObject({ lane: z.literal("work"), items: z.array(workItemSchema).max(10_000) }),
  z.strictObject({ lane: z.literal("stream"), items: z.array(streamItemSchema).max(10_000) }),
]);
export type ExchangeRequest = z.infer<typeof exchangeRequestSchema>;

export const workReplySchema = z.object({ answers: z.array(workAnswerSchema) });
export const streamReplySchema = z.object({ answers: z.array(streamAnswerSchema) });

/**
 * Runs and everything under them. All of these answer only about the caller's project: another
 * project's run is as absent as one that never was.
 */
import { RUN_STATES } from "@coppice/core";
import { z } from "zod";
import {
  artifactSchema,
  logChunkSchema,
  metricPointSchema,
  outputSchema,
  pageOf,
  runDetailSchema,
  runEventSchema,
  runSchema,
  stepDetailSchema,
  stepRunDetailSchema,
  whySchema,
} from "./entities.ts";
import { events, json, jsonBody, type Route } from "./route.ts";

const RUN_PROBLEMS = ["CPC_RUN_NOT_FOUND", "CPC_RUN_AMBIGUOUS"] as const;
const STEP_PROBLEMS = [...RUN_PROBLEMS, "CPC_STEP_NOT_FOUND"] as const;
const ATTEMPT_PROBLEMS = [...STEP_PROBLEMS, "CPC_ATTEMPT_NOT_FOUND"] as const;

const run = z.string().min(4).max(64).describe("A run's id, or any unique beginning or end of it");
const step = z.string().min(1).max(63).describe("The step's key");
const wholeNumber = z.coerce.number().int().min(0).max(2_147_483_647);
const item = wholeNumber.describe("Index of the item; 0 where the step has no map");
const attempt = z.coerce.number().int().min(1).max(32_767);

export const pageQuery = {
  limit: z.coerce.number().int().min(1).max(500).optional(),
  cursor: z.string().max(500).optional(),
};

export const idempotencyHeaders = z.object({
  "idempotency-key": z.string().min(1).max(200).optional(),
});

export const runRoutes = {
  "runs.submit": {
    method: "POST",
    path: "/v1/runs",
    summary: "Start a run; the same Idempotency-Key with the same body gives the same run",
    scope: "submit",
    headers: idempotencyHeaders,
    body: jsonBody(
      z.strictObject({
        pipeline: z.string().max(63),
        /** The newest where it is left out. */
        version: z.number().int().min(1).optional(),
        params: z.record(z.string(), z.json()).default({}),
        priority: z.number().int().min(-100).max(100).default(0),
        reason: z.string().max(500).optional(),
      }),
    ),
    reply: json(
      z.object({
        id: z.string(),
        pipeline: z.string(),
        version: z.number().int(),
        state: z.enum(RUN_STATES),
        /** With defaults filled in. */
        params: z.json(),
      }),
      201,
    ),
    problems: [
      "CPC_INVALID_INPUT",
      "CPC_INVALID_PARAMS",
      "CPC_PIPELINE_NOT_FOUND",
      "CPC_IDEMPOTENCY_MISMATCH",
    ],
  },
  "runs.list": {
    method: "GET",
    path: "/v1/runs",
    summary: "Runs, newest first",
    scope: "read",
    query: z.object({
      ...pageQuery,
      pipeline: z.string().max(63).optional(),
      state: z.enum(RUN_STATES).optional(),
    }),
    reply: json(pageOf(runSchema)),
    problems: ["CPC_INVALID_INPUT"],
  },
  "runs.get": {
    method: "GET",
    path: "/v1/runs/{run}",
    summary: "A run with all its steps, those that have not begun as well",
    scope: "read",
    params: z.object({ run }),
    reply: json(runDetailSchema),
    problems: RUN_PROBLEMS,
  },
  "runs.cancel": {
    method: "POST",
    path: "/v1/runs/{run}/cancel",
    summary: "Cancel a run: its finally steps still run; asked twice is asked once",
    scope: "submit",
    params: z.object({ run }),
    body: jsonBody(z.strictObject({ reason: z.string().max(500).optional() }).default({})),
    reply: json(z.object({ id: z.string() }), 202),
    problems: RUN_PROBLEMS,
  },
  "runs.why": {
    method: "GET",
    path: "/v1/runs/{run}/why",
    summary: "What each unfinished step of a run is waiting for",
    scope: "read",
    params: z.object({ run }),
    reply: json(whySchema),
    problems: RUN_PROBLEMS,
  },
  "runs.events": {
    method: "GET",
    path: "/v1/runs/{run}/events",
    summary: "State changes of a run: a page of JSON, or a stream where `accept` asks for one",
    scope: "read",
    params: z.object({ run }),
    query: z.object({
      after: wholeNumber.optional().describe("Changes with a higher seq; also Last-Event-ID"),
      limit: pageQuery.limit,
    }),
    reply: json(z.object({ items: z.array(runEventSchema), isEnd: z.boolean() })),
    problems: RUN_PROBLEMS,
  },
  "runs.artifacts": {
    method: "GET",
    path: "/v1/runs/{run}/artifacts",
    summary: "Artifacts that a run's steps have committed",
    scope: "read",
    params: z.object({ run }),
    query: z.object({ ...pageQuery, step: step.optional(), item: item.optional() }),
    reply: json(pageOf(artifactSchema)),
    problems: STEP_PROBLEMS,
  },
  "runs.outputs": {
    method: "GET",
    path: "/v1/runs/{run}/outputs",
    summary: "Outputs of a run's succeeded step runs",
    scope: "read",
    params: z.object({ run }),
    query: z.object({ ...pageQuery, step: step.optional() }),
    reply: json(pageOf(outputSchema)),
    problems: STEP_PROBLEMS,
  },
  "steps.get": {
    method: "GET",
    path: "/v1/runs/{run}/steps/{step}",
    summary: "A step with a page of its step runs",
    scope: "read",
    params: z.object({ run, step }),
    query: z.object(pageQuery),
    reply: json(stepDetailSchema),
    problems: STEP_PROBLEMS,
  },
  "steps.cancel": {
    method: "POST",
    path: "/v1/runs/{run}/steps/{step}/cancel",
    summary: "Cancel a step, or one item of a mapped one",
    scope: "submit",
    params: z.object({ run, step }),
    body: jsonBody(
      z
        .strictObject({
          item: z.number().int().min(0).optional(),
          reason: z.string().max(500).optional(),
        })
        .default({}),
    ),
    reply: json(z.object({ id: z.string() }), 202),
    problems: STEP_PROBLEMS,
  },
  "items.get": {
    method: "GET",
    path: "/v1/runs/{run}/steps/{step}/items/{item}",
    summary: "One step run with its output and all its attempts",
    scope: "read",
    params: z.object({ run, step, item }),
    reply: json(stepRunDetailSchema),
    problems: STEP_PROBLEMS,
  },
  "attempts.logs": {
    method: "GET",
    path: "/v1/runs/{run}/steps/{step}/items/{item}/attempts/{attempt}/logs",
    summary: "An attempt's log from a byte offset",
    scope: "read",
    params: z.object({ run, step, item, attempt }),
    query: z.object({ offset: wholeNumber.optional() }),
    reply: json(logChunkSchema),
    problems: ATTEMPT_PROBLEMS,
  },
  "attempts.followLogs": {
    method: "GET",
    path: "/v1/runs/{run}/steps/{step}/items/{item}/attempts/{attempt}/logs/stream",
    summary: "An attempt's log as it grows; an event's id is the offset to go on from",
    scope: "read",
    params: z.object({ run, step, item, attempt }),
    query: z.object({ offset: wholeNumber.optional() }),
    reply: events(logChunkSchema),
    problems: ATTEMPT_PROBLEMS,
  },
  "attempts.metrics": {
    method: "GET",
    path: "/v1/runs/{run}/steps/{step}/items/{item}/attempts/{attempt}/metrics",
    summary: "An attempt's metrics, by key and step",
    scope: "read",
    params: z.object({ run, step, item, attempt }),
    query: z.object({ ...pageQuery, key: z.string().max(250).optional() }),
    reply: json(pageOf(metricPointSchema)),
    problems: ATTEMPT_PROBLEMS,
  },
  "artifacts.get": {
    method: "GET",
    path: "/v1/artifacts/{sha256}",
    summary: "An artifact's bytes, in whole or by `range`",
    scope: "read",
    params: z.object({ sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
    reply: { kind: "bytes", status: 200 },
    problems: ["CPC_ARTIFACT_NOT_FOUND"],
  },
} as const satisfies Record<string, Route>;

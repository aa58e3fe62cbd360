/**
 * Everything that is not a run: health, sign-in, tokens, projects, code, workers, queues, pools.
 */
import { pipelineSchema } from "@coppice/pipeline";
import { z } from "zod";
import {
  autoscaleSchema,
  pageOf,
  pipelineDetailSchema,
  pipelineSummarySchema,
  poolSchema,
  projectSchema,
  queueSchema,
  tokenSchema,
  workerSchema,
} from "./entities.ts";
import { json, jsonBody, type Route, scopeSchema } from "./route.ts";
import { pageQuery } from "./run-routes.ts";

export const BUNDLE_BYTES_MAX = 64 * 1024 * 1024;

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const projectName = z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/);
const poolName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$/);
const health = json(z.object({ status: z.literal("ok") }));

export const systemRoutes = {
  "health.live": {
    method: "GET",
    path: "/livez",
    summary: "The process answers",
    scope: "public",
    reply: health,
  },
  "health.ready": {
    method: "GET",
    path: "/readyz",
    summary: "The process can do its work: the database answers",
    scope: "public",
    reply: health,
  },
  "session.signIn": {
    method: "GET",
    path: "/sign-in",
    summary: "Sign a browser in with a single-use code",
    scope: "public",
    query: z.object({
      code: z.string().max(100),
      to: z.enum(["queues", "docs"]).default("queues"),
    }),
    reply: { kind: "empty", status: 303 },
  },
  "session.createCode": {
    method: "POST",
    path: "/v1/sign-in-codes",
    summary: "A code that signs one browser in with this token's rights, within five minutes",
    scope: "read",
    body: jsonBody(z.strictObject({}).default({})),
    reply: json(z.object({ code: z.string(), path: z.string(), expiresAt: z.string() }), 201),
  },
  "tokens.create": {
    method: "POST",
    path: "/v1/tokens",
    summary: "Make a token; its secret is shown this once",
    scope: "admin",
    body: jsonBody(
      z.strictObject({
        name: z.string().min(1).max(100),
        scope: scopeSchema,
        /** For read, submit and deploy; the caller's project where it is left out. */
        project: projectName.optional(),
        expiresInMs: z.number().int().min(1000).max(3_155_760_000_000).optional(),
      }),
    ),
    reply: json(tokenSchema.extend({ token: z.string() }), 201),
    problems: ["CPC_INVALID_INPUT", "CPC_NOT_FOUND"],
  },
  "tokens.list": {
    method: "GET",
    path: "/v1/tokens",
    summary: "All tokens, without their secrets",
    scope: "admin",
    query: z.object(pageQuery),
    reply: json(pageOf(tokenSchema)),
  },
  "tokens.revoke": {
    method: "DELETE",
    path: "/v1/tokens/{id}",
    summary: "Revoke a token; it is refused within five seconds",
    scope: "admin",
    params: z.object({ id: z.string().max(64) }),
    reply: { kind: "empty", status: 204 },
    problems: ["CPC_NOT_FOUND"],
  },
  "projects.create": {
    method: "POST",
    path: "/v1/projects",
    summary: "Make a project; one that exists is answered as it is",
    scope: "admin",
    body: jsonBody(z.strictObject({ name: projectName })),
    reply: json(projectSchema, 201),
    problems: ["CPC_INVALID_INPUT"],
  },
  "projects.list": {
    method: "GET",
    path: "/v1/projects",
    summary: "All projects",
    scope: "admin",
    reply: json(pageOf(projectSchema)),
  },
  "bundles.put": {
    method: "PUT",
    path: "/v1/bundles/{digest}",
    summary: "Upload a packed bundle; its bytes must have the digest",
    scope: "deploy",
    params: z.object({ digest: sha256 }),
    body: { kind: "bytes", bytesMax: BUNDLE_BYTES_MAX },
    reply: json(z.object({ digest: sha256, sizeBytes: z.number().int() }), 201),
    problems: ["CPC_BUNDLE_CORRUPT", "CPC_BUNDLE_TOO_LARGE"],
  },
  "pipelines.deploy": {
    method: "POST",
    path: "/v1/pipelines",
    summary: "Deploy pipelines of a bundle; the same content is the same version",
    scope: "deploy",
    body: {
      kind: "json",
      bytesMax: 8 * 1024 * 1024,
      schema: z.strictObject({
        bundleDigest: sha256,
        pipelines: z.array(pipelineSchema).min(1).max(200),
        /** The bundle's own manifest: externals, sources; kept for people and for `why`. */
        manifest: z.record(z.string(), z.json()).optional(),
      }),
    },
    reply: json(
      z.object({
        versions: z.array(
          z.object({
            id: z.string(),
            name: z.string(),
            version: z.number().int(),
            isNew: z.boolean(),
          }),
        ),
      }),
      201,
    ),
    problems: [
      "CPC_INVALID_INPUT",
      "CPC_PIPELINE_INVALID",
      "CPC_PIPELINE_CYCLE",
      "CPC_UNKNOWN_REFERENCE",
      "CPC_DUPLICATE_ID",
      "CPC_BUNDLE_NOT_FOUND",
    ],
  },
  "pipelines.list": {
    method: "GET",
    path: "/v1/pipelines",
    summary: "Newest version of every pipeline",
    scope: "read",
    reply: json(pageOf(pipelineSummarySchema)),
  },
  "pipelines.get": {
    method: "GET",
    path: "/v1/pipelines/{name}",
    summary: "A pipeline with the schema of its parameters and its versions",
    scope: "read",
    params: z.object({ name: z.string().max(63) }),
    reply: json(pipelineDetailSchema),
    problems: ["CPC_PIPELINE_NOT_FOUND"],
  },
  "workers.list": {
    method: "GET",
    path: "/v1/workers",
    summary: "Workers of the installation that were seen within a day",
    scope: "read",
    reply: json(pageOf(workerSchema)),
  },
  "queues.list": {
    method: "GET",
    path: "/v1/queues",
    summary: "Per class: what waits, what runs, for how long, and the slots there are",
    scope: "read",
    reply: json(pageOf(queueSchema)),
  },
  "autoscale.get": {
    method: "GET",
    path: "/v1/autoscale/{class}",
    summary: "Demand of one class, in the shape that KEDA's metrics-api scaler reads",
    scope: "read",
    params: z.object({ class: z.string().max(500) }),
    reply: json(autoscaleSchema),
    problems: ["CPC_NOT_FOUND"],
  },
  "pools.list": {
    method: "GET",
    path: "/v1/pools",
    summary: "Pools of the project",
    scope: "read",
    reply: json(pageOf(poolSchema)),
  },
  "pools.get": {
    method: "GET",
    path: "/v1/pools/{name}",
    summary: "A pool and how much of it is taken",
    scope: "read",
    params: z.object({ name: poolName }),
    reply: json(poolSchema),
    problems: ["CPC_NOT_FOUND"],
  },
  "pools.put": {
    method: "PUT",
    path: "/v1/pools/{name}",
    summary: "Make a pool or change its capacity",
    scope: "deploy",
    params: z.object({ name: poolName }),
    body: jsonBody(z.strictObject({ capacity: z.number().int().min(0).max(1_000_000) })),
    reply: json(poolSchema),
    problems: ["CPC_INVALID_INPUT"],
  },
  "system.metrics": {
    method: "GET",
    path: "/metrics",
    summary: "Metrics in Prometheus' text format",
    scope: "read",
    reply: { kind: "text", status: 200 },
  },
  "system.openapi": {
    method: "GET",
    path: "/openapi.json",
    summary: "This description",
    scope: "read",
    reply: json(z.record(z.string(), z.json())),
  },
} as const satisfies Record<string, Route>;

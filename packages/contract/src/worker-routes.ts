/**
 * What a worker asks for. Ids in these paths are plain UUIDs: they are on the hot path.
 *
 * Everything under an attempt needs its lease in `x-coppice-lease`: bytes are handed out and taken
 * in for the project of that attempt, and only while a worker holds it.
 */
import { z } from "zod";
import { json, jsonBody, type Route } from "./route.ts";
import {
  exchangeRequestSchema,
  registerReplySchema,
  registerRequestSchema,
  streamReplySchema,
  workReplySchema,
} from "./worker-protocol.ts";

/** Above the size at which workers split a request of a lane. */
export const EXCHANGE_BODY_BYTES_MAX = 8 * 1024 * 1024;
/** One artifact. */
export const ARTIFACT_BYTES_MAX = 64 * 1024 * 1024 * 1024;

const uuid = z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const attemptParams = {
  worker: uuid,
  run: uuid,
  step: z.coerce.number().int().min(0).max(32_767),
  item: z.coerce.number().int().min(0).max(2_147_483_647),
  attempt: z.coerce.number().int().min(1).max(32_767),
};
const ATTEMPT = "/v1/workers/{worker}/attempts/{run}/{step}/{item}/{attempt}";
const lease = z.object({ "x-coppice-lease": uuid });
const LEASE_PROBLEMS = ["CPC_SUPERSEDED", "CPC_WORKER_NOT_FOUND"] as const;

export const workerRoutes = {
  "workers.register": {
    method: "POST",
    path: "/v1/workers",
    summary: "Register a worker; the reply has the doorbell's address and the classes it serves",
    scope: "worker",
    body: jsonBody(registerRequestSchema),
    reply: json(registerReplySchema, 201),
    problems: ["CPC_PROTOCOL_VERSION", "CPC_DOORBELL_LOCAL_ONLY", "CPC_INVALID_INPUT"],
  },
  "workers.exchange": {
    method: "POST",
    path: "/v1/workers/{worker}/exchange",
    summary: "Items of one lane, each answered in order; may be sent again",
    scope: "worker",
    params: z.object({ worker: uuid }),
    body: { kind: "json", schema: exchangeRequestSchema, bytesMax: EXCHANGE_BODY_BYTES_MAX },
    reply: json(z.union([workReplySchema, streamReplySchema])),
    problems: ["CPC_WORKER_NOT_FOUND", "CPC_INVALID_INPUT", "CPC_BODY_TOO_LARGE"],
  },
  "workers.putArtifact": {
    method: "PUT",
    path: `${ATTEMPT}/artifacts/{sha256}`,
    summary: "Bring an artifact's bytes; they become visible when the attempt's outcome commits",
    scope: "worker",
    params: z.object({ ...attemptParams, sha256 }),
    headers: lease,
    body: { kind: "bytes", bytesMax: ARTIFACT_BYTES_MAX },
    reply: json(z.object({ sha256, sizeBytes: z.number().int() }), 201),
    problems: [...LEASE_PROBLEMS, "CPC_ARTIFACT_CORRUPT", "CPC_DISK_FULL", "CPC_BODY_TOO_LARGE"],
  },
  "workers.getArtifact": {
    method: "GET",
    path: `${ATTEMPT}/artifacts/{sha256}`,
    summary: "Bytes of an artifact of the attempt's project",
    scope: "worker",
    params: z.object({ ...attemptParams, sha256 }),
    headers: lease,
    reply: { kind: "bytes", status: 200 },
    problems: [...LEASE_PROBLEMS, "CPC_ARTIFACT_NOT_FOUND"],
  },
  "workers.getBundle": {
    method: "GET",
    path: `${ATTEMPT}/bundle`,
    summary: "The bundle that holds the attempt's code",
    scope: "worker",
    params: z.object(attemptParams),
    headers: lease,
    reply: { kind: "bytes", status: 200 },
    problems: [...LEASE_PROBLEMS, "CPC_BUNDLE_NOT_FOUND"],
  },
  "workers.getJoin": {
    method: "GET",
    path: `${ATTEMPT}/joins/{upstream}`,
    summary: "Values of all items of a mapped step in order, one line of JSON each",
    scope: "worker",
    params: z.object({
      ...attemptParams,
      upstream: z.coerce.number().int().min(0).max(32_767),
    }),
    query: z.object({ path: z.string().max(4000).optional() }),
    headers: lease,
    reply: { kind: "lines", status: 200 },
    problems: [...LEASE_PROBLEMS, "CPC_STEP_NOT_FOUND"],
  },
} as const satisfies Record<string, Route>;

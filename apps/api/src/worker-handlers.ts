/**
 * What workers ask for. What must stay true: a worker is heard only under the token that it
 * registered with; bytes move only for an attempt whose lease it holds, and only those of that
 * attempt's project.
 */
import { CoppiceError, type LeaseToken, type RunId, type WorkerId } from "@coppice/core";
import { ARTIFACT_BYTES_MAX, PROTOCOL_VERSION, type RegisterReply } from "@coppice/contract";
import { findWorkerToken, insertArtifactUpload, isArtifactReachable } from "@coppice/store";
import { Readable } from "node:stream";
import type { Deps } from "./deps.ts";
import { answered, type Call, type Handlers } from "./handler.ts";

type AttemptCall =
  | Call<"workers.putArtifact">
  | Call<"workers.getArtifact">
  | Call<"workers.getBundle">
  | Call<"workers.getJoin">;

const WORKERS_REMEMBERED_MAX = 10_000;

interface WorkerCheck {
  /** @throws CPC_WORKER_NOT_FOUND */
  worker(workerId: string, tokenId: string): Promise<WorkerId>;
  /** Whether some other token's worker has this id. */
  isOfOther(workerId: string, tokenId: string): Promise<boolean>;
}

/** Which token a worker registered with never changes, so that it may be remembered. */
const createWorkerCheck = (deps: Deps): WorkerCheck => {
  const tokenOf = new Map<string, string>();
  const ownerOf = async (workerId: string): Promise<string | undefined> => {
    let owner = tokenOf.get(workerId);
    if (owner === undefined) {
      owner = await findWorkerToken(deps.db, workerId);
      if (tokenOf.size >= WORKERS_REMEMBERED_MAX) tokenOf.clear();
      if (owner !== undefined) tokenOf.set(workerId, owner);
    }
    return owner;
  };
  return {
    worker: async (workerId, tokenId) => {
      if ((await ownerOf(workerId)) === tokenId) return workerId as WorkerId;
      throw new CoppiceError("CPC_WORKER_NOT_FOUND", {
        detail: `${workerId} is not registered with this token.`,
        hint: "Register again with POST /v1/workers.",
      });
    },
    isOfOther: async (workerId, tokenId) => {
      const owner = await ownerOf(workerId);
      return owner !== undefined && owner !== tokenId;
    },
  };
};

const authorize = async (deps: Deps, check: WorkerCheck, call: AttemptCall) => {
  const { worker, run, step, item, attempt } = call.params;
  const { tokenId } = call.caller;
  await check.worker(worker, tokenId);
  const lease = call.headers["x-coppice-lease"] as LeaseToken;
  const ref = { runId: run as RunId, step, item, attempt };
  const granted = await deps.engine.authorizeAttempt(ref, lease);
  // By token and not by id: a worker that had to register again goes on with what it runs.
  const beganBy = granted?.workerId ?? null;
  const isForeign = beganBy !== null && (await check.isOfOther(beganBy, tokenId));
  if (granted === undefined || isForeign) {
    throw new CoppiceError("CPC_SUPERSEDED", { detail: "The attempt is not under this lease." });
  }
  return { ...granted, ref };
};

/** A body that was refused before its end can't be followed by another request. */
const discard = (call: Call<"workers.putArtifact">): void => {
  if (call.body instanceof Readable) call.body.resume();
};

const register = async (deps: Deps, call: Call<"workers.register">): Promise<RegisterReply> => {
  const { body, caller, request } = call;
  if (body.protocol !== PROTOCOL_VERSION) {
    throw new CoppiceError("CPC_PROTOCOL_VERSION", {
      detail: `expected version ${PROTOCOL_VERSION}. Received: ${body.protocol}`,
    });
  }
  const { doorbellAddress: doorbell } = deps;
  if (doorbell.kind === "postgres" && !isLoopback(request.ip)) {
    throw new CoppiceError("CPC_DOORBELL_LOCAL_ONLY");
  }
  const { workerId, classes, clockSkewMs } = await deps.engine.registerWorker(caller.tokenId, body);
  return {
    workerId,
    leaseMs: deps.leaseMs,
    heartbeatMs: deps.heartbeatMs,
    doorbell,
    classes: [...classes],
    clockSkewMs,
  };
};

const isLoopback = (ip: string): boolean => ip === "::1" || /^(?:::ffff:)?127\./.test(ip);

const exchange = async (deps: Deps, check: WorkerCheck, call: Call<"workers.exchange">) => {
  const { body, params, caller } = call;
  const worker = await check.worker(params.worker, caller.tokenId);
  const counts = new Map<string, number>();
  for (const { type } of body.items) counts.set(type, (counts.get(type) ?? 0) + 1);
  for (const [type, count] of counts) {
    deps.metrics.count("coppice_exchange_items_total", { type }, count);
  }
  return body.lane === "work"
    ? { answers: await deps.engine.work(worker, body.items) }
    : { answers: await deps.engine.stream(worker, body.items) };
};

const putArtifact = async (deps: Deps, check: WorkerCheck, call: Call<"workers.putArtifact">) => {
  const { sha256 } = call.params;
  try {
    const { projectId } = await authorize(deps, check, call);
    const { sizeBytes } = await deps.artifacts.put(sha256, call.body ?? Readable.from([]), {
      sizeMaxBytes: ARTIFACT_BYTES_MAX,
    });
    await insertArtifactUpload(deps.db, projectId, sha256, sizeBytes);
    return { sha256, sizeBytes };
  } catch (error) {
    discard(call);
    throw error;
  }
};

const sendBytes = async (deps: Deps, call: AttemptCall, sha256: string) => {
  const { body, contentBytes } = await deps.artifacts.get(sha256);
  void call.reply
    .header("content-type", "application/octet-stream")
    .header("content-length", contentBytes);
  return answered(body);
};

const sendJoin = async (deps: Deps, check: WorkerCheck, call: Call<"workers.getJoin">) => {
  const { ref } = await authorize(deps, check, call);
  const path = call.query.path === undefined ? [] : call.query.path.split(".");
  const values = deps.engine.joinOutputs(ref.runId, call.params.upstream, path);
  const lines = async function* (): AsyncGenerator<string> {
    for await (const value of values) yield `${JSON.stringify(value)}\n`;
  };
  void call.reply.header("content-type", "application/jsonl; charset=utf-8");
  return answered(Readable.from(lines(), { objectMode: false }));
};

type WorkerIds = Exclude<Extract<keyof Handlers, `workers.${string}`>, "workers.list">;

export const createWorkerHandlers = (deps: Deps): Handlers<WorkerIds> => {
  const check = createWorkerCheck(deps);
  return {
    "workers.register": async (call) => await register(deps, call),
    "workers.exchange": async (call) => await exchange(deps, check, call),
    "workers.putArtifact": async (call) => await putArtifact(deps, check, call),
    "workers.getArtifact": async (call) => {
      const { projectId } = await authorize(deps, check, call);
      const { sha256 } = call.params;
      if (!(await isArtifactReachable(deps.db, projectId, sha256))) {
        throw new CoppiceError("CPC_ARTIFACT_NOT_FOUND", { detail: sha256 });
      }
      return await sendBytes(deps, call, sha256);
    },
    "workers.getBundle": async (call) => {
      const { bundleDigest } = await authorize(deps, check, call);
      return await sendBytes(deps, call, bundleDigest);
    },
    "workers.getJoin": async (call) => await sendJoin(deps, check, call),
  };
};

/** What attempts left behind: logs, metrics, artifacts, outputs. */
import { CoppiceError, isFinalStepState } from "@coppice/core";
import type { LogChunk } from "@coppice/contract";
import {
  getStepRun,
  hasArtifactReference,
  listArtifacts,
  listLogs,
  listMetrics,
  listOutputs,
  type LogReadRow,
} from "@coppice/store";
import { z } from "zod";
import { parseRange } from "./byte-range.ts";
import { resumePoint, sendEvents } from "./event-stream.ts";
import { answered, type Call, type Handlers } from "./handler.ts";
import { decodeCursor, PAGE_DEFAULT, toPage } from "./page.ts";
import { requireStep } from "./run-lookup.ts";
import { type RunServices } from "./run-handlers.ts";
import { viewMetric } from "./run-view.ts";

type AttemptCall = Call<"attempts.logs"> | Call<"attempts.followLogs"> | Call<"attempts.metrics">;

const LOG_CHUNKS_MAX = 32;
/** Logs are not announced: whoever follows asks this often. */
const LOG_POLL_MS = 400;

const findAttempt = async ({ deps, lookup }: RunServices, call: AttemptCall) => {
  const { run, step, item, attempt } = call.params;
  const found = await lookup.step(await call.projectId(), run, step);
  const ref = { runId: found.runId, step: found.step, item, attempt };
  const row = await getStepRun(deps.db, found.projectId, ref);
  if (row === undefined || attempt > row.attempt) {
    throw new CoppiceError("CPC_ATTEMPT_NOT_FOUND", {
      detail: `expected an attempt up to ${row?.attempt ?? 0}. Received: ${attempt}`,
    });
  }
  const isOver = row.attempt > attempt || isFinalStepState(row.state);
  return { projectId: found.projectId, ref, isOver };
};

/** Chunks joined from `offset` on; one that begins before it gives its rest. */
export const joinLogs = (rows: readonly LogReadRow[], offset: number, isEnd: boolean): LogChunk => {
  const last = rows.at(-1);
  const start = Math.max(offset, rows[0]?.offset ?? offset);
  const texts = rows.map((row) => {
    const skip = Math.max(0, offset - row.offset);
    return skip === 0 ? row.text : Buffer.from(row.text).subarray(skip).toString("utf8");
  });
  return {
    offset: start,
    nextOffset: last === undefined ? offset : last.offset + last.sizeBytes,
    text: texts.join(""),
    isEnd,
  };
};

const readLogs = async (
  services: RunServices,
  call: AttemptCall,
  offset: number,
): Promise<LogChunk> => {
  // First whether it is over, then what there is: the other way round the last chunk could be missed.
  const { projectId, ref, isOver } = await findAttempt(services, call);
  const rows = await listLogs(services.deps.db, projectId, ref, offset, LOG_CHUNKS_MAX);
  return joinLogs(rows, offset, isOver && rows.length < LOG_CHUNKS_MAX);
};

const pause = async (ms: number, signal: AbortSignal): Promise<void> => {
  await new Promise<void>((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
};

const followLogs = async (services: RunServices, call: Call<"attempts.followLogs">) => {
  let offset = resumePoint(call.request, call.query.offset);
  return await sendEvents(call.request, call.reply, {
    next: async () => {
      const chunk = await readLogs(services, call, offset);
      const isNews = chunk.nextOffset > offset || chunk.isEnd;
      offset = chunk.nextOffset;
      return { events: isNews ? [{ id: offset, data: chunk }] : [], isEnd: chunk.isEnd };
    },
    wait: async (_ms, signal) => await pause(LOG_POLL_MS, signal),
  });
};

const sendArtifact = async ({ deps }: RunServices, call: Call<"artifacts.get">) => {
  const { params, request, reply } = call;
  const { sha256 } = params;
  const projectId = await call.projectId();
  if (!(await hasArtifactReference(deps.db, projectId, sha256))) {
    throw new CoppiceError("CPC_ARTIFACT_NOT_FOUND", { detail: sha256 });
  }
  void reply
    .header("content-type", "application/octet-stream")
    .header("content-disposition", "attachment")
    .header("accept-ranges", "bytes")
    .header("etag", `"${sha256}"`)
    .header("cache-control", "private, max-age=31536000, immutable");
  const sizeBytes = await deps.artifacts.size(sha256);
  const range = parseRange(request.headers.range, sizeBytes);
  if (range === "unsatisfiable") {
    return answered(reply.code(416).header("content-range", `bytes */${sizeBytes}`).send());
  }
  const { body, contentBytes } = await deps.artifacts.get(sha256, range);
  if (range !== undefined) {
    void reply
      .code(206)
      .header("content-range", `bytes ${range.start}-${range.end - 1}/${sizeBytes}`);
  }
  void reply.header("content-length", contentBytes);
  return answered(body);
};

const itemCursor = z.object({
  step: z.number().int(),
  item: z.number().int(),
  name: z.string(),
});

const readArtifacts = async ({ deps, lookup }: RunServices, call: Call<"runs.artifacts">) => {
  const { params, query } = call;
  const { projectId, runId, graph } = await lookup.run(await call.projectId(), params.run);
  const limit = query.limit ?? PAGE_DEFAULT;
  const rows = await listArtifacts(deps.db, projectId, runId, {
    step: query.step === undefined ? null : requireStep(graph, query.step),
    item: query.item ?? null,
    after: decodeCursor(query.cursor, itemCursor),
    limit: limit + 1,
  });
  return toPage(
    rows,
    limit,
    (row) => ({
      ...row,
      step: graph.pipeline.steps[row.step]?.key ?? "",
      metadata: row.metadata as Record<string, z.core.util.JSONType>,
      createdAt: row.createdAt.toISOString(),
    }),
    ({ step, item, name }) => ({ step, item, name }),
  );
};

const readOutputs = async ({ deps, lookup }: RunServices, call: Call<"runs.outputs">) => {
  const { params, query } = call;
  const { projectId, runId, graph } = await lookup.run(await call.projectId(), params.run);
  const limit = query.limit ?? PAGE_DEFAULT;
  const rows = await listOutputs(deps.db, projectId, runId, {
    step: query.step === undefined ? null : requireStep(graph, query.step),
    after: decodeCursor(query.cursor, itemCursor.omit({ name: true })),
    limit: limit + 1,
  });
  return toPage(
    rows,
    limit,
    (row) => ({
      step: graph.pipeline.steps[row.step]?.key ?? "",
      item: row.item,
      name: row.name,
      output: row.output as z.core.util.JSONType,
    }),
    ({ step, item }) => ({ step, item }),
  );
};

const readMetrics = async (services: RunServices, call: Call<"attempts.metrics">) => {
  const { query } = call;
  const { projectId, ref } = await findAttempt(services, call);
  const limit = query.limit ?? PAGE_DEFAULT;
  const rows = await listMetrics(services.deps.db, projectId, ref, {
    key: query.key ?? null,
    after: decodeCursor(query.cursor, z.object({ key: z.string(), step: z.number().int() })),
    limit: limit + 1,
  });
  return toPage(rows, limit, viewMetric, ({ key, step }) => ({ key, step }));
};

type ResultIds =
  | "attempts.logs"
  | "attempts.followLogs"
  | "attempts.metrics"
  | "artifacts.get"
  | "runs.artifacts"
  | "runs.outputs";

export const createResultHandlers = (services: RunServices): Handlers<ResultIds> => ({
  "attempts.logs": async (call) => await readLogs(services, call, call.query.offset ?? 0),
  "attempts.followLogs": async (call) => await followLogs(services, call),
  "attempts.metrics": async (call) => await readMetrics(services, call),
  "artifacts.get": async (call) => await sendArtifact(services, call),
  "runs.artifacts": async (call) => await readArtifacts(services, call),
  "runs.outputs": async (call) => await readOutputs(services, call),
});

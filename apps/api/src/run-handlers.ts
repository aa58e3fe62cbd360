/** Submitting, reading and cancelling runs. */
import {
  CoppiceError,
  formatId,
  type JsonObject,
  type JsonValue,
  parseTraceparent,
  type RunId,
} from "@coppice/core";
import { canonicalJson } from "@coppice/core";
import type { Client } from "@coppice/contract";
import { explainRun } from "@coppice/engine";
import { decodeSummary, type PipelineIr } from "@coppice/pipeline";
import {
  findVersion,
  findVersionId,
  getStepRun,
  listAttempts,
  listEvents,
  listRuns,
  listStepRuns,
  listStepTimes,
} from "@coppice/store";
import { z } from "zod";
import type { Deps } from "./deps.ts";
import { type Portion, resumePoint, sendEvents } from "./event-stream.ts";
import { type Call, type Handlers } from "./handler.ts";
import { decodeCursor, PAGE_DEFAULT, toPage } from "./page.ts";
import type { OnceATurn } from "./once-a-turn.ts";
import type { ParamsChecker } from "./params-schema.ts";
import type { RunChanges } from "./run-changes.ts";
import type { FoundRun, RunLookup } from "./run-lookup.ts";
import {
  pendingStepRun,
  viewAttempt,
  viewEvents,
  viewRun,
  viewStep,
  viewStepRun,
  viewSteps,
} from "./run-view.ts";
import { sha256Of } from "./token.ts";

export interface RunServices {
  readonly deps: Deps;
  readonly lookup: RunLookup;
  readonly changes: RunChanges;
  readonly params: ParamsChecker;
  readonly versions: OnceATurn<VersionOf>;
}

export type VersionOf = Awaited<ReturnType<typeof findVersionId>>;

const EVENT_ROWS_MAX = 200;
const uuid = z.uuid();

const submit = async ({ deps, params, versions }: RunServices, call: Call<"runs.submit">) => {
  const { body, request, reply } = call;
  const projectId = await call.projectId();
  const version = body.version ?? null;
  const found = await versions(JSON.stringify([projectId, body.pipeline, version]), () =>
    findVersionId(deps.db, projectId, body.pipeline, version),
  );
  if (found === undefined) {
    throw new CoppiceError("CPC_PIPELINE_NOT_FOUND", {
      detail: version === null ? body.pipeline : `${body.pipeline} version ${version}`,
    });
  }
  const loadSchema = async (): Promise<JsonObject> => {
    const row = await findVersion(deps.db, projectId, body.pipeline, found.version);
    return (row?.ir as PipelineIr | undefined)?.params ?? {};
  };
  const checked = await params.check(found.id, loadSchema, body.params);
  const respond = (runId: RunId) => ({
    id: formatId("run", runId),
    pipeline: body.pipeline,
    version: found.version,
    state: "running" as const,
    params: checked as z.core.util.JSONType,
  });
  const key = call.headers["idempotency-key"];
  const traceparent = request.headers["traceparent"];
  const isTraced = typeof traceparent === "string" && parseTraceparent(traceparent) !== undefined;
  const submitted = await deps.engine.submit({
    projectId,
    pipelineVersionId: found.id,
    params: checked,
    priority: body.priority,
    ...(body.reason === undefined ? {} : { reason: body.reason }),
    ...(isTraced ? { traceparent } : {}),
    ...(key === undefined
      ? {}
      : {
          idempotency: {
            key,
            requestSha256: sha256Of(canonicalJson(body as JsonValue)),
            respond: (runId: RunId) => ({ status: 201, response: respond(runId) }),
          },
        }),
  });
  // The first answer under this key, where there was one: the run is the one that it names.
  const answer = submitted.isReplay
    ? (submitted.response as ReturnType<typeof respond>)
    : respond(submitted.runId);
  void reply.header("location", `/v1/runs/${answer.id}`);
  if (submitted.isReplay) void reply.header("idempotent-replayed", "true");
  return answer;
};

const eventsAfter = async (
  { deps }: RunServices,
  found: FoundRun,
  after: number,
  limit: number,
): Promise<Portion & { readonly items: ReturnType<typeof viewEvents> }> => {
  // The state first: a run that is final before the events are read has all of them written.
  const rows = await listEvents(deps.db, found.projectId, found.runId, after, EVENT_ROWS_MAX);
  const all = viewEvents(found.graph, rows, after);
  const items = all.slice(0, limit);
  const isAll = rows.length < EVENT_ROWS_MAX && items.length === all.length;
  const isEnd = isAll && found.row.state !== "running";
  return { items, events: items.map((data) => ({ id: data.seq, data })), isEnd };
};

const streamEvents = async (services: RunServices, call: Call<"runs.events">, found: FoundRun) => {
  const { changes, lookup } = services;
  let after = resumePoint(call.request, call.query.after);
  const watch = changes.watch(found.runId);
  call.reply.raw.once("close", () => watch.close());
  const id = formatId("run", found.runId);
  return await sendEvents(call.request, call.reply, {
    next: async () => {
      const current = await lookup.run(found.projectId, id);
      const portion = await eventsAfter(services, current, after, Number.POSITIVE_INFINITY);
      after = portion.items.at(-1)?.seq ?? after;
      return portion;
    },
    wait: watch.wait,
  });
};

const readEvents = async (services: RunServices, call: Call<"runs.events">) => {
  const { params, query, request } = call;
  const found = await services.lookup.run(await call.projectId(), params.run);
  if ((request.headers.accept ?? "").includes("text/event-stream")) {
    return await streamEvents(services, call, found);
  }
  const { items, isEnd } = await eventsAfter(services, found, query.after ?? 0, query.limit ?? 500);
  return { items, isEnd };
};

const readStep = async ({ deps, lookup }: RunServices, call: Call<"steps.get">) => {
  const { params, query } = call;
  const found = await lookup.step(await call.projectId(), params.run, params.step);
  const { projectId, runId, graph, row, step } = found;
  const limit = query.limit ?? PAGE_DEFAULT;
  const after = decodeCursor(query.cursor, z.number().int()) ?? -1;
  const [times, rows] = await Promise.all([
    listStepTimes(deps.db, projectId, runId),
    listStepRuns(deps.db, projectId, found, after, limit + 1),
  ]);
  const view = viewStep(
    graph,
    step,
    decodeSummary(row.summaries[step] ?? []),
    times.find((entry) => entry.step === step),
  );
  return { ...view, items: toPage(rows, limit, viewStepRun, ({ item }) => item) };
};

const readItem = async ({ deps, lookup }: RunServices, call: Call<"items.get">) => {
  const { params } = call;
  const found = await lookup.step(await call.projectId(), params.run, params.step);
  const ref = { runId: found.runId, step: found.step, item: params.item };
  const stored = await getStepRun(deps.db, found.projectId, ref);
  if (stored === undefined) {
    const { total } = decodeSummary(found.row.summaries[found.step] ?? []);
    if (total !== null && params.item >= total) {
      throw new CoppiceError("CPC_STEP_NOT_FOUND", {
        detail: `expected an item below ${total}. Received: ${params.item}`,
      });
    }
    return { ...pendingStepRun(params.item), step: params.step, output: null, attempts: [] };
  }
  const attempts = await listAttempts(deps.db, found.projectId, ref);
  return {
    ...viewStepRun(stored),
    step: params.step,
    output: stored.output as z.core.util.JSONType,
    attempts: attempts.map(viewAttempt),
  };
};

export type RunIds = Extract<
  keyof Handlers,
  `runs.${Exclude<keyof Client["runs"], "artifacts" | "outputs">}` | `steps.${string}` | "items.get"
>;

export const createRunHandlers = (services: RunServices): Handlers<RunIds> => {
  const { deps, lookup } = services;
  const { db, engine } = deps;
  return {
    "runs.submit": async (call) => await submit(services, call),
    "runs.list": async (call) => {
      const { query } = call;
      const limit = query.limit ?? PAGE_DEFAULT;
      const rows = await listRuns(db, await call.projectId(), {
        before: decodeCursor(query.cursor, uuid) as RunId | null,
        pipeline: query.pipeline ?? null,
        state: query.state ?? null,
        limit: limit + 1,
      });
      return toPage(rows, limit, viewRun, ({ id }) => id);
    },
    "runs.get": async (call) => {
      const { projectId, runId, row, graph } = await lookup.run(
        await call.projectId(),
        call.params.run,
      );
      const times = await listStepTimes(db, projectId, runId);
      return {
        ...viewRun(row),
        params: row.params as z.core.util.JSONType,
        traceparent: row.traceparent,
        steps: viewSteps(graph, row, times),
      };
    },
    "runs.cancel": async (call) => {
      const { projectId, runId } = await lookup.run(await call.projectId(), call.params.run);
      await engine.cancelRun(projectId, runId, call.body.reason ?? "cancelled by request");
      return { id: formatId("run", runId) };
    },
    "runs.why": async (call) => {
      const { projectId, runId, row } = await lookup.run(await call.projectId(), call.params.run);
      const lines = await explainRun(engine.inside, projectId, runId);
      return {
        runId: formatId("run", runId),
        state: row.state,
        steps: lines.map((line) => ({ ...line, item: line.item ?? null })),
      };
    },
    "runs.events": async (call) => await readEvents(services, call),
    "steps.get": async (call) => await readStep(services, call),
    "steps.cancel": async (call) => {
      const { params, body } = call;
      const { projectId, runId, step } = await lookup.step(
        await call.projectId(),
        params.run,
        params.step,
      );
      const target = body.item === undefined ? { runId, step } : { runId, step, item: body.item };
      await engine.cancelStep(projectId, target, body.reason ?? "cancelled by request");
      return { id: formatId("run", runId) };
    },
    "items.get": async (call) => await readItem(services, call),
  };
};

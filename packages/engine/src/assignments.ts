/**
 * Puts together what a worker needs to run an attempt that has begun.
 *
 * Outside the commit's transaction: everything it reads is final by then. What must stay true: the same
 * attempt asked for twice gets the same assignment; a value that lies elsewhere travels as its digest.
 */
import type { Assignment, InputValue } from "@coppice/contract";
import { type JsonValue, type RunId, stepRunKey } from "@coppice/core";
import {
  decodeSummary,
  locate,
  type Located,
  ordinaryStatus,
  resolveSource,
  type StepIr,
  type ValueSource,
} from "@coppice/pipeline";
import { loadOutputItems, type Queryable, readRuns } from "@coppice/store";

import type { Begun } from "./events.ts";
import type { Facts, RunFacts } from "./facts.ts";
import { locateOutput, type OutputCache, type ReadOutputs } from "./outputs.ts";

export interface AssignmentContext {
  readonly db: Queryable;
  readonly facts: Facts;
  readonly outputs: OutputCache;
}

/** A joined list of more items or bytes than this is fetched by the worker, line by line. */
const JOIN_ITEMS_INLINE_MAX = 2000;
const JOIN_BYTES_INLINE_MAX = 64 * 1024;

/** What assignments are put together from. */
interface Read {
  readonly outputs: ReadOutputs;
  /** By `stepRunKey`: outputs that are one item of a mapped step's, read alone however many there are. */
  readonly items: ReadonlyMap<string, JsonValue>;
}

export const buildAssignments = async (
  context: AssignmentContext,
  begun: readonly Begun[],
): Promise<Assignment[]> => {
  if (begun.length === 0) return [];
  const runFacts = await context.facts.runs(context.db, [
    ...new Set(begun.map(({ runId }) => runId)),
  ]);
  const wanted = new Map<string, { runId: RunId; step: number; isFinal: boolean }>();
  for (const attempt of begun) {
    for (const step of outputSteps(attempt)) {
      // An upstream of a step with another rule may still be running: its output is not final.
      const isFinal = stepSpec(attempt).rule === "all_success";
      wanted.set(`${attempt.runId}/${step}`, { runId: attempt.runId, step, isFinal });
    }
  }
  const read: Read = {
    outputs: await context.outputs.loadTogether([...wanted.values()]),
    items: await readItems(context, begun),
  };
  const statuses = await runStatuses(context, begun);
  return begun.map((attempt) =>
    toAssignment(attempt, runFacts.get(attempt.runId), read, statuses.get(attempt.runId)),
  );
};

const stepSpec = (attempt: Begun): StepIr => {
  const spec = attempt.version.graph.pipeline.steps[attempt.step];
  if (spec === undefined) throw new RangeError(`no step with index ${attempt.step}`);
  return spec;
};

/** Where the attempt is an item of a map over a mapped step's outputs: that step. */
const mappedOver = ({ version }: Begun, spec: StepIr): number | undefined => {
  if (spec.map?.over.from !== "output") return undefined;
  const step = version.graph.indexOf.get(spec.map.over.step) ?? -1;
  return version.graph.pipeline.steps[step]?.map === undefined ? undefined : step;
};

/** Steps whose outputs are read whole. */
const outputSteps = (attempt: Begun): number[] => {
  const spec = stepSpec(attempt);
  const over = mappedOver(attempt, spec) === undefined ? spec.map?.over : undefined;
  const sources = [...Object.values(spec.inputs), ...(over === undefined ? [] : [over])];
  return sources.flatMap((source) => {
    const step =
      source.from === "output" ? attempt.version.graph.indexOf.get(source.step) : undefined;
    return step === undefined ? [] : [step];
  });
};

const readItems = async (
  context: AssignmentContext,
  begun: readonly Begun[],
): Promise<Map<string, JsonValue>> => {
  const refs = begun.flatMap((attempt) => {
    const step = mappedOver(attempt, stepSpec(attempt));
    return step === undefined ? [] : [{ runId: attempt.runId, step, item: attempt.item }];
  });
  const rows = await loadOutputItems(context.db, refs);
  return new Map(
    rows.flatMap((row) =>
      row.state === "succeeded" ? [[stepRunKey(row), row.output ?? null] as const] : [],
    ),
  );
};

/** Only steps that ask for the run's status need it. */
const runStatuses = async (
  context: AssignmentContext,
  begun: readonly Begun[],
): Promise<Map<RunId, "succeeded" | "failed" | "cancelled">> => {
  const asking = begun.filter((attempt) =>
    Object.values(stepSpec(attempt).inputs).some(
      (source) => source.from === "run" && source.field === "status",
    ),
  );
  const versions = new Map(asking.map((attempt) => [attempt.runId, attempt.version]));
  const runs = await readRuns(context.db, [...versions.keys()]);
  return new Map(
    runs.flatMap((run) => {
      const graph = versions.get(run.id)?.graph;
      if (graph === undefined) return [];
      return [[run.id, ordinaryStatus(graph, run.summaries.map(decodeSummary), run.isCancelled)]];
    }),
  );
};

const toAssignment = (
  attempt: Begun,
  facts: RunFacts | undefined,
  read: Read,
  status: "succeeded" | "failed" | "cancelled" | undefined,
): Assignment => {
  const { version } = attempt;
  const spec = stepSpec(attempt);
  const { timeouts } = spec;
  const params = facts?.params ?? {};
  const inputs: Record<string, InputValue> = {};
  for (const [name, source] of Object.entries(spec.inputs)) {
    inputs[name] = inputValue(attempt, spec, source, params, read, status);
  }
  return {
    runId: attempt.runId,
    step: attempt.step,
    item: attempt.item,
    attempt: attempt.attempt,
    lease: attempt.lease,
    project: { id: version.projectId, name: version.projectName },
    pipeline: { name: version.name, version: version.version },
    stepKey: spec.key,
    ...(attempt.name === null ? {} : { itemName: attempt.name }),
    bundleDigest: version.bundleDigest,
    params: params as Assignment["params"],
    inputs,
    spec: {
      slots: spec.resources.slots,
      gpu: spec.resources.gpu,
      timeouts: {
        graceMs: timeouts.graceMs,
        ...(timeouts.runMs === undefined ? {} : { runMs: timeouts.runMs }),
        ...(timeouts.heartbeatMs === undefined ? {} : { heartbeatMs: timeouts.heartbeatMs }),
      },
      isolation: spec.isolation,
      exclusive: spec.exclusive,
      ...(spec.memoryMb === undefined ? {} : { memoryMb: spec.memoryMb }),
      env: spec.env,
    },
    ...(attempt.checkpoint === null ? {} : { checkpoint: attempt.checkpoint }),
    ...(typeof facts?.traceparent === "string" ? { traceparent: facts.traceparent } : {}),
    seed: `${attempt.runId}/${spec.key}/${attempt.item}`,
  };
};

const inputValue = (
  attempt: Begun,
  spec: StepIr,
  source: ValueSource,
  params: JsonValue,
  read: Read,
  status: "succeeded" | "failed" | "cancelled" | undefined,
): InputValue => {
  if (source.from === "output") return outputValue(attempt, source.step, source.path, read.outputs);
  if (source.from === "item") return itemValue(attempt, spec, source.path, params, read);
  const run = status === undefined ? { id: attempt.runId } : { id: attempt.runId, status };
  const value = resolveSource(source, { params, run, output: () => undefined });
  return value === undefined ? { kind: "missing" } : asValue(value);
};

const asValue = (value: JsonValue): InputValue => ({
  kind: "value",
  value: value as Extract<InputValue, { kind: "value" }>["value"],
});

const fromLocated = (located: Located): InputValue => {
  if (located.kind === "value") return asValue(located.value);
  if (located.kind === "missing") return { kind: "missing" };
  return { kind: "spilled", sha256: located.spilled.sha256, path: [...located.path] };
};

const outputValue = (
  attempt: Begun,
  stepKey: string,
  path: readonly string[],
  read: ReadOutputs,
): InputValue => {
  const { version } = attempt;
  const step = version.graph.indexOf.get(stepKey) ?? -1;
  const outputs = read(attempt.runId, step);
  if (version.graph.pipeline.steps[step]?.map === undefined)
    return fromLocated(locate(outputs[0], path));
  const located = locateOutput(version, step, outputs, path);
  // The worker reads a join line by line and follows paths into values that lie elsewhere.
  const isJoin =
    outputs.length > JOIN_ITEMS_INLINE_MAX ||
    outputs.some((output) => leadsElsewhere(locate(output, path))) ||
    (located.kind === "value" && sizeOf(located.value) > JOIN_BYTES_INLINE_MAX);
  return isJoin ? { kind: "join", step, path: [...path] } : fromLocated(located);
};

const leadsElsewhere = (located: Located): boolean =>
  located.kind === "spilled" && located.path.length > 0;

/** Only lists of many values can be long; their text is measured once per attempt that joins them. */
const sizeOf = (value: JsonValue): number => JSON.stringify(value).length;

const itemValue = (
  attempt: Begun,
  spec: StepIr,
  path: readonly string[],
  params: JsonValue,
  read: Read,
): InputValue => {
  const over = spec.map?.over;
  if (over === undefined) return { kind: "missing" };
  const inside = [String(attempt.item), ...path];
  if (over.from === "output") return itemOfOutput(attempt, over, inside, read);
  const list = resolveSource(over, { params, run: { id: attempt.runId }, output: () => undefined });
  return fromLocated(locate(list, inside));
};

const itemOfOutput = (
  attempt: Begun,
  over: Extract<ValueSource, { from: "output" }>,
  inside: readonly string[],
  read: Read,
): InputValue => {
  const spec = stepSpec(attempt);
  const mapped = mappedOver(attempt, spec);
  if (mapped !== undefined) {
    const key = stepRunKey({ runId: attempt.runId, step: mapped, item: attempt.item });
    // Over a mapped step's outputs the item is one of its items' outputs.
    return fromLocated(locate(read.items.get(key), [...over.path, ...inside.slice(1)]));
  }
  const step = attempt.version.graph.indexOf.get(over.step) ?? -1;
  const outputs = read.outputs(attempt.runId, step);
  return fromLocated(locate(outputs[0], [...over.path, ...inside]));
};

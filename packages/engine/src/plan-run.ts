/**
 * Lets the planner say what is next in a run, and does it to the working set.
 *
 * The planner asks for facts (a map's length, a condition's truth); they are read here and it is asked
 * again, until nothing is missing. What must stay true: facts come from this commit's view of the run.
 */
import { CoppiceError, type JsonValue, toErrorRecord } from "@coppice/core";
import {
  evaluateWhen,
  type Fact,
  itemName,
  knownMapLength,
  lengthOf,
  locate,
  ordinaryStatus,
  type Plan,
  planNext,
  resolveSource,
  type ValueSource,
  whenSources,
} from "@coppice/pipeline";
import type { Queryable } from "@coppice/store";

import { queueTimeoutLeftMs } from "./decide.ts";
import { isSettled, locateOutput, type OutputCache, type StepOutputs } from "./outputs.ts";
import { makeRow, type RowWork, type RunWork, type WorkingSet } from "./working-set.ts";

export interface PlanContext {
  readonly db: Queryable;
  readonly set: WorkingSet;
  readonly outputs: OutputCache;
  readonly paramsOf: (run: RunWork) => JsonValue;
}

/** Each round answers everything that was asked, so depth bounds the rounds; this is a fuse. */
const ROUNDS_MAX = 2000;

export const planRun = async (context: PlanContext, run: RunWork): Promise<void> => {
  const mapLengths = new Map<number, Fact<number>>();
  const whenTruths = new Map<number, Fact<boolean>>();
  for (let round = 0; round < ROUNDS_MAX; round += 1) {
    const plan = planNext({
      graph: run.version.graph,
      run: { state: run.state, isCancelled: run.isCancelled },
      summaries: run.summaries,
      mapLengths,
      whenTruths,
    });
    run.summaries = plan.summaries;
    await carryOut(context, run, plan);
    if (plan.needs.whens.length === 0 && plan.needs.lengths.length === 0) return;
    await answerNeeds(context, run, plan, mapLengths, whenTruths);
  }
  throw new CoppiceError("CPC_INTERNAL", {
    detail: `Planning run ${run.id} does not come to an end.`,
  });
};

const carryOut = async (context: PlanContext, run: RunWork, plan: Plan): Promise<void> => {
  for (const { step, state, error } of plan.settle) {
    const row = makeRow(context.set, run, step, 0, state, null);
    row.error = error ?? (state === "cancelled" ? run.cancelError : null);
  }
  for (const { step, from, to } of plan.make) {
    const names = await itemNames(context, run, step);
    for (let item = from; item < to; item += 1) {
      const row = makeRow(context.set, run, step, item, "ready", names?.(item) ?? null);
      row.dueInMs = queueTimeoutLeftMs(row);
    }
  }
  if (plan.end !== undefined) {
    const isTimeout = plan.end === "cancelled" && run.cancelError?.code === "CPC_RUN_TIMEOUT";
    run.state = isTimeout ? "failed" : plan.end;
    if (run.cancelError !== null) run.error = run.cancelError;
  }
};

const answerNeeds = async (
  context: PlanContext,
  run: RunWork,
  plan: Plan,
  mapLengths: Map<number, Fact<number>>,
  whenTruths: Map<number, Fact<boolean>>,
): Promise<void> => {
  const { graph } = run.version;
  for (const step of plan.needs.lengths) {
    mapLengths.set(step, await mapLength(context, run, step));
  }
  for (const step of plan.needs.whens) {
    const when = graph.pipeline.steps[step]?.when;
    if (when === undefined) continue;
    const resolve = await sourceResolver(context, run, whenSources(when));
    whenTruths.set(
      step,
      attemptFact(() => evaluateWhen(when, resolve)),
    );
  }
};

const attemptFact = <T>(read: () => T): Fact<T> => {
  try {
    return { value: read() };
  } catch (error) {
    return { error: toErrorRecord(error, "CPC_WHEN_INVALID") };
  }
};

const mapLength = async (
  context: PlanContext,
  run: RunWork,
  step: number,
): Promise<Fact<number>> => {
  const { graph } = run.version;
  const known = knownMapLength(graph, run.summaries, context.paramsOf(run), step);
  if (known !== undefined) return known;
  const over = graph.pipeline.steps[step]?.map?.over;
  if (over?.from !== "output") {
    return { error: toErrorRecord(new CoppiceError("CPC_MAP_INVALID")) };
  }
  const upstream = graph.indexOf.get(over.step) ?? -1;
  const [output] = await outputsOf(context, run, upstream);
  return lengthOf(output, over.path);
};

/** Outputs of a step of this run, those of this commit included. */
const outputsOf = async (
  context: PlanContext,
  run: RunWork,
  step: number,
): Promise<StepOutputs> => {
  const isMapped = run.version.graph.pipeline.steps[step]?.map !== undefined;
  if (!isMapped) {
    const fresh = freshOutput(context.set, run, step);
    if (fresh !== undefined) return [fresh];
  }
  // A mapped step's last outputs may be of this commit: never remembered here, merged instead.
  const isFinal = !isMapped && isSettled(run.summaries[step]);
  const read = await context.outputs.load(context.db, [{ runId: run.id, step, isFinal }]);
  const outputs = [...read(run.id, step)];
  for (const row of run.changedRows) {
    if (row.step === step && row.output !== undefined) outputs[row.item] = row.output;
  }
  return outputs;
};

const freshOutput = (set: WorkingSet, run: RunWork, step: number): JsonValue | undefined => {
  const row: RowWork | undefined = set.rows.get(`${run.id}-${step}-0`);
  return row?.output;
};

const sourceResolver = async (
  context: PlanContext,
  run: RunWork,
  sources: readonly ValueSource[],
): Promise<(source: ValueSource) => JsonValue | undefined> => {
  const { graph } = run.version;
  const byStep = new Map<string, StepOutputs>();
  for (const source of sources) {
    if (source.from !== "output" || byStep.has(source.step)) continue;
    byStep.set(source.step, await outputsOf(context, run, graph.indexOf.get(source.step) ?? -1));
  }
  return (source) =>
    resolveSource(source, {
      params: context.paramsOf(run),
      run: { id: run.id, status: ordinaryStatus(graph, run.summaries, run.isCancelled) },
      output: (step, path) => {
        const located = locateOutput(
          run.version,
          graph.indexOf.get(step) ?? -1,
          byStep.get(step) ?? [],
          path,
        );
        if (located.kind === "value") return located.value;
        return located.kind === "spilled" ? { $spilled: { ...located.spilled } } : undefined;
      },
    });
};

/** Names of a mapped step's items, where the list is at hand. */
const itemNames = async (
  context: PlanContext,
  run: RunWork,
  step: number,
): Promise<((item: number) => string) | undefined> => {
  const map = run.version.graph.pipeline.steps[step]?.map;
  if (map === undefined) return undefined;
  const list = await mapList(context, run, map.over);
  if (!Array.isArray(list)) return undefined;
  return (item) => itemName(list[item] as JsonValue | undefined, map.name, item);
};

const mapList = async (
  context: PlanContext,
  run: RunWork,
  over: ValueSource,
): Promise<JsonValue | undefined> => {
  if (over.from === "literal") return over.value;
  if (over.from === "param") {
    const located = locate(context.paramsOf(run), over.path);
    return located.kind === "value" ? located.value : undefined;
  }
  if (over.from !== "output") return undefined;
  const upstream = run.version.graph.indexOf.get(over.step) ?? -1;
  // Items of a mapped step are named by their index: reading all its outputs for each batch of new
  // items would make long maps quadratic.
  if (run.version.graph.pipeline.steps[upstream]?.map !== undefined) return undefined;
  const outputs = await outputsOf(context, run, upstream);
  const located = locateOutput(run.version, upstream, outputs, over.path);
  return located.kind === "value" ? located.value : undefined;
};

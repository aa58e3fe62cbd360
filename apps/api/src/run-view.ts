/**
 * From the database's rows to what the API shows: ids as `run_…`, times as text, steps that have no
 * row yet from the pipeline's definition. Pure.
 */
import {
  type ErrorRecord,
  formatId,
  isJsonObject,
  type JsonValue,
  type StepState,
  type WorkerId,
} from "@coppice/core";
import type { Attempt, MetricPoint, Run, RunEvent, Step, StepRun, Usage } from "@coppice/contract";
import {
  buildGraph,
  decodeSummary,
  type Graph,
  isFinal,
  type PipelineIr,
  type StepSummary,
} from "@coppice/pipeline";
import type {
  AttemptReadRow,
  EventRow,
  MetricReadRow,
  RunDetailRow,
  RunListRow,
  StepRunReadRow,
  StepTimes,
} from "@coppice/store";

type WireError = Run["error"];

const iso = (time: Date | null): string | null => time?.toISOString() ?? null;
const workerIdOf = (id: WorkerId | null): string | null =>
  id === null ? null : formatId("wrk", id);
/** What the engine stored was parsed when it came in. */
const errorOf = (error: ErrorRecord | null): WireError => error as WireError;

export const graphOf = (row: Pick<RunDetailRow, "ir">): Graph => buildGraph(row.ir as PipelineIr);

export const viewRun = (row: RunListRow): Run => ({
  id: formatId("run", row.id),
  pipeline: row.pipeline,
  version: row.version,
  state: row.state,
  priority: row.priority,
  reason: row.reason,
  parentRunId: row.parentRunId === null ? null : formatId("run", row.parentRunId),
  createdAt: row.createdAt.toISOString(),
  finishedAt: iso(row.finishedAt),
  isCancelRequested: row.isCancelRequested,
  error: errorOf(row.error),
});

/** While it goes on, what goes on; at its end, the worst that happened. */
const OPEN_FIRST = ["running", "queued", "ready", "retrying"] as const;
const WORST_FIRST = [
  "failed",
  "quarantined",
  "upstream_failed",
  "cancelled",
  "succeeded",
  "pruned",
  "skipped",
] as const;

export const stepStateOf = (summary: StepSummary): StepState => {
  const has = (state: StepState): boolean => (summary.counts[state] ?? 0) > 0;
  const open = OPEN_FIRST.find(has);
  if (open !== undefined) return open;
  if (isFinal(summary)) return WORST_FIRST.find(has) ?? "skipped";
  // Between two portions of a long map nothing may be open for a moment.
  return summary.isOpen && summary.made > 0 ? "running" : "pending";
};

export const viewStep = (
  graph: Graph,
  index: number,
  summary: StepSummary,
  times: StepTimes | undefined,
): Step => {
  const step = graph.pipeline.steps[index];
  const state = stepStateOf(summary);
  return {
    index,
    key: step?.key ?? String(index),
    description: step?.description ?? null,
    state,
    rule: step?.rule ?? "all_success",
    isMapped: step?.map !== undefined,
    isFinally: step?.finally ?? false,
    upstream: (graph.upstream[index] ?? []).map((at) => graph.pipeline.steps[at]?.key ?? ""),
    total: summary.total,
    counts: { ...summary.counts },
    startedAt: iso(times?.startedAt ?? null),
    finishedAt: isFinal(summary) ? iso(times?.finishedAt ?? null) : null,
  };
};

export const viewSteps = (graph: Graph, row: RunDetailRow, times: readonly StepTimes[]): Step[] => {
  const byStep = new Map(times.map((entry) => [entry.step, entry]));
  return graph.pipeline.steps.map((_step, index) =>
    viewStep(graph, index, decodeSummary(row.summaries[index] ?? []), byStep.get(index)),
  );
};

export const viewStepRun = (row: StepRunReadRow): StepRun => ({
  item: row.item,
  name: row.name,
  state: row.state,
  attempt: row.attempt,
  failed: row.failed,
  lost: row.lost,
  workerId: workerIdOf(row.workerId),
  readyAt: iso(row.readyAt),
  queuedAt: iso(row.queuedAt),
  startedAt: iso(row.startedAt),
  finishedAt: iso(row.finishedAt),
  dueAt: iso(row.dueAt),
  error: errorOf(row.error),
});

/** A step run that has no row: nothing of it has begun. */
export const pendingStepRun = (item: number): StepRun => ({
  item,
  name: null,
  state: "pending",
  attempt: 0,
  failed: 0,
  lost: 0,
  workerId: null,
  readyAt: null,
  queuedAt: null,
  startedAt: null,
  finishedAt: null,
  dueAt: null,
  error: null,
});

export const viewAttempt = (row: AttemptReadRow): Attempt => ({
  attempt: row.attempt,
  outcome: row.outcome ?? "running",
  workerId: workerIdOf(row.workerId),
  workerName: row.workerName,
  startedAt: iso(row.startedAt),
  finishedAt: iso(row.finishedAt),
  error: errorOf(row.error),
  usage: row.usage as Usage | null,
});

export const viewMetric = (row: MetricReadRow): MetricPoint => ({
  key: row.key,
  step: row.step,
  value: Number.isFinite(row.value) ? row.value : (String(row.value) as "NaN"),
  at: row.at.toISOString(),
});

const textAt = (change: { readonly [key: string]: JsonValue }, key: string): string | null => {
  const value = change[key];
  return typeof value === "string" ? value : null;
};
const numberAt = (change: { readonly [key: string]: JsonValue }, key: string): number | null => {
  const value = change[key];
  return typeof value === "number" ? value : null;
};

const viewChange = (graph: Graph, seq: number, at: string, change: JsonValue): RunEvent => {
  const fields = isJsonObject(change) ? change : {};
  const step = numberAt(fields, "step");
  const worker = textAt(fields, "worker");
  const error = fields["error"];
  return {
    seq,
    at,
    step: step === null ? null : (graph.pipeline.steps[step]?.key ?? String(step)),
    item: numberAt(fields, "item"),
    name: textAt(fields, "name"),
    attempt: numberAt(fields, "attempt"),
    state: textAt(fields, step === null ? "run" : "state") ?? "",
    workerId: worker === null ? null : formatId("wrk", worker as WorkerId),
    reason: textAt(fields, "reason"),
    error: isJsonObject(error) ? errorOf(error as unknown as ErrorRecord) : null,
  };
};

/** Changes after `afterSeq`, one event each; a row may begin before it. */
export const viewEvents = (graph: Graph, rows: readonly EventRow[], afterSeq: number): RunEvent[] =>
  rows.flatMap((row) =>
    row.changes.flatMap((change, index) => {
      const seq = row.firstSeq + index;
      return seq > afterSeq ? [viewChange(graph, seq, row.at.toISOString(), change)] : [];
    }),
  );

/**
 * Why a run is waiting: what each open step lacks, in words a person can act on.
 *
 * What must stay true: it only reads, and it names the nearest reason: no worker with the labels, a pool
 * without room, all slots busy, a backoff that isn't over.
 */
import type { ProjectId, RunId } from "@coppice/core";
import { CoppiceError } from "@coppice/core";
import {
  decodeSummary,
  isFinal,
  type StepIr,
  type StepSummary,
  workerServesClass,
} from "@coppice/pipeline";
import {
  loadPools,
  loadWaitingOf,
  type PoolState,
  readRuns,
  type WaitingOfRun,
} from "@coppice/store";

import type { EngineInside } from "./engine.ts";
import type { VersionFacts } from "./facts.ts";

export interface WhyLine {
  readonly step: string;
  /** Undefined where it holds for the step as a whole. */
  readonly item?: number;
  readonly state: string;
  readonly reason:
    | "upstream"
    | "no_worker"
    | "slots_busy"
    | "pool_full"
    | "pool_missing"
    | "backoff"
    | "bell_rung"
    | "concurrency"
    | "running";
  readonly message: string;
}

export const explainRun = async (
  inside: EngineInside,
  projectId: ProjectId,
  runId: RunId,
): Promise<WhyLine[]> => {
  const { db, context } = inside;
  const [run] = await readRuns(db, [runId]);
  const version = run === undefined ? undefined : await context.facts.version(db, run.versionId);
  if (run === undefined || version?.projectId !== projectId)
    throw new CoppiceError("CPC_RUN_NOT_FOUND");
  if (run.state !== "running") return [];
  await context.capacity.refresh(db);
  const [rows, pools] = await Promise.all([loadWaitingOf(db, runId), loadPools(db, projectId)]);
  const summaries = run.summaries.map(decodeSummary);
  const lines: WhyLine[] = [];
  for (const [index, step] of version.graph.pipeline.steps.entries()) {
    const summary = summaries[index];
    if (summary === undefined || isFinal(summary)) continue;
    const own = rows.filter((row) => row.step === index);
    if (own.length === 0) lines.push(waitsForUpstream(version, summaries, index, step));
    for (const row of own)
      lines.push(explainRow(inside, step, version.classIds[index] ?? 0, row, pools));
    if (own.length > 0 && summary.total !== null && summary.made < summary.total) {
      lines.push(waitsForItems(step, summary));
    }
  }
  return lines;
};

const waitsForUpstream = (
  version: VersionFacts,
  summaries: readonly StepSummary[],
  index: number,
  step: StepIr,
): WhyLine => {
  const { steps } = version.graph.pipeline;
  const before = step.finally ? version.graph.ordinary : (version.graph.upstream[index] ?? []);
  const open = before
    .filter((other) => {
      const summary = summaries[other];
      return summary !== undefined && !isFinal(summary);
    })
    .map((other) => steps[other]?.key ?? "");
  return {
    step: step.key,
    state: "pending",
    reason: "upstream",
    message: `waits for ${open.length === 0 ? "the scheduler" : open.join(", ")} (rule ${step.rule})`,
  };
};

const waitsForItems = (step: StepIr, summary: StepSummary): WhyLine => ({
  step: step.key,
  state: "pending",
  reason: "concurrency",
  message: `${(summary.total ?? 0) - summary.made} more items wait for earlier ones to end`,
});

const explainRow = (
  inside: EngineInside,
  step: StepIr,
  classId: number,
  row: WaitingOfRun,
  pools: readonly PoolState[],
): WhyLine => {
  const line = (reason: WhyLine["reason"], message: string): WhyLine => ({
    step: step.key,
    item: row.item,
    state: row.state,
    reason,
    message,
  });
  if (row.state === "running") return line("running", `runs as attempt ${row.attempt}`);
  if (row.state === "retrying") {
    return line(
      "backoff",
      `attempt ${row.attempt} may start in ${Math.ceil(row.dueInMs / 1000)} s`,
    );
  }
  const nobody = explainMissingWorker(inside, step);
  if (nobody !== undefined) return line("no_worker", nobody);
  if (row.state === "queued") return line("bell_rung", "its bell was rung; a worker takes it next");
  for (const { name, weight } of step.pools) {
    const pool = pools.find((entry) => entry.name === name);
    if (pool === undefined) return line("pool_missing", `the pool "${name}" does not exist`);
    if (pool.used + weight > pool.capacity) {
      return line("pool_full", `the pool "${name}" has ${pool.used} of ${pool.capacity} in use`);
    }
  }
  return inside.context.capacity.hasFreeSlot(classId)
    ? line("bell_rung", "a slot is free; it is admitted within a second")
    : line("slots_busy", "all slots of the workers that could run it are busy");
};

/** What no worker has, or nothing where some worker could run the step. */
const explainMissingWorker = (inside: EngineInside, step: StepIr): string | undefined => {
  const workers = inside.context.capacity.workers();
  const { resources } = step;
  const fit = workers.filter((worker) => workerServesClass(worker, resources));
  if (fit.some((worker) => worker.slots >= resources.slots)) return undefined;
  if (workers.length === 0) return "no worker is connected";
  if (fit.length > 0) return `no worker has ${resources.slots} slots`;
  const wanted = [
    ...(resources.gpu > 0 ? [`${resources.gpu} GPU`] : []),
    ...Object.entries(resources.labels).map(([name, value]) => `label ${name}=${value}`),
  ];
  return `no worker has ${wanted.join(" and ")}`;
};

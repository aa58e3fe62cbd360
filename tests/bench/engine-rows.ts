/**
 * Durable steps per second in one process: many 1 → 10 → 1 runs, steps that do nothing, once with
 * ten steps in the middle and once with a map of ten items.
 */
import type { PipelineVersionId } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import { measureBareQueue } from "@coppice/queue";
import { succeeded } from "@coppice/testing";
import { type EngineRig, openEngineRig, type RigWorker } from "./engine-rig.ts";
import { startMeter, type Usage } from "./machine.ts";
import { measureRawSql } from "./raw-sql.ts";
import { cpuPerStep, type Limit, type Row } from "./row.ts";
import type { DoorbellKind } from "./servers.ts";

const MIDDLE = Array.from({ length: 10 }, (_, index) => `b${index}`);
export const STEPS_PER_RUN = 12;

export const fanPipeline: PipelineIrInput = {
  irVersion: 1,
  name: "fan",
  params: {},
  steps: [
    { key: "a" },
    ...MIDDLE.map((key) => ({ key, after: ["a"] })),
    { key: "c", after: MIDDLE },
  ],
};

export const mapPipeline: PipelineIrInput = {
  irVersion: 1,
  name: "map",
  params: {},
  steps: [
    { key: "a" },
    { key: "b", map: { over: { from: "output", step: "a", path: ["items"] }, itemsMax: 100_000 } },
    { key: "c", after: ["b"] },
  ],
};

/** Enough for the compiler to have seen everything. */
const WARM_RUNS = 200;
const ITEMS = MIDDLE.map((_, index) => index);

export interface StepsOptions {
  readonly kind: DoorbellKind;
  readonly pipeline: PipelineIrInput;
  readonly runs: number;
  readonly slots: number;
}

interface Opened {
  readonly rig: EngineRig;
  readonly versionId: PipelineVersionId;
  readonly worker: RigWorker;
}

/** Submits that many runs at once and waits for the last finish. */
export const driveRuns = async (opened: Opened, runs: number): Promise<Usage> => {
  const { rig, versionId: pipelineVersionId, worker } = opened;
  const { projectId, engine, servers } = rig;
  const goal = worker.finished() + runs * STEPS_PER_RUN;
  const meter = startMeter(servers.pids, "node");
  const reached = worker.reach(goal);
  await Promise.all(
    Array.from({ length: runs }, () => engine.submit({ projectId, pipelineVersionId, params: {} })),
  );
  await reached;
  return meter.stop();
};

const rawLimits = async (opened: Opened, options: StepsOptions): Promise<Limit[]> => {
  const { rig, versionId, worker } = opened;
  const { db, projectId, batches } = rig;
  const jobs = Math.min(10_000, options.runs * STEPS_PER_RUN);
  const bare = await measureBareQueue(rig.address, jobs, { concurrency: options.slots });
  const sql = await measureRawSql({
    db,
    projectId,
    versionId,
    workerId: worker.workerId,
    runs: options.runs,
    batchSize: batches.events / batches.commits,
  });
  return [
    { name: "BullMQ alone", value: bare.processedPerSecond },
    { name: "SQL alone", value: sql },
  ];
};

export const measureSteps = async (
  options: StepsOptions,
): Promise<Pick<Row, "measured" | "limits" | "cpu" | "notes">> => {
  const rig = await openEngineRig(options.kind);
  try {
    const versionId = await rig.deploy(options.pipeline);
    const worker = await rig.startWorker(options.slots, ({ stepKey }) =>
      succeeded(stepKey === "a" ? { items: ITEMS } : null),
    );
    const opened = { rig, versionId, worker };
    await driveRuns(opened, Math.min(options.runs, WARM_RUNS));
    Object.assign(rig.batches, { commits: 0, events: 0 });
    const usage = await driveRuns(opened, options.runs);
    const steps = options.runs * STEPS_PER_RUN;
    const batch = rig.batches.events / rig.batches.commits;
    return {
      measured: steps / (usage.wallMs / 1000),
      limits: await rawLimits(opened, options),
      cpu: cpuPerStep(usage, steps),
      notes: [`${options.runs} runs, ${options.slots} slots, ${batch.toFixed(0)} events a commit`],
    };
  } finally {
    await rig.close();
  }
};

/**
 * What a fleet of processes does over HTTP: steps that do nothing through two workers without children,
 * real user steps through the reused children of one worker, and more workers for more work.
 */
import { randomUUID } from "node:crypto";
import type { RunId, WorkerId } from "@coppice/core";
import { measureBareQueue } from "@coppice/queue";
import { STEPS_PER_RUN } from "./engine-rows.ts";
import { type Fleet, openFleet, type WorkerKind } from "./fleet-rig.ts";
import { cores } from "./machine.ts";
import { measureRawSql } from "./raw-sql.ts";
import { cpuFigures, type Limit } from "./row.ts";
import type { MeasuredRow } from "./rows.ts";

/** Requests of this client under way at a time. */
const CLIENTS = 32;

/** @returns the ids of the runs */
const submitMany = async (
  { client }: Fleet,
  pipeline: string,
  count: number,
  params: Record<string, never> | { waitsMs: number[] } = {},
): Promise<RunId[]> => {
  const ids: RunId[] = [];
  let left = count;
  const lane = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      const { id } = await client.runs.submit({ body: { pipeline, params } });
      ids.push(id as RunId);
    }
  };
  await Promise.all(Array.from({ length: Math.min(CLIENTS, count) }, lane));
  return ids;
};

const driveFan = async (fleet: Fleet, runs: number) => {
  const goal = (await fleet.finishedSteps()) + runs * STEPS_PER_RUN;
  const meter = fleet.meter();
  await submitMany(fleet, "fan", runs);
  await fleet.awaitSteps(goal);
  return meter.stop();
};

const rawLimits = async (fleet: Fleet, runs: number, slots: number): Promise<Limit[]> => {
  const jobs = Math.min(10_000, runs * STEPS_PER_RUN);
  const { address } = fleet.servers;
  const { processedPerSecond } = await measureBareQueue(address, jobs, { concurrency: slots });
  const sql = await measureRawSql({
    db: fleet.db,
    projectId: fleet.projectId,
    versionId: await fleet.versionOf("fan"),
    workerId: randomUUID() as WorkerId,
    runs,
    batchSize: await fleet.batchSize(),
  });
  return [
    { name: "BullMQ alone", value: processedPerSecond },
    { name: "SQL alone", value: sql },
  ];
};

interface FanOptions {
  readonly what: string;
  readonly target: number;
  readonly kind: WorkerKind;
  readonly workers: number;
  readonly slots: number;
  readonly runs: number;
}

const measureFan = async (options: FanOptions): Promise<readonly MeasuredRow[]> => {
  const { what, target, kind, workers, slots, runs } = options;
  const fleet = await openFleet("redis");
  try {
    for (let index = 0; index < workers; index += 1) await fleet.startWorker(kind, slots);
    await driveFan(fleet, Math.ceil(runs / 4));
    const usage = await driveFan(fleet, runs);
    const steps = runs * STEPS_PER_RUN;
    const batch = await fleet.batchSize();
    return [
      {
        what,
        unit: "steps/s",
        measured: steps / (usage.wallMs / 1000),
        target,
        isFloor: true,
        limits: await rawLimits(fleet, runs, slots),
        cpu: cpuFigures(usage, steps, cores),
        notes: [`${runs} runs, ${workers} × ${slots} slots, ${batch.toFixed(1)} events a commit`],
      },
    ];
  } finally {
    await fleet.close();
  }
};

export const measureFleet = (isQuick: boolean): Promise<readonly MeasuredRow[]> =>
  measureFan({
    what: "durable steps/s, 1→10→1, API, scheduler and two workers as processes, no-op executor, Redis",
    target: 2000,
    kind: "noop",
    workers: 2,
    slots: 128,
    runs: isQuick ? 60 : 1000,
  });

export const measureChildren = (isQuick: boolean): Promise<readonly MeasuredRow[]> =>
  measureFan({
    what: "real user steps/s through reused children of one worker, 1→10→1, Redis",
    target: 800,
    kind: "children",
    workers: 1,
    slots: 4,
    runs: isQuick ? 20 : 300,
  });

const STEP_MS = 100;
const WORKERS_MAX = 4;
const SLOTS_EACH = 4;

/** Steps per second of steps that wait, with the workers that are there. */
const driveWaits = async (fleet: Fleet, steps: number): Promise<number> => {
  const goal = (await fleet.finishedSteps()) + steps;
  const startedAt = performance.now();
  const waitsMs = Array.from({ length: steps }, () => STEP_MS);
  await submitMany(fleet, "waits", 1, { waitsMs });
  await fleet.awaitSteps(goal);
  return steps / ((performance.now() - startedAt) / 1000);
};

export const measureScaleOut = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const stepsEach = isQuick ? 40 : 240;
  const fleet = await openFleet("redis");
  try {
    const perSecond: number[] = [];
    for (let workers = 1; workers <= WORKERS_MAX; workers += 1) {
      await fleet.startWorker("children", SLOTS_EACH);
      if (workers !== 1 && workers !== WORKERS_MAX) continue;
      // Children are started by the first steps that need them.
      await driveWaits(fleet, workers * SLOTS_EACH * 3);
      perSecond.push(await driveWaits(fleet, workers * stepsEach));
    }
    const [one = Number.NaN, all = Number.NaN] = perSecond;
    const perWorker = (SLOTS_EACH * 1000) / STEP_MS;
    return [
      {
        what: `efficiency of each worker, 1 → ${WORKERS_MAX} workers on ${STEP_MS} ms steps`,
        unit: "ratio",
        measured: all / (WORKERS_MAX * one),
        target: 0.9,
        isFloor: true,
        limits: [],
        notes: [
          `${one.toFixed(1)} → ${all.toFixed(1)} steps/s`,
          `ideal ${perWorker} → ${WORKERS_MAX * perWorker}: reached ${(one / perWorker).toFixed(2)} → ${(all / (WORKERS_MAX * perWorker)).toFixed(2)}`,
          `${SLOTS_EACH} slots each, real children`,
        ],
      },
    ];
  } finally {
    await fleet.close();
  }
};

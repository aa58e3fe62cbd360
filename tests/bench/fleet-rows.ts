/**
 * What a fleet of processes does over HTTP: steps that do nothing through two workers without
 * children, real user steps through the reused children of one worker, and more workers for more
 * work.
 */
import { randomUUID } from "node:crypto";
import type { WorkerId } from "@coppice/core";
import { measureBareQueue } from "@coppice/queue";
import { STEPS_PER_RUN } from "./engine-rows.ts";
import { type Fleet, openFleet, type WorkerKind } from "./fleet-rig.ts";
import { openHttpLoad, repeatAtOnce } from "./http-load.ts";
import { totalCpuMs, type Usage } from "./machine.ts";
import { measureRawSql } from "./raw-sql.ts";
import { cpuPerStep, type Limit } from "./row.ts";
import type { MeasuredRow } from "./rows.ts";

/** Requests of this client under way at a time. */
const CLIENTS = 32;

const driveFan = async (fleet: Fleet, runs: number) => {
  const goal = (await fleet.finishedSteps()) + runs * STEPS_PER_RUN;
  const meter = fleet.meter();
  const load = openHttpLoad(fleet.server, fleet.token, CLIENTS);
  const body = { pipeline: "fan" };
  await repeatAtOnce(runs, CLIENTS, () => load.post("/v1/runs", body, 201));
  await fleet.awaitSteps(goal);
  const usage = meter.stop();
  load.close();
  return usage;
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
        cpu: cpuPerStep(usage, steps),
        notes: [`${runs} runs, ${workers} × ${slots} slots, ${batch.toFixed(1)} events a commit`],
      },
    ];
  } finally {
    await fleet.close();
  }
};

export const measureFleet = (isQuick: boolean): Promise<readonly MeasuredRow[]> =>
  measureFan({
    what: "durable steps/s, 1→10→1, API, scheduler, two workers as processes, no-op steps, Redis",
    target: 2000,
    kind: "noop",
    workers: 2,
    slots: 512,
    runs: isQuick ? 60 : 1000,
  });

export const measureChildren = (isQuick: boolean): Promise<readonly MeasuredRow[]> =>
  measureFan({
    what: "real user steps/s through reused children of one worker, 1→10→1, Redis",
    target: 800,
    kind: "children",
    workers: 1,
    slots: 16,
    runs: isQuick ? 20 : 400,
  });

const STEP_MS = 100;
const WORKERS_MAX = 4;
const SLOTS_EACH = 4;

/** Steps that wait, as many as that, with the workers that are there. */
const driveWaits = async (fleet: Fleet, steps: number): Promise<Usage> => {
  const goal = (await fleet.finishedSteps()) + steps;
  const meter = fleet.meter();
  const waitsMs = Array.from({ length: steps }, () => STEP_MS);
  await fleet.client.runs.submit({ body: { pipeline: "waits", params: { waitsMs } } });
  await fleet.awaitSteps(goal);
  return meter.stop();
};

export const measureScaleOut = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const stepsEach = isQuick ? 40 : 240;
  const fleet = await openFleet("redis");
  try {
    const perSecond: number[] = [];
    let usage: Usage | undefined;
    for (let workers = 1; workers <= WORKERS_MAX; workers += 1) {
      await fleet.startWorker("children", SLOTS_EACH);
      if (workers !== 1 && workers !== WORKERS_MAX) continue;
      // Children are started by the first steps that need them.
      await driveWaits(fleet, workers * SLOTS_EACH * 3);
      usage = await driveWaits(fleet, workers * stepsEach);
      perSecond.push((workers * stepsEach) / (usage.wallMs / 1000));
    }
    const [one = Number.NaN, all = Number.NaN] = perSecond;
    const perWorker = (SLOTS_EACH * 1000) / STEP_MS;
    const reached = (value: number, workers: number): string =>
      `${value.toFixed(1)} of ${workers * perWorker} steps/s`;
    const busy = usage === undefined ? 0 : totalCpuMs(usage) / usage.wallMs;
    return [
      {
        what: `efficiency of each worker, 1 → ${WORKERS_MAX} workers on ${STEP_MS} ms steps`,
        unit: "ratio",
        measured: all / (WORKERS_MAX * one),
        target: 0.9,
        isFloor: true,
        limits: [{ name: "slots alone", value: 1 }],
        notes: [
          `${reached(one, 1)} → ${reached(all, WORKERS_MAX)}`,
          `${SLOTS_EACH} slots each, real children`,
          `the fleet kept ${busy.toFixed(2)} cores busy`,
        ],
      },
    ];
  } finally {
    await fleet.close();
  }
};

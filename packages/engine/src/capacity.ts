/**
 * How many bells may be rung: an estimate of the free slots per class.
 *
 * What must stay true: it is an estimate. It is read from the database twice a second and corrected by what
 * this process commits in between; bells are a window, so being off by a few costs a bell, never a step.
 */
import type { WorkerId } from "@coppice/core";
import { workerServesClass } from "@coppice/pipeline";
import {
  type ClassLoad,
  loadCapacity,
  loadClassLoads,
  type Queryable,
  type WorkerCapacity,
} from "@coppice/store";

import type { Facts } from "./facts.ts";

export interface Capacity {
  refresh(db: Queryable): Promise<void>;
  /** Bells of this class that may be rung now. */
  window(classId: number): number;
  hasFreeSlot(classId: number): boolean;
  /** Whether anything may wait in the database; what other processes left there is known within half a second. */
  hasWaiting(classId: number): boolean;
  noteReady(classId: number, delta: number): void;
  noteQueued(classId: number, delta: number): void;
  /** @param gpus how many each of them holds */
  noteRunning(workerId: WorkerId, delta: number, gpus: number): void;
  /** Classes that this worker serves; empty where it is unknown yet. */
  servedBy(workerId: WorkerId): ReadonlySet<number>;
  loads(): readonly ClassLoad[];
  workers(): readonly WorkerCapacity[];
}

/** Free slots plus a quarter of them: enough to keep workers busy while bells travel. */
const WINDOW_RATIO = 1.25;

interface Tracked {
  readonly worker: WorkerCapacity;
  running: number;
  gpusInUse: number;
}

/** Slots that attempts with this many GPUs each could take now. */
const freeOf = ({ worker, running, gpusInUse }: Tracked, gpu: number): number => {
  const slots = Math.max(0, worker.slots - running);
  return gpu === 0
    ? slots
    : Math.min(slots, Math.max(0, Math.floor((worker.gpus - gpusInUse) / gpu)));
};

export const openCapacity = (facts: Facts, seenMs: number): Capacity => {
  let workers = new Map<WorkerId, Tracked>();
  let served = new Map<WorkerId, ReadonlySet<number>>();
  let queued = new Map<number, number>();
  let ready = new Map<number, number>();
  let loads: readonly ClassLoad[] = [];

  const classesOf = (worker: WorkerCapacity): ReadonlySet<number> =>
    new Set(
      facts
        .classes()
        .filter((entry) => workerServesClass(worker, entry))
        .map((entry) => entry.id),
    );

  const freeSlots = (classId: number): number => {
    const gpu = facts.classById(classId)?.gpu ?? 0;
    let free = 0;
    for (const [id, tracked] of workers) {
      if (served.get(id)?.has(classId) === true) free += freeOf(tracked, gpu);
    }
    return free;
  };

  return {
    refresh: async (db) => {
      await facts.refreshClasses(db);
      const [rows, classLoads] = await Promise.all([loadCapacity(db, seenMs), loadClassLoads(db)]);
      workers = new Map(
        rows.map((row) => [
          row.id,
          { worker: row, running: row.running, gpusInUse: row.gpusInUse },
        ]),
      );
      served = new Map(rows.map((row) => [row.id, classesOf(row)]));
      queued = new Map(classLoads.map((load) => [load.classId, load.queued]));
      ready = new Map(classLoads.map((load) => [load.classId, load.ready]));
      loads = classLoads;
    },
    window: (classId) =>
      Math.max(0, Math.ceil(freeSlots(classId) * WINDOW_RATIO) - (queued.get(classId) ?? 0)),
    hasFreeSlot: (classId) => freeSlots(classId) > 0,
    hasWaiting: (classId) => (ready.get(classId) ?? 0) > 0 || (queued.get(classId) ?? 0) > 0,
    noteReady: (classId, delta) => {
      ready.set(classId, Math.max(0, (ready.get(classId) ?? 0) + delta));
    },
    noteQueued: (classId, delta) => {
      queued.set(classId, Math.max(0, (queued.get(classId) ?? 0) + delta));
    },
    noteRunning: (workerId, delta, gpus) => {
      const tracked = workers.get(workerId);
      if (tracked === undefined) return;
      tracked.running = Math.max(0, tracked.running + delta);
      tracked.gpusInUse = Math.max(0, tracked.gpusInUse + delta * gpus);
    },
    servedBy: (workerId) => served.get(workerId) ?? new Set(),
    loads: () => loads,
    workers: () =>
      [...workers.values()].map(({ worker, running, gpusInUse }) => ({
        ...worker,
        running,
        gpusInUse,
      })),
  };
};

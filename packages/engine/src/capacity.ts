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
  noteQueued(classId: number, delta: number): void;
  noteRunning(workerId: WorkerId, delta: number): void;
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
}

export const openCapacity = (facts: Facts, seenMs: number): Capacity => {
  let workers = new Map<WorkerId, Tracked>();
  let served = new Map<WorkerId, ReadonlySet<number>>();
  let queued = new Map<number, number>();
  let loads: readonly ClassLoad[] = [];

  const classesOf = (worker: WorkerCapacity): ReadonlySet<number> =>
    new Set(
      facts
        .classes()
        .filter((entry) => workerServesClass(worker, entry))
        .map((entry) => entry.id),
    );

  const freeSlots = (classId: number): number => {
    let free = 0;
    for (const [id, { worker, running }] of workers) {
      if (served.get(id)?.has(classId) === true) free += Math.max(0, worker.slots - running);
    }
    return free;
  };

  return {
    refresh: async (db) => {
      await facts.refreshClasses(db);
      const [rows, classLoads] = await Promise.all([loadCapacity(db, seenMs), loadClassLoads(db)]);
      workers = new Map(rows.map((row) => [row.id, { worker: row, running: row.running }]));
      served = new Map(rows.map((row) => [row.id, classesOf(row)]));
      queued = new Map(classLoads.map((load) => [load.classId, load.queued]));
      loads = classLoads;
    },
    window: (classId) =>
      Math.max(0, Math.ceil(freeSlots(classId) * WINDOW_RATIO) - (queued.get(classId) ?? 0)),
    hasFreeSlot: (classId) => freeSlots(classId) > 0,
    noteQueued: (classId, delta) => {
      queued.set(classId, Math.max(0, (queued.get(classId) ?? 0) + delta));
    },
    noteRunning: (workerId, delta) => {
      const tracked = workers.get(workerId);
      if (tracked !== undefined) tracked.running = Math.max(0, tracked.running + delta);
    },
    servedBy: (workerId) => served.get(workerId) ?? new Set(),
    loads: () => loads,
    workers: () => [...workers.values()].map(({ worker, running }) => ({ ...worker, running })),
  };
};

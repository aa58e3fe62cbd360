/** Health, workers, queues, autoscaling, metrics, and the API's own description. */
import { CoppiceError, formatId } from "@coppice/core";
import { type Queue, ROUTES, toOpenApi } from "@coppice/contract";
import { workerServesClass } from "@coppice/pipeline";
import { type ClassCounts, countClasses, listWorkers, type WorkerReadRow } from "@coppice/store";
import type { z } from "zod";
import type { Deps } from "./deps.ts";
import { answered, type Handlers } from "./handler.ts";
import { whole } from "./page.ts";

const READY_TIMEOUT_MS = 2000;

/** A worker that has missed three heartbeats and a lease is not counted on. */
const aliveMs = (deps: Deps): number => deps.leaseMs + deps.heartbeatMs;

const isReady = async (deps: Deps): Promise<void> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () =>
        reject(
          new CoppiceError("CPC_DATABASE_UNREACHABLE", {
            detail: `no answer within ${READY_TIMEOUT_MS} ms`,
          }),
        ),
      READY_TIMEOUT_MS,
    );
  });
  try {
    await Promise.race([deps.db.query("select 1"), late]);
  } finally {
    clearTimeout(timer);
  }
};

const viewQueue = (counts: ClassCounts, workers: readonly WorkerReadRow[]): Queue => {
  const serving = workers.filter(
    (worker) => worker.isAlive && !worker.isDraining && workerServesClass(worker, counts),
  );
  const { key, ready, queued, running, retrying, oldestReadySeconds } = counts;
  return {
    class: key,
    ready,
    queued,
    running,
    retrying,
    oldestReadySeconds,
    workers: serving.length,
    slots: serving.reduce((sum, worker) => sum + worker.slots, 0),
    freeSlots: serving.reduce((sum, worker) => sum + worker.freeSlots, 0),
  };
};

const updateGauges = async ({ db, metrics, ...deps }: Deps): Promise<void> => {
  const [classes, workers] = await Promise.all([
    countClasses(db),
    listWorkers(db, deps.leaseMs + deps.heartbeatMs),
  ]);
  metrics.clearGauge("coppice_queue_depth");
  for (const counts of classes) {
    for (const state of ["ready", "queued", "running", "retrying"] as const) {
      metrics.gauge("coppice_queue_depth", counts[state], { class: counts.key, state });
    }
  }
  const oldest = Math.max(0, ...classes.map((counts) => counts.oldestReadySeconds));
  metrics.gauge("coppice_oldest_ready_seconds", oldest);
  const alive = workers.filter((worker) => worker.isAlive);
  const slots = alive.reduce((sum, worker) => sum + worker.slots, 0);
  const free = alive.reduce((sum, worker) => sum + worker.freeSlots, 0);
  metrics.gauge("coppice_slots", free, { state: "free" });
  metrics.gauge("coppice_slots", slots - free, { state: "busy" });
};

type FleetIds = Extract<
  keyof Handlers,
  | `health.${string}`
  | `system.${string}`
  | `queues.${string}`
  | `autoscale.${string}`
  | "workers.list"
>;

export const createFleetHandlers = (deps: Deps): Handlers<FleetIds> => {
  const description = toOpenApi(ROUTES);
  return {
    "health.live": async () => ({ status: "ok" }),
    "health.ready": async () => {
      await isReady(deps);
      return { status: "ok" };
    },
    "workers.list": async () => {
      const rows = await listWorkers(deps.db, aliveMs(deps));
      return whole(
        rows.map((row) => ({
          ...row,
          id: formatId("wrk", row.id),
          labels: { ...row.labels },
          registeredAt: row.registeredAt.toISOString(),
          seenAt: row.seenAt.toISOString(),
        })),
      );
    },
    "queues.list": async () => {
      const [classes, workers] = await Promise.all([
        countClasses(deps.db),
        listWorkers(deps.db, aliveMs(deps)),
      ]);
      return whole(classes.map((counts) => viewQueue(counts, workers)));
    },
    "autoscale.get": async ({ params }) => {
      const counts = (await countClasses(deps.db)).find(({ key }) => key === params.class);
      if (counts === undefined) {
        throw new CoppiceError("CPC_NOT_FOUND", { detail: `There is no class ${params.class}.` });
      }
      return {
        class: counts.key,
        demand: counts.ready + counts.queued + counts.running,
        oldestWaitSeconds: counts.oldestReadySeconds,
      };
    },
    "system.metrics": async ({ reply }) => {
      await updateGauges(deps);
      void reply.header("content-type", deps.metrics.contentType);
      return answered(await deps.metrics.text());
    },
    "system.openapi": async () => description as Record<string, z.core.util.JSONType>,
  };
};

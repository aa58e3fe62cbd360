/**
 * What has to happen by itself: sweeping the outbox, expiring leases, firing timers, ringing again.
 *
 * Every replica may run it at any time: each task only proposes, the commit decides under the run's lock.
 * What must stay true: every repair is counted, and in calm times the counters rest near zero.
 */
import {
  type AttemptRef,
  CoppiceError,
  isCoppiceError,
  type Logger,
  type RunId,
  toErrorRecord,
} from "@coppice/core";
import {
  forgetGoneProcesses,
  isApiSteady,
  loadDue,
  loadExpired,
  loadOverdueRuns,
  loadSilent,
  loadStuckRuns,
  recountPools,
  type OpenAttempt,
  stampProcess,
} from "@coppice/store";

import type { Engine, EngineInside } from "./engine.ts";
import type { EngineEvent, TimerEvent } from "./events.ts";

export interface MaintenanceOptions {
  /** How often leases, timers and silent bells are looked at. @defaultValue 2000 */
  readonly reconcileMs?: number;
  readonly logger: Logger;
}

export interface Maintenance {
  /** Does one round at once; tests call it instead of waiting. */
  runOnce(): Promise<void>;
  stop(): Promise<void>;
}

const RECONCILE_MS_DEFAULT = 2000;
const SWEEP_MS = 500;
/** Due timers are looked at more often than leases: a backoff of 100 ms should not take 2 s. */
const TIMERS_MS = 250;
/** A bell that nobody answered for this long is rung again, where its class has room. */
const SILENT_MS = 10_000;
const HOUSEKEEPING_MS = 30_000;
const BATCH = 1000;

export const startMaintenance = (engine: Engine, options: MaintenanceOptions): Maintenance => {
  const { inside } = engine;
  const reconcileMs = options.reconcileMs ?? RECONCILE_MS_DEFAULT;
  const isReconcilerOff = inside.context.controls.isReconcilerOff === true;
  const loops = [
    repeat(SWEEP_MS, options.logger, "sweep", async () => {
      if (!isReconcilerOff) await inside.relay.sweep();
    }),
    repeat(TIMERS_MS, options.logger, "timers", () => fireTimers(inside, options.logger)),
    repeat(reconcileMs, options.logger, "reconcile", async () => {
      if (!isReconcilerOff) await reconcile(inside, options.logger);
      publishLoad(inside);
    }),
    repeat(HOUSEKEEPING_MS, options.logger, "housekeeping", async () => {
      await forgetGoneProcesses(inside.db);
      const mended = await inside.db.transaction(recountPools);
      if (mended > 0) count(inside, "pool_used", mended);
    }),
  ];
  return {
    runOnce: async () => {
      for (const loop of loops) await loop.runOnce();
    },
    stop: async () => {
      await Promise.all(loops.map((loop) => loop.stop()));
    },
  };
};

/** A stamp every 2 s; a longer gap than this ends a process's unbroken time. */
const STAMP_MS = 2000;
const STAMP_GAP_MS = 6000;
/** Short leases get short gaps, so that an outage of a whole lease is never taken for steadiness. */
const gapOf = (leaseMs: number): number => Math.min(STAMP_GAP_MS, Math.floor(0.4 * leaseMs));

/** Tells the database that this process answers; leases expire only while some API process does. */
export const startStamping = (
  engine: Engine,
  kind: "api" | "scheduler",
  processId: string,
  logger: Logger,
): Maintenance => {
  const { inside } = engine;
  const gapMs = gapOf(inside.leaseMs);
  const everyMs = Math.min(STAMP_MS, Math.floor(gapMs / 3));
  const loop = repeat(everyMs, logger, "stamp", () =>
    stampProcess(inside.db, processId, kind, gapMs),
  );
  return { runOnce: loop.runOnce, stop: loop.stop };
};

interface Loop {
  runOnce(): Promise<void>;
  stop(): Promise<void>;
}

/** Runs again `everyMs` after the last round ended; an error costs one round. */
const repeat = (everyMs: number, logger: Logger, task: string, work: () => Promise<void>): Loop => {
  let isStopped = false;
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void> = Promise.resolve();
  const round = async (): Promise<void> => {
    try {
      await work();
    } catch (error) {
      if (isCoppiceError(error)) logger.debug({ err: error, task }, "maintenance has to wait");
      else logger.error({ err: error, task }, "maintenance failed");
    }
  };
  const next = (): void => {
    if (isStopped) return;
    timer = setTimeout(() => {
      running = round().finally(next);
    }, everyMs);
  };
  running = round().finally(next);
  return {
    runOnce: round,
    stop: async () => {
      isStopped = true;
      clearTimeout(timer);
      await running;
    },
  };
};

const fireTimers = async (inside: EngineInside, logger: Logger): Promise<void> => {
  const due = await loadDue(inside.db, BATCH);
  await commitAll(
    inside,
    logger,
    due.map((attempt) => timerEvent("due", attempt)),
  );
};

const timerEvent = (type: TimerEvent["type"], attempt: OpenAttempt): TimerEvent => ({
  type,
  ref: refOf(attempt),
});

const refOf = ({ runId, step, item, attempt }: OpenAttempt): AttemptRef => ({
  runId,
  step,
  item,
  attempt,
});

/** One event that can't be committed must not keep the others, nor the tasks after it, from their turn. */
const commitAll = async (
  inside: EngineInside,
  logger: Logger,
  events: readonly EngineEvent[],
): Promise<void> => {
  const results = await Promise.allSettled(events.map((event) => inside.commit(event)));
  for (const [index, result] of results.entries()) {
    if (result.status === "fulfilled") continue;
    const { reason } = result as { reason: unknown };
    // Nothing can be committed while the database is away: the next round tries again.
    if (isCoppiceError(reason) && reason.code === "CPC_DATABASE_UNREACHABLE") throw reason;
    logger.error({ err: reason, event: events[index] }, "an event of maintenance failed");
  }
};

const reconcile = async (inside: EngineInside, logger: Logger): Promise<void> => {
  await expireLeases(inside, logger);
  await ringAgain(inside, logger);
  await endOverdueRuns(inside, logger);
  await mendStuckRuns(inside, logger);
};

const expireLeases = async (inside: EngineInside, logger: Logger): Promise<void> => {
  const expired = await loadExpired(inside.db, BATCH);
  if (expired.length === 0) return;
  // Workers can't renew a lease while no API answers: their silence says nothing about them.
  const gapMs = gapOf(inside.leaseMs);
  if (!(await isApiSteady(inside.db, inside.leaseMs, gapMs))) return;
  count(inside, "expired_lease", expired.length);
  await commitAll(
    inside,
    logger,
    expired.map((attempt) => timerEvent("lost", attempt)),
  );
};

const ringAgain = async (inside: EngineInside, logger: Logger): Promise<void> => {
  if (inside.context.controls.isRingAgainOff === true) return;
  const silentMs = Math.min(SILENT_MS, inside.leaseMs);
  const silent = (await loadSilent(inside.db, BATCH, silentMs)).filter((attempt) =>
    inside.context.capacity.hasFreeSlot(attempt.classId),
  );
  if (silent.length === 0) return;
  count(inside, "silent_bell", silent.length);
  await commitAll(
    inside,
    logger,
    silent.map((attempt) => ({ ...timerEvent("ringAgain", attempt), ring: attempt.ring })),
  );
};

const endOverdueRuns = async (inside: EngineInside, logger: Logger): Promise<void> => {
  const runIds = await loadOverdueRuns(inside.db, BATCH);
  const error = toErrorRecord(new CoppiceError("CPC_RUN_TIMEOUT"));
  await commitAll(
    inside,
    logger,
    runIds.map((runId) => ({ type: "cancelRun", runId, error })),
  );
};

const mendStuckRuns = async (inside: EngineInside, logger: Logger): Promise<void> => {
  const runIds: RunId[] = await loadStuckRuns(inside.db, BATCH);
  if (runIds.length === 0) return;
  count(inside, "stuck_run", runIds.length);
  await commitAll(
    inside,
    logger,
    runIds.map((runId) => ({ type: "nudge", runId, classIds: [] })),
  );
};

const count = (inside: EngineInside, kind: string, by: number): void =>
  inside.context.metrics.count("coppice_reconciled_total", { kind }, by);

const publishLoad = ({ context: { capacity, facts, metrics } }: EngineInside): void => {
  let oldestReadyMs = 0;
  for (const load of capacity.loads()) {
    const key = facts.classById(load.classId)?.key ?? String(load.classId);
    metrics.gauge("coppice_queue_depth", load.ready, { class: key, state: "ready" });
    metrics.gauge("coppice_queue_depth", load.queued, { class: key, state: "queued" });
    metrics.gauge("coppice_queue_depth", load.running, { class: key, state: "running" });
    oldestReadyMs = Math.max(oldestReadyMs, load.oldestReadyMs);
  }
  metrics.gauge("coppice_oldest_ready_seconds", oldestReadyMs / 1000);
  let slots = 0;
  let busy = 0;
  for (const worker of capacity.workers()) {
    slots += worker.slots;
    busy += worker.running;
  }
  metrics.gauge("coppice_slots", Math.max(0, slots - busy), { state: "free" });
  metrics.gauge("coppice_slots", busy, { state: "busy" });
};

/**
 * What is done to a cluster while it works. Each scenario makes its own work, breaks something in
 * the midst of it and mends it again; the suite then waits for calm and checks every invariant.
 *
 * What must stay true: a scenario waits for a condition before it strikes, so that it strikes work;
 * whatever it promises beyond the invariants it asserts itself.
 */
import { connect } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseId, type RunId } from "@coppice/core";
import { DOORBELL_DATABASE } from "@coppice/local";
import { openDoorbell } from "@coppice/queue";
import { type DoorbellKind, waitForRuns, waitUntil } from "@coppice/testing";
import { expect } from "vitest";
import { type Cluster, type Execution, LEASE_MS } from "./cluster.ts";
import { type Program } from "./programs.ts";

export interface Strikes {
  /** Call it at every fault; the last one is where recovery is measured from. */
  fault(): void;
}

export interface Scenario {
  readonly name: string;
  /** Whether executions must have come to an end whose outcome was refused. */
  readonly isFenced?: boolean;
  /** How often in the whole list. @defaultValue 1 */
  readonly times?: number;
  /**
   * After the queues were found empty: BullMQ on PostgreSQL remembers by the workers' clocks when it
   * last looked for bells of the dead, so a clock ahead keeps it from looking for as long.
   */
  readonly isAfterAll?: boolean;
  /** Part of `npm test`; the rest runs in `npm run test:faults` alone. */
  readonly isQuick: boolean;
  readonly only?: DoorbellKind;
  readonly run: (cluster: Cluster, strikes: Strikes) => Promise<void>;
}

interface RunningRow extends Record<string, unknown> {
  runId: RunId;
}

const runningOn = async (cluster: Cluster, worker: Program): Promise<RunningRow[]> =>
  cluster.ask<RunningRow>(
    `select s.run_id as "runId" from step_run s join worker w on w.id = s.worker_id
     where s.state = 'running' and w.name = $1`,
    [worker.name],
  );

const untilBusy = async (cluster: Cluster, worker: Program): Promise<void> => {
  await waitUntil(async () => (await runningOn(cluster, worker)).length > 0, {
    what: `${worker.name} to have work`,
    timeoutMs: 20_000,
  });
};

const executionOf = ({ run, key, item, attempt }: Execution): string =>
  `${run}/${key}/${item}/${attempt}`;

/** Waits until children of the worker are inside a step's code. */
const untilExecuting = async (cluster: Cluster, worker: Program): Promise<Execution[]> =>
  waitUntil(
    async () => {
      const executions = await cluster.executions();
      const ended = new Set(executions.filter(({ event }) => event === "end").map(executionOf));
      const children = worker.children();
      const busy = executions.filter(
        (one) => !ended.has(executionOf(one)) && children.includes(one.pid),
      );
      return busy.length > 0 ? busy : undefined;
    },
    { what: `${worker.name} to run a step's code`, timeoutMs: 20_000 },
  );

const attemptsOf = async (cluster: Cluster, runId: RunId): Promise<string[]> =>
  (
    await cluster.ask<{ outcome: string }>(
      "select outcome from attempt where run_id = $1 order by step, item, attempt",
      [runId],
    )
  ).map((row) => row.outcome);

const untilEnded = async (cluster: Cluster, runId: RunId): Promise<string> =>
  waitUntil(
    async () => {
      const [run] = await cluster.ask<{ state: string }>("select state from run where id = $1", [
        runId,
      ]);
      return run?.state === "running" ? undefined : run?.state;
    },
    { what: `run ${runId} to end`, timeoutMs: 60_000, everyMs: 100 },
  );

/** Long enough that a fault finds it running, with checkpoints on the way. */
const submitTicking = async (cluster: Cluster, count: number, tickMs: number): Promise<RunId[]> =>
  Promise.all(Array.from({ length: count }, async () => cluster.submit("checkpoints", tickMs)));

// ── processes that die ───────────────────────────────────────────────────────────────────────────

const killWorker: Scenario["run"] = async (cluster, { fault }) => {
  const [worker] = cluster.workers;
  const mix = cluster.submitMix(8);
  await submitTicking(cluster, 6, 100);
  await untilBusy(cluster, worker);
  fault();
  await worker.end("SIGKILL");
  await mix;
};

const killChild: Scenario["run"] = async (cluster, { fault }) => {
  const [worker] = cluster.workers;
  await submitTicking(cluster, 6, 100);
  await untilBusy(cluster, worker);
  const [victim] = await untilExecuting(cluster, worker);
  fault();
  if (victim !== undefined) process.kill(victim.pid, "SIGKILL");
  await cluster.submitMix(4);
};

const killSchedulers: Scenario["run"] = async (cluster, { fault }) => {
  const [first, second] = cluster.schedulers;
  const mix = cluster.submitMix(8);
  fault();
  await first.end("SIGKILL");
  await cluster.submitMix(2);
  fault();
  await second.end("SIGKILL");
  await cluster.submitMix(2);
  await mix;
};

const killApiAt =
  (label: string): Scenario["run"] =>
  async (cluster, { fault }) => {
    const count = 1 + Math.floor(cluster.rng.next() * 4);
    await cluster.api.end("SIGKILL");
    await cluster.api.start({ COPPICE_FAILPOINTS: `${label}@${count}` });
    const mix = cluster.submitMix(10);
    await cluster.api.ended(30_000);
    fault();
    await cluster.api.start();
    await mix;
  };

const killSchedulerAt =
  (label: string): Scenario["run"] =>
  async (cluster, { fault }) => {
    const [first, second] = cluster.schedulers;
    const [worker] = cluster.workers;
    await Promise.all([first.end("SIGKILL"), second.end("SIGKILL")]);
    await first.start({ COPPICE_FAILPOINTS: label });
    await submitTicking(cluster, 6, 100);
    await untilBusy(cluster, worker);
    // A lost worker gives the scheduler something to commit.
    await worker.end("SIGKILL");
    await first.ended(30_000);
    fault();
  };

/** A worker of its own keeps to it; the first API knows nothing of either. */
const killSecondApi: Scenario["run"] = async (cluster, { fault }) => {
  const { program: api, server } = await cluster.makeApi("api-2");
  const worker = cluster.makeWorker("worker-3", { COPPICE_SERVER_URL: server });
  await api.start();
  await worker.start();
  await waitUntil(
    async () => {
      await submitTicking(cluster, 2, 60);
      return (await runningOn(cluster, worker)).length > 0;
    },
    { what: "the third worker to have work", timeoutMs: 30_000, everyMs: 300 },
  );
  fault();
  await api.end("SIGKILL");
  await cluster.submitMix(4);
  await api.start();
  await waitForRuns(cluster.db, 60_000);
  await worker.end("SIGTERM");
  await api.end("SIGTERM");
};

/**
 * A bell that its committer never rang: the sweep rings it, dies, and another sweep rings it again.
 */
const killSweeper: Scenario["run"] = async (cluster, { fault }) => {
  const [first, second] = cluster.schedulers;
  await second.end("SIGKILL");
  await first.end("SIGKILL");
  await first.start({ COPPICE_FAILPOINTS: "relay.swept" });
  const runId = await cluster.submit("short", 50);
  await untilEnded(cluster, runId);
  await cluster.ask(
    `insert into outbox (bells) select jsonb_build_array(jsonb_build_object('classKey', 'cpu',
       'runId', run_id, 'step', step, 'item', item, 'attempt', attempt, 'ring', ring + 500,
       'priority', 0)) from step_run where run_id = $1`,
    [runId],
  );
  await first.ended(30_000);
  fault();
  await cluster.submitMix(4);
};

// ── processes that stop, servers that go away ────────────────────────────────────────────────────

/** Its children go on while it stands still: what they come to is told too late. */
const stopWorker: Scenario["run"] = async (cluster, { fault }) => {
  const [worker] = cluster.workers;
  const longer = LEASE_MS + 500;
  await Promise.all(Array.from({ length: 8 }, async () => cluster.submit("short", longer)));
  await untilExecuting(cluster, worker);
  const held = await runningOn(cluster, worker);
  fault();
  worker.signal("SIGSTOP");
  const ids = held.map((row) => row.runId);
  // All that it holds may have begun just now, and ends while it stands still.
  await pause(longer);
  await waitUntil(
    async () =>
      (
        await cluster.ask(
          "select 1 from attempt where outcome = 'lost' and run_id = any($1::uuid[])",
          [ids],
        )
      )[0],
    { what: "the stopped worker's attempts to be lost", timeoutMs: 30_000 },
  );
  worker.signal("SIGCONT");
  await cluster.submitMix(4);
};

const apiAway: Scenario["run"] = async (cluster, { fault }) => {
  const runId = await cluster.submit("short", 2.2 * LEASE_MS);
  await waitUntil(async () => (await cluster.executions()).some((one) => runId === idOf(one.run)), {
    what: "the step to run",
  });
  fault();
  await cluster.api.end("SIGKILL");
  await pause(LEASE_MS + 1500);
  await cluster.api.start();
  expect(await untilEnded(cluster, runId)).toBe("succeeded");
  // Nothing was killed, nothing was lost: the attempt that began is the one that finished.
  expect(await attemptsOf(cluster, runId)).toEqual(["succeeded"]);
};

const flushRedis: Scenario["run"] = async (cluster, { fault }) => {
  const mix = cluster.submitMix(10);
  await cluster.submitMix(2);
  fault();
  await askRedis(cluster, "FLUSHALL");
  await cluster.submitMix(4);
  await mix;
};

const restartRedis: Scenario["run"] = async (cluster, { fault }) => {
  const mix = cluster.submitMix(8);
  fault();
  await cluster.redis?.kill();
  await cluster.submitMix(3);
  await pause(1000);
  await cluster.redis?.restart();
  await cluster.submitMix(3);
  await mix;
};

const restartPostgres: Scenario["run"] = async (cluster, { fault }) => {
  const mix = cluster.submitMix(8);
  await submitTicking(cluster, 2, 100);
  fault();
  await cluster.restartPostgres();
  await cluster.submitMix(4);
  await mix;
};

/** Redis speaks its commands as plain lines, too. */
const askRedis = async (cluster: Cluster, command: string): Promise<void> => {
  const { hostname, port, password } = new URL(cluster.redis?.url ?? "");
  const socket = connect(Number(port), hostname);
  let said = "";
  socket.setEncoding("utf8");
  socket.on("data", (text) => {
    said += text;
  });
  socket.write(`AUTH ${decodeURIComponent(password)}\r\n${command}\r\n`);
  await waitUntil(() => said.split("+OK").length > 2, { what: `Redis to do ${command}` });
  socket.destroy();
};

// ── messages, clocks, poison ─────────────────────────────────────────────────────────────────────

/** Rings whatever is queued again and again, under other ring numbers and in any order. */
const floodBells: Scenario["run"] = async (cluster, { fault }) => {
  const doorbell = await openDoorbell(cluster.address);
  const mix = cluster.submitMix(16);
  const over = new AbortController();
  const flood = async (): Promise<void> => {
    while (!over.signal.aborted) {
      const rows = await cluster.ask<Record<"runId" | "step" | "item" | "attempt", never>>(
        `select run_id as "runId", step, item, attempt from step_run
         where state in ('queued', 'running') order by random() limit 20`,
      );
      const bells = rows.flatMap((row) =>
        Array.from({ length: 1 + Math.floor(cluster.rng.next() * 4) }, () => ({
          ...row,
          ring: 1000 + Math.floor(cluster.rng.next() * 1e6),
          classKey: "cpu",
          priority: 0,
        })),
      );
      for (let left = bells.length; left > 0; left -= 1) fault();
      await doorbell.ring(bells.toSorted(() => cluster.rng.next() - 0.5));
      await pause(20);
    }
  };
  const flooding = flood();
  for (const runId of await mix) await untilEnded(cluster, runId);
  over.abort();
  await flooding;
  await doorbell.close();
};

const CLOCK_OFF_MS = 600_000;

const wrongClocks: Scenario["run"] = async (cluster, { fault }) => {
  const preload = fileURLToPath(new URL("shift-clock.mjs", import.meta.url));
  const late = cluster.makeWorker("worker-late", { TEST_CLOCK_SHIFT_MS: String(-CLOCK_OFF_MS) });
  const early = cluster.makeWorker("worker-early", { TEST_CLOCK_SHIFT_MS: String(CLOCK_OFF_MS) });
  for (const worker of [late, early]) {
    fault();
    await worker.start({}, ["--import", preload]);
  }
  const runs: RunId[] = [];
  for (const worker of [late, early]) {
    await waitUntil(
      async () => {
        runs.push(...(await submitTicking(cluster, 2, 60)));
        return (await runningOn(cluster, worker)).length > 0;
      },
      { what: `${worker.name} to have work`, timeoutMs: 30_000, everyMs: 300 },
    );
  }
  for (const runId of runs) expect(await untilEnded(cluster, runId)).toBe("succeeded");
  const skews = await cluster.ask<{ name: string; skew: number }>(
    `select name, clock_skew_ms as skew from worker where name in ('worker-late', 'worker-early')
     order by name`,
  );
  expect(skews.map(({ skew }) => Math.round(skew / 60_000))).toEqual([10, -10]);
  const lost = await cluster.ask(
    "select 1 from attempt where outcome = 'lost' and run_id = any($1::uuid[])",
    [runs],
  );
  expect(lost).toEqual([]);
  await Promise.all([late.end("SIGTERM"), early.end("SIGTERM")]);
};

const poisonStep: Scenario["run"] = async (cluster, { fault }) => {
  const pit = cluster.makeWorker("worker-pit", { COPPICE_WORKER_LABELS: "pit=yes" });
  const runId = await cluster.submit("poisoned", 50);
  const mix = cluster.submitMix(6);
  const over = new AbortController();
  const keepAlive = async (): Promise<void> => {
    while (!over.signal.aborted) {
      if (!pit.isRunning()) await pit.start();
      await waitUntil(() => over.signal.aborted || !pit.isRunning(), {
        what: "the pit",
        timeoutMs: 60_000,
      });
      if (!over.signal.aborted) fault();
    }
  };
  const keeping = keepAlive();
  expect(await untilEnded(cluster, runId)).toBe("failed");
  over.abort();
  await keeping;
  await pit.end("SIGKILL");
  await mix;
  const states = await cluster.ask<{ state: string }>(
    "select state from step_run where run_id = $1 order by state",
    [runId],
  );
  expect(states.map(({ state }) => state)).toEqual(["quarantined", "succeeded"]);
};

// ── drain ────────────────────────────────────────────────────────────────────────────────────────

const drain = async (
  cluster: Cluster,
  { fault }: Strikes,
  whileDraining: (drained: () => Promise<void>) => Promise<void>,
): Promise<void> => {
  const [worker, other] = cluster.workers;
  await worker.end("SIGKILL");
  await worker.start({ COPPICE_WORKER_DRAIN_MS: "300" });
  await other.end("SIGTERM");
  const runs = await submitTicking(cluster, 3, 150);
  await untilBusy(cluster, worker);
  await waitUntil(
    async () =>
      (
        await cluster.ask(
          "select 1 from step_run where state = 'running' and checkpoint is not null",
        )
      )[0],
    { what: "a checkpoint" },
  );
  fault();
  await whileDraining(async () => {
    expect(await worker.end("SIGTERM")).toEqual({ code: 0, signal: null });
  });
  await cluster.revive();
  for (const runId of runs) {
    expect(await untilEnded(cluster, runId)).toBe("succeeded");
    expect(await attemptsOf(cluster, runId)).not.toContain("lost");
  }
  const released = await cluster.ask<{ resumedAt: number }>(
    `select (s.output->>'resumedAt')::int as "resumedAt" from attempt a
     join step_run s using (run_id, step, item)
     where a.outcome = 'released' and a.run_id = any($1::uuid[])`,
    [runs],
  );
  expect(released.length).toBeGreaterThan(0);
  expect(Math.max(...released.map((row) => row.resumedAt))).toBeGreaterThan(0);
};

const drainWorker: Scenario["run"] = async (cluster, strikes) => {
  await drain(cluster, strikes, async (drained) => drained());
};

const drainWithoutDoorbell: Scenario["run"] = async (cluster, strikes) => {
  await drain(cluster, strikes, async (drained) => {
    await silenceDoorbell(cluster, true);
    await drained();
    await silenceDoorbell(cluster, false);
  });
};

const silenceDoorbell = async (cluster: Cluster, isSilent: boolean): Promise<void> => {
  if (cluster.redis !== undefined) {
    await (isSilent ? cluster.redis.kill() : cluster.redis.restart());
    return;
  }
  await cluster.askAsAdmin(`alter database ${DOORBELL_DATABASE} allow_connections ${!isSilent}`);
  await cluster.askAsAdmin(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${DOORBELL_DATABASE}'`,
  );
};

const idOf = (shown: string): RunId | undefined => parseId("run", shown);

const calm: Scenario["run"] = async (cluster) => {
  await cluster.submitMix(12);
};

export const CRASH_POINTS = [
  "commit.locked",
  "commit.written",
  "commit.done",
  "relay.rung",
] as const;

export const SCENARIOS: readonly Scenario[] = [
  { name: "no fault, two schedulers", isQuick: true, run: calm },
  { name: "worker killed", isQuick: true, times: 3, run: killWorker },
  { name: "child killed", isQuick: true, times: 3, run: killChild },
  { name: "both schedulers killed", isQuick: true, run: killSchedulers },
  ...CRASH_POINTS.map((label) => ({
    name: `API killed at ${label}`,
    isQuick: true,
    times: 2,
    run: killApiAt(label),
  })),
  ...CRASH_POINTS.slice(0, 3).map((label) => ({
    name: `scheduler killed at ${label}`,
    isQuick: false,
    run: killSchedulerAt(label),
  })),
  { name: "scheduler killed at relay.swept", isQuick: true, run: killSweeper },
  { name: "second API killed", isQuick: true, run: killSecondApi },
  {
    name: "worker stopped past its lease",
    isQuick: true,
    isFenced: true,
    times: 2,
    run: stopWorker,
  },
  { name: "API away past a lease", isQuick: true, run: apiAway },
  { name: "Redis flushed", isQuick: true, times: 3, only: "redis", run: flushRedis },
  { name: "Redis killed and restarted", isQuick: true, times: 2, only: "redis", run: restartRedis },
  { name: "PostgreSQL restarted at once", isQuick: true, times: 3, run: restartPostgres },
  { name: "bells doubled and shuffled", isQuick: true, run: floodBells },
  { name: "poison step", isQuick: true, run: poisonStep },
  { name: "worker drained", isQuick: true, run: drainWorker },
  { name: "worker drained without doorbell", isQuick: true, run: drainWithoutDoorbell },
  { name: "clocks ten minutes off", isQuick: true, isAfterAll: true, run: wrongClocks },
];

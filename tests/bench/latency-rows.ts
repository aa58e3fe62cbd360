/**
 * How long one thing takes on a fleet that has nothing else to do, as a client sees it: from
 * before the request that submits to the event that says the run has ended.
 */
import { randomUUID } from "node:crypto";
import type { WorkerId } from "@coppice/core";
import { measureBareQueue } from "@coppice/queue";
import { type Fleet, openFleet } from "./fleet-rig.ts";
import { openHttpLoad, repeatAtOnce } from "./http-load.ts";
import type { Usage } from "./machine.ts";
import { timeRawChains } from "./raw-sql.ts";
import { cpuFigures, type Limit, percentile } from "./row.ts";
import type { MeasuredRow } from "./rows.ts";

const SLOTS = 2;
const WARM_RUNS = 10;

/** Milliseconds from submit to the run's last event. */
const timeRun = async ({ client }: Fleet, pipeline: string): Promise<number> => {
  const startedAt = performance.now();
  const { id } = await client.runs.submit({ body: { pipeline } });
  for await (const event of client.events(id)) {
    if (event.step !== null || event.state === "running") continue;
    if (event.state !== "succeeded") throw new Error(`${pipeline} ended as ${event.state}`);
  }
  return performance.now() - startedAt;
};

/** What the database's clock says between insert and end: without the client and its HTTP. */
const inDatabaseMs = async ({ db }: Fleet, count: number): Promise<number[]> =>
  (
    await db.query<{ ms: number }>(
      `select (extract(epoch from finished_at - created_at) * 1000)::float8 as ms from run
       order by id desc limit $1`,
      [count],
    )
  ).map(({ ms }) => ms);

interface ChainTimes {
  readonly seenMs: readonly number[];
  readonly databaseMs: readonly number[];
  readonly rawSqlMs: readonly number[];
  /** BullMQ's own time for one job after the other. */
  readonly bareJobMs: number;
  readonly usage: Usage;
}

const timeChains = async (pipeline: string, steps: number, count: number): Promise<ChainTimes> => {
  const fleet = await openFleet("redis");
  try {
    await fleet.startWorker("children", SLOTS);
    for (let run = 0; run < WARM_RUNS; run += 1) await timeRun(fleet, pipeline);
    const seenMs: number[] = [];
    const meter = fleet.meter();
    for (let run = 0; run < count; run += 1) seenMs.push(await timeRun(fleet, pipeline));
    const usage = meter.stop();
    const databaseMs = await inDatabaseMs(fleet, count);
    const { db, projectId, servers } = fleet;
    const versionId = await fleet.versionOf(pipeline);
    const owner = { projectId, versionId, workerId: randomUUID() as WorkerId };
    await timeRawChains(db, owner, steps, WARM_RUNS);
    const rawSqlMs = await timeRawChains(db, owner, steps, count);
    const bare = await measureBareQueue(servers.address, 500, { concurrency: 1 });
    return { seenMs, databaseMs, rawSqlMs, usage, bareJobMs: 1000 / bare.processedPerSecond };
  } finally {
    await fleet.close();
  }
};

const chainLimits = (times: ChainTimes, steps: number, share: number, scale: number): Limit[] => [
  { name: "BullMQ alone, jobs in a row", value: steps * times.bareJobMs * scale },
  { name: "SQL alone, commits in a row", value: percentile(times.rawSqlMs, share) * scale },
];

export const measureChain = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const count = isQuick ? 20 : 200;
  const times = await timeChains("chain-3", 3, count);
  const cpu = cpuFigures(times.usage, { per: "run", count, bound: (_side, row) => row });
  const figure = (share: number, target: number): MeasuredRow => ({
    what: `submit → done of a 3-step chain, idle engine, p${share * 100}, real user steps, Redis`,
    unit: "ms",
    measured: percentile(times.seenMs, share),
    target,
    isFloor: false,
    limits: chainLimits(times, 3, share, 1),
    cpu,
    notes: [
      `by the database's clock ${percentile(times.databaseMs, share).toFixed(1)} ms`,
      `${count} runs, the end seen by server-sent events`,
    ],
  });
  return [figure(0.5, 20), figure(0.95, 40)];
};

export const measureSequential = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const count = isQuick ? 3 : 20;
  const times = await timeChains("chain-40", 40, count);
  const fastest = Math.min(...times.seenMs) / 1000;
  return [
    {
      what: "submit → done of 40 sequential real user steps, Redis",
      unit: "s",
      measured: percentile(times.seenMs, 0.5) / 1000,
      target: 0.3,
      isFloor: false,
      limits: chainLimits(times, 40, 0.5, 1 / 1000),
      cpu: cpuFigures(times.usage, { per: "run", count, bound: (_side, row) => row / 1000 }),
      notes: [
        `median of ${count} runs, fastest ${fastest.toFixed(3)} s`,
        `by the database's clock ${(percentile(times.databaseMs, 0.5) / 1000).toFixed(3)} s`,
      ],
    },
  ];
};

const CLIENTS = 50;

export const measureSubmit = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const total = isQuick ? 300 : 5000;
  const fleet = await openFleet("redis");
  const load = openHttpLoad(fleet.server, fleet.token, CLIENTS);
  try {
    const submit = () => load.post("/v1/runs", { pipeline: "chain-3" }, 201);
    await repeatAtOnce(Math.min(1000, total), CLIENTS, submit);
    const meter = fleet.meter();
    const times = await repeatAtOnce(total, CLIENTS, submit);
    const usage = meter.stop();
    const httpTimes = await repeatAtOnce(total, CLIENTS, () => load.get("/livez", 200));
    const sqlTimes = await repeatAtOnce(total, CLIENTS, () => insertAlone(fleet));
    return [
      {
        what: `submit → 201 at ${CLIENTS} clients, p50`,
        unit: "ms",
        measured: percentile(times, 0.5),
        target: 15,
        isFloor: false,
        limits: [
          { name: "HTTP alone (/livez)", value: percentile(httpTimes, 0.5) },
          { name: "SQL alone (one insert)", value: percentile(sqlTimes, 0.5) },
        ],
        // With so many always under way, each waits for the others' processor time.
        cpu: cpuFigures(usage, {
          per: "request",
          count: total,
          bound: (sideMs) => CLIENTS * sideMs,
        }),
        notes: [`${total} requests, p95 ${percentile(times, 0.95).toFixed(1)} ms`, "no worker"],
      },
    ];
  } finally {
    load.close();
    await fleet.close();
  }
};

/** One row in one transaction, over as many connections as a program has by default. */
const insertAlone = async ({ db }: Fleet): Promise<void> => {
  await db.query("insert into outbox (bells, claimed_until) values ('[]', 'infinity')");
};

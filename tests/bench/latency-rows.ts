/**
 * How long one thing takes on a fleet that has nothing else to do, as a client sees it: from before the
 * request that submits to the event that says the run has ended.
 */
import { Agent, type IncomingMessage, request } from "node:http";
import { type Fleet, openFleet } from "./fleet-rig.ts";
import { percentile } from "./row.ts";
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

const timeRuns = async (pipeline: string, count: number) => {
  const fleet = await openFleet("redis");
  try {
    await fleet.startWorker("children", SLOTS);
    for (let run = 0; run < WARM_RUNS; run += 1) await timeRun(fleet, pipeline);
    const seenMs: number[] = [];
    for (let run = 0; run < count; run += 1) seenMs.push(await timeRun(fleet, pipeline));
    return { seenMs, databaseMs: await inDatabaseMs(fleet, count) };
  } finally {
    await fleet.close();
  }
};

export const measureChain = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const count = isQuick ? 20 : 200;
  const { seenMs, databaseMs } = await timeRuns("chain-3", count);
  const figure = (share: number, target: number): MeasuredRow => ({
    what: `submit → done of a 3-step chain on an idle engine, p${share * 100}, real user steps, Redis`,
    unit: "ms",
    measured: percentile(seenMs, share),
    target,
    isFloor: false,
    limits: [],
    notes: [
      `by the database's clock ${percentile(databaseMs, share).toFixed(1)} ms`,
      `${count} runs, the end seen by server-sent events`,
    ],
  });
  return [figure(0.5, 20), figure(0.95, 40)];
};

export const measureSequential = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const count = isQuick ? 3 : 20;
  const { seenMs, databaseMs } = await timeRuns("chain-40", count);
  return [
    {
      what: "submit → done of 40 sequential real user steps, Redis",
      unit: "s",
      measured: percentile(seenMs, 0.5) / 1000,
      target: 0.3,
      isFloor: false,
      limits: [],
      notes: [
        `median of ${count} runs, fastest ${(Math.min(...seenMs) / 1000).toFixed(3)} s`,
        `by the database's clock ${(percentile(databaseMs, 0.5) / 1000).toFixed(3)} s`,
      ],
    },
  ];
};

const CLIENTS = 50;

const send = (
  agent: Agent,
  url: URL,
  options: { method: string; headers: Record<string, string> },
  body?: string,
): Promise<number> =>
  new Promise((resolve, reject) => {
    const outgoing = request(url, { ...options, agent }, (reply: IncomingMessage) => {
      reply.resume();
      reply.once("end", () => resolve(reply.statusCode ?? 0));
    });
    outgoing.once("error", reject);
    outgoing.end(body);
  });

/** Fifty at a time, each again as soon as it is answered. */
const timeRequests = async (total: number, once: () => Promise<void>): Promise<number[]> => {
  const times: number[] = [];
  let left = total;
  const lane = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      const startedAt = performance.now();
      await once();
      times.push(performance.now() - startedAt);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, lane));
  return times;
};

export const measureSubmit = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const total = isQuick ? 300 : 5000;
  const fleet = await openFleet("redis");
  const agent = new Agent({ keepAlive: true, maxSockets: CLIENTS });
  try {
    const headers = {
      authorization: `Bearer ${fleet.token}`,
      "content-type": "application/json",
    };
    const body = JSON.stringify({ pipeline: "chain-3" });
    const expectStatus = async (wanted: number, sent: Promise<number>): Promise<void> => {
      const status = await sent;
      if (status !== wanted) throw new Error(`expected ${wanted}. Received: ${status}`);
    };
    const runs = new URL("/v1/runs", fleet.server);
    const livez = new URL("/livez", fleet.server);
    const submit = () => expectStatus(201, send(agent, runs, { method: "POST", headers }, body));
    const look = () => expectStatus(200, send(agent, livez, { method: "GET", headers: {} }));
    await timeRequests(Math.min(500, total), submit);
    const times = await timeRequests(total, submit);
    const httpTimes = await timeRequests(total, look);
    const sqlTimes = await timeRequests(Math.min(2000, total), () => insertAlone(fleet));
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
        notes: [`${total} requests, p95 ${percentile(times, 0.95).toFixed(1)} ms`, "no worker"],
      },
    ];
  } finally {
    agent.destroy();
    await fleet.close();
  }
};

/** One row in one transaction, over as many connections as a program has by default. */
const insertAlone = async ({ db }: Fleet): Promise<void> => {
  await db.query("insert into outbox (bells, claimed_until) values ('[]', 'infinity')");
};

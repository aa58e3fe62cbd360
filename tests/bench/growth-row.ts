/**
 * Whether the past costs: steps per second with 10^3 and with 10^5 finished runs in the database.
 * The finished runs are written set-wise, row for row as the engine leaves them.
 */
import type { PipelineVersionId, WorkerId } from "@coppice/core";
import { emptySummary, encodeSummary } from "@coppice/pipeline";
import { type Database, openDatabase } from "@coppice/store";
import { succeeded } from "@coppice/testing";
import { type EngineRig, openEngineRig } from "./engine-rig.ts";
import { driveRuns, fanPipeline, STEPS_PER_RUN } from "./engine-rows.ts";
import { totalCpuMs, type Usage } from "./machine.ts";
import type { MeasuredRow } from "./rows.ts";
import { benchLogger } from "./servers.ts";

const SLOTS = 256;
const REPEATS = 5;
const FLAT_TARGET = 1.1;
const CHUNK = 10_000;

/** A version 7 UUID of a moment in the past: finished runs are older than any new one. */
const PAST_ID = `(lpad(to_hex(1700000000000 + n), 12, '0') || '7'
  || substr(md5(n::text), 1, 3) || 'a' || substr(md5(n::text), 4, 15))::uuid`;
const MOMENT = "to_timestamp((1700000000000 + n) / 1000.0)";

const STATEMENTS = [
  `insert into run (id, project_id, pipeline_version_id, state, params, summaries, next_seq,
     created_at, finished_at)
   select ${PAST_ID}, $3, $4, 'succeeded', '{}', $5::jsonb, 28, ${MOMENT},
     ${MOMENT} + interval '1 s'
   from generate_series($1::bigint, $2::bigint) n`,
  `insert into step_run (run_id, step, item, project_id, class_id, priority, state, ready_at,
     queued_at, started_at, finished_at, worker_id)
   select ${PAST_ID}, step, 0, $3, 1, 0, 'succeeded', ${MOMENT}, ${MOMENT}, ${MOMENT},
     ${MOMENT} + interval '1 s', $4
   from generate_series($1::bigint, $2::bigint) n, generate_series(0, ${STEPS_PER_RUN - 1}) step`,
  `insert into attempt (run_id, step, item, attempt, project_id, outcome, worker_id, lease_token,
     started_at, finished_at)
   select ${PAST_ID}, step, 0, 1, $3, 'succeeded', $4, gen_random_uuid(), ${MOMENT},
     ${MOMENT} + interval '1 s'
   from generate_series($1::bigint, $2::bigint) n, generate_series(0, ${STEPS_PER_RUN - 1}) step`,
  `insert into run_event (run_id, last_seq, first_seq, project_id, at, changes)
   select ${PAST_ID}, part * 7, part * 7 - 6, $3, ${MOMENT}, $4::jsonb
   from generate_series($1::bigint, $2::bigint) n, generate_series(1, 4) part`,
] as const;

interface Fill {
  readonly versionId: PipelineVersionId;
  readonly workerId: WorkerId;
  readonly from: number;
  readonly to: number;
}

const fill = async (rig: EngineRig, { versionId, workerId, from, to }: Fill): Promise<void> => {
  const { db, projectId } = rig;
  const summaries = JSON.stringify(
    Array.from({ length: STEPS_PER_RUN }, () => encodeSummary(emptySummary(false))),
  );
  const change = { step: 3, item: 0, state: "succeeded", attempt: 1, worker: workerId };
  const changes = JSON.stringify(Array.from({ length: 7 }, () => change));
  const [runs, stepRuns, attempts, events] = STATEMENTS;
  for (let first = from; first < to; first += CHUNK) {
    const range = [first, Math.min(first + CHUNK, to) - 1];
    await db.query(runs, [...range, projectId, versionId, summaries]);
    await db.query(stepRuns, [...range, projectId, workerId]);
    await db.query(attempts, [...range, projectId, workerId]);
    await db.query(events, [...range, projectId, changes]);
  }
  for (const table of ["run", "step_run", "attempt", "run_event"]) {
    // What autovacuum would have done by the time that so many runs have finished.
    await db.query(`vacuum analyze ${table}`);
  }
};

/** So that the filling's own checkpoint does not fall into the measurement. */
const checkpoint = async (rig: EngineRig): Promise<void> => {
  const admin: Database = openDatabase({
    url: rig.servers.adminUrl,
    applicationName: "bench-admin",
    connectionsMax: 1,
    logger: benchLogger,
  });
  await admin.query("checkpoint");
  await admin.close();
};

/** The repeat that was disturbed least. */
const best = (usages: readonly Usage[]): Usage => {
  const [first, ...rest] = usages;
  if (first === undefined) throw new Error("expected at least one measurement");
  return rest.reduce(
    (least, usage) => (totalCpuMs(usage) < totalCpuMs(least) ? usage : least),
    first,
  );
};

export const measureGrowth = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const [few, many, runs] = isQuick ? [100, 2000, 60] : [1000, 100_000, 500];
  const rig = await openEngineRig("redis");
  try {
    const versionId = await rig.deploy(fanPipeline);
    const worker = await rig.startWorker(SLOTS, () => succeeded(null));
    const opened = { rig, versionId, worker };
    const { workerId } = worker;
    const measure = async (): Promise<Usage> => {
      await checkpoint(rig);
      // After a checkpoint the first change of a page writes all of it: not a cost of the past.
      await driveRuns(opened, runs);
      const usages: Usage[] = [];
      for (let repeat = 0; repeat < REPEATS; repeat += 1) {
        usages.push(await driveRuns(opened, runs));
      }
      return best(usages);
    };
    await driveRuns(opened, Math.min(runs, 300));
    await fill(rig, { versionId, workerId, from: 0, to: few });
    const before = await measure();
    await fill(rig, { versionId, workerId, from: few, to: many });
    const after = await measure();
    const steps = runs * STEPS_PER_RUN;
    const cost = (usage: Usage): number =>
      Object.keys(usage.cpuMs).length > 1 ? totalCpuMs(usage) / steps : usage.wallMs / steps;
    const text = (count: number): string => count.toLocaleString("en");
    const perSecond = (usage: Usage): string => (steps / (usage.wallMs / 1000)).toFixed(0);
    return [
      {
        what: `cost per step as finished runs grow, ${text(few)} → ${text(many)}`,
        unit: "ratio",
        measured: cost(after) / cost(before),
        target: FLAT_TARGET,
        isFloor: false,
        limits: [],
        notes: [
          `${cost(before).toFixed(3)} → ${cost(after).toFixed(3)} ms of CPU a step`,
          `${perSecond(before)} → ${perSecond(after)} steps/s`,
          `best of ${REPEATS}`,
        ],
      },
    ];
  } finally {
    await rig.close();
  }
};

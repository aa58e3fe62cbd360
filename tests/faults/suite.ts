/**
 * Runs scenarios against one cluster, one after the other; after each comes calm, then all
 * invariants.
 *
 * What must stay true: a failing scenario is never repeated under the same seed to make it pass;
 * the seed is printed, and COPPICE_FAULT_SEED runs it again.
 */
import { parseId, type RunId } from "@coppice/core";
import { type Doorbell, openDoorbell } from "@coppice/queue";
import { checkAtRest, type DoorbellKind, type Violation, waitForRuns } from "@coppice/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Cluster, openCluster } from "./cluster.ts";
import { logTail } from "./programs.ts";
import { type FaultRow, faultTable, saveRows } from "./report.ts";
import { type Scenario, SCENARIOS, type Strikes } from "./scenarios.ts";

const CALM_MS = 60_000;
/** BullMQ takes a bell back from a dead worker only when its lock of 30 s has run out. */
const QUIET_MS = 75_000;
const SCENARIO_MS = 150_000;

const seedOf = (): number => {
  const given = Number(process.env["COPPICE_FAULT_SEED"] ?? Number.NaN);
  return Number.isInteger(given) ? given : Date.now() % 1_000_000;
};

interface Counted {
  readonly row: Omit<FaultRow, "violations" | "doorbell" | "scenario" | "seed">;
}

const strikesOf = () => {
  let [faults, lastAt] = [0, Date.now()];
  const strikes: Strikes = {
    fault: () => {
      faults += 1;
      lastAt = Date.now();
    },
  };
  return { strikes, count: () => faults, lastAt: () => lastAt };
};

const countWork = async (
  cluster: Cluster,
  runs: readonly RunId[],
  faults: number,
  lastFaultAt: number,
): Promise<Counted["row"]> => {
  const own = new Set<string>(runs);
  const executions = (await cluster.executions()).filter((one) =>
    own.has(parseId("run", one.run) ?? ""),
  );
  const begun = executions.filter((one) => one.event === "begin");
  const keyOf = (one: (typeof executions)[number]): string => `${one.run}/${one.key}/${one.item}`;
  const rows = await cluster.ask<{ run: string; key: string; item: number; attempt: number }>(
    `select s.run_id as run, v.ir->'steps'->s.step->>'key' as key, s.item, s.attempt
     from step_run s join run r on r.id = s.run_id
     join pipeline_version v on v.id = r.pipeline_version_id where s.run_id = any($1::uuid[])`,
    [runs],
  );
  const committed = new Map(rows.map((row) => [`${row.run}/${row.key}/${row.item}`, row.attempt]));
  const fenced = executions.filter((one) => {
    const attempt = committed.get(`${parseId("run", one.run)}/${one.key}/${one.item}`);
    return one.event === "end" && attempt !== one.attempt;
  });
  const [ended] = await cluster.ask<{ at: number; lost: number; released: number }>(
    `select (extract(epoch from max(r.finished_at)) * 1000)::float8 as at,
       (select count(*)::int from attempt a where a.run_id = any($1::uuid[])
        and outcome = 'lost') as lost,
       (select count(*)::int from attempt a where a.run_id = any($1::uuid[])
        and outcome = 'released') as released
     from run r where r.id = any($1::uuid[])`,
    [runs],
  );
  const [recovered] = await cluster.ask<{ at: number | null }>(
    `select (extract(epoch from max(n.started_at)) * 1000)::float8 as at from attempt a
     join attempt n
       on (n.run_id, n.step, n.item, n.attempt) = (a.run_id, a.step, a.item, a.attempt + 1)
     where a.outcome = 'lost' and a.run_id = any($1::uuid[])`,
    [runs],
  );
  const since = (at: number): number => Math.max(0, Math.round(at - lastFaultAt));
  return {
    faults,
    runs: runs.length,
    stepRuns: rows.length,
    executions: begun.length,
    reexecutions: begun.length - new Set(begun.map(keyOf)).size,
    fenced: fenced.length,
    lost: ended?.lost ?? 0,
    released: ended?.released ?? 0,
    recoveryMs: (recovered?.at ?? 0) > lastFaultAt ? since(recovered?.at ?? 0) : null,
    calmMs: since(ended?.at ?? lastFaultAt),
  };
};

/**
 * @param isLast whether no bell may be in a worker's hand either: between scenarios a dead
 *   worker's may be, until BullMQ takes it back
 */
const settle = async (cluster: Cluster, isLast: boolean): Promise<Violation[]> => {
  await cluster.revive();
  await waitForRuns(cluster.db, CALM_MS);
  const opened = await openDoorbell(cluster.address);
  const depth: Doorbell["depth"] = async (keys) => {
    const depths = await opened.depth(keys);
    if (isLast) return depths;
    return new Map([...depths].map(([key, { waiting }]) => [key, { waiting, active: 0 }]));
  };
  try {
    return await checkAtRest(cluster.db, {
      timeoutMs: QUIET_MS,
      accepted: cluster.accepted,
      doorbell: { depth },
      hasBytes: async (projectId, sha256) => cluster.hasBytes(projectId, sha256),
    });
  } finally {
    await opened.close();
  }
};

const tellLogs = (cluster: Cluster): string =>
  [cluster.api, ...cluster.schedulers, ...cluster.workers]
    .map((program) => `── ${program.name}\n${logTail(program)}`)
    .join("\n");

const runScenario = async (
  cluster: Cluster,
  scenario: Scenario,
  seed: number,
): Promise<FaultRow> => {
  const before = new Set(cluster.accepted);
  const { strikes, count, lastAt } = strikesOf();
  try {
    await scenario.run(cluster, strikes);
    const violations = await settle(cluster, false);
    expect(violations.slice(0, 20)).toEqual([]);
    const runs = [...cluster.accepted].filter((id) => !before.has(id));
    const counted = await countWork(cluster, runs, count(), lastAt());
    if (scenario.isFenced === true) expect(counted.fenced).toBeGreaterThan(0);
    const { kind: doorbell } = cluster;
    return { doorbell, scenario: scenario.name, seed, ...counted, violations: violations.length };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`seed ${seed}: ${reason}\n${tellLogs(cluster)}`, { cause: error });
  }
};

/** Registers the tests of one doorbell: each fault once, or the whole list. */
export const describeFaults = (
  kind: DoorbellKind,
  size: "quick" | "whole",
  isAvailable = true,
): void => {
  const seed = seedOf();
  const scenarios = SCENARIOS.filter(
    ({ isQuick, only }) => (isQuick || size === "whole") && (only ?? kind) === kind,
  ).flatMap((scenario) => {
    const { times = 1 } = scenario;
    return Array.from({ length: size === "whole" ? times : 1 }, () => scenario);
  });
  describe.skipIf(!isAvailable)(`faults on the ${kind} doorbell, seed ${seed}`, () => {
    const rows: FaultRow[] = [];
    let cluster: Cluster | undefined;
    const opened = (): Cluster => {
      if (cluster === undefined) throw new Error("expected a cluster");
      return cluster;
    };
    beforeAll(async () => {
      cluster = await openCluster(kind, seed);
    }, SCENARIO_MS);
    const strike = (list: readonly Scenario[]): void => {
      it.each(list)(
        "$name: nothing is lost, nothing counts twice",
        async (scenario) => {
          const row = await runScenario(opened(), scenario, seed);
          rows.push(row);
          expect(row.violations).toBe(0);
        },
        SCENARIO_MS,
      );
    };
    strike(scenarios.filter(({ isAfterAll }) => isAfterAll !== true));
    it(
      "then no bell is left in any queue",
      async () => {
        expect(await settle(opened(), true)).toEqual([]);
      },
      SCENARIO_MS,
    );
    strike(scenarios.filter(({ isAfterAll }) => isAfterAll === true));
    afterAll(async () => {
      await cluster?.[Symbol.asyncDispose]();
      process.stdout.write(`\n${faultTable(rows)}\n`);
      await saveRows(kind, rows);
    }, SCENARIO_MS);
  });
};

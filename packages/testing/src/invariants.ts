/**
 * What must hold in the database after whatever happened: the invariants of the engine, checked
 * from the outside, row by row, over all runs that there are.
 *
 * What must stay true: it only reads, and it shares no code with the engine's writer beyond the
 * rules of the pipeline room, so that the writer's mistakes are not repeated here.
 */
import type { RunId } from "@coppice/core";
import type { Doorbell } from "@coppice/queue";
import type { Database, Queryable } from "@coppice/store";
import { checkFeed } from "./check-feed.ts";
import { checkRows, type Say } from "./check-rows.ts";
import { readRunRecords, type RunRecord } from "./run-record.ts";
import { waitUntil } from "./wait-until.ts";

export interface Violation {
  /** I1 … I11 as the design numbers them, "feed" or "pool". */
  readonly invariant: string;
  readonly detail: string;
}

export interface CheckOptions {
  /** Whether all work is over: every run ended, nothing waits anywhere. */
  readonly expectAtRest: boolean;
  /** Runs that were acknowledged: none may be missing. */
  readonly accepted?: Iterable<string>;
  /** Whether the store has these bytes (I8). */
  readonly hasBytes?: (projectId: string, sha256: string) => boolean | Promise<boolean>;
  /** Its queues must be empty at rest. */
  readonly doorbell?: Pick<Doorbell, "depth">;
}

/** Over one snapshot of the database, so that it may be called while work goes on. */
export const checkInvariants = async (db: Database, options: CheckOptions): Promise<Violation[]> =>
  db.transaction(async (tx) => {
    await tx.query("set transaction isolation level repeatable read, read only");
    return check(tx, options);
  });

const check = async (db: Queryable, options: CheckOptions): Promise<Violation[]> => {
  const violations: Violation[] = [];
  const say: Say = (invariant, detail) => violations.push({ invariant, detail });
  const missing = new Set<string>(options.accepted ?? []);
  const poolUse = new Map<string, number>();
  const digests = new Map<string, { projectId: string; sha256: string }>();
  for await (const run of readRunRecords(db)) {
    missing.delete(run.id);
    checkRows(run, options.expectAtRest, say);
    checkFeed(run, say);
    addPoolUse(run, poolUse);
    for (const { sha256 } of run.artifacts) {
      digests.set(`${run.projectId}/${sha256}`, { projectId: run.projectId, sha256 });
    }
  }
  for (const id of missing) say("I1", `run ${id} was accepted and is gone`);
  await checkPools(db, poolUse, say);
  for (const { projectId, sha256 } of digests.values()) {
    const isThere = (await options.hasBytes?.(projectId, sha256)) ?? true;
    if (!isThere) say("I8", `the bytes of ${sha256} are missing`);
  }
  if (options.expectAtRest) await checkQueues(db, options.doorbell, say);
  return violations;
};

const addPoolUse = (run: RunRecord, use: Map<string, number>): void => {
  for (const { step, state } of run.stepRuns) {
    if (state !== "queued" && state !== "running") continue;
    for (const pool of run.graph.pipeline.steps[step]?.pools ?? []) {
      const key = `${run.projectId}/${pool.name}`;
      use.set(key, (use.get(key) ?? 0) + pool.weight);
    }
  }
};

const checkPools = async (
  db: Queryable,
  use: ReadonlyMap<string, number>,
  say: Say,
): Promise<void> => {
  const pools = await db.query<{ key: string; used: number }>(
    "select project_id || '/' || name as key, used from pool",
  );
  for (const { key, used } of pools) {
    const counted = use.get(key) ?? 0;
    if (counted !== used) say("pool", `pool ${key} says ${used} are used, ${counted} are`);
  }
};

/** I11: no bell is on its way. */
const checkQueues = async (
  db: Queryable,
  doorbell: Pick<Doorbell, "depth"> | undefined,
  say: Say,
): Promise<void> => {
  const [outbox] = await db.query<{ rows: number }>("select count(*)::int as rows from outbox");
  if (outbox !== undefined && outbox.rows > 0)
    say("I11", `${outbox.rows} rows are left in the outbox`);
  if (doorbell === undefined) return;
  const classes = await db.query<{ key: string }>("select key from class");
  for (const [key, depth] of await doorbell.depth(classes.map((entry) => entry.key))) {
    if (depth.waiting + depth.active === 0) continue;
    say("I11", `queue ${key} holds ${depth.waiting} waiting and ${depth.active} active bells`);
  }
};

/** Waits until every run has ended. Says which have not, where it takes too long. */
export const waitForRuns = async (db: Queryable, timeoutMs: number): Promise<void> => {
  let open: readonly RunId[] = [];
  await waitUntil(
    async () => {
      open = (
        await db.query<{ id: RunId }>("select id from run where state = 'running' limit 5")
      ).map((row) => row.id);
      return open.length === 0;
    },
    { what: "all runs to end", timeoutMs, everyMs: 50 },
  ).catch((error: unknown) => {
    throw new Error(`${error instanceof Error ? error.message : ""} Open: ${open.join(", ")}`);
  });
};

/** Waits for all runs to end and for the last bells to be answered, then checks. */
export const checkAtRest = async (
  db: Database,
  options: Omit<CheckOptions, "expectAtRest"> & { readonly timeoutMs?: number },
): Promise<Violation[]> => {
  const { timeoutMs = 30_000, ...rest } = options;
  await waitForRuns(db, timeoutMs);
  let left: Violation[] = [];
  const isQuiet = async (): Promise<boolean> => {
    left = [];
    await checkQueues(db, options.doorbell, (invariant, detail) =>
      left.push({ invariant, detail }),
    );
    return left.length === 0;
  };
  // What is still there when the time is over, the check itself reports.
  await waitUntil(isQuiet, { what: "the queues to empty", timeoutMs, everyMs: 50 }).catch(
    () => undefined,
  );
  return checkInvariants(db, { ...rest, expectAtRest: true });
};

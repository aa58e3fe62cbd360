/**
 * The checker itself: each kind of damage, done by hand to a healthy database, is seen as what it
 * is.
 */
import type { RunId } from "@coppice/core";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  checkAtRest,
  checkInvariants,
  type EngineWorld,
  openEngineWorld,
  succeeded,
} from "./index.ts";

let world: EngineWorld;
let runId: RunId;

beforeAll(async () => {
  world = await openEngineWorld();
  const version = await world.deploy({
    irVersion: 1,
    name: "healthy",
    params: {},
    steps: [
      { key: "a" },
      { key: "each", map: { over: { from: "literal", value: [1, 2] } }, after: ["a"] },
      { key: "b", after: ["each"], pools: [{ name: "p", weight: 2 }] },
    ],
  });
  await world.db.query("insert into pool (project_id, name, capacity) values ($1, 'p', 5)", [
    world.projectId,
  ]);
  await world.startWorker(2, ({ attempt, lease }) => succeeded({ madeBy: { attempt, lease } }));
  runId = await world.submit(version);
  await world.ended(runId);
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

it("finds nothing wrong with a healthy database", async () => {
  const accepted = [runId];
  expect(await checkAtRest(world.db, { accepted, doorbell: world.doorbell })).toEqual([]);
});

const OF_B = "run_id = $1 and step = 2";

it.each([
  ["I1", "a run that is still open", "update run set state = 'running' where id = $1"],
  ["I2", "a second outcome", `update attempt set outcome = 'failed' where ${OF_B}`],
  ["I2", "an attempt that is gone", `delete from attempt where ${OF_B}`],
  [
    "I3",
    "an output of another attempt",
    `update step_run set output = '{"madeBy":{"attempt":7}}' where ${OF_B}`,
  ],
  [
    "I3",
    "an output under another lease",
    `update attempt set lease_token = gen_random_uuid() where ${OF_B}`,
  ],
  [
    "I3",
    "an artifact of another attempt",
    `insert into artifact_ref select run_id, step, item, 2, 'm', project_id, repeat('a', 64), 1,
       'file', '{}' from step_run where ${OF_B}`,
  ],
  [
    "I4",
    "a step that began before its rule held",
    `update run_event set changes = jsonb_set(changes, '{0}', '{"step":2,"item":0,"state":"running",
       "attempt":1}') where run_id = $1 and last_seq = (select min(last_seq) from run_event
       where run_id = $1 and first_seq > 1)`,
  ],
  [
    "I5",
    "a summary that is off",
    "update run set summaries = jsonb_set(summaries, '{0,2}', '5') where id = $1",
  ],
  ["I7", "a gap between attempts", `update attempt set attempt = 3 where ${OF_B}`],
  ["I7", "a count that is off", `update step_run set lost = 2 where ${OF_B}`],
  [
    "I10",
    "a start after the cancellation",
    `update run_event set changes = jsonb_set(changes, '{0}', '{"run":"cancelling"}')
     where run_id = $1 and first_seq = 1`,
  ],
  ["I11", "a row that waits", `update step_run set state = 'queued' where ${OF_B}`],
  ["I11", "a bell in the outbox", "insert into outbox (bells) select '[]' from run where id = $1"],
  [
    "feed",
    "a number that is missing",
    `delete from run_event where run_id = $1 and first_seq = (select max(first_seq) from run_event
       where run_id = $1)`,
  ],
  ["feed", "a move that is not allowed", `update step_run set state = 'failed' where ${OF_B}`],
  [
    "pool",
    "a pool that is off",
    "update pool set used = 1 where project_id = (select project_id from run where id = $1)",
  ],
])("reports %s for %s", async (invariant, _, damage) => {
  const seen = await world.db
    .transaction(async (tx) => {
      await tx.query(damage, [runId]);
      const violations = await checkInvariants(
        { ...world.db, transaction: (work) => work(inside(tx)) },
        {
          expectAtRest: true,
        },
      );
      throw new Undo(violations.map((violation) => violation.invariant));
    })
    .catch((error: unknown) => {
      if (error instanceof Undo) return error.seen;
      throw error;
    });
  expect(seen).toContain(invariant);
});

it("reports a run that was accepted and is gone, and bytes that are", async () => {
  const gone = "01890000-0000-7000-8000-000000000000";
  const violations = await checkInvariants(world.db, { expectAtRest: true, accepted: [gone] });
  expect(violations).toEqual([{ invariant: "I1", detail: `run ${gone} was accepted and is gone` }]);
});

/** Carries what was seen out of a transaction that is not to be kept. */
class Undo extends Error {
  readonly seen: readonly string[];

  constructor(seen: readonly string[]) {
    super("undone");
    this.seen = seen;
  }
}

/** The checker sets up its snapshot first; here it looks from inside the damage. */
const inside = (tx: Parameters<Parameters<EngineWorld["db"]["transaction"]>[0]>[0]): typeof tx => ({
  query: async (statement, values) =>
    typeof statement === "string" && statement.startsWith("set transaction")
      ? []
      : tx.query(statement, values),
});

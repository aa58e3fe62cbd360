/**
 * What must not go wrong twice: one culprit stops nobody else, and estimates don't ring for room
 * that isn't.
 */
import { type AttemptRef, silentLogger } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import {
  deployTestPipeline,
  type EngineWorld,
  failed,
  openEngineWorld,
  registerHandWorker,
} from "@coppice/testing";
import { expect, it } from "vitest";

import { startMaintenance } from "./index.ts";

const submit = async (world: EngineWorld, name: string, steps: PipelineIrInput["steps"]) =>
  world.submit(await world.deploy({ irVersion: 1, name, params: {}, steps }));

const stateOf = async (world: EngineWorld, runId: string): Promise<unknown> => {
  const [row] = await world.db.query("select state from step_run where run_id = $1", [runId]);
  return row?.["state"];
};

it("a run that can't be committed does not keep the reconciler from the others", async () => {
  await using world = await openEngineWorld({ leaseMs: 60_000 });
  const worker = await registerHandWorker(world);
  const runs: string[] = [];
  for (const name of ["broken", "sound"]) {
    const runId = await submit(world, name, [{ key: "a" }]);
    await worker.start(runId, 0);
    runs.push(runId);
  }
  const [broken = "", sound = ""] = runs;
  await world.db.query("update run set summaries = '[[1,1,1]]' where id = $1", [broken]);
  await world.db.query(
    "update step_run set lease_until = now() - interval '1 s', attempt = attempt",
  );
  await world.db.query(
    "update server_process set seen_at = now(), up_since = now() - interval '1 h'",
  );
  await world.maintenance?.runOnce();
  expect(await stateOf(world, broken)).toBe("running");
  expect(await stateOf(world, sound)).not.toBe("running");
  const attempts = await world.db.query("select outcome from attempt where run_id = $1", [sound]);
  expect(attempts).toEqual([{ outcome: "lost" }]);
});

it("a backoff whose end is told twice in one commit makes the step ready, not late", async () => {
  await using world = await openEngineWorld({ hasMaintenance: false });
  const worker = await registerHandWorker(world);
  const runId = await submit(world, "told-twice", [
    {
      key: "a",
      retry: { attemptsMax: 3, backoffMs: 1, factor: 1, backoffMaxMs: 1, jitterRatio: 0 },
    },
  ]);
  const { finishOf, send, start } = worker;
  await send(finishOf(await start(runId, 0), failed("no luck")));
  expect(await stateOf(world, runId)).toBe("retrying");
  await world.db.query("update step_run set due_at = now() - interval '1 s'");
  const ref: AttemptRef = { runId, step: 0, item: 0, attempt: 2 };
  const { commit } = world.engine.inside;
  await Promise.all([commit({ type: "due", ref }), commit({ type: "due", ref })]);
  expect(["ready", "queued"]).toContain(await stateOf(world, runId));
});

it("a running attempt that is asked to stop keeps the time at which the server ends it", async () => {
  await using world = await openEngineWorld({ hasMaintenance: false });
  const worker = await registerHandWorker(world);
  const runId = await submit(world, "asked", [{ key: "a", timeouts: { runMs: 60_000 } }]);
  await worker.start(runId, 0);
  const dueAt = async () =>
    (await world.db.query("select due_at from step_run where run_id = $1", [runId]))[0]?.["due_at"];
  const before = await dueAt();
  await world.engine.cancelRun(world.projectId, runId, "enough");
  expect(before).toBeInstanceOf(Date);
  expect(await dueAt()).toEqual(before);
});

it("rings no more bells for GPUs than there are GPUs, and one to spare", async () => {
  await using world = await openEngineWorld({ hasMaintenance: false });
  const version = await world.deploy({
    irVersion: 1,
    name: "trainings",
    params: {},
    steps: [
      {
        key: "train",
        resources: { gpu: 1 },
        map: { over: { from: "literal", value: [0, 1, 2, 3, 4, 5, 6, 7] } },
      },
    ],
  });
  await world.engine.registerWorker(world.workerTokenId, {
    protocol: 1,
    name: "one card, many slots",
    host: "localhost",
    version: "0.0.0",
    labels: {},
    slots: 8,
    devices: [{ index: 0, uuid: "GPU-0", name: "card", memoryMb: 1000 }],
    clockMs: Date.now(),
  });
  await world.submit(version);
  for (let round = 0; round < 3; round += 1) await world.engine.inside.refresh();
  const [counted] = await world.db.query(
    "select count(*)::int as n from step_run where state = 'queued'",
  );
  expect(counted?.["n"]).toBe(2);
});

it("classes that are new at the same time all get a number", async () => {
  await using world = await openEngineWorld({ hasMaintenance: false });
  const versions = await Promise.all(
    Array.from({ length: 12 }, async (_, index) =>
      deployTestPipeline(world.db, world.projectId, {
        irVersion: 1,
        name: `place-${index}`,
        params: {},
        steps: [{ key: "a", resources: { labels: { place: String(index) } } }],
      }),
    ),
  );
  const runs = await Promise.all(versions.map(async (version) => world.submit(version)));
  expect(new Set(runs).size).toBe(12);
});

it("a sweep that is cut short keeps what it has rung", async () => {
  let calls = 0;
  await using world = await openEngineWorld({
    hasMaintenance: false,
    wrapDoorbell: (inner) => ({
      depth: async (keys) => inner.depth(keys),
      close: async (deadlineMs) => inner.close(deadlineMs),
      ring: async (bells) => {
        calls += 1;
        if (calls > 1 || bells.length > 1000) throw new Error("the doorbell takes no more today");
      },
    }),
  });
  const bell = { classKey: "cpu", runId: "x", step: 0, item: 0, attempt: 1, ring: 1, priority: 0 };
  await world.db.query(
    `insert into outbox (created_at, bells)
     select now() - interval '1 h', $1::jsonb from generate_series(1, 4)`,
    [JSON.stringify(Array.from({ length: 400 }, (_, item) => ({ ...bell, item })))],
  );
  await expect(world.engine.inside.relay.sweep()).rejects.toThrow("no more today");
  const [left] = await world.db.query("select count(*)::int as n from outbox");
  expect(left?.["n"]).toBe(2);
});

it("maintenance of a second process finds the same timers and fires each once", async () => {
  await using world = await openEngineWorld({ hasMaintenance: false });
  await using other = await world.openAnother({ hasMaintenance: false });
  const runId = await submit(world, "two-timers", [{ key: "a", timeouts: { queuedMs: 1 } }]);
  const loops = [world, other].map(({ engine }) =>
    startMaintenance(engine, { logger: silentLogger }),
  );
  const { state, errors } = await world.ended(runId);
  await Promise.all(loops.map(async (loop) => loop.stop()));
  expect(state).toBe("failed");
  expect(errors).toEqual({ a: ["CPC_QUEUE_TIMEOUT"] });
});

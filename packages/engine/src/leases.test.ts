/**
 * Attempts whose worker is silent, late, doubled or gone: what the fence and the leases promise.
 */
import type { RunId } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import {
  checkAtRest,
  type EngineWorld,
  failed,
  type HandWorker,
  openEngineWorld,
  registerHandWorker,
  succeeded,
  waitUntil,
} from "@coppice/testing";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";

const LEASE_MS = 1000;
const DONE = succeeded({ done: true });
let world: EngineWorld;
let hand: HandWorker;

beforeAll(async () => {
  world = await openEngineWorld({ leaseMs: LEASE_MS, reconcileMs: 50 });
  await world.deploy({ irVersion: 1, name: "warm-up", params: {}, steps: [{ key: "a" }] });
  hand = await registerHandWorker(world);
});
afterEach(async () => {
  expect(await checkAtRest(world.db, { timeoutMs: 5000 })).toEqual([]);
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

const submit = async (name: string, steps: PipelineIrInput["steps"]): Promise<RunId> => {
  const runId = await world.submit(await world.deploy({ irVersion: 1, name, params: {}, steps }));
  await hand.beat();
  return runId;
};

/** Another attempt is due, and the worker has been seen, so that its bell can be rung. */
const isAtAttempt = async (runId: RunId, attempt: number): Promise<void> => {
  await waitUntil(
    async () => {
      await hand.beat();
      const [row] = await world.db.query(
        "select attempt from step_run where run_id = $1 and step = 0",
        [runId],
      );
      return row?.["attempt"] === attempt;
    },
    { what: `attempt ${attempt} of ${runId}` },
  );
};

describe("a start", () => {
  it("sent twice is answered the same, under another lease it is superseded", async () => {
    const runId = await submit("start-twice", [{ key: "a" }]);
    const item = await hand.queued(runId, 0);
    const first = await hand.send(item);
    expect(first.type).toBe("started");
    expect(await hand.send(item)).toEqual(first);
    const other = { ...item, lease: "01890000-0000-7000-8000-000000000000" };
    expect(await hand.send(other)).toEqual({ type: "superseded" });
    if (first.type !== "started") return;
    expect(await hand.send(hand.finishOf(first.assignment, DONE))).toEqual({ type: "accepted" });
    expect(await hand.send(item)).toEqual({ type: "superseded" });
    await world.ended(runId);
  });

  it("of a bell that found no room goes back into the line", async () => {
    const runId = await submit("no-slot", [{ key: "a" }]);
    const { type: _, ...start } = await hand.queued(runId, 0);
    expect(await hand.send({ type: "noSlot", ...start })).toEqual({ type: "accepted" });
    const again = await hand.queued(runId, 0);
    expect([again.attempt, again.ring]).toEqual([1, start.ring + 1]);
    // The older ring's complaint says nothing about this one.
    await hand.send({ type: "noSlot", ...start });
    const answer = await hand.send(again);
    if (answer.type !== "started") throw new Error(answer.type);
    await hand.send(hand.finishOf(answer.assignment, DONE));
    await world.ended(runId);
  });
});

describe("a finish", () => {
  const chain: PipelineIrInput["steps"] = [{ key: "a" }, { key: "b", after: ["a"] }];

  it("starts the next attempt in the slot it offers, and sent again says so again", async () => {
    const runId = await submit("offer", chain);
    const finish = hand.finishOf(await hand.start(runId, 0), DONE, true);
    const first = await hand.send(finish);
    if (first.type !== "accepted" || first.next === undefined) throw new Error("nothing started");
    expect([first.next.stepKey, first.next.lease]).toEqual(["b", finish.offer?.lease]);
    expect(await hand.send(finish)).toEqual(first);
    await hand.send(hand.finishOf(first.next, DONE));
    // What it started has ended meanwhile: there is nothing left to run.
    expect(await hand.send(finish)).toEqual({ type: "accepted" });
    await world.ended(runId);
  });

  it("sent twice in one exchange is answered the same twice", async () => {
    const runId = await submit("offer-twice", chain);
    const finish = hand.finishOf(await hand.start(runId, 0), DONE, true);
    const [first, second] = await world.engine.work(hand.workerId, [finish, finish]);
    expect(first).toMatchObject({ type: "accepted", next: { stepKey: "b" } });
    expect(second).toEqual(first);
    if (first?.type !== "accepted" || first.next === undefined) throw new Error("nothing started");
    await hand.send(hand.finishOf(first.next, DONE));
    await world.ended(runId);
  });

  it("without an offer leaves the next attempt to the bells", async () => {
    const runId = await submit("no-offer", chain);
    const answer = await hand.send(hand.finishOf(await hand.start(runId, 0), DONE));
    expect(answer).toEqual({ type: "accepted" });
    await hand.send(hand.finishOf(await hand.start(runId, 1), DONE));
    await world.ended(runId);
  });

  it("of an attempt given back costs nothing and keeps its checkpoint", async () => {
    const runId = await submit("released", [{ key: "a", retry: { attemptsMax: 1, lostMax: 1 } }]);
    const first = await hand.start(runId, 0);
    const sha256 = "c".repeat(64);
    const { runId: id, step, item, attempt, lease } = first;
    const ref = { runId: id, step, item, attempt, lease };
    await world.engine.stream(hand.workerId, [
      { type: "checkpoint", ...ref, sha256, sizeBytes: 1 },
    ]);
    await hand.send(hand.finishOf(first, { type: "released" }));
    const second = await hand.start(runId, 0);
    expect([second.attempt, second.checkpoint]).toEqual([2, sha256]);
    await hand.send(hand.finishOf(second, { type: "released" }));
    const third = await hand.start(runId, 0);
    await hand.send(hand.finishOf(third, DONE));
    expect((await world.ended(runId)).state).toBe("succeeded");
  });

  it("that names bytes nobody uploaded is refused and changes nothing", async () => {
    const runId = await submit("no-bytes", [{ key: "a" }]);
    const assignment = await hand.start(runId, 0);
    const artifact = {
      sha256: "d".repeat(64),
      sizeBytes: 1,
      name: "m",
      kind: "file",
      metadata: {},
    };
    const outcome = { ...DONE, artifacts: [artifact] } as typeof DONE;
    const answer = await hand.send(hand.finishOf(assignment, outcome));
    expect(answer).toMatchObject({ type: "problem", code: "CPC_ARTIFACT_NOT_FOUND" });
    await hand.send(hand.finishOf(assignment, DONE));
    await world.ended(runId);
  });
});

describe("a silent worker", () => {
  it("loses its attempt to another, and its late finish is superseded", async () => {
    const runId = await submit("lost", [{ key: "a" }]);
    const first = await hand.start(runId, 0);
    await isAtAttempt(runId, 2);
    const second = await hand.start(runId, 0);
    expect(await hand.beat(first)).toEqual([{ type: "superseded" }]);
    const madeBy = { attempt: first.attempt, lease: first.lease };
    const late = await hand.send(hand.finishOf(first, succeeded({ madeBy })));
    expect(late).toEqual({ type: "superseded" });
    const own = { attempt: second.attempt, lease: second.lease };
    await hand.send(hand.finishOf(second, succeeded({ madeBy: own })));
    const ended = await world.ended(runId);
    expect([ended.state, ended.outputs["a"]]).toEqual(["succeeded", [{ madeBy: own }]]);
  });

  it("is quarantined with its step when that step was lost too often", async () => {
    const runId = await submit("poison", [{ key: "a", retry: { attemptsMax: 9, lostMax: 2 } }]);
    await hand.start(runId, 0);
    await isAtAttempt(runId, 2);
    await hand.start(runId, 0);
    const ended = await world.ended(runId);
    expect([ended.state, ended.states["a"], ended.errors["a"]]).toEqual([
      "failed",
      ["quarantined"],
      ["CPC_QUARANTINED"],
    ]);
  });

  it("that speaks again before anybody took its place keeps its attempt", async () => {
    await using quiet = await openEngineWorld({ leaseMs: 200, hasMaintenance: false });
    const worker = await registerHandWorker(quiet);
    const version = await quiet.deploy({
      irVersion: 1,
      name: "late",
      params: {},
      steps: [{ key: "a" }],
    });
    const runId = await quiet.submit(version);
    const assignment = await worker.start(runId, 0);
    await waitUntil(
      async () =>
        (await quiet.db.query("select 1 from step_run where lease_until < clock_timestamp()"))[0],
      { what: "the lease to run out" },
    );
    expect(await worker.beat(assignment)).toEqual([{ type: "ok" }]);
    const [row] = await quiet.db.query(
      "select lease_until > clock_timestamp() as held from step_run where state = 'running'",
    );
    expect(row?.["held"]).toBe(true);
    expect(await worker.send(worker.finishOf(assignment, DONE))).toEqual({ type: "accepted" });
    expect((await quiet.ended(runId)).state).toBe("succeeded");
  });

  it("is left alone while no API process has answered without a gap", async () => {
    await using quiet = await openEngineWorld({ leaseMs: 300, hasMaintenance: false });
    const worker = await registerHandWorker(quiet);
    const version = await quiet.deploy({
      irVersion: 1,
      name: "gap",
      params: {},
      steps: [{ key: "a" }],
    });
    const runId = await quiet.submit(version);
    const assignment = await worker.start(runId, 0);
    const { startMaintenance, startStamping } = await import("./maintenance.ts");
    const { silentLogger } = await import("@coppice/core");
    // A reconciler of its own, and no API: the lease runs out and nobody may say whose fault it is.
    const maintenance = startMaintenance(quiet.engine, { logger: silentLogger, reconcileMs: 20 });
    await waitUntil(
      async () =>
        (
          await quiet.db.query(
            "select 1 from step_run where lease_until < clock_timestamp() - interval '500 ms'",
          )
        )[0],
      { what: "the lease to be long over" },
    );
    await maintenance.runOnce();
    expect((await quiet.look(runId)).states["a"]).toEqual(["running"]);
    const processId = "01890000-0000-7000-8000-000000000001";
    const stamping = startStamping(quiet.engine, "api", processId, silentLogger);
    await waitUntil(async () => (await quiet.look(runId)).states["a"]?.[0] !== "running", {
      what: "the attempt to be lost once an API has answered for a whole lease",
    });
    const [row] = await quiet.db.query(
      `select clock_timestamp() - up_since > interval '300 ms' as steady from server_process`,
    );
    expect(row?.["steady"]).toBe(true);
    expect(await worker.beat(assignment)).toEqual([{ type: "superseded" }]);
    await Promise.all([maintenance.stop(), stamping.stop()]);
  });
});

describe("timeouts", () => {
  it("end a step that waits too long for a worker", async () => {
    const labels = { zone: "nowhere" };
    const runId = await submit("queue-timeout", [
      { key: "a", resources: { labels }, timeouts: { queuedMs: 200 } },
      { key: "b", after: ["a"], rule: "all_done" },
    ]);
    await hand.send(hand.finishOf(await hand.start(runId, 1), DONE));
    const ended = await world.ended(runId);
    expect([ended.states["a"], ended.errors["a"]]).toEqual([["failed"], ["CPC_QUEUE_TIMEOUT"]]);
  });

  it("end a step that was rung and rung again without an answer", async () => {
    const runId = await submit("queue-timeout-rung", [{ key: "a", timeouts: { queuedMs: 2500 } }]);
    const ended = await waitUntil(
      async () => {
        // Seen all the time, yet deaf: its bells are rung again and again.
        await hand.beat();
        const view = await world.look(runId);
        return view.state === "running" ? undefined : view;
      },
      { what: "the queue timeout" },
    );
    expect(ended.errors["a"]).toEqual(["CPC_QUEUE_TIMEOUT"]);
  });

  it("end a whole run, its finally steps excepted", async () => {
    const pipeline = await world.deploy({
      irVersion: 1,
      name: "run-timeout",
      params: {},
      timeoutMs: 300,
      steps: [{ key: "a" }, { key: "b", after: ["a"] }, { key: "end", finally: true }],
    });
    const runId = await world.submit(pipeline);
    const running = await hand.start(runId, 0);
    await waitUntil(async () => (await hand.beat(running))[0]?.type === "cancelled", {
      what: "the worker to hear of it",
    });
    await hand.send(hand.finishOf(running, { type: "cancelled" }));
    await hand.send(hand.finishOf(await hand.start(runId, 2), DONE));
    const ended = await world.ended(runId);
    expect([ended.state, ended.errorCode]).toEqual(["failed", "CPC_RUN_TIMEOUT"]);
    expect(ended.states).toEqual({ a: ["cancelled"], b: ["cancelled"], end: ["succeeded"] });
  });
});

describe("a cancellation", () => {
  it("of a run lets nothing but finally steps start and takes no outputs any more", async () => {
    const runId = await submit("cancel-run", [
      { key: "a" },
      { key: "b" },
      { key: "c", after: ["a"] },
      { key: "end", finally: true },
    ]);
    const running = await hand.start(runId, 0);
    await hand.queued(runId, 1);
    await world.engine.cancelRun(world.projectId, runId, "enough");
    await world.engine.cancelRun(world.projectId, runId, "once more");
    expect(await hand.beat(running)).toEqual([{ type: "cancelled", reason: "cancelled" }]);
    // It ended just before it heard.
    const finish = hand.finishOf(running, succeeded({ madeBy: { attempt: 1 } }));
    expect((await hand.send(finish)).type).toBe("accepted");
    const assignment = await hand.start(runId, 3);
    await hand.send(hand.finishOf(assignment, DONE));
    const ended = await world.ended(runId);
    expect([ended.state, ended.outputs["a"]]).toEqual(["cancelled", [null]]);
    expect(ended.states).toEqual({
      a: ["cancelled"],
      b: ["cancelled"],
      c: ["cancelled"],
      end: ["succeeded"],
    });
  });

  it("of a step spares the rest of the run", async () => {
    const runId = await submit("cancel-step", [
      { key: "a" },
      { key: "b" },
      { key: "c", after: ["a"], rule: "all_done" },
      { key: "d", after: ["b"] },
    ]);
    const running = await hand.start(runId, 0);
    await world.engine.cancelStep(world.projectId, { runId, step: 0 }, "this one");
    // A step that has not come up yet, too.
    await world.engine.cancelStep(world.projectId, { runId, step: 3 }, "and this");
    expect((await hand.beat(running))[0]?.type).toBe("cancelled");
    await hand.send(hand.finishOf(running, { type: "cancelled" }));
    await hand.send(hand.finishOf(await hand.start(runId, 1), DONE));
    await hand.send(hand.finishOf(await hand.start(runId, 2), DONE));
    const ended = await world.ended(runId);
    expect(ended.states).toEqual({
      a: ["cancelled"],
      b: ["succeeded"],
      c: ["succeeded"],
      d: ["cancelled"],
    });
  });

  it("of a running attempt whose worker then dies ends it as cancelled", async () => {
    const runId = await submit("cancel-lost", [{ key: "a" }]);
    await hand.start(runId, 0);
    await world.engine.cancelRun(world.projectId, runId, "enough");
    const ended = await world.ended(runId);
    expect([ended.state, ended.states["a"]]).toEqual(["cancelled", ["cancelled"]]);
  });

  it("of a run that has ended or never was says so", async () => {
    const runId = await submit("cancel-late", [{ key: "a" }]);
    await hand.send(hand.finishOf(await hand.start(runId, 0), DONE));
    await world.ended(runId);
    await world.engine.cancelRun(world.projectId, runId, "too late");
    expect((await world.look(runId)).state).toBe("succeeded");
    const unknown = "01890000-0000-7000-8000-000000000000" as RunId;
    await expect(world.engine.cancelRun(world.projectId, unknown, "?")).rejects.toMatchObject({
      code: "CPC_RUN_NOT_FOUND",
    });
  });
});

it("a retryable failure by the user's code and a loss have budgets of their own", async () => {
  const runId = await submit("budgets", [
    { key: "a", retry: { attemptsMax: 2, lostMax: 3, backoffMs: 0 } },
  ]);
  await hand.start(runId, 0);
  await isAtAttempt(runId, 2);
  await hand.send(hand.finishOf(await hand.start(runId, 0), failed("once")));
  await hand.start(runId, 0);
  await isAtAttempt(runId, 4);
  await hand.send(hand.finishOf(await hand.start(runId, 0), DONE));
  const { rows } = {
    rows: await world.db.query("select outcome from attempt where run_id = $1 order by attempt", [
      runId,
    ]),
  };
  expect(rows.map((row) => row["outcome"])).toEqual(["lost", "failed", "lost", "succeeded"]);
  await world.ended(runId);
});

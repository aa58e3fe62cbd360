/** Submissions and batches: idempotency keys, and events that can't be carried out. */
import { createHash } from "node:crypto";
import type { JsonValue, PipelineVersionId } from "@coppice/core";
import {
  checkAtRest,
  type EngineWorld,
  openEngineWorld,
  registerHandWorker,
  succeeded,
} from "@coppice/testing";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";

let world: EngineWorld;
let version: PipelineVersionId;

beforeAll(async () => {
  world = await openEngineWorld();
  version = await world.deploy({ irVersion: 1, name: "one", params: {}, steps: [{ key: "a" }] });
  await world.startWorker(8, () => succeeded(null));
});
afterEach(async () => {
  expect(await checkAtRest(world.db, { timeoutMs: 10_000 })).toEqual([]);
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

const keyed = (key: string, body: JsonValue) => ({
  projectId: world.projectId,
  pipelineVersionId: version,
  params: body,
  idempotency: {
    key,
    requestSha256: createHash("sha256").update(JSON.stringify(body)).digest(),
    respond: (runId: string) => ({ status: 201, response: { runId } }),
  },
});

const runsWith = async (params: JsonValue): Promise<number> => {
  const [row] = await world.db.query<{ n: number }>(
    "select count(*)::int as n from run where params = $1::jsonb",
    [JSON.stringify(params)],
  );
  return row?.n ?? 0;
};

it("a request with a key sent again is answered as it was, and makes no second run", async () => {
  const first = await world.engine.submit(keyed("again", { n: 1 }));
  const second = await world.engine.submit(keyed("again", { n: 1 }));
  expect([first.isReplay, second.isReplay]).toEqual([false, true]);
  expect(second.response).toEqual({ runId: first.runId });
  expect(await runsWith({ n: 1 })).toBe(1);
});

it("another body under the same key is refused", async () => {
  await world.engine.submit(keyed("other", { n: 2 }));
  await expect(world.engine.submit(keyed("other", { n: 3 }))).rejects.toMatchObject({
    code: "CPC_IDEMPOTENCY_MISMATCH",
  });
  expect(await runsWith({ n: 3 })).toBe(0);
});

it("of many at once, through two engines, one makes the run and all get its answer", async () => {
  await using other = await world.openAnother();
  const engines = [world.engine, other.engine];
  const answers = await Promise.all(
    Array.from({ length: 40 }, async (_, index) =>
      engines[index % 2]?.submit(keyed(`many-${index % 4}`, { n: 4 + (index % 4) })),
    ),
  );
  const made = answers.filter((answer) => answer?.isReplay === false);
  expect(made).toHaveLength(4);
  const ids = new Set(made.map((answer) => answer?.runId));
  for (const answer of answers) {
    if (answer?.isReplay !== true) continue;
    expect(ids).toContain((answer.response as { runId: string }).runId);
  }
  for (const n of [4, 5, 6, 7]) expect(await runsWith({ n })).toBe(1);
});

it("one submission that can't be stored does not harm those of the same batch", async () => {
  const input = (params: JsonValue) => ({
    projectId: world.projectId,
    pipelineVersionId: version,
    params,
  });
  const results = await Promise.allSettled([
    ...Array.from({ length: 10 }, async () => world.engine.submit(input({ batch: "good" }))),
    world.engine.submit(input({ batch: "a\0b" })),
    ...Array.from({ length: 10 }, async () => world.engine.submit(input({ batch: "good" }))),
  ]);
  const refused = results.filter((result) => result.status === "rejected");
  expect(refused.map((result) => result.reason.code)).toEqual(["CPC_INVALID_INPUT"]);
  expect(await runsWith({ batch: "good" })).toBe(20);
});

it.each([
  ["an output", succeeded({ text: "a\0b" }), "CPC_OUTPUT_INVALID"],
  ["half a character", succeeded({ text: "\uD800" }), "CPC_OUTPUT_INVALID"],
  [
    "an error",
    {
      type: "failed" as const,
      isRetryable: false,
      error: { code: "CPC_STEP_FAILED", message: "a\0b" },
    },
    "CPC_OUTPUT_INVALID",
  ],
])("%s that can't be stored fails its step, once and for all", async (_, outcome, code) => {
  const steps = [{ key: "a", resources: { labels: { by: "hand" } } }];
  const pipeline = await world.deploy({ irVersion: 1, name: "unstorable", params: {}, steps });
  const labels = { by: "hand" };
  await world.startWorker(1, () => outcome, { labels });
  const ended = await world.ended(await world.submit(pipeline));
  expect([ended.state, ended.errors["a"]]).toEqual(["failed", [code]]);
});

it("log lines and metric names that can't be stored as they are stop nothing", async () => {
  // A label of its own: workers of the tests before would take the bell.
  const steps = [{ key: "a", resources: { labels: { by: "own-hand" } } }];
  const pipeline = await world.deploy({ irVersion: 1, name: "nul-log", params: {}, steps });
  const hand = await registerHandWorker(world, { by: "own-hand" });
  const runId = await world.submit(pipeline);
  const assignment = await hand.start(runId, 0);
  const { step, item, attempt, lease } = assignment;
  const ref = { runId, step, item, attempt, lease };
  const point = { key: "k\0", step: 1, value: 1, atMs: 1 };
  const answers = await world.engine.stream(hand.workerId, [
    { type: "log", ...ref, offset: 0, text: "a\0b" },
    { type: "log", ...ref, offset: 3, text: "c" },
    { type: "metric", ...ref, points: [point] },
    { type: "heartbeat", ...ref },
  ]);
  expect(answers.map((answer) => answer.type)).toEqual(["ok", "ok", "ok", "ok"]);
  await hand.send(hand.finishOf(assignment, succeeded(null)));
  await world.ended(runId);
});

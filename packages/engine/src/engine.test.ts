/** What the engine promises about one run, on real services. */
import { openEngineWorld, succeeded, waitUntil } from "@coppice/testing";
import { expect, it } from "vitest";

it("runs a diamond", async () => {
  await using world = await openEngineWorld();
  const version = await world.deploy({
    irVersion: 1, name: "diamond", params: {},
    steps: [
      { key: "a" },
      { key: "b", after: ["a"] },
      { key: "c", after: ["a"] },
      { key: "d", after: ["b", "c"] },
    ],
  });
  await world.startWorker(2, () => succeeded({ ok: true }));
  const started = performance.now();
  const { runId } = await world.engine.submit({ projectId: world.projectId, pipelineVersionId: version, params: {} });
  await waitUntil(async () => {
    const [run] = await world.db.query("select state from run where id=$1", [runId]);
    return run?.["state"] === "succeeded";
  }, { what: "the run to succeed" });
  console.log(performance.now() - started);
  expect(1).toBe(1);
});

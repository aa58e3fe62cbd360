/** An attempt that needs more slots than its bell came with: it waits, and its lease is kept meanwhile. */
import { expect, test } from "vitest";

import { projectOf, startHarness } from "../testing/harness.ts";

const bundle = projectOf(`{
  quick: () => "done",
  held: (ctx) => new Promise((resolve) => ctx.signal.addEventListener("abort", () => resolve("stopped"))),
}`);

test("beats while it waits for its slots, and runs once they are free", async () => {
  await using house = await startHarness({ bundle, slots: 2 });
  const held = house.api.add({ stepKey: "held" });
  await house.bells.ring(held.assignment);
  const wide = house.api.add({ stepKey: "quick", spec: { slots: 2 } });
  await house.bells.ring(wide.assignment);
  const beats = () =>
    house.api.stream.filter(
      (item) => item.type === "heartbeat" && item.runId === wide.assignment.runId,
    ).length;
  await house.api.until(() => beats() >= 3);
  house.api.settle(held.assignment, "cancelled");
  expect((await held.finished).outcome.type).toBe("cancelled");
  expect((await wide.finished).outcome).toMatchObject({ type: "succeeded", output: "done" });
  expect((await house.run({ stepKey: "quick" })).outcome.type).toBe("succeeded");
});

test("is answered as cancelled when it is cancelled before there was room", async () => {
  await using house = await startHarness({ bundle, slots: 2 });
  const held = house.api.add({ stepKey: "held" });
  await house.bells.ring(held.assignment);
  const wide = house.api.add({ stepKey: "quick", spec: { slots: 2 } });
  await house.bells.ring(wide.assignment);
  house.api.settle(wide.assignment, "cancelled");
  expect((await wide.finished).outcome.type).toBe("cancelled");
  house.api.settle(held.assignment, "cancelled");
  await held.finished;
});

/**
 * The invariant checker sees what happens without each safety net; with all of them it sees
 * nothing.
 */
import type { Metrics } from "@coppice/core";
import { silentMetrics } from "@coppice/core";
import type { PipelineIrInput } from "@coppice/pipeline";
import type { Doorbell } from "@coppice/queue";
import {
  checkAtRest,
  checkInvariants,
  openEngineWorld,
  registerHandWorker,
  succeeded,
  waitUntil,
} from "@coppice/testing";
import { expect, it } from "vitest";

const chain: PipelineIrInput = {
  irVersion: 1,
  name: "chain",
  params: {},
  steps: [{ key: "a" }, { key: "b", after: ["a"] }, { key: "c", after: ["b"] }],
};

const counting = (counts: Map<string, number>): Metrics => ({
  ...silentMetrics,
  count: (name, labels, by = 1) => {
    const key = [name, ...Object.values(labels ?? {})].join(" ");
    counts.set(key, (counts.get(key) ?? 0) + by);
  },
});

/** A doorbell that takes every nth bell and rings nobody. */
const losing =
  (every: number) =>
  (inner: Doorbell): Doorbell => {
    let seen = 0;
    return {
      ring: async (bells) => {
        await inner.ring(bells.filter(() => (seen += 1) % every !== 0));
      },
      depth: (keys) => inner.depth(keys),
      close: (deadlineMs) => inner.close(deadlineMs),
    };
  };

const fence = async (isFencingOff: boolean) => {
  await using world = await openEngineWorld({
    leaseMs: 300,
    reconcileMs: 50,
    controls: { isFencingOff },
  });
  const version = await world.deploy(chain);
  const hand = await registerHandWorker(world);
  const runId = await world.submit(version);
  const first = await hand.start(runId, 0);
  await waitUntil(async () => (await hand.beat(first))[0]?.type !== "ok", {
    what: "never: a beating lease is kept",
    timeoutMs: 400,
  }).catch(() => undefined);
  // Now it is silent until its lease is over and another attempt has begun.
  await waitUntil(
    async () => (await world.db.query("select 1 from attempt where outcome = 'lost'"))[0],
    { what: "the attempt to be lost" },
  );
  const second = await hand.start(runId, 0);
  const made = ({ attempt, lease }: typeof first) => succeeded({ madeBy: { attempt, lease } });
  await hand.send(hand.finishOf(first, made(first)));
  await hand.send(hand.finishOf(second, made(second)));
  return await checkInvariants(world.db, { expectAtRest: false });
};

it("without the fence an attempt that was superseded commits its output", async () => {
  expect(await fence(false)).toEqual([]);
  const violations = await fence(true);
  expect(violations.map((violation) => violation.invariant)).toContain("I3");
});

const abandon = async (isReconcilerOff: boolean) => {
  await using world = await openEngineWorld({
    leaseMs: 300,
    reconcileMs: 50,
    controls: { isReconcilerOff },
  });
  const version = await world.deploy(chain);
  await world.startWorker(1, () => new Promise(() => undefined), { heartbeatMs: 50 });
  const [doomed] = [await world.submit(version)];
  await waitUntil(async () => (await world.look(doomed)).states["a"]?.[0] === "running", {
    what: "the step to run",
  });
  const healthy = await world.startWorker(4, () => succeeded(null), { heartbeatMs: 50 });
  await world.db.query("update step_run set worker_id = $1, lease_token = gen_random_uuid()", [
    healthy.workerId,
  ]);
  return await checkAtRest(world.db, { timeoutMs: 3000 }).catch(() =>
    checkInvariants(world.db, { expectAtRest: true }),
  );
};

it("without the reconciler a run whose worker is gone never ends", async () => {
  expect(await abandon(false)).toEqual([]);
  const violations = await abandon(true);
  expect(violations.map((violation) => violation.invariant)).toContain("I1");
});

const loseBells = async (controls: { isOutboxOff: boolean; isRingAgainOff: boolean }) => {
  const counts = new Map<string, number>();
  await using world = await openEngineWorld({
    leaseMs: 500,
    reconcileMs: 50,
    controls,
    metrics: counting(counts),
    wrapDoorbell: losing(2),
  });
  const version = await world.deploy(chain);
  await world.startWorker(4, () => succeeded(null), { isOffering: false, heartbeatMs: 100 });
  for (let index = 0; index < 3; index += 1) await world.submit(version);
  const violations = await checkAtRest(world.db, { timeoutMs: 8000 }).catch(() =>
    checkInvariants(world.db, { expectAtRest: true }),
  );
  return { violations, rungAgain: counts.get("coppice_reconciled_total silent_bell") ?? 0 };
};

it("without outbox and second ring lost bells are lost for good", async () => {
  const { violations } = await loseBells({ isOutboxOff: true, isRingAgainOff: true });
  expect(violations.map((violation) => violation.invariant)).toContain("I1");
});

it("without the outbox alone the reconciler mends it, and its counter tells", async () => {
  const { violations, rungAgain } = await loseBells({ isOutboxOff: true, isRingAgainOff: false });
  expect(violations).toEqual([]);
  expect(rungAgain).toBeGreaterThan(0);
});

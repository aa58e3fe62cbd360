/**
 * Measures attempts through reused children against the stub API in this same process:
 * `node testing/measure.ts [attempts] [slots]`, after a build.
 */
import process from "node:process";

import { projectOf, startHarness } from "./harness.ts";

const count = Number(process.argv[2] ?? 4000);
const slots = Number(process.argv[3] ?? 4);
const bundle = projectOf(`{ echo: async (ctx, inputs) => ({ sum: inputs.a + inputs.b }) }`);

const inputs = {
  a: { kind: "value" as const, value: 1 },
  b: { kind: "value" as const, value: 2 },
};

const measure = async (attempts: number, lanes: number): Promise<number> => {
  await using house = await startHarness({
    bundle,
    slots,
    stub: { isStrict: false, heartbeatMs: 4000 },
  });
  const warm = Array.from({ length: lanes }, async (_, item) => await house.run({ inputs, item }));
  await Promise.all(warm);
  const entries = Array.from({ length: attempts }, (_, item) => house.api.add({ inputs, item }));
  house.api.ready.push(...entries.slice(lanes).map(({ assignment }) => assignment));
  const startedAt = performance.now();
  const first = entries.slice(0, lanes);
  await Promise.all(first.map(async ({ assignment }) => await house.bells.ring(assignment)));
  // What an offer does not take (a slot given back for fairness) is rung again.
  const pump = setInterval(() => {
    if (house.supervisor.stats().freeSlots === 0) return;
    const next = house.api.ready.shift();
    if (next !== undefined) void house.bells.ring(next);
  }, 5);
  await Promise.all(entries.map(async ({ finished }) => await finished));
  clearInterval(pump);
  const elapsedMs = performance.now() - startedAt;
  process.stdout.write(`children started: ${house.supervisor.stats().children.started}\n`);
  return elapsedMs;
};

const parallelMs = await measure(count, slots);
const chainMs = await measure(400, 1);
const rate = Math.round((count / parallelMs) * 1000);
process.stdout.write(
  `${count} attempts, ${slots} slots: ${Math.round(parallelMs)} ms, ${rate}/s\n` +
    `400 attempts one after another: ${(chainMs / 400).toFixed(2)} ms each\n`,
);

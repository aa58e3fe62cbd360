/** The project of the bench: steps that do nothing or wait, in the shapes that are measured. */
import { setTimeout as pause } from "node:timers/promises";
import { defineProject, definePipeline, defineStep } from "@coppice/sdk";
import { z } from "zod";

const nothing = defineStep({ inputs: z.object({}), run: async () => undefined });

const wait = defineStep({
  inputs: z.object({ ms: z.number() }),
  run: async (_context, { ms }) => {
    await pause(ms);
  },
});

/** One after the other. */
const chainOf = (name: string, length: number) =>
  definePipeline({
    name,
    params: z.object({}),
    steps: ({ step }) => {
      let before = step("s0", nothing, {});
      for (let index = 1; index < length; index += 1) {
        before = step(`s${index}`, nothing, { after: [before] });
      }
    },
  });

/** 1 → 10 → 1. */
const fan = definePipeline({
  name: "fan",
  params: z.object({}),
  steps: ({ step }) => {
    const first = step("a", nothing, {});
    const middle = Array.from({ length: 10 }, (_, index) =>
      step(`b${index}`, nothing, { after: [first] }),
    );
    step("c", nothing, { after: middle });
  },
});

const waits = definePipeline({
  name: "waits",
  params: z.object({ waitsMs: z.array(z.number()) }),
  steps: ({ params, step }) => {
    step("wait", wait, { map: { over: params.waitsMs }, with: ({ item }) => ({ ms: item }) });
  },
});

export default defineProject({
  name: "bench",
  pipelines: [chainOf("chain-3", 3), chainOf("chain-40", 40), fan, waits],
});

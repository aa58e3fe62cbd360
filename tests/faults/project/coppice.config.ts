/**
 * A user's project for the fault suite. Every step writes to a journal when it begins and when it
 * ends, so that executions can be counted from outside, and puts into its output by which attempt
 * that was made.
 */
import { appendFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { defineProject, definePipeline, defineStep, type StepContext } from "@coppice/sdk";
import { z } from "zod";

const retry = { attempts: 4, lost: 10, backoff: 100 } as const;
const params = z.object({ journal: z.string(), ms: z.number() });
const madeBy = z.object({ attempt: z.number() });
const output = z.object({ madeBy, value: z.number() });

const note = (ctx: StepContext, event: "begin" | "end"): void => {
  const { journal } = params.parse(ctx.params);
  const { key, item } = ctx.step;
  const line = { event, run: ctx.run.id, key, item, attempt: ctx.attempt, pid: process.pid };
  appendFileSync(journal, `${JSON.stringify(line)}\n`);
};

/** Runs between the two lines of the journal, for as long as the run's parameters say. */
const journaled = async (ctx: StepContext, value: () => number | Promise<number>) => {
  note(ctx, "begin");
  await pause(params.parse(ctx.params).ms, undefined, { signal: ctx.signal });
  const made = { madeBy: { attempt: ctx.attempt }, value: await value() };
  note(ctx, "end");
  return made;
};

const one = defineStep({ output, run: async (ctx) => journaled(ctx, () => 1) });

const add = defineStep({
  inputs: z.object({ left: output, right: output }),
  output,
  run: async (ctx, { left, right }) => journaled(ctx, () => left.value + right.value),
});

const list = defineStep({
  output: z.object({ madeBy, items: z.array(z.number()) }),
  run: async (ctx) => {
    const { madeBy: maker } = await journaled(ctx, () => 0);
    return { madeBy: maker, items: [1, 2, 3, 4, 5, 6] };
  },
});

const double = defineStep({
  inputs: z.object({ item: z.number() }),
  output,
  run: async (ctx, { item }) => journaled(ctx, () => item * 2),
});

const join = defineStep({
  inputs: z.object({ all: z.array(output) }),
  output: output.extend({ report: z.unknown() }),
  run: async (ctx, { all }) => {
    const made = await journaled(ctx, () => all.reduce((sum, each) => sum + each.value, 0));
    const report = await ctx.artifacts.put("report", `${ctx.run.id}: ${made.value}`);
    return { ...made, report };
  },
});

const TICKS = 20;

/** Counts on from its last checkpoint. */
const ticking = defineStep({
  output: output.extend({ resumedAt: z.number() }),
  run: async (ctx) => {
    note(ctx, "begin");
    const saved = await ctx.checkpoint.load();
    const resumedAt = saved === undefined ? 0 : Number(new TextDecoder().decode(saved));
    for (let tick = resumedAt; tick < TICKS; tick += 1) {
      await pause(params.parse(ctx.params).ms, undefined, { signal: ctx.signal });
      await ctx.checkpoint.save(new TextEncoder().encode(String(tick + 1)));
    }
    note(ctx, "end");
    return { madeBy: { attempt: ctx.attempt }, value: TICKS, resumedAt };
  },
});

/** Takes its whole worker down, as a runaway of native code or memory might. */
const poison = defineStep({
  run: async (ctx) => {
    note(ctx, "begin");
    process.kill(process.ppid, "SIGKILL");
    await pause(60_000);
  },
});

const short = definePipeline({
  name: "short",
  params,
  steps: ({ step }) => {
    step("only", one, { retry });
  },
});

const dag = definePipeline({
  name: "dag",
  params,
  steps: ({ step }) => {
    const a = step("a", one, { retry });
    const b = step("b", one, { after: [a], retry });
    const c = step("c", add, { with: { left: a.output, right: b.output }, retry });
    const d = step("d", add, { with: { left: a.output, right: b.output }, retry });
    step("e", add, { with: { left: c.output, right: d.output }, retry });
  },
});

const maps = definePipeline({
  name: "maps",
  params,
  steps: ({ step }) => {
    const items = step("list", list, { retry });
    const each = step("each", double, {
      map: { over: items.output.items },
      with: ({ item }) => ({ item }),
      retry,
    });
    step("join", join, { with: { all: each.output }, retry });
  },
});

const checkpoints = definePipeline({
  name: "checkpoints",
  params,
  steps: ({ step }) => {
    step("tick", ticking, { retry });
  },
});

const poisoned = definePipeline({
  name: "poisoned",
  params,
  steps: ({ step }) => {
    step("poison", poison, {
      retry: { attempts: 4, lost: 2 },
      resources: { labels: { pit: "yes" } },
    });
    step("beside", one, { retry });
  },
});

export default defineProject({
  name: "faults",
  pipelines: [short, dag, maps, checkpoints, poisoned],
});

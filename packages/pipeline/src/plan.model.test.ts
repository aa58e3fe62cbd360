/**
 * The planner against a naive oracle, over random pipelines driven to their ends.
 *
 * COPPICE_PLANNER_CASES sets how many (10,000 unless told), COPPICE_PLANNER_SEED repeats a run of it.
 */
import type { RunState, StepState } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { createOracle, type Oracle, type OracleStep } from "../testing/oracle.ts";
import {
  buildScenario,
  type Facts,
  ITEMS_MAX,
  type RandomRun,
  type Scenario,
  scenarioArbitrary,
  startRun,
} from "../testing/random-run.ts";
import { TRIGGER_RULES } from "./ir.ts";
import { encodeSummary } from "./summary.ts";

const cases = Number(process.env["COPPICE_PLANNER_CASES"] ?? 10_000);
const seed = Number(process.env["COPPICE_PLANNER_SEED"] ?? Date.now() % 2 ** 31);
const BATCHES_MAX = 2000;

/** The stored form of what the oracle knows of a step, counted item by item. */
const recount = (step: OracleStep): string => {
  const isMapped = step.spec.map !== undefined;
  const undecidedTotal = isMapped ? null : 1;
  const made = step.items.filter((state) => state !== "pending");
  const counts: Partial<Record<StepState, number>> = {};
  for (const state of made) counts[state] = (counts[state] ?? 0) + 1;
  const total = step.phase === "undecided" ? undecidedTotal : step.items.length;
  const isOpen = step.phase === "open";
  return encodeSummary({ total, isOpen, made: made.length, counts }).join();
};

const requireAgreement = (run: RandomRun, oracle: Oracle): void => {
  for (const [index, step] of oracle.steps.entries()) {
    // `expect` for each of some ten million items would take most of the time.
    const rows = run.rows[index]!.join();
    const made = step.items.filter((state) => state !== "pending").join();
    if (rows !== made) expect(rows, `items of s${index}`).toBe(made);
    const summary = encodeSummary(run.summaries()[index]!).join();
    const recounted = recount(step);
    if (summary !== recounted) expect(summary, `summary of s${index}`).toBe(recounted);
  }
};

/** What happened in the cases so far: a generator that never draws a map proves nothing about maps. */
const seen = new Set<string>();

const note = (oracle: Oracle, facts: Facts): void => {
  for (const [index, { spec, phase, items, waitsFor }] of oracle.steps.entries()) {
    if (waitsFor.length > 0 && phase === "open") seen.add(`${spec.rule} fires`);
    if (spec.when === undefined && spec.map === undefined && phase === "settled") {
      seen.add(`${spec.rule} settles ${items[0]}`);
    }
    if (spec.when !== undefined) seen.add(`condition: ${phase}`);
    const length = facts.lengths.get(index);
    if (length === undefined || phase === "undecided") continue;
    if ("error" in length) seen.add("map: no list");
    else if (phase === "settled")
      seen.add(`map: ${length.value > ITEMS_MAX ? "too long" : items[0]}`);
    else if (length.value === 0) seen.add("map: empty");
    else if (items.length < length.value) seen.add("map: cut by cancellation");
    else seen.add(spec.map?.concurrency === undefined ? "map: whole" : "map: windowed");
  }
};

const skips = "all_failed all_skipped all_success none_skipped one_done one_failed one_success";
const fails = "all_success none_failed none_failed_min_one_success one_success";
const EXPECTED = [
  ...TRIGGER_RULES.map((rule) => `${rule} fires`),
  ...`${skips} all_done_min_one_success none_failed_min_one_success`
    .split(" ")
    .map((rule) => `${rule} settles skipped`),
  ...`${fails} all_done_min_one_success`
    .split(" ")
    .map((rule) => `${rule} settles upstream_failed`),
  ...["open", "settled"].map((phase) => `condition: ${phase}`),
  ...["cut by cancellation", "empty", "no list", "skipped", "too long", "upstream_failed"].map(
    (what) => `map: ${what}`,
  ),
  "map: whole",
  "map: windowed",
];

/** Drives the run and the oracle side by side to the end. */
const compare = (scenario: Scenario): RunState => {
  const { graph, facts } = buildScenario(scenario);
  const run = startRun(graph, facts, scenario.seed, scenario.seed);
  const oracle = createOracle(graph.pipeline, facts.lengths, facts.truths);
  for (let batch = 0; batch < BATCHES_MAX; batch += 1) {
    if (batch === scenario.cancelAfter) {
      run.cancel();
      oracle.cancel();
    }
    const plan = run.plan();
    oracle.settle();
    requireAgreement(run, oracle);
    expect(plan.end ?? "running").toBe(oracle.end());
    if (plan.end !== undefined) {
      note(oracle, facts);
      return plan.end;
    }
    const changes = run.batch();
    if (changes.length === 0) throw new Error("nothing is left to move, yet the run has not ended");
    for (const { step, item, to } of changes) oracle.move(step, item, to);
  }
  throw new Error(`the run did not end within ${BATCHES_MAX} batches`);
};

/** The final summaries and state where attempts complete in the order that `orderSeed` gives. */
const finish = (scenario: Scenario, orderSeed: number): unknown => {
  const { graph, facts } = buildScenario(scenario);
  const run = startRun(graph, facts, scenario.seed, orderSeed);
  for (let batch = 0; batch < BATCHES_MAX; batch += 1) {
    const { end } = run.plan();
    if (end !== undefined)
      return { end, rows: run.rows, summaries: run.summaries().map(encodeSummary) };
    run.batch();
  }
  throw new Error(`the run did not end within ${BATCHES_MAX} batches`);
};

describe("planNext, over random pipelines", () => {
  test("agrees with the oracle on every item, every summary and the end", {
    timeout: 600_000,
  }, () => {
    const ends = new Map<RunState, number>();
    fc.assert(
      fc.property(scenarioArbitrary, (scenario) => {
        const end = compare(scenario);
        ends.set(end, (ends.get(end) ?? 0) + 1);
      }),
      { numRuns: cases, seed },
    );
    const counted = JSON.stringify(Object.fromEntries(ends));
    process.stdout.write(`planner: ${cases} cases agree, seed ${seed}, ends ${counted}\n`);
    expect([...ends.keys()].toSorted()).toEqual(["cancelled", "failed", "succeeded"]);
    expect(EXPECTED.filter((what) => !seen.has(what))).toEqual([]);
  });

  test("comes to the same whatever the order of completions", { timeout: 600_000 }, () => {
    fc.assert(
      fc.property(scenarioArbitrary, fc.nat(), (scenario, other) => {
        expect(finish(scenario, other)).toEqual(finish(scenario, other + 1));
      }),
      { numRuns: Math.ceil(cases / 4), seed },
    );
  });
});

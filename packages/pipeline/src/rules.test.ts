/** The twelve rules, case by case as Airflow documents them. */
import { describe, expect, test } from "vitest";

import { TRIGGER_RULES, type TriggerRule } from "./ir.ts";
import { acceptsFailure, decideRule, type RuleVerdict, type Tally, tallyOf } from "./rules.ts";
import { emptySummary, type StepSummary } from "./summary.ts";

/** s succeeded, f failed, u upstream_failed, k skipped, . not done yet. */
const tally = (items: string): Tally => {
  const count = (letter: string): number => items.split(letter).length - 1;
  return {
    steps: items.length,
    isClosed: !items.includes("."),
    succeeded: count("s"),
    failed: count("f"),
    upstreamFailed: count("u"),
    skipped: count("k"),
  };
};

const VERDICTS: Readonly<Record<string, RuleVerdict>> = {
  F: "fire",
  K: "skip",
  U: "upstream_failed",
  "-": "wait",
};

const COLUMNS = "ss sf su sk ff fu uu kf ku kk .. s. f. u. k.".split(" ");
const TABLE: Readonly<Record<TriggerRule, string>> = {
  //                           ss sf su sk ff fu uu kf ku kk .. s. f. u. k.
  all_success: "                F  U  U  K  U  U  U  U  U  K  -  -  U  U  -",
  all_failed: "                 K  K  K  K  F  F  F  K  K  K  -  K  -  -  K",
  all_done: "                   F  F  F  F  F  F  F  F  F  F  -  -  -  -  -",
  all_done_min_one_success: "   F  F  F  K  U  U  U  K  K  K  -  -  -  -  K",
  all_skipped: "                K  K  K  K  K  K  K  K  K  F  -  K  K  K  -",
  one_failed: "                 K  F  F  K  F  F  F  F  F  K  -  -  F  F  -",
  one_success: "                F  F  F  F  U  U  U  U  U  K  -  F  -  -  -",
  one_done: "                   F  F  F  F  F  F  K  F  K  K  -  F  F  -  -",
  none_failed: "                F  U  U  F  U  U  U  U  U  F  -  -  U  U  -",
  none_failed_min_one_success: "F  U  U  F  U  U  U  U  U  K  -  -  U  U  -",
  none_skipped: "               F  F  F  K  F  F  F  K  K  K  -  -  -  -  K",
  always: "                     F  F  F  F  F  F  F  F  F  F  F  F  F  F  F",
};

const rows = TRIGGER_RULES.flatMap((rule) => {
  const letters = TABLE[rule].trim().split(/\s+/);
  return COLUMNS.map((items, index): [TriggerRule, string, RuleVerdict] => {
    const verdict = VERDICTS[letters[index] ?? ""];
    if (verdict === undefined) throw new Error(`${rule} lacks a verdict for ${items}`);
    return [rule, items, verdict];
  });
});

describe("decideRule", () => {
  test.each(rows)("%s with upstream %s says %s", (rule, items, verdict) => {
    expect(decideRule(rule, tally(items))).toBe(verdict);
  });

  test.each(TRIGGER_RULES)("%s fires at once in a step without upstream", (rule) => {
    expect(decideRule(rule, tally(""))).toBe("fire");
  });

  test.each(TRIGGER_RULES)("%s never takes a verdict back when more items end", (rule) => {
    for (const items of COLUMNS.filter((column) => column.includes("."))) {
      const early = decideRule(rule, tally(items));
      if (early === "wait") continue;
      for (const first of "sfuk") {
        for (const second of "sfuk") {
          const late = items.replace(".", first).replace(".", second);
          expect([late, decideRule(rule, tally(late))]).toEqual([late, early]);
        }
      }
    }
  });
});

describe("acceptsFailure", () => {
  test.each(TRIGGER_RULES)("is true of %s exactly if it may fire beside a failure", (rule) => {
    const firesAfterFailure = COLUMNS.some(
      (items) => /[fu]/.test(items) && decideRule(rule, tally(items)) === "fire",
    );
    expect(acceptsFailure(rule)).toBe(firesAfterFailure);
  });
});

const map = (summary: Partial<StepSummary>): StepSummary => ({
  ...emptySummary(true),
  isOpen: true,
  ...summary,
});

describe("tallyOf", () => {
  test("a map over an empty list is one skipped item and closed", () => {
    expect(tallyOf([0], [map({ total: 0 })])).toEqual({
      steps: 1,
      isClosed: true,
      succeeded: 0,
      failed: 0,
      upstreamFailed: 0,
      skipped: 1,
    });
  });

  test("a map is not closed before its length is known or while items have no row", () => {
    expect(tallyOf([0], [emptySummary(true)]).isClosed).toBe(false);
    const half = map({ total: 2, made: 1, counts: { succeeded: 1 } });
    expect(tallyOf([0], [half])).toMatchObject({ isClosed: false, succeeded: 1 });
  });

  test("cancelled and quarantined items count as failed, pruned ones as succeeded", () => {
    const counts = { cancelled: 1, quarantined: 1, failed: 1, pruned: 1, succeeded: 1 };
    expect(tallyOf([0], [map({ total: 5, made: 5, counts })])).toMatchObject({
      isClosed: true,
      succeeded: 2,
      failed: 3,
    });
  });

  test("items of several steps are counted together, unfinished ones keep it open", () => {
    const done: StepSummary = { total: 1, isOpen: true, made: 1, counts: { succeeded: 1 } };
    const running: StepSummary = { ...done, counts: { running: 1 } };
    const skipped: StepSummary = { ...done, isOpen: false, counts: { skipped: 1 } };
    expect(tallyOf([0, 1, 2], [done, running, skipped])).toMatchObject({
      steps: 3,
      isClosed: false,
      succeeded: 1,
      skipped: 1,
    });
  });
});

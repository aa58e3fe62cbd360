/** The planner, case by case; `plan.model.test.ts` holds it against an oracle. */
import type { ErrorRecord } from "@coppice/core";
import { describe, expect, test } from "vitest";

import { compilePipeline } from "./compile.ts";
import { type Fact, ordinaryStatus, type Plan, planNext } from "./plan.ts";
import {
  cancelWaiting,
  decodeSummary,
  emptySummary,
  encodeSummary,
  isFinal,
  moveItems,
  type StepSummary,
} from "./summary.ts";
import { canMove, TRANSITIONS } from "./transitions.ts";

const over = { from: "param", path: ["list"] };
const condition = { op: "exists", value: { from: "param", path: ["x"] } };
const error: ErrorRecord = { code: "CPC_MAP_INVALID", message: "no list" };

const graphOf = (...steps: object[]) =>
  compilePipeline({ irVersion: 1, name: "demo", params: {}, steps }).graph;

interface Facts {
  readonly lengths?: Readonly<Record<number, Fact<number>>>;
  readonly truths?: Readonly<Record<number, Fact<boolean>>>;
  readonly isCancelled?: boolean;
}

const entries = <T>(record: Readonly<Record<number, T>> = {}): ReadonlyMap<number, T> =>
  new Map(Object.entries(record).map(([step, fact]) => [Number(step), fact]));

const plan = (
  graph: ReturnType<typeof graphOf>,
  summaries: readonly StepSummary[],
  facts: Facts = {},
): Plan =>
  planNext({
    graph,
    run: { state: "running", isCancelled: facts.isCancelled ?? false },
    summaries,
    mapLengths: entries(facts.lengths),
    whenTruths: entries(facts.truths),
  });

const fresh = (graph: ReturnType<typeof graphOf>): readonly StepSummary[] =>
  graph.pipeline.steps.map((step) => emptySummary(step.map !== undefined));

const one = (state: keyof StepSummary["counts"], isOpen = true): StepSummary => ({
  total: 1,
  isOpen,
  made: 1,
  counts: { [state]: 1 },
});

describe("planNext", () => {
  test("a new run makes the steps without upstream ready", () => {
    const graph = graphOf({ key: "a" }, { key: "b" }, { key: "c", after: ["a", "b"] });
    const first = plan(graph, fresh(graph));
    expect(first.make).toEqual([
      { step: 0, from: 0, to: 1 },
      { step: 1, from: 0, to: 1 },
    ]);
    expect(first.summaries).toEqual([one("ready"), one("ready"), emptySummary(false)]);
    expect(first.end).toBeUndefined();
  });

  test("a chain of consequences is settled in one call", () => {
    const graph = graphOf(
      { key: "a" },
      { key: "b", after: ["a"] },
      { key: "c", after: ["b"] },
      { key: "d", after: ["c"], rule: "all_skipped" },
      { key: "e", after: ["c"], rule: "one_failed" },
    );
    const after = plan(graph, fresh(graph).with(0, one("failed")));
    expect(after.settle).toEqual([
      { step: 1, state: "upstream_failed" },
      { step: 2, state: "upstream_failed" },
      { step: 3, state: "skipped" },
    ]);
    expect(after.make).toEqual([{ step: 4, from: 0, to: 1 }]);
  });

  test("a step whose summary did not change keeps its object, an idle plan the whole list", () => {
    const graph = graphOf({ key: "a" }, { key: "b", after: ["a"] }, { key: "c" });
    const running = [one("succeeded"), emptySummary(false), one("running")];
    const next = plan(graph, running);
    expect(next.summaries[0]).toBe(running[0]);
    expect(next.summaries[2]).toBe(running[2]);
    expect(plan(graph, next.summaries).summaries).toBe(next.summaries);
  });

  test("a condition is asked for once its rule holds; then the length; false skips", () => {
    const graph = graphOf({ key: "a" }, { key: "m", after: ["a"], when: condition, map: { over } });
    expect(plan(graph, fresh(graph)).needs).toEqual({ whens: [], lengths: [] });
    const due = fresh(graph).with(0, one("succeeded"));
    expect(plan(graph, due).needs).toEqual({ whens: [1], lengths: [] });
    const truths = { 1: { value: true } };
    expect(plan(graph, due, { truths }).needs).toEqual({ whens: [], lengths: [1] });
    expect(plan(graph, due, { truths: { 1: { value: false } } }).settle).toEqual([
      { step: 1, state: "skipped" },
    ]);
    expect(plan(graph, due, { truths: { 1: { error } } }).settle).toEqual([
      { step: 1, state: "failed", error },
    ]);
  });

  test("a map that is no list, or too long a one, fails with the reason", () => {
    const graph = graphOf({ key: "m", map: { over, itemsMax: 3 } });
    const invalid = plan(graph, fresh(graph), { lengths: { 0: { error } } });
    expect(invalid.settle).toEqual([{ step: 0, state: "failed", error }]);
    expect(invalid.end).toBe("failed");
    const long = plan(graph, fresh(graph), { lengths: { 0: { value: 4 } } });
    expect(long.settle[0]?.error).toMatchObject({
      code: "CPC_MAP_TOO_LARGE",
      message: expect.stringContaining('Step "m" takes at most 3 items. Received: 4.'),
    });
    expect(long.summaries[0]).toEqual(one("failed", false));
  });

  test("a map over an empty list is skipped for those after it", () => {
    const graph = graphOf(
      { key: "m", map: { over } },
      { key: "b", after: ["m"] },
      { key: "c", after: ["m"], rule: "none_failed" },
    );
    const next = plan(graph, fresh(graph), { lengths: { 0: { value: 0 } } });
    expect(next.summaries[0]).toEqual({ total: 0, isOpen: true, made: 0, counts: {} });
    expect(next.settle).toEqual([{ step: 1, state: "skipped" }]);
    expect(next.make).toEqual([{ step: 2, from: 0, to: 1 }]);
  });

  test("a map makes items up to its concurrency, and one for each that ends", () => {
    const graph = graphOf({ key: "m", map: { over, concurrency: 2 } });
    const first = plan(graph, fresh(graph), { lengths: { 0: { value: 5 } } });
    expect(first.make).toEqual([{ step: 0, from: 0, to: 2 }]);
    const retrying = moveItems(first.summaries[0] as StepSummary, "ready", "retrying");
    expect(plan(graph, [retrying]).make).toEqual([]);
    const ended = moveItems(retrying, "retrying", "failed");
    expect(plan(graph, [ended]).make).toEqual([{ step: 0, from: 2, to: 3 }]);
  });

  test("without a concurrency a map has at most a thousand unfinished rows", () => {
    const graph = graphOf({ key: "m", map: { over } });
    const first = plan(graph, fresh(graph), { lengths: { 0: { value: 2500 } } });
    expect(first.make).toEqual([{ step: 0, from: 0, to: 1000 }]);
    const ended = moveItems(first.summaries[0] as StepSummary, "ready", "succeeded", 700);
    expect(plan(graph, [ended]).make).toEqual([{ step: 0, from: 1000, to: 1700 }]);
  });

  test("one_success fires on a map's first success, all_success when it is closed", () => {
    const graph = graphOf(
      { key: "m", map: { over } },
      { key: "first", after: ["m"], rule: "one_success" },
      { key: "all", after: ["m"] },
    );
    const map: StepSummary = {
      total: 2,
      isOpen: true,
      made: 2,
      counts: { succeeded: 1, running: 1 },
    };
    const early = plan(graph, fresh(graph).with(0, map));
    expect(early.make.map(({ step }) => step)).toEqual([1]);
    const late = plan(graph, early.summaries.with(0, moveItems(map, "running", "succeeded")));
    expect(late.make.map(({ step }) => step)).toEqual([2]);
  });

  test("finally steps wait for all ordinary steps, also those they don't depend on", () => {
    const graph = graphOf(
      { key: "clean", finally: true },
      { key: "a" },
      { key: "report", finally: true, after: ["a"], rule: "always" },
    );
    const first = plan(graph, fresh(graph));
    expect(first.make.map(({ step }) => step)).toEqual([1]);
    const last = plan(graph, first.summaries.with(1, one("failed")));
    expect(last.make.map(({ step }) => step)).toEqual([0, 2]);
    const done = last.summaries.with(0, one("succeeded")).with(2, one("succeeded"));
    expect(plan(graph, done).end, "a report does not excuse what it reports").toBe("failed");
  });

  test("a finally step that fails fails the run", () => {
    const graph = graphOf({ key: "a" }, { key: "end", finally: true });
    expect(plan(graph, [one("succeeded"), one("failed")]).end).toBe("failed");
    expect(plan(graph, [one("succeeded"), one("succeeded")]).end).toBe("succeeded");
  });

  test("a failure is excused by a direct successor that accepts it and succeeded", () => {
    const graph = graphOf(
      { key: "a" },
      { key: "fallback", after: ["a"], rule: "one_failed" },
      { key: "next", after: ["a"], rule: "none_skipped" },
    );
    const end = (fallback: StepSummary, next: StepSummary) =>
      plan(graph, [one("failed"), fallback, next]).end;
    expect(end(one("succeeded"), one("skipped", false))).toBe("succeeded");
    expect(end(one("skipped", false), one("succeeded"))).toBe("succeeded");
    expect(end(one("skipped", false), one("skipped", false))).toBe("failed");
    expect(end(one("failed"), one("skipped", false))).toBe("failed");
  });

  test("one failed item makes its map failed", () => {
    const graph = graphOf({ key: "m", map: { over } });
    const map = { total: 3, isOpen: true, made: 3, counts: { succeeded: 2, failed: 1 } };
    expect(plan(graph, [map]).end).toBe("failed");
    expect(ordinaryStatus(graph, [map], false)).toBe("failed");
    const pruned = { ...map, counts: { succeeded: 2, pruned: 1 } };
    expect(plan(graph, [pruned]).end).toBe("succeeded");
  });

  test("a cancelled run settles what has not begun and waits for what runs", () => {
    const graph = graphOf(
      { key: "a" },
      { key: "open", map: { over, concurrency: 2 } },
      { key: "b", after: ["a"] },
      { key: "m", after: ["a"], map: { over } },
      { key: "end", finally: true },
    );
    const before = fresh(graph)
      .with(0, one("queued"))
      .with(1, {
        total: 9,
        isOpen: true,
        made: 3,
        counts: { succeeded: 1, running: 1, retrying: 1 },
      });
    const { summaries, moved } = cancelWaiting(graph, before);
    expect(moved).toEqual([
      { step: 0, from: "queued", count: 1 },
      { step: 1, from: "retrying", count: 1 },
    ]);
    const cut = plan(graph, summaries, { isCancelled: true });
    expect(cut.settle).toEqual([
      { step: 2, state: "cancelled" },
      { step: 3, state: "cancelled" },
    ]);
    expect(cut.make).toEqual([]);
    expect(cut.summaries[1]).toMatchObject({ total: 3, made: 3 });
    expect(cut.summaries[3]).toEqual(one("cancelled", false));
    const answered = cut.summaries.with(
      1,
      moveItems(cut.summaries[1] as StepSummary, "running", "cancelled"),
    );
    const last = plan(graph, answered, { isCancelled: true });
    expect(last.make).toEqual([{ step: 4, from: 0, to: 1 }]);
    const done = last.summaries.with(4, one("succeeded"));
    expect(plan(graph, done, { isCancelled: true }).end).toBe("cancelled");
  });

  test("of a run that is over it wants nothing", () => {
    const graph = graphOf({ key: "a" });
    const facts = { mapLengths: new Map(), whenTruths: new Map() };
    const run = { state: "failed", isCancelled: false } as const;
    const idle = planNext({ graph, run, summaries: fresh(graph), ...facts });
    expect(idle).toMatchObject({ make: [], settle: [], end: undefined });
  });

  test("a summary too few is an error, not a guess", () => {
    const graph = graphOf({ key: "a" }, { key: "b" });
    expect(() => plan(graph, [emptySummary(false)])).toThrow(/one summary per step/);
  });
});

describe("summaries", () => {
  test("are the same after they were encoded and decoded", () => {
    for (const summary of [
      emptySummary(true),
      emptySummary(false),
      { total: 0, isOpen: true, made: 0, counts: {} },
      { total: 9, isOpen: true, made: 4, counts: { ready: 1, running: 2, pruned: 1 } },
    ] satisfies StepSummary[]) {
      expect(decodeSummary(encodeSummary(summary))).toEqual(summary);
    }
  });

  test("moving items leaves no empty counts behind", () => {
    const moved = moveItems(one("ready"), "ready", "running");
    expect(moved).toEqual(one("running"));
    expect(Object.keys(moved.counts)).toEqual(["running"]);
  });

  test("items that are not there can't be moved", () => {
    expect(() => moveItems(one("ready"), "running", "succeeded")).toThrow(/0 to 0 items/);
    expect(() => moveItems(one("ready"), "ready", "queued", 2)).toThrow(/0 to 1 items/);
  });

  test("a step is final when closed and all its rows are", () => {
    expect(isFinal(emptySummary(true))).toBe(false);
    expect(isFinal(emptySummary(false))).toBe(false);
    expect(isFinal(one("running"))).toBe(false);
    expect(isFinal(one("pruned"))).toBe(true);
    expect(isFinal({ total: 2, isOpen: true, made: 1, counts: { succeeded: 1 } })).toBe(false);
    expect(isFinal({ total: 0, isOpen: true, made: 0, counts: {} })).toBe(true);
  });
});

describe("transitions", () => {
  test("nothing leaves a final state, and every state but pending can be reached", () => {
    const states = Object.keys(TRANSITIONS) as (keyof typeof TRANSITIONS)[];
    const reached = new Set(states.flatMap((state) => TRANSITIONS[state]));
    expect(states.filter((state) => !reached.has(state))).toEqual(["pending"]);
    expect(states.filter((state) => TRANSITIONS[state].length === 0)).toHaveLength(7);
    expect(canMove("running", "succeeded")).toBe(true);
    expect(canMove("succeeded", "ready")).toBe(false);
  });
});

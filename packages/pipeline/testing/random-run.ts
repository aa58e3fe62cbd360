/**
 * Random pipelines, and a small engine that drives one of them to its end: rows per item, summaries
 * that are moved as the real engine moves them, and the planner after every batch.
 */
import { type Rng, seededRng, type StepState } from "@coppice/core";
import {
  canMove,
  cancelWaiting,
  compilePipeline,
  decodeSummary,
  emptySummary,
  encodeSummary,
  type Fact,
  type Graph,
  isFinal,
  moveItems,
  type Plan,
  planNext,
  type StepSummary,
  TRIGGER_RULES,
} from "@coppice/pipeline";
import fc from "fast-check";

/** The limit of every map; one in twelve lists is longer. */
export const ITEMS_MAX = 6;

/** Undefined in all but this share of cases. */
const sometimes = <T>(ratio: number, value: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.oneof(
    { weight: Math.round(100 * (1 - ratio)), arbitrary: fc.constant(undefined) },
    { weight: Math.round(100 * ratio), arbitrary: value },
  );

const stepArbitrary = fc.record({
  /** Two masks of earlier steps; a step waits for those in both, so for a quarter of them. */
  mask: fc.nat(4095),
  thin: fc.nat(4095),
  rule: fc.constantFrom(...TRIGGER_RULES),
  /** Length of its list; above the limit or wrong (-1) now and then; undefined: not mapped. */
  map: sometimes(
    0.4,
    fc.record({
      length: fc.constantFrom(0, 0, 1, 2, 2, 3, 3, 4, 5, ITEMS_MAX, ITEMS_MAX + 1, -1),
      concurrency: sometimes(0.5, fc.integer({ min: 1, max: 3 })),
    }),
  ),
  when: sometimes(0.3, fc.constantFrom("true", "true", "true", "true", "false", "error")),
  isFinally: sometimes(0.15, fc.constant(true)),
});

export const scenarioArbitrary = fc.record({
  steps: fc.array(stepArbitrary, { minLength: 2, maxLength: 12, size: "max" }),
  /** After how many batches the run is cancelled. */
  cancelAfter: sometimes(0.3, fc.nat(25)),
  seed: fc.nat(),
});
export type Scenario = typeof scenarioArbitrary extends fc.Arbitrary<infer Value> ? Value : never;

export interface Facts {
  readonly lengths: ReadonlyMap<number, Fact<number>>;
  readonly truths: ReadonlyMap<number, Fact<boolean>>;
}

export const buildScenario = (scenario: Scenario): { graph: Graph; facts: Facts } => {
  const lengths = new Map<number, Fact<number>>();
  const truths = new Map<number, Fact<boolean>>();
  const steps = scenario.steps.map((step, index) => {
    if (step.map !== undefined) {
      const { length } = step.map;
      const error = { code: "CPC_MAP_INVALID", message: "not a list" } as const;
      lengths.set(index, length < 0 ? { error } : { value: length });
    }
    if (step.when === "error") {
      truths.set(index, { error: { code: "CPC_WHEN_INVALID", message: "not comparable" } });
    } else if (step.when !== undefined) truths.set(index, { value: step.when === "true" });
    const after = scenario.steps.flatMap((other, at) => {
      const isChosen = ((step.mask & step.thin) >> at) % 2 === 1;
      return at < index && isChosen && (step.isFinally === true || other.isFinally === undefined)
        ? [`s${at}`]
        : [];
    });
    return {
      key: `s${index}`,
      after,
      rule: step.rule,
      finally: step.isFinally === true,
      ...(step.map === undefined
        ? {}
        : {
            map: {
              over: { from: "param", path: ["list"] },
              itemsMax: ITEMS_MAX,
              ...(step.map.concurrency === undefined ? {} : { concurrency: step.map.concurrency }),
            },
          }),
      ...(step.when === undefined
        ? {}
        : { when: { op: "exists", value: { from: "param", path: ["condition"] } } }),
    };
  });
  const { graph } = compilePipeline({ irVersion: 1, name: "random", params: {}, steps });
  return { graph, facts: { lengths, truths } };
};

/** How the attempts of an item end, whenever that is: the same in every order of completion. */
const attemptEnds = (seed: number, step: number, item: number): readonly StepState[] => {
  const rng = seededRng(`${seed}/${step}/${item}`);
  const ends: StepState[] = [];
  while (rng.next() < 0.25 && ends.length < 3) ends.push(rng.next() < 0.5 ? "retrying" : "ready");
  const draw = rng.next();
  if (draw < 0.82) return [...ends, "succeeded"];
  if (draw < 0.92) return [...ends, "failed"];
  return [...ends, draw < 0.95 ? "quarantined" : "pruned"];
};

export interface Change {
  readonly step: number;
  readonly item: number;
  readonly from: StepState;
  readonly to: StepState;
}

export interface RandomRun {
  readonly rows: readonly StepState[][];
  readonly summaries: () => readonly StepSummary[];
  /** Plans until no fact is missing; makes and settles rows. */
  plan(): Plan;
  /** Moves some rows that are not final; the list is empty where there are none. */
  batch(): readonly Change[];
  cancel(): void;
}

export const startRun = (
  graph: Graph,
  facts: Facts,
  seed: number,
  orderSeed: number,
): RandomRun => {
  const rng: Rng = seededRng(orderSeed);
  const rows: StepState[][] = graph.pipeline.steps.map(() => []);
  const attempts = new Map<string, number>();
  let summaries: readonly StepSummary[] = graph.pipeline.steps.map((step) =>
    emptySummary(step.map !== undefined),
  );
  let isCancelled = false;
  const known = {
    lengths: new Map<number, Fact<number>>(),
    truths: new Map<number, Fact<boolean>>(),
  };

  const ask = (): Plan =>
    planNext({
      graph,
      run: { state: "running", isCancelled },
      summaries,
      mapLengths: known.lengths,
      whenTruths: known.truths,
    });

  const apply = (plan: Plan): void => {
    for (const { step, from, to } of plan.make) {
      if (rows[step]!.length !== from) throw new Error(`step ${step}: item ${from} made twice`);
      for (let item = from; item < to; item += 1) rows[step]!.push("ready");
    }
    for (const { step, state } of plan.settle) {
      if (rows[step]!.length !== 0) throw new Error(`step ${step}: settled after it had rows`);
      rows[step]!.push(state);
    }
    summaries = plan.summaries;
  };

  const requireRepeatable = (plan: Plan): void => {
    const again = ask();
    if (again.make.length > 0 || again.settle.length > 0 || again.summaries !== summaries) {
      throw new Error(`a second plan wants more: ${JSON.stringify(again)}`);
    }
    if (again.end !== plan.end) throw new Error(`the end differs: ${plan.end}, ${again.end}`);
  };

  const plan = (): Plan => {
    for (;;) {
      const next = ask();
      apply(next);
      requireRepeatable(next);
      const { whens, lengths } = next.needs;
      if (whens.length + lengths.length === 0) return next;
      if (next.end !== undefined) throw new Error("the run ended with a step that waits for facts");
      for (const step of whens) known.truths.set(step, facts.truths.get(step)!);
      for (const step of lengths) known.lengths.set(step, facts.lengths.get(step)!);
    }
  };

  const nextState = (step: number, item: number, state: StepState): StepState => {
    if (state === "ready") return rng.next() < 0.3 ? "running" : "queued";
    if (state === "queued") return rng.next() < 0.1 ? "ready" : "running";
    if (state === "retrying") return "ready";
    if (isCancelled && !graph.pipeline.steps[step]!.finally) return "cancelled";
    const key = `${step}/${item}`;
    const attempt = attempts.get(key) ?? 0;
    attempts.set(key, attempt + 1);
    return attemptEnds(seed, step, item)[attempt]!;
  };

  const batch = (): readonly Change[] => {
    const changes: Change[] = [];
    const size = 1 + Math.floor(rng.next() * 6);
    const moving = rows.flatMap((states, step) =>
      isFinal(summaries[step]!)
        ? []
        : states.flatMap((state, item) =>
            ["ready", "queued", "running", "retrying"].includes(state) ? [{ step, item }] : [],
          ),
    );
    for (let count = 0; count < size && moving.length > 0; count += 1) {
      const [chosen] = moving.splice(Math.floor(rng.next() * moving.length), 1);
      const { step, item } = chosen!;
      const from = rows[step]![item]!;
      const to = nextState(step, item, from);
      if (!canMove(from, to)) throw new Error(`${from} to ${to} is not in the table`);
      rows[step]![item] = to;
      summaries = summaries.with(step, moveItems(summaries[step]!, from, to));
      changes.push({ step, item, from, to });
    }
    if (rng.next() < 0.1) summaries = summaries.map((one) => decodeSummary(encodeSummary(one)));
    return changes;
  };

  const cancel = (): void => {
    isCancelled = true;
    const { summaries: after, moved } = cancelWaiting(graph, summaries);
    summaries = after;
    for (const { step, from, count } of moved) {
      const states = rows[step]!;
      for (let left = count; left > 0; left -= 1) states[states.indexOf(from)] = "cancelled";
      if (states.includes(from)) throw new Error(`step ${step}: ${from} was left behind`);
    }
  };

  return { rows, summaries: () => summaries, plan, batch, cancel };
};

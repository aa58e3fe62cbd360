/**
 * A second opinion on the planner: slow, obvious, written from the rules' descriptions.
 *
 * What must stay true: it shares no code with the planner. It keeps every item of every step, reads
 * the rules off the full list of upstream states, and repeats itself until nothing changes.
 */
import type { RunState, StepState } from "@coppice/core";
import type { Fact, PipelineIr, StepIr, TriggerRule } from "@coppice/pipeline";

export interface OracleStep {
  readonly spec: StepIr;
  readonly waitsFor: readonly number[];
  /** "undecided", "settled" (ended without running) or "open". */
  phase: "undecided" | "settled" | "open";
  /** Every item; those without a row are pending. Undecided mapped steps have none yet. */
  items: StepState[];
}

export interface Oracle {
  readonly steps: readonly OracleStep[];
  move(step: number, item: number, to: StepState): void;
  cancel(): void;
  /** Lets everything happen that may happen. */
  settle(): void;
  end(): RunState;
}

const FINAL = new Set<StepState>([
  "succeeded",
  "failed",
  "upstream_failed",
  "skipped",
  "cancelled",
  "quarantined",
  "pruned",
]);
const ACTIVE = new Set<StepState>(["ready", "queued", "running", "retrying"]);

/** Airflow has four final states; ours are read as one of them. */
type Word = "success" | "failed" | "upstream_failed" | "skipped" | "not done";

const wordOf = (state: StepState): Word => {
  if (state === "succeeded" || state === "pruned") return "success";
  if (state === "failed" || state === "quarantined" || state === "cancelled") return "failed";
  if (state === "upstream_failed" || state === "skipped") return state;
  return "not done";
};

type Judgement = "run" | "skipped" | "upstream_failed" | "later";

/** Each line is a sentence of Airflow's documentation and of what its scheduler does otherwise. */
const judge = (rule: TriggerRule, words: readonly Word[]): Judgement => {
  const some = (...wanted: Word[]) => words.some((word) => wanted.includes(word));
  const every = (...wanted: Word[]) => words.every((word) => wanted.includes(word));
  const areDone = !some("not done");
  const isHopeless = (verdict: boolean, otherwise: Judgement): Judgement =>
    verdict ? otherwise : "later";
  if (words.length === 0) return "run";
  switch (rule) {
    case "always":
      return "run";
    case "all_success":
      if (every("success")) return "run";
      if (some("failed", "upstream_failed")) return "upstream_failed";
      return isHopeless(areDone && some("skipped"), "skipped");
    case "all_failed":
      if (every("failed", "upstream_failed")) return "run";
      return isHopeless(some("success", "skipped"), "skipped");
    case "all_done":
      return areDone ? "run" : "later";
    case "all_done_min_one_success":
      if (areDone && some("success") && !some("skipped")) return "run";
      if (some("skipped")) return "skipped";
      return isHopeless(areDone && !some("success"), "upstream_failed");
    case "all_skipped":
      if (every("skipped")) return "run";
      return isHopeless(some("success", "failed", "upstream_failed"), "skipped");
    case "one_failed":
      if (some("failed", "upstream_failed")) return "run";
      return isHopeless(areDone, "skipped");
    case "one_success":
      if (some("success")) return "run";
      if (every("skipped")) return "skipped";
      return isHopeless(areDone, "upstream_failed");
    case "one_done":
      if (some("success", "failed")) return "run";
      return isHopeless(areDone, "skipped");
    case "none_failed":
      if (every("success", "skipped")) return "run";
      return isHopeless(some("failed", "upstream_failed"), "upstream_failed");
    case "none_failed_min_one_success":
      if (every("success", "skipped") && some("success")) return "run";
      if (every("skipped")) return "skipped";
      return isHopeless(some("failed", "upstream_failed"), "upstream_failed");
    case "none_skipped":
      if (every("success", "failed", "upstream_failed")) return "run";
      return isHopeless(some("skipped"), "skipped");
  }
};

const isStepFinal = (step: OracleStep): boolean =>
  step.phase !== "undecided" && step.items.every((state) => FINAL.has(state));

const upstreamWords = (steps: readonly OracleStep[], step: OracleStep): readonly Word[] =>
  step.waitsFor.flatMap((index): readonly Word[] => {
    const upstream = steps[index]!;
    if (upstream.phase === "undecided") return ["not done"];
    return upstream.items.length === 0 ? ["skipped"] : upstream.items.map(wordOf);
  });

const end = (step: OracleStep, state: StepState): void => {
  step.phase = "settled";
  step.items = [state];
};

/** What becomes of a step whose rule says run. */
const start = (
  step: OracleStep,
  truth: Fact<boolean> | undefined,
  length: Fact<number> | undefined,
): void => {
  if (step.spec.when !== undefined && truth !== undefined) {
    if ("error" in truth) return end(step, "failed");
    if (!truth.value) return end(step, "skipped");
  }
  if (step.spec.map === undefined) step.items = ["pending"];
  else {
    if (length === undefined || "error" in length) return end(step, "failed");
    if (length.value > step.spec.map.itemsMax) return end(step, "failed");
    step.items = Array.from({ length: length.value }, () => "pending" as const);
  }
  step.phase = "open";
};

/** @returns whether an item became ready */
const fillWindow = (step: OracleStep): boolean => {
  const window = step.spec.map?.concurrency ?? 1000;
  const active = step.items.filter((state) => ACTIVE.has(state)).length;
  const next = step.items.indexOf("pending");
  if (next < 0 || active >= window) return false;
  step.items[next] = "ready";
  return true;
};

const FAILURES: readonly StepState[] = ["failed", "upstream_failed", "quarantined", "cancelled"];
const ACCEPTING: readonly TriggerRule[] =
  "all_failed all_done all_done_min_one_success one_failed one_success one_done none_skipped always".split(
    " ",
  ) as TriggerRule[];

const judgeRun = (steps: readonly OracleStep[], isCancelled: boolean): RunState => {
  if (!steps.every(isStepFinal)) return "running";
  if (isCancelled) return "cancelled";
  const failed = (step: OracleStep) => step.items.some((state) => FAILURES.includes(state));
  const succeeded = (step: OracleStep) =>
    step.items.length > 0 && step.items.every((state) => wordOf(state) === "success");
  const isForgiven = (index: number) =>
    steps.some(
      (step) =>
        step.waitsFor.includes(index) &&
        !step.spec.finally &&
        ACCEPTING.includes(step.spec.rule) &&
        succeeded(step),
    );
  const isBad = steps.some(
    (step, index) => failed(step) && (step.spec.finally || !isForgiven(index)),
  );
  return isBad ? "failed" : "succeeded";
};

export const createOracle = (
  ir: PipelineIr,
  lengths: ReadonlyMap<number, Fact<number>>,
  truths: ReadonlyMap<number, Fact<boolean>>,
): Oracle => {
  const steps = ir.steps.map((spec): OracleStep => {
    const keys = new Set(spec.after);
    const waitsFor = ir.steps.flatMap((other, index) => (keys.has(other.key) ? [index] : []));
    return { spec, waitsFor, phase: "undecided", items: [] };
  });
  let isCancelled = false;

  const mayDecide = (step: OracleStep): boolean =>
    step.phase === "undecided" &&
    (!step.spec.finally || steps.every((other) => other.spec.finally || isStepFinal(other)));

  const decide = (step: OracleStep, index: number): boolean => {
    if (!mayDecide(step)) return false;
    const judgement = judge(step.spec.rule, upstreamWords(steps, step));
    if (judgement === "later") return false;
    if (judgement === "run") start(step, truths.get(index), lengths.get(index));
    else end(step, judgement);
    return true;
  };

  const round = (): boolean => {
    let hasChanged = false;
    for (const [index, step] of steps.entries()) {
      if (isCancelled && !step.spec.finally) continue;
      while (decide(step, index) || (step.phase === "open" && fillWindow(step))) hasChanged = true;
    }
    return hasChanged;
  };

  return {
    steps,
    move: (step, item, to) => {
      steps[step]!.items[item] = to;
    },
    cancel: () => {
      isCancelled = true;
      for (const step of steps.filter(({ spec }) => !spec.finally)) {
        if (step.phase === "undecided") end(step, "cancelled");
        step.items = step.items
          .filter((state) => state !== "pending")
          .map((state) => (ACTIVE.has(state) && state !== "running" ? "cancelled" : state));
      }
    },
    settle: () => {
      while (round());
    },
    end: () => judgeRun(steps, isCancelled),
  };
};

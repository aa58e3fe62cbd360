/**
 * A run as its events tell it: what the live tree and the watch lines are made from. Pure; events
 * may come again.
 */
import type { RunDetail, RunEvent } from "@coppice/contract";
import { FINAL_STEP_STATES, STEP_STATES, type StepState } from "@coppice/core";

export interface ItemView {
  readonly item: number;
  name: string | undefined;
  state: StepState;
  attempt: number;
  startedAtMs: number | undefined;
  endedAtMs: number | undefined;
  error: { readonly code: string; readonly message: string; readonly stack?: string } | undefined;
}

export interface StepView {
  readonly key: string;
  readonly isMapped: boolean;
  readonly isFinally: boolean;
  total: number | undefined;
  readonly items: Map<number, ItemView>;
}

export interface RunView {
  readonly id: string;
  readonly pipeline: string;
  readonly createdAtMs: number;
  state: string;
  endedAtMs: number | undefined;
  error: { readonly code: string; readonly message: string } | undefined;
  seq: number;
  readonly steps: ReadonlyMap<string, StepView>;
}

const isFinal = (state: string): boolean =>
  (FINAL_STEP_STATES as readonly string[]).includes(state);
const isRunFinal = (state: string): boolean =>
  state === "succeeded" || state === "failed" || state === "cancelled";
const isStepState = (state: string): state is StepState =>
  (STEP_STATES as readonly string[]).includes(state);

export const createRunView = (run: RunDetail): RunView => ({
  id: run.id,
  pipeline: run.pipeline,
  createdAtMs: Date.parse(run.createdAt),
  state: "running",
  endedAtMs: undefined,
  error: undefined,
  seq: 0,
  steps: new Map(
    run.steps.map(({ key, isMapped, isFinally, total }) => [
      key,
      { key, isMapped, isFinally, total: total ?? undefined, items: new Map<number, ItemView>() },
    ]),
  ),
});

const errorOf = (error: RunEvent["error"]): ItemView["error"] => {
  if (error === null) return undefined;
  const { code, message, stack } = error;
  return stack === undefined ? { code, message } : { code, message, stack };
};

const applyToItem = (step: StepView, event: RunEvent, state: StepState): void => {
  const atMs = Date.parse(event.at);
  const index = event.item ?? 0;
  const item: ItemView = step.items.get(index) ?? {
    item: index,
    name: undefined,
    state,
    attempt: 1,
    startedAtMs: undefined,
    endedAtMs: undefined,
    error: undefined,
  };
  step.items.set(index, item);
  item.name = event.name ?? item.name;
  item.state = state;
  item.attempt = event.attempt ?? item.attempt;
  if (state === "running") item.startedAtMs ??= atMs;
  item.endedAtMs = isFinal(state) ? atMs : undefined;
  item.error = errorOf(event.error) ?? (state === "succeeded" ? undefined : item.error);
};

/** @returns whether the event said something new */
export const applyEvent = (run: RunView, event: RunEvent): boolean => {
  if (event.seq <= run.seq) return false;
  run.seq = event.seq;
  if (event.step === null) {
    run.state = event.state;
    run.error = errorOf(event.error) ?? run.error;
    if (isRunFinal(event.state)) run.endedAtMs = Date.parse(event.at);
    return true;
  }
  const step = run.steps.get(event.step);
  if (step === undefined || !isStepState(event.state)) return false;
  applyToItem(step, event, event.state);
  return true;
};

export const hasEnded = (run: RunView): boolean => isRunFinal(run.state);

/** One state for all items: that of what is furthest from its end, else the worst end. */
const ORDER: readonly StepState[] = [
  "running",
  "retrying",
  "queued",
  "ready",
  "pending",
  "quarantined",
  "failed",
  "upstream_failed",
  "cancelled",
  "succeeded",
  "pruned",
  "skipped",
];
export const stateOf = (step: StepView): StepState => {
  const states = new Set([...step.items.values()].map(({ state }) => state));
  const isIncomplete = step.total !== undefined && step.items.size < step.total && states.size > 0;
  if (isIncomplete && ![...states].some((state) => !isFinal(state))) return "pending";
  return ORDER.find((state) => states.has(state)) ?? "pending";
};

export const countOf = (step: StepView, ...states: readonly StepState[]): number =>
  [...step.items.values()].filter(({ state }) => states.includes(state)).length;

/** From the first start to the last end, or to now where something still goes on. */
export const elapsedMs = (step: StepView, nowMs: number): number | undefined => {
  const items = [...step.items.values()].filter(({ startedAtMs }) => startedAtMs !== undefined);
  if (items.length === 0) return undefined;
  const start = Math.min(...items.map(({ startedAtMs }) => startedAtMs ?? nowMs));
  const end = Math.max(...items.map(({ endedAtMs }) => endedAtMs ?? nowMs));
  return Math.max(0, end - start);
};

export interface Failure {
  readonly step: StepView;
  readonly item: ItemView;
}
export const failuresOf = (run: RunView): readonly Failure[] =>
  [...run.steps.values()].flatMap((step) =>
    [...step.items.values()]
      .filter(({ state }) => state === "failed" || state === "quarantined")
      .map((item) => ({ step, item })),
  );

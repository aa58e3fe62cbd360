/** How runs look: the tree, the lines of a watch, the failures at the end. Pure: text out. */
import type { RunEvent } from "@coppice/contract";
import { formatDuration, type StepState } from "@coppice/core";

import type { Colors } from "./output.ts";
import {
  countOf,
  elapsedMs,
  failuresOf,
  hasEnded,
  type RunView,
  stateOf,
  type StepView,
} from "./run-model.ts";
import { formatStep } from "./step-address.ts";

const SYMBOLS: Readonly<Record<StepState, string>> = {
  pending: "·",
  ready: "○",
  queued: "○",
  running: "●",
  retrying: "↻",
  succeeded: "✓",
  failed: "✗",
  upstream_failed: "✗",
  skipped: "–",
  cancelled: "⊘",
  quarantined: "!",
  pruned: "–",
};

type Paint = (text: string) => string;
const paintOf = (state: string, colors: Colors): Paint => {
  if (state === "succeeded") return colors.green;
  if (state === "failed" || state === "quarantined") return colors.red;
  if (state === "running") return colors.cyan;
  if (state === "retrying" || state === "cancelled" || state === "cancelling") return colors.yellow;
  return colors.dim;
};

export const paintState = (state: string, colors: Colors): string =>
  paintOf(state, colors)(state.replaceAll("_", " "));

const symbolOf = (state: string): string => (SYMBOLS as Record<string, string>)[state] ?? "•";

const mapDetail = (step: StepView): string => {
  const total = step.total ?? step.items.size;
  const parts = [`${countOf(step, "succeeded")}/${total === 0 ? "?" : total}`];
  const running = countOf(step, "running");
  const failed = countOf(step, "failed", "quarantined");
  const retrying = countOf(step, "retrying");
  if (running > 0) parts.push(`${running} running`);
  if (retrying > 0) parts.push(`${retrying} retrying`);
  if (failed > 0) parts.push(`${failed} failed`);
  return parts.join(", ");
};

const singleDetail = (step: StepView): string => {
  const item = step.items.get(0);
  if (item === undefined) return "";
  const parts = item.attempt > 1 ? [`attempt ${item.attempt}`] : [];
  if (item.state === "retrying" && item.error !== undefined) parts.push(item.error.message);
  return parts.join("  ");
};

/** One line per step, in order. */
export const formatTree = (run: RunView, nowMs: number, colors: Colors): readonly string[] => {
  const steps = [...run.steps.values()];
  const keyWidth = Math.max(8, ...steps.map(({ key }) => key.length));
  const now = run.endedAtMs ?? nowMs;
  return steps.map((step) => {
    const state = stateOf(step);
    const paint = paintOf(state, colors);
    const elapsed = elapsedMs(step, now);
    return [
      `  ${paint(symbolOf(state))} ${step.key.padEnd(keyWidth)}`,
      paint(state.replaceAll("_", " ").padEnd(15)),
      (elapsed === undefined ? "" : formatDuration(elapsed)).padStart(7),
      step.isMapped && step.items.size > 0 ? mapDetail(step) : singleDetail(step),
    ]
      .join("  ")
      .trimEnd();
  });
};

export const formatRunHead = (run: RunView, nowMs: number, colors: Colors): string => {
  const elapsed = formatDuration(Math.max(0, (run.endedAtMs ?? nowMs) - run.createdAtMs));
  return `${colors.bold(run.pipeline)}  ${run.id}  ${paintState(run.state, colors)}  ${elapsed}`;
};

const clock = (at: string): string => new Date(Date.parse(at)).toISOString().slice(11, 19);

/** For everything that is not a terminal: one line per state change. */
export const formatEvent = (event: RunEvent, run: RunView, colors: Colors): string => {
  const what =
    event.step === null
      ? run.pipeline
      : formatStep(event.step, event.item, run.steps.get(event.step)?.isMapped === true);
  const name = event.name === null ? "" : colors.dim(` ${event.name}`);
  const attempt = (event.attempt ?? 1) > 1 ? `  attempt ${event.attempt}` : "";
  const error = event.error === null ? "" : `  ${event.error.code}: ${event.error.message}`;
  return `${clock(event.at)}  ${what}${name}  ${paintState(event.state, colors)}${attempt}${error}`;
};

export const FAILURES_SHOWN = 5;

const FRAMES_SHOWN = 3;
/** Frames in the project's own code, as paths in the project; a worker keeps it in `…/project/`. */
const framesOf = (stack: string | undefined): readonly string[] =>
  (stack ?? "")
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line.startsWith("at ") && !/node_modules\/|node:|\/supervisor\//.test(line))
    .map((line) => line.replace(/(?:file:\/\/)?\/[^()\s]*\/children\/\d+\/\d+\/project\//, ""))
    .slice(0, FRAMES_SHOWN);

/** What failed, with the user's stack, and what to type next. Empty where nothing did. */
export const formatFailures = (run: RunView, colors: Colors): readonly string[] => {
  if (!hasEnded(run) || run.state === "succeeded") return [];
  const failures = failuresOf(run);
  const lines = failures.slice(0, FAILURES_SHOWN).flatMap(({ step, item }) => {
    const place = formatStep(step.key, item.item, step.isMapped);
    const { error } = item;
    return [
      "",
      `${colors.red("✗")} ${place} ${error?.code ?? ""} ${error?.message ?? ""}`.trimEnd(),
      ...framesOf(error?.stack).map((frame) => `    ${frame}`),
      `  coppice logs ${run.id}/${place}`,
    ];
  });
  const more = failures.length - FAILURES_SHOWN;
  const own = run.error === undefined ? [] : ["", `${run.error.code}: ${run.error.message}`];
  return [...lines, ...(more > 0 ? ["", `and ${more} more`] : []), ...own];
};

/** "3m" since then. */
export const formatAge = (at: string | null, nowMs: number): string =>
  at === null ? "" : formatDuration(Math.max(0, nowMs - Date.parse(at)));

/**
 * One row of the bench: what was measured, against which target, beside which limits of the same
 * servers in the same run.
 */
import { cores, type Usage } from "./machine.ts";

export type Unit = "steps/s" | "ms" | "s" | "ratio" | "MB";

/** What the same servers do without Coppice, in the row's unit. */
export interface Limit {
  readonly name: string;
  readonly value: number;
}

export interface Figure {
  readonly what: string;
  readonly unit: Unit;
  readonly measured: number;
  readonly target: number;
  /** Whether the target is a floor; otherwise it is a ceiling. */
  readonly isFloor: boolean;
}

export interface Row extends Figure {
  readonly name: string;
  readonly limits: readonly Limit[];
  /** CPU time per step of every process, and what follows from it. */
  readonly cpu?: CpuFigures | undefined;
  /** One clause each: sizes, side figures, what was left out. */
  readonly notes: readonly string[];
  readonly loadBefore: number;
}

export interface CpuFigures {
  /** Of what the milliseconds are: a step, a run, a request. */
  readonly per: string;
  readonly ms: Readonly<Record<string, number>>;
  /** What the row would show if these processes had all cores to themselves and never waited. */
  readonly bound: number;
  readonly othersCores: number | undefined;
}

/** Ends the name of a worker whose figures hold those of its children. */
export const CHILDREN = " and children";

/** PostgreSQL's backends and a worker's children run side by side; others have one busy thread. */
const isSingleThreaded = (name: string): boolean => name !== "postgres" && !name.endsWith(CHILDREN);

export interface CpuOptions {
  readonly per: string;
  /** How many of these were done. */
  readonly count: number;
  /**
   * From the time that one takes when many are under way, and when each waits for the one before,
   * to the row's unit.
   */
  readonly bound: (side: number, row: number) => number;
}

/** @returns undefined where the machine doesn't tell what its processes used */
export const cpuFigures = (usage: Usage, options: CpuOptions): CpuFigures | undefined => {
  const { per, count, bound } = options;
  const entries = Object.entries(usage.cpuMs).map(([name, ms]) => [name, ms / count] as const);
  if (entries.length < 2) return undefined;
  const total = entries.reduce((sum, [, ms]) => sum + ms, 0);
  const threads = entries.filter(([name]) => isSingleThreaded(name)).map(([, ms]) => ms);
  return {
    per,
    ms: Object.fromEntries(entries),
    bound: bound(Math.max(...threads, total / cores), total),
    othersCores: usage.othersCores,
  };
};

/** For rows that count steps per second. */
export const cpuPerStep = (usage: Usage, steps: number): CpuFigures | undefined =>
  cpuFigures(usage, { per: "step", count: steps, bound: (sideMs) => 1000 / sideMs });

export const isMet = ({ measured, target, isFloor }: Figure): boolean =>
  isFloor ? measured >= target : measured <= target;

/** How much of the limit was reached: 1 is as good as the limit, in every unit. */
export const ratioOf = ({ measured, isFloor }: Figure, limit: Limit): number =>
  isFloor ? measured / limit.value : limit.value / measured;

export const percentile = (values: readonly number[], share: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const index = Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1);
  return sorted[Math.max(0, index)] ?? Number.NaN;
};

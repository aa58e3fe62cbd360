/**
 * One row of the bench: what was measured, against which target, beside which limits of the same
 * servers in the same run.
 */
import type { Usage } from "./machine.ts";

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
  readonly msPerStep: Readonly<Record<string, number>>;
  /** Steps per second if these processes had all cores to themselves and never waited. */
  readonly boundStepsPerSecond: number;
  readonly othersCores: number | undefined;
}

/** Programs whose work is bound to one core, however many the machine has. */
const isSingleThreaded = (name: string): boolean => name !== "postgres" && name !== "children";

export const cpuFigures = (
  usage: Usage,
  steps: number,
  cores: number,
): CpuFigures | undefined => {
  const entries = Object.entries(usage.cpuMs).map(([name, ms]) => [name, ms / steps] as const);
  if (entries.length < 2) return undefined;
  const total = entries.reduce((sum, [, ms]) => sum + ms, 0);
  const longest = Math.max(...entries.filter(([name]) => isSingleThreaded(name)).map(([, ms]) => ms));
  return {
    msPerStep: Object.fromEntries(entries),
    boundStepsPerSecond: 1000 / Math.max(longest, total / cores),
    othersCores: usage.othersCores,
  };
};

export const isMet = ({ measured, target, isFloor }: Figure): boolean =>
  isFloor ? measured >= target : measured <= target;

/** How much of the limit was reached: below 1 is slower than the limit, in every unit. */
export const ratioOf = ({ measured, unit }: Figure, limit: Limit): number =>
  unit === "steps/s" ? measured / limit.value : limit.value / measured;

export const percentile = (values: readonly number[], share: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const index = Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1);
  return sorted[Math.max(0, index)] ?? Number.NaN;
};

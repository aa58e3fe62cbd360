/**
 * The counts of the fault suite: a table on the terminal, and a file for whoever publishes them.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import type { DoorbellKind } from "@coppice/testing";

export interface FaultRow {
  readonly doorbell: DoorbellKind;
  readonly scenario: string;
  readonly seed: number;
  readonly faults: number;
  readonly runs: number;
  readonly stepRuns: number;
  /** Times that a step's code began. */
  readonly executions: number;
  /** Executions beyond the first of their step run. */
  readonly reexecutions: number;
  /** Executions that came to their end, but whose outcome was another attempt's. */
  readonly fenced: number;
  readonly lost: number;
  readonly released: number;
  /** From the last fault to the last new attempt of what was lost; null where nothing was lost. */
  readonly recoveryMs: number | null;
  /** From the last fault to the end of the last run. */
  readonly calmMs: number;
  readonly violations: number;
}

export const REPORT_FILE = fileURLToPath(
  new URL("../../node_modules/.cache/faults.json", import.meta.url),
);

const COLUMNS = [
  ["doorbell", "doorbell"],
  ["scenario", "scenario"],
  ["faults", "faults"],
  ["runs", "runs"],
  ["step runs", "stepRuns"],
  ["again", "reexecutions"],
  ["fenced", "fenced"],
  ["lost", "lost"],
  ["given back", "released"],
  ["recovery ms", "recoveryMs"],
  ["calm ms", "calmMs"],
  ["violations", "violations"],
] as const satisfies readonly (readonly [string, keyof FaultRow])[];

export const faultTable = (rows: readonly FaultRow[]): string => {
  const cells = [
    COLUMNS.map(([title]) => title),
    ...rows.map((row) => COLUMNS.map(([, key]) => String(row[key] ?? "-"))),
  ];
  const widths = COLUMNS.map((_, at) => Math.max(...cells.map((line) => (line[at] ?? "").length)));
  return cells
    .map((line) =>
      line
        .map((cell, at) => (at < 2 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
};

/** Rows of the other doorbell stay: both suites write one after the other into the same file. */
export const saveRows = async (kind: DoorbellKind, rows: readonly FaultRow[]): Promise<void> => {
  const known = await readFile(REPORT_FILE, "utf8").then(
    (text) => JSON.parse(text) as FaultRow[],
    () => [],
  );
  const kept = known.filter((row) => row.doorbell !== kind);
  await mkdir(dirname(REPORT_FILE), { recursive: true });
  await writeFile(REPORT_FILE, `${JSON.stringify([...kept, ...rows], undefined, 2)}\n`);
};

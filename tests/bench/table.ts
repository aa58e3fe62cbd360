/** Rows as text: the figure beside its target and its limits, then what the processors did. */
import { type CpuFigures, isMet, ratioOf, type Row, type Unit } from "./row.ts";

const number = (value: number): string => {
  if (!Number.isFinite(value)) return "—";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
};

const withUnit = (value: number, unit: Unit): string =>
  unit === "ratio" ? number(value) : `${number(value)} ${unit}`;

const cpuText = ({ msPerStep, boundStepsPerSecond, othersCores }: CpuFigures): string => {
  const parts = Object.entries(msPerStep).map(([name, ms]) => `${name} ${ms.toFixed(3)}`);
  const bound = `CPU alone would allow ${number(boundStepsPerSecond)} steps/s`;
  const others = othersCores === undefined ? "" : `; others used ${number(othersCores)} cores`;
  return `CPU ms/step: ${parts.join(", ")}; ${bound}${others}`;
};

export const formatRow = (row: Row): string => {
  const mark = isMet(row) ? "✓" : "✗";
  const target = `${row.isFloor ? "≥" : "≤"} ${withUnit(row.target, row.unit)}`;
  const limits = row.limits.map(
    (limit) => `${limit.name} ${withUnit(limit.value, row.unit)} (${number(ratioOf(row, limit))})`,
  );
  const lines = [
    `${mark} ${row.name.padEnd(16)} ${withUnit(row.measured, row.unit).padStart(16)}   target ${target.padEnd(16)} ${row.what}`,
    ...(limits.length === 0 ? [] : [`limits (reached): ${limits.join(" · ")}`]),
    ...(row.cpu === undefined ? [] : [cpuText(row.cpu)]),
    [...row.notes, `load before ${number(row.loadBefore)}`].join("; "),
  ];
  return lines.join("\n      ");
};

export const formatSummary = (rows: readonly Row[]): string => {
  const met = rows.filter(isMet).length;
  return `${met} of ${rows.length} targets met`;
};

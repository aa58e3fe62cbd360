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

const cpuText = ({ per, ms, bound, othersCores }: CpuFigures, unit: Unit): string => {
  const parts = Object.entries(ms).map(([name, value]) => `${name} ${value.toFixed(3)}`);
  const others = othersCores === undefined ? "" : `; others used ${number(othersCores)} cores`;
  return `CPU ms a ${per}: ${parts.join(", ")}; alone that makes ${withUnit(bound, unit)}${others}`;
};

export const formatRow = (row: Row): string => {
  const mark = isMet(row) ? "✓" : "✗";
  const target = `target ${row.isFloor ? "≥" : "≤"} ${withUnit(row.target, row.unit)}`;
  const measured = withUnit(row.measured, row.unit);
  const limits = row.limits.map(
    (limit) => `${limit.name} ${withUnit(limit.value, row.unit)} (${number(ratioOf(row, limit))})`,
  );
  const lines = [
    `${mark} ${row.name.padEnd(16)} ${measured.padStart(16)}   ${target.padEnd(18)} ${row.what}`,
    ...(limits.length === 0 ? [] : [`limits (reached): ${limits.join(" · ")}`]),
    ...(row.cpu === undefined ? [] : [cpuText(row.cpu, row.unit)]),
    [...row.notes, `load before ${number(row.loadBefore)}`].join("; "),
  ];
  return lines.join("\n      ");
};

export const formatSummary = (rows: readonly Row[]): string => {
  const met = rows.filter(isMet).length;
  return `${met} of ${rows.length} targets met`;
};

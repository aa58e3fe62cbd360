/** Finds scores inside a step's output and sets them out: one row per thing that was scored. */
import { isJsonObject, type JsonObject, type JsonValue } from "@coppice/core";

import { formatTable } from "./table.ts";

const numbersOf = (value: JsonValue | undefined): readonly [string, number | null][] =>
  isJsonObject(value)
    ? Object.entries(value).filter(
        (entry): entry is [string, number | null] =>
          typeof entry[1] === "number" || entry[1] === null,
      )
    : [];

const scoredIn = (value: JsonObject): readonly string[] =>
  Object.keys(value).filter((name) => numbersOf(value[name]).length >= 2);

/** The outermost object in which two or more entries are objects of numbers. */
const findScores = (value: JsonValue, depth: number): JsonObject | undefined => {
  if (!isJsonObject(value) || depth > 3) return undefined;
  if (scoredIn(value).length >= 2) return value;
  for (const inner of Object.values(value)) {
    const found = findScores(inner, depth + 1);
    if (found !== undefined) return found;
  }
  return undefined;
};

/** `areaUnderCurve` → `area under curve` */
const words = (name: string): string =>
  name
    .replaceAll(/([a-z])([A-Z])/g, "$1 $2")
    .toLowerCase()
    .replace("area under curve", "AUC")
    .replace("log loss", "log-loss");

const formatNumber = (value: number | null | undefined): string => {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) ? String(value) : value.toFixed(4);
};

/** What is listed comes first, in that order; the rest as it came. */
const inOrder = (names: readonly string[], wanted: readonly string[]): readonly string[] => [
  ...wanted.filter((name) => names.includes(name)),
  ...names.filter((name) => !wanted.includes(name)),
];

/** Those that were scored by the same measures as most: the others are of another kind. */
const comparable = (scores: JsonObject, names: readonly string[]): readonly string[] => {
  const shapeOf = (name: string): string =>
    numbersOf(scores[name])
      .map(([key]) => key)
      .toSorted()
      .join();
  const shapes = names.map(shapeOf);
  const count = (shape: string): number => shapes.filter((other) => other === shape).length;
  const most = shapes.toSorted((a, b) => count(b) - count(a))[0];
  return names.filter((name) => shapeOf(name) === most);
};

export interface MetricsOrder {
  readonly rows: readonly string[];
  readonly columns: readonly string[];
}

/** Empty where the output has no scores. */
export const metricsTable = (
  output: JsonValue,
  order: MetricsOrder,
  dim: (text: string) => string,
): readonly string[] => {
  const scores = findScores(output, 0);
  if (scores === undefined) return [];
  const names = inOrder(comparable(scores, scoredIn(scores)), order.rows);
  const measures = numbersOf(scores[names[0] ?? ""]).map(([key]) => key);
  const columns = inOrder(measures, order.columns);
  return formatTable({
    head: ["", ...columns.map(words)],
    rows: names.map((name) => {
      const values = new Map(numbersOf(scores[name]));
      return [words(name), ...columns.map((column) => formatNumber(values.get(column)))];
    }),
    right: columns.map((_column, index) => index + 1),
    dim,
    indent: "  ",
  });
};

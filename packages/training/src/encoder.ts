/**
 * From numbers and texts to what a network takes: standardised, clipped numbers with a flag where
 * they may be missing, and one-hot texts.
 *
 * What must stay true: everything is learnt from the training rows only and kept as JSON beside the
 * model, so that evaluation and serving do the very same; a missing number becomes 0, the mean,
 * with its flag set; an unknown text is all zeros; numbers are clipped, for a network extrapolates
 * wildly.
 */
import { CoppiceError } from "@coppice/core";
import { z } from "zod";
import type { Matrix } from "./matrix.ts";

const CATEGORY_SIZE_MAX = 10_000;

export const encoderSchema = z.strictObject({
  clip: z.number().positive(),
  numbers: z.array(
    z.strictObject({
      name: z.string(),
      mean: z.number(),
      deviation: z.number().positive(),
      /** The training rows lacked some: a flag column follows. */
      hasFlag: z.boolean(),
    }),
  ),
  categories: z.array(
    z.strictObject({ name: z.string(), values: z.array(z.string()).max(CATEGORY_SIZE_MAX) }),
  ),
});
export type Encoder = z.output<typeof encoderSchema>;

/** Columns by position for numbers (NaN: missing) and by name for texts. */
export interface RawRows {
  readonly numbers: Matrix;
  readonly texts: Readonly<Record<string, readonly string[]>>;
}

export interface EncoderOptions {
  /** Names of the columns of `numbers`, in order. */
  readonly numbers: readonly string[];
  /** How many values of each text column get a column: the most frequent ones. */
  readonly categories: Readonly<Record<string, number>>;
  /** In standard deviations. Default 3. */
  readonly clip?: number;
}

const learnNumber = (rows: RawRows, name: string, column: number): Encoder["numbers"][number] => {
  const { values, rowCount, columnCount } = rows.numbers;
  let count = 0;
  let sum = 0;
  for (let row = 0; row < rowCount; row += 1) {
    const value = values[row * columnCount + column] ?? Number.NaN;
    if (!Number.isFinite(value)) continue;
    count += 1;
    sum += value;
  }
  const mean = count === 0 ? 0 : sum / count;
  let squares = 0;
  for (let row = 0; row < rowCount; row += 1) {
    const value = values[row * columnCount + column] ?? Number.NaN;
    if (Number.isFinite(value)) squares += (value - mean) ** 2;
  }
  const deviation = Math.sqrt(squares / Math.max(1, count)) || 1;
  return { name, mean, deviation, hasFlag: count < rowCount };
};

/** By frequency, ties by value, so that the order of rows does not matter. */
const learnCategory = (values: readonly string[], size: number): string[] => {
  const counts = new Map<string, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts]
    .toSorted(([a, countA], [b, countB]) => countB - countA || (a < b ? -1 : 1))
    .slice(0, size)
    .map(([value]) => value);
};

const requireRows = (rows: RawRows, numberCount: number, categories: readonly string[]): void => {
  const { values, rowCount, columnCount } = rows.numbers;
  const lengths = categories.map((name) => rows.texts[name]?.length);
  const isWhole = columnCount === numberCount && values.length === rowCount * columnCount;
  if (isWhole && lengths.every((length) => length === rowCount)) return;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail:
      `expected ${rowCount} rows of ${numberCount} numbers and as many texts in ` +
      `${categories.join(", ")}. ` +
      `Received: ${values.length} numbers and texts: ${lengths.map((n) => n ?? "none").join(", ")}`,
  });
};

export const learnEncoder = (trainingRows: RawRows, options: EncoderOptions): Encoder => {
  const categories = Object.entries(options.categories);
  requireRows(
    trainingRows,
    options.numbers.length,
    categories.map(([name]) => name),
  );
  return {
    clip: options.clip ?? 3,
    numbers: options.numbers.map((name, column) => learnNumber(trainingRows, name, column)),
    categories: categories.map(([name, size]) => ({
      name,
      values: learnCategory(trainingRows.texts[name] ?? [], size),
    })),
  };
};

/** @throws CPC_MODEL_INVALID: for an encoder that comes from a model's metadata */
export const parseEncoder = (json: unknown): Encoder => {
  const parsed = encoderSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map((issue) => issue.message).join("; ");
  throw new CoppiceError("CPC_MODEL_INVALID", {
    detail: `the encoder does not fit: ${issues}`,
  });
};

export const encodedColumns = (encoder: Encoder): readonly string[] => [
  ...encoder.numbers.flatMap(({ name, hasFlag }) => (hasFlag ? [name, `${name} missing`] : [name])),
  ...encoder.categories.flatMap(({ name, values }) => values.map((value) => `${name}=${value}`)),
];

export const encodeRows = (encoder: Encoder, rows: RawRows): Matrix => {
  const names = encoder.categories.map(({ name }) => name);
  requireRows(rows, encoder.numbers.length, names);
  const { rowCount, columnCount: numberCount, values: numbers } = rows.numbers;
  const columnCount = encodedColumns(encoder).length;
  const values = new Float32Array(rowCount * columnCount);
  const positions = encoder.categories.map(
    (category) => new Map(category.values.map((value, index) => [value, index])),
  );
  for (let row = 0; row < rowCount; row += 1) {
    let at = row * columnCount;
    for (const [column, { mean, deviation, hasFlag }] of encoder.numbers.entries()) {
      const value = numbers[row * numberCount + column] ?? Number.NaN;
      const isMissing = !Number.isFinite(value);
      const scaled = isMissing ? 0 : (value - mean) / deviation;
      values[at] = Math.max(-encoder.clip, Math.min(encoder.clip, scaled));
      if (hasFlag) values[at + 1] = isMissing ? 1 : 0;
      at += hasFlag ? 2 : 1;
    }
    for (const [index, category] of encoder.categories.entries()) {
      const position = positions[index]?.get(rows.texts[category.name]?.[row] ?? "");
      if (position !== undefined) values[at + position] = 1;
      at += category.values.length;
    }
  }
  return { values, rowCount, columnCount };
};

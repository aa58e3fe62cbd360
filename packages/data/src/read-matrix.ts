/**
 * From a table to what a model eats: one Float32Array, row by row, or a list of texts per column.
 * What must stay true: the order is named by the caller (a scan may reorder rows, and a training on
 * another order is another training); a null is never read as 0: it is NaN, or an error.
 */
import { CoppiceError } from "@coppice/core";
import { countRows } from "./create-table.ts";
import type { Chunk, Tables } from "./open-tables.ts";
import { quoteName, quoteNames } from "./sql-text.ts";
import { packedFloats, unpackedFloats } from "./vectors.ts";

export interface Matrix {
  /** Row by row: `values[row * columnCount + column]`. */
  readonly values: Float32Array<ArrayBuffer>;
  readonly rowCount: number;
  readonly columnCount: number;
}

export interface MatrixOptions {
  readonly from: string;
  readonly columns: readonly string[];
  readonly orderBy: readonly string[];
  /** "refuse" (default): a null or NaN is CPC_DATA_INVALID. "nan": it is NaN in the matrix. */
  readonly nulls?: "refuse" | "nan";
}

const requireNumbers = (matrix: Matrix, columns: readonly string[]): void => {
  const counts = new Map<string, number>();
  for (let index = 0; index < matrix.values.length; index += 1) {
    if (Number.isFinite(matrix.values[index])) continue;
    const column = columns[index % matrix.columnCount] ?? "";
    counts.set(column, (counts.get(column) ?? 0) + 1);
  }
  if (counts.size === 0) return;
  const found = [...counts].map(([column, count]) => `${column} (${count} rows)`).join(", ");
  throw new CoppiceError("CPC_DATA_INVALID", {
    detail:
      `rule numbers: expected a finite number in every row. ` +
      `Found: null, NaN or infinite values in ${found}`,
    data: { rule: "numbers", columns: Object.fromEntries(counts) },
  });
};

/** `read` is an argument so that a test can take the slower way. */
export const readMatrix = async (
  tables: Tables,
  options: MatrixOptions,
  read: (chunk: Chunk, columnCount: number) => Float32Array | undefined = packedFloats,
): Promise<Matrix> => {
  const order = quoteNames(options.orderBy, "orderBy");
  quoteNames(options.columns, "columns");
  const columnCount = options.columns.length;
  // The packed list hides which values are null, hence the explicit NaN.
  const packed = options.columns.map((name) => `coalesce(${quoteName(name)}::float, 'nan'::float)`);
  const from = quoteName(options.from);
  const rowCount = await countRows(tables, options.from);
  const values = new Float32Array(rowCount * columnCount);
  let at = 0;
  const row = `[${packed.join(", ")}]::float[${columnCount}]`;
  const sql = `select ${row} as v from ${from} order by ${order}`;
  for await (const chunk of tables.chunks(sql)) {
    values.set(read(chunk, columnCount) ?? unpackedFloats(chunk, columnCount), at);
    at += chunk.rowCount * columnCount;
  }
  const matrix = { values, rowCount, columnCount };
  if (options.nulls !== "nan") requireNumbers(matrix, options.columns);
  return matrix;
};

/** Text columns by name; a null becomes "". */
export const readTexts = async (
  tables: Tables,
  options: {
    readonly from: string;
    readonly columns: readonly string[];
    readonly orderBy: readonly string[];
  },
): Promise<Readonly<Record<string, readonly string[]>>> => {
  const order = quoteNames(options.orderBy, "orderBy");
  quoteNames(options.columns, "columns");
  const texts = options.columns.map((name) => `coalesce(${quoteName(name)}::varchar, '')`);
  const lists: string[][] = options.columns.map(() => []);
  const sql = `select ${texts.join(", ")} from ${quoteName(options.from)} order by ${order}`;
  for await (const chunk of tables.chunks(sql)) {
    for (const [index, list] of lists.entries()) {
      for (const value of chunk.getColumnValues(index)) list.push(String(value));
    }
  }
  return Object.fromEntries(options.columns.map((name, index) => [name, lists[index] ?? []]));
};

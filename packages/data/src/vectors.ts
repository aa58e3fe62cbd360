/**
 * The one place that reads DuckDB's vectors directly. A query that packs each row into one
 * `float[n]` lets us copy whole chunks: 16 to 26 times faster than rows as objects. The field used
 * for it is not documented, so whatever does not look as expected takes the documented, slower
 * way.
 */
import type { Chunk } from "./open-tables.ts";

/** The floats of a chunk whose only column is `float[columnCount]`; undefined: not to be had so. */
export const packedFloats = (chunk: Chunk, columnCount: number): Float32Array | undefined => {
  const vector: unknown = chunk.getColumnVector(0);
  if (typeof vector !== "object" || vector === null || !("childData" in vector)) return undefined;
  const child = vector.childData;
  if (typeof child !== "object" || child === null || !("items" in child)) return undefined;
  const { items } = child;
  const length = chunk.rowCount * columnCount;
  if (!(items instanceof Float32Array) || items.length < length) return undefined;
  return items.subarray(0, length);
};

/** The same through the documented surface. */
export const unpackedFloats = (chunk: Chunk, columnCount: number): Float32Array => {
  const floats = new Float32Array(chunk.rowCount * columnCount);
  for (const [row, value] of chunk.getColumnValues(0).entries()) {
    const items: readonly unknown[] =
      typeof value === "object" && value !== null && "items" in value && Array.isArray(value.items)
        ? value.items
        : [];
    for (let column = 0; column < columnCount; column += 1) {
      const item = items[column];
      floats[row * columnCount + column] = typeof item === "number" ? item : Number.NaN;
    }
  }
  return floats;
};

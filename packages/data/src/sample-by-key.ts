/**
 * Sampling that does not depend on order, machine or version: a row is in when the sha256 of its
 * key falls under the fraction. What must stay true: a row that is in stays in when rows are added
 * or the fraction grows. (DuckDB's own `hash()` is not promised across versions.)
 */
import { CoppiceError } from "@coppice/core";
import { createTable } from "./create-table.ts";
import type { Tables } from "./open-tables.ts";
import { quoteName, quoteNames, quoteText } from "./sql-text.ts";

/** SQL of a number in [0, 1) from the key's columns. */
export const keyPositionSql = (key: readonly string[], salt: string): string => {
  quoteNames(key, "key");
  const parts = key.map((name) => `coalesce(${quoteName(name)}::varchar, '')`).join(", ");
  const digest = `sha256(concat_ws(chr(31), ${quoteText(salt)}, ${parts}))`;
  return `(('0x' || substr(${digest}, 1, 8))::bigint / 4294967296.0)`;
};

export interface SampleOptions {
  readonly from: string;
  readonly into: string;
  readonly key: readonly string[];
  /** From 0 to 1. */
  readonly fraction: number;
  /** Another salt gives another sample. */
  readonly salt?: string;
}

/** @returns the number of rows kept */
export const sampleByKey = async (tables: Tables, options: SampleOptions): Promise<number> => {
  const { fraction } = options;
  if (!(fraction >= 0 && fraction <= 1)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a fraction from 0 to 1. Received: ${String(fraction)}`,
    });
  }
  const position = keyPositionSql(options.key, options.salt ?? "");
  return createTable(
    tables,
    options.into,
    `select * from ${quoteName(options.from)} where ${position} < ${fraction}`,
  );
};

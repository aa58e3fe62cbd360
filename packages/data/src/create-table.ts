/** A table from a query, and how many rows it got: the building block of every other file here. */
import type { Tables } from "./open-tables.ts";
import { quoteName } from "./sql-text.ts";

export const countRows = async (tables: Tables, table: string): Promise<number> => {
  const [row] = await tables.rows(`select count(*)::double as n from ${quoteName(table)}`);
  return Number(row?.["n"] ?? 0);
};

/** Replaces a table of the same name. @returns the number of rows */
export const createTable = async (tables: Tables, table: string, sql: string): Promise<number> => {
  await tables.run(`create or replace table ${quoteName(table)} as ${sql}`);
  return countRows(tables, table);
};

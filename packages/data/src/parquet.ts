/**
 * Tables between steps: Parquet, as a file in the work folder or as bytes. What must stay true:
 * equal rows in equal order give equal bytes, so that an artifact store keeps them once; whoever
 * writes names the order.
 */
import { randomUUID } from "node:crypto";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CoppiceError, isCoppiceError } from "@coppice/core";
import { createTable } from "./create-table.ts";
import type { Tables } from "./open-tables.ts";
import { requireFile } from "./read-csv.ts";
import { fileSql, quoteName, quoteNames, quoteText } from "./sql-text.ts";

export interface ParquetSource {
  readonly table: string;
  /** Should decide the order completely: rows that tie may change places. */
  readonly orderBy: readonly string[];
}

export const writeParquet = async (
  tables: Tables,
  source: ParquetSource & { readonly path: string },
): Promise<void> => {
  const order = quoteNames(source.orderBy, "orderBy");
  await tables.run(
    `copy (select * from ${quoteName(source.table)} order by ${order}) ` +
      `to ${quoteText(source.path)} (format parquet, compression zstd, row_group_size 122880)`,
  );
};

/** @throws CPC_DATA_INVALID where the file is no Parquet */
export const readParquet = async (
  tables: Tables,
  options: { readonly into: string; readonly path: string },
): Promise<number> => {
  await requireFile(options.path);
  try {
    const sql = `select * from read_parquet(${fileSql(options.path)})`;
    return await createTable(tables, options.into, sql);
  } catch (error) {
    if (!isCoppiceError(error) || error.code !== "CPC_QUERY_FAILED") throw error;
    throw new CoppiceError("CPC_DATA_INVALID", {
      detail: `rule parquet: expected a Parquet file. Found: ${error.detail ?? ""}`,
      data: { rule: "parquet" },
      cause: error,
    });
  }
};

const inTemporaryFile = async <T>(tables: Tables, use: (path: string) => Promise<T>) => {
  const path = join(tables.dir, `${randomUUID()}.parquet`);
  try {
    return await use(path);
  } finally {
    await rm(path, { force: true });
  }
};

export const toParquetBytes = (tables: Tables, source: ParquetSource): Promise<Uint8Array> =>
  inTemporaryFile(tables, async (path) => {
    await writeParquet(tables, { ...source, path });
    return readFile(path);
  });

export const fromParquetBytes = (
  tables: Tables,
  options: { readonly into: string; readonly bytes: Uint8Array },
): Promise<number> =>
  inTemporaryFile(tables, async (path) => {
    await writeFile(path, options.bytes);
    return readParquet(tables, { into: options.into, path });
  });

/**
 * Tables: sources, checks, sampling, point-in-time joins, splits; the one room that knows DuckDB.
 */
export {
  checkTable,
  type CheckReport,
  requireValid,
  type TableRule,
  type Violation,
} from "./check-table.ts";
export { countRows, createTable } from "./create-table.ts";
export { type AsOfOptions, type AsOfResult, joinAsOf } from "./join-as-of.ts";
export {
  openTables,
  type Row,
  type RowValue,
  type SqlValue,
  type Tables,
  type TablesOptions,
  withTables,
} from "./open-tables.ts";
export {
  fromParquetBytes,
  type ParquetSource,
  readParquet,
  toParquetBytes,
  writeParquet,
} from "./parquet.ts";
export { type ColumnType, type CsvColumns, readCsv } from "./read-csv.ts";
export { type Matrix, type MatrixOptions, readMatrix, readTexts } from "./read-matrix.ts";
export { keyPositionSql, type SampleOptions, sampleByKey } from "./sample-by-key.ts";
export {
  type SplitOptions,
  type SplitResult,
  splitByTime,
  type TimePart,
} from "./split-by-time.ts";
export { quoteName, quoteText, timestampSql } from "./sql-text.ts";

/**
 * CSV into a typed table. What must stay true: every column is read as text and cast by name, so
 * that sniffing cannot give a column another type next month; a value that can't be cast is an
 * error that names column, count and an example, never a silent null; an empty field is null.
 */
import { access } from "node:fs/promises";
import { CoppiceError, isCoppiceError } from "@coppice/core";
import { createTable } from "./create-table.ts";
import type { Tables } from "./open-tables.ts";
import { fileSql, quoteName } from "./sql-text.ts";

const TYPES = {
  text: "varchar",
  integer: "integer",
  float: "float",
  double: "double",
  boolean: "boolean",
  date: "date",
  timestamp: "timestamp",
} as const;
export type ColumnType = keyof typeof TYPES;
export type CsvColumns = Readonly<Record<string, ColumnType>>;

/** A step names one file, which must be there; nothing else is ever looked for. */
export const requireFile = async (path: string): Promise<void> => {
  try {
    await access(path);
  } catch (cause) {
    throw new CoppiceError("CPC_INPUT_UNAVAILABLE", {
      detail: `expected a file that can be read. Received: ${path}`,
      cause,
    });
  }
};

const sourceSql = (path: string): string =>
  `read_csv(${fileSql(path)}, all_varchar=true, header=true, delim=',', quote='"', escape='"', ` +
  "comment='', skip=0, null_padding=false, ignore_errors=false)";

const requireColumns = async (tables: Tables, path: string, wanted: readonly string[]) => {
  const found = (await tables.rows(`describe select * from ${sourceSql(path)}`)).map((row) =>
    String(row["column_name"]),
  );
  const missing = wanted.filter((name) => !found.includes(name));
  if (missing.length > 0) {
    throw new CoppiceError("CPC_DATA_INVALID", {
      detail: `rule columns: expected ${wanted.join(", ")} in ${path}. Found: ${found.join(", ")}`,
      data: { rule: "columns", missing },
    });
  }
};

/** Runs only after a cast failed: which columns hold values of another type, and which values. */
const castFailures = async (tables: Tables, path: string, columns: CsvColumns) => {
  const failures: string[] = [];
  for (const [name, type] of Object.entries(columns)) {
    const column = quoteName(name);
    const [row] = await tables.rows(
      `select count(*)::double as n, any_value(${column}) as example from ${sourceSql(path)} ` +
        `where ${column} is not null and try_cast(${column} as ${TYPES[type]}) is null`,
    );
    const count = Number(row?.["n"] ?? 0);
    if (count === 0) continue;
    const example = JSON.stringify(String(row?.["example"]).slice(0, 80));
    failures.push(`${name}: expected ${type}, found ${count} other values such as ${example}`);
  }
  return failures;
};

/**
 * @param columns the columns to keep and their types; others in the file are left out
 * @returns the number of rows
 * @throws CPC_INPUT_UNAVAILABLE, CPC_DATA_INVALID
 */
export const readCsv = async (
  tables: Tables,
  options: { readonly into: string; readonly path: string; readonly columns: CsvColumns },
): Promise<number> => {
  const { into, path, columns } = options;
  await requireFile(path);
  for (const [name, type] of Object.entries(columns)) {
    if (Object.hasOwn(TYPES, type)) continue;
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected the type of ${name} to be one of ${Object.keys(TYPES).join(", ")}. ` +
        `Received: ${type}`,
    });
  }
  const casts = Object.entries(columns)
    .map(([name, type]) => `${quoteName(name)}::${TYPES[type]} as ${quoteName(name)}`)
    .join(", ");
  try {
    await requireColumns(tables, path, Object.keys(columns));
    return await createTable(tables, into, `select ${casts} from ${sourceSql(path)}`);
  } catch (error) {
    if (!isCoppiceError(error) || error.code !== "CPC_QUERY_FAILED") throw error;
    const failures = await castFailures(tables, path, columns).catch(() => []);
    const found = failures.length > 0 ? failures.join("; ") : (error.detail ?? "");
    throw new CoppiceError("CPC_DATA_INVALID", {
      detail: `rule types of ${path}: ${found}`,
      data: { rule: "types", failures },
      cause: error,
    });
  }
};

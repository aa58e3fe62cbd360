/**
 * How a name or a text becomes part of SQL. What must stay true: nothing that comes from outside
 * reaches a statement except through one of these functions or as a bound value.
 */
import { CoppiceError } from "@coppice/core";

/** Quoted always: `temp` and other everyday column names are reserved words in DuckDB. */
export const quoteName = (name: string): string => {
  if (name.length === 0 || name.length > 128 || name.includes("\0")) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected a name of 1 to 128 characters. ` +
        `Received: ${JSON.stringify(name.slice(0, 80))}`,
    });
  }
  return `"${name.replaceAll('"', '""')}"`;
};

export const quoteNames = (names: readonly string[], what: string): string => {
  if (names.length === 0) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected at least one column in ${what}. Received: none`,
    });
  }
  return names.map(quoteName).join(", ");
};

export const quoteText = (text: string): string => {
  if (text.includes("\0")) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: "expected text without a zero character. Received: one with it",
    });
  }
  return `'${text.replaceAll("'", "''")}'`;
};

/** A path that is read: DuckDB would expand `*`, `?` and `[`, which folders' names may hold. */
export const fileSql = (path: string): string => quoteText(path.replaceAll(/[*?[]/g, "[$&]"));

/** "2013-04-01" or "2013-04-01T06:00": without a zone, because the tables' times have none. */
export const timestampSql = (text: string): string => {
  if (!/^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?$/.test(text)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected a time such as 2013-04-01 or 2013-04-01T06:00. ` +
        `Received: ${JSON.stringify(text)}`,
    });
  }
  return `timestamp ${quoteText(text)}`;
};

/**
 * What a table promises, checked before anything is learnt from it. What must stay true: all rules
 * are checked and all violations reported, not only the first; each names its rule, what was
 * expected and what was found; a null passes every rule but `notNull` and `nullShare`.
 */
import { CoppiceError } from "@coppice/core";
import type { Row, Tables } from "./open-tables.ts";
import { quoteName, quoteNames, quoteText } from "./sql-text.ts";

export type TableRule =
  | { readonly rule: "rowCount"; readonly atLeast?: number; readonly atMost?: number }
  | { readonly rule: "notNull"; readonly column: string }
  | { readonly rule: "nullShare"; readonly column: string; readonly atMost: number }
  | { readonly rule: "unique"; readonly columns: readonly string[] }
  | {
      readonly rule: "range";
      readonly column: string;
      readonly atLeast?: number;
      readonly atMost?: number;
    }
  | { readonly rule: "oneOf"; readonly column: string; readonly values: readonly string[] };

export interface Violation {
  /** Such as "range(temp)". */
  readonly rule: string;
  readonly expected: string;
  readonly found: string;
}

export interface CheckReport {
  readonly table: string;
  readonly rowCount: number;
  readonly rulesChecked: number;
  readonly violations: readonly Violation[];
}

const finite = (value: number | undefined, what: string): number | undefined => {
  if (value === undefined || Number.isFinite(value)) return value;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected ${what} to be a finite number. Received: ${String(value)}`,
  });
};

/** "between 1 and 5", "at least 1", "at most 5" */
const boundsText = (atLeast: number | undefined, atMost: number | undefined): string => {
  if (atLeast !== undefined && atMost !== undefined) return `between ${atLeast} and ${atMost}`;
  if (atLeast !== undefined) return `at least ${atLeast}`;
  if (atMost !== undefined) return `at most ${atMost}`;
  return "any number";
};

interface Compiled {
  readonly name: string;
  readonly expected: string;
  /** How bad it is: 0 means that the rule holds. */
  readonly measure: string;
  /** Text that stands under `found`. */
  readonly found: string;
}

const compileRange = (rule: Extract<TableRule, { rule: "range" }>): Compiled => {
  const column = quoteName(rule.column);
  const atLeast = finite(rule.atLeast, "atLeast");
  const atMost = finite(rule.atMost, "atMost");
  const number = `${column}::double`;
  const wrong = [
    `not isfinite(${number})`,
    ...(atLeast === undefined ? [] : [`${number} < ${atLeast}`]),
    ...(atMost === undefined ? [] : [`${number} > ${atMost}`]),
  ].join(" or ");
  return {
    name: `range(${rule.column})`,
    expected: boundsText(atLeast, atMost),
    measure: `count(*) filter (where ${wrong})`,
    found:
      `(count(*) filter (where ${wrong})) || ' rows outside, from ' || ` +
      `min(${number}) || ' to ' || max(${number})`,
  };
};

const compileRowCount = (rule: Extract<TableRule, { rule: "rowCount" }>): Compiled => {
  const atLeast = finite(rule.atLeast, "atLeast") ?? 0;
  const atMost = finite(rule.atMost, "atMost");
  const upper = atMost === undefined ? "" : ` or count(*) > ${atMost}`;
  return {
    name: "rowCount",
    expected: `${boundsText(atLeast, atMost)} rows`,
    measure: `(count(*) < ${atLeast}${upper})::int`,
    found: "count(*) || ' rows'",
  };
};

const compileNulls = (rule: Extract<TableRule, { rule: "notNull" | "nullShare" }>): Compiled => {
  const isNull = `${quoteName(rule.column)} is null`;
  if (rule.rule === "notNull") {
    const measure = `count(*) filter (where ${isNull})`;
    const name = `notNull(${rule.column})`;
    return { name, expected: "no null", measure, found: `(${measure}) || ' nulls'` };
  }
  const atMost = finite(rule.atMost, "atMost") ?? 0;
  const share = `coalesce(avg((${isNull})::int), 0)`;
  return {
    name: `nullShare(${rule.column})`,
    expected: `at most ${atMost}`,
    measure: `(${share} > ${atMost})::int`,
    found: `round(${share}, 4)::varchar`,
  };
};

const compileUnique = (rule: Extract<TableRule, { rule: "unique" }>): Compiled => {
  const measure = `count(*) - count(distinct row(${quoteNames(rule.columns, "unique")}))`;
  return {
    name: `unique(${rule.columns.join(", ")})`,
    expected: "every row once",
    measure,
    found: `(${measure}) || ' rows more than distinct values'`,
  };
};

const compileOneOf = (rule: Extract<TableRule, { rule: "oneOf" }>): Compiled => {
  const column = quoteName(rule.column);
  const list = rule.values.map(quoteText).join(", ");
  const wrong = list === "" ? `${column} is not null` : `${column}::varchar not in (${list})`;
  const example = `any_value(${column}::varchar) filter (where ${wrong})`;
  const measure = `count(*) filter (where ${wrong})`;
  return {
    name: `oneOf(${rule.column})`,
    expected: `one of ${rule.values.join(", ")}`,
    measure,
    found: `(${measure}) || ' other values such as ' || ${example}`,
  };
};

const compile = (rule: TableRule): Compiled => {
  if (rule.rule === "rowCount") return compileRowCount(rule);
  if (rule.rule === "range") return compileRange(rule);
  if (rule.rule === "unique") return compileUnique(rule);
  if (rule.rule === "oneOf") return compileOneOf(rule);
  return compileNulls(rule);
};

const toViolation = (rule: Compiled, row: Row, index: number): Violation | undefined =>
  Number(row[`m${index}`]) > 0
    ? { rule: rule.name, expected: rule.expected, found: String(row[`f${index}`]) }
    : undefined;

export const checkTable = async (
  tables: Tables,
  table: string,
  rules: readonly TableRule[],
): Promise<CheckReport> => {
  const compiled = rules.map(compile);
  const columns = compiled.map(
    (rule, index) => `(${rule.measure})::double as m${index}, (${rule.found}) as f${index}`,
  );
  const sql = ["count(*)::double as n", ...columns].join(", ");
  const [row = {}] = await tables.rows(`select ${sql} from ${quoteName(table)}`);
  return {
    table,
    rowCount: Number(row["n"] ?? 0),
    rulesChecked: rules.length,
    violations: compiled
      .map((rule, index) => toViolation(rule, row, index))
      .filter((violation) => violation !== undefined),
  };
};

/** @throws CPC_DATA_INVALID that names every broken rule */
export const requireValid = (report: CheckReport): CheckReport => {
  if (report.violations.length === 0) return report;
  const lines = report.violations.map(
    ({ rule, expected, found }) => `rule ${rule}: expected ${expected}. Found: ${found}`,
  );
  throw new CoppiceError("CPC_DATA_INVALID", {
    detail: `table ${report.table}: ${lines.join("; ")}`,
    data: {
      table: report.table,
      rowCount: report.rowCount,
      violations: report.violations.map((violation) => ({ ...violation })),
    },
  });
};

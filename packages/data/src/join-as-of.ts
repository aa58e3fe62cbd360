/**
 * The point-in-time join: each left row meets the last right row at or before its time. What must
 * stay true: no right row from the future; the left rows keep their number; two right rows of the
 * same key and time are reduced to one by a total order *before* the join, because ASOF would take
 * either.
 */
import { CoppiceError } from "@coppice/core";
import { countRows, createTable } from "./create-table.ts";
import type { Tables } from "./open-tables.ts";
import { quoteName, quoteNames } from "./sql-text.ts";

export interface AsOfOptions {
  readonly into: string;
  readonly left: { readonly table: string; readonly at: string };
  readonly right: {
    readonly table: string;
    readonly at: string;
    /** Columns taken over from the right table. */
    readonly columns: readonly string[];
  };
  /** Columns of both tables that must be equal. */
  readonly by: readonly string[];
  /** An older right row is no answer: its columns become null. */
  readonly maxAgeMs?: number;
}

export interface AsOfResult {
  readonly rowCount: number;
  /** Left rows that met no right row. */
  readonly unmatched: number;
  /** Right rows left out because another had the same key and time. */
  readonly tiesRemoved: number;
}

const requireNoClash = async (tables: Tables, options: AsOfOptions): Promise<void> => {
  const left = await tables.rows(`describe ${quoteName(options.left.table)}`);
  const names = new Set(left.map((row) => String(row["column_name"])));
  const clash = options.right.columns.filter((name) => names.has(name));
  if (clash.length > 0) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected right columns that the left table lacks. Received: ${clash.join(", ")}`,
    });
  }
};

export const joinAsOf = async (tables: Tables, options: AsOfOptions): Promise<AsOfResult> => {
  const { left, right, by } = options;
  const keys = quoteNames(by, "by");
  const at = quoteName(right.at);
  await requireNoClash(tables, options);
  const columns = right.columns.map(quoteName);
  const order = [...columns.map((column) => `${column} nulls last`), "1"].join(", ");
  const unique = await createTable(
    tables,
    "coppice_asof_right",
    `select ${keys}, ${at} as coppice_at, ${columns.join(", ")} from ${quoteName(right.table)} ` +
      `where ${at} is not null ` +
      `qualify row_number() over (partition by ${keys}, ${at} order by ${order}) = 1`,
  );
  const [present] = await tables.rows(
    `select count(${at})::double as n from ${quoteName(right.table)}`,
  );
  const leftAt = `l.${quoteName(left.at)}`;
  const on = by.map((key) => `l.${quoteName(key)} = r.${quoteName(key)}`).join(" and ");
  const isFresh =
    options.maxAgeMs === undefined
      ? "r.coppice_at is not null"
      : `epoch_ms(${leftAt}) - epoch_ms(r.coppice_at) <= ${Math.floor(options.maxAgeMs)}`;
  const taken = columns.map((name) => `case when ${isFresh} then r.${name} end as ${name}`);
  try {
    await createTable(
      tables,
      "coppice_asof",
      `select l.*, ${[...taken, `coalesce(${isFresh}, false) as coppice_met`].join(", ")} ` +
        `from ${quoteName(left.table)} l asof left join coppice_asof_right r ` +
        `on ${on} and ${leftAt} >= r.coppice_at`,
    );
    const [met] = await tables.rows(
      "select count(*) filter (where not coppice_met)::double as n from coppice_asof",
    );
    const rowCount = await createTable(
      tables,
      options.into,
      "select * exclude (coppice_met) from coppice_asof",
    );
    const before = left.table === options.into ? rowCount : await countRows(tables, left.table);
    if (before !== rowCount) {
      throw new CoppiceError("CPC_INTERNAL", {
        detail: `expected the join to keep ${before} rows. Received: ${rowCount}`,
      });
    }
    const tiesRemoved = Number(present?.["n"] ?? 0) - unique;
    return { rowCount, unmatched: Number(met?.["n"] ?? 0), tiesRemoved };
  } finally {
    await tables.run("drop table if exists coppice_asof; drop table if exists coppice_asof_right");
  }
};

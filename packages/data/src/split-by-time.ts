/**
 * Which part of the data a row belongs to, by its time. What must stay true: parts do not overlap;
 * where labels come late, a row belongs to its part only if its label was known when the part
 * closed: a model that is trained on 1 June must not have seen what was learnt on 2 June.
 */
import { CoppiceError } from "@coppice/core";
import { createTable } from "./create-table.ts";
import type { Tables } from "./open-tables.ts";
import { quoteName, quoteText, timestampSql } from "./sql-text.ts";

export interface TimePart {
  readonly name: string;
  /** Included. */
  readonly from: string;
  /** Not included. */
  readonly to: string;
  /** When the part's labels are read; default: its end. */
  readonly labelsReadAt?: string;
}

export interface SplitOptions {
  readonly from: string;
  readonly into: string;
  readonly at: string;
  /** Column that says when the row's label was known; without it every row counts. */
  readonly knownAt?: string;
  readonly parts: readonly TimePart[];
}

export interface SplitResult {
  readonly rowCounts: Readonly<Record<string, number>>;
  /** Rows inside a part's time whose label was known too late. */
  readonly labelsTooLate: number;
  /** Rows outside every part. They stay in the table, for features look back at them. */
  readonly outside: number;
}

const requireParts = (parts: readonly TimePart[]): void => {
  const sorted = parts.toSorted((a, b) => (a.from < b.from ? -1 : 1));
  for (const [index, part] of sorted.entries()) {
    const next = sorted[index + 1];
    if (part.from < part.to && (next === undefined || part.to <= next.from)) continue;
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected parts that end after they begin and do not overlap. ` +
        `Received: ${part.name} from ${part.from} to ${part.to}`,
    });
  }
  if (new Set(parts.map((part) => part.name)).size !== parts.length || parts.length === 0) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected at least one part, each with its own name. ` +
        `Received: ${parts.map((part) => part.name).join(", ")}`,
    });
  }
};

/** Adds a text column `part`: the part's name, or null. */
export const splitByTime = async (tables: Tables, options: SplitOptions): Promise<SplitResult> => {
  requireParts(options.parts);
  const at = quoteName(options.at);
  const within = (part: TimePart): string =>
    `${at} >= ${timestampSql(part.from)} and ${at} < ${timestampSql(part.to)}`;
  const isKnown = (part: TimePart): string =>
    options.knownAt === undefined
      ? "true"
      : `${quoteName(options.knownAt)} <= ${timestampSql(part.labelsReadAt ?? part.to)}`;
  const cases = options.parts
    .map((part) => `when ${within(part)} and ${isKnown(part)} then ${quoteText(part.name)}`)
    .join(" ");
  const inside = options.parts.map((part) => `(${within(part)})`).join(" or ");
  await createTable(
    tables,
    options.into,
    `select *, case ${cases} end as part from ${quoteName(options.from)}`,
  );
  const counted = await tables.rows(
    `select part, coalesce(${inside}, false) as inside, count(*)::double as n ` +
      `from ${quoteName(options.into)} group by all`,
  );
  const count = (name: string | null, isInside: boolean): number =>
    counted
      .filter((row) => row["part"] === name && row["inside"] === isInside)
      .reduce((sum, row) => sum + Number(row["n"]), 0);
  return {
    rowCounts: Object.fromEntries(options.parts.map(({ name }) => [name, count(name, true)])),
    labelsTooLate: count(null, true),
    outside: count(null, false),
  };
};

/** The monthly feature tables of one part of the split, as rows for the encoder and labels. */
import {
  createTable,
  quoteText,
  readMatrix,
  readParquet,
  readTexts,
  withTables,
} from "@coppice/data";
import type { ArtifactRef, StepContext } from "@coppice/sdk";
import type { RawRows } from "@coppice/training";
import { CATEGORIES, NUMBERS } from "./steps/features.ts";

export interface FlightRows extends RawRows {
  /** 1: fifteen minutes late or more. */
  readonly labels: Float32Array;
}

const ORDER = ["scheduled_at", "carrier", "flight"];

export const readFlightRows = async <const Part extends "train" | "tune" | "test">(
  ctx: StepContext,
  months: readonly ArtifactRef[],
  parts: readonly Part[],
): Promise<Readonly<Record<Part, FlightRows>>> => {
  const paths = await Promise.all(months.map((ref) => ctx.artifacts.file(ref)));
  return withTables({ dir: ctx.dir, signal: ctx.signal }, async (tables) => {
    for (const [index, path] of paths.entries()) {
      await readParquet(tables, { into: `month_${index}`, path });
    }
    const all = paths.map((_, index) => `select * from month_${index}`).join(" union all ");
    const read = async (part: string): Promise<FlightRows> => {
      await createTable(tables, part, `select * from (${all}) where part = ${quoteText(part)}`);
      const options = { from: part, orderBy: ORDER };
      const labels = await readMatrix(tables, { ...options, columns: ["late"] });
      return {
        numbers: await readMatrix(tables, { ...options, columns: NUMBERS, nulls: "nan" }),
        texts: await readTexts(tables, { ...options, columns: Object.keys(CATEGORIES) }),
        labels: labels.values,
      };
    };
    const rows: [string, FlightRows][] = [];
    for (const part of parts) rows.push([part, await read(part)]);
    return Object.fromEntries(rows) as Readonly<Record<Part, FlightRows>>;
  });
};

/**
 * Gives each flight the last weather observed before it was due, and its part of the split.
 *
 * By time, because that is how the model will be used: learn from the past, judge the future. A
 * flight counts in a part only if it had landed when the part closed. Flights before April belong
 * to no part but stay in the table: April's flights look back at them.
 */
import {
  createTable,
  joinAsOf,
  readParquet,
  splitByTime,
  toParquetBytes,
  withTables,
} from "@coppice/data";
import { artifactSchema, defineStep } from "@coppice/sdk";
import { z } from "zod";

const PARTS = [
  { name: "train", from: "2013-04-01", to: "2013-06-01" },
  { name: "tune", from: "2013-06-01", to: "2013-06-15" },
  // Judged once, two days after its end, when the last flight has landed.
  { name: "test", from: "2013-06-15", to: "2013-08-01", labelsReadAt: "2013-08-03" },
];
const HISTORY_FROM = "2013-03-01";
const HISTORY_TO = "2013-08-01";
const HOUR_MS = 3_600_000;

export const join = defineStep({
  description: "Joins the last weather known before each flight and splits by time",
  inputs: z.object({ flights: artifactSchema, weather: artifactSchema }),
  output: z.object({
    table: artifactSchema,
    months: z.array(z.string()),
    rowCounts: z.record(z.string(), z.number()),
    labelsTooLate: z.number(),
    withoutWeather: z.number(),
  }),
  run: async (ctx, inputs) => {
    const flights = await ctx.artifacts.file(inputs.flights);
    const weather = await ctx.artifacts.file(inputs.weather);
    return withTables({ dir: ctx.dir, signal: ctx.signal }, async (tables) => {
      await readParquet(tables, { into: "all_flights", path: flights });
      await readParquet(tables, { into: "weather", path: weather });
      await createTable(
        tables,
        "flights",
        `select * from all_flights
         where scheduled_at >= timestamp '${HISTORY_FROM}'
           and scheduled_at < timestamp '${HISTORY_TO}'`,
      );
      const joined = await joinAsOf(tables, {
        into: "joined",
        left: { table: "flights", at: "scheduled_at" },
        right: {
          table: "weather",
          at: "observed_at",
          columns: ["temp", "dewp", "wind_speed", "precip", "pressure", "visib"],
        },
        by: ["origin"],
        maxAgeMs: 6 * HOUR_MS,
      });
      const split = await splitByTime(tables, {
        from: "joined",
        into: "split",
        at: "scheduled_at",
        knownAt: "known_at",
        parts: PARTS,
      });
      const months = await tables.rows(
        `select distinct strftime(scheduled_at, '%Y-%m') as month from split
         where part is not null order by month`,
      );
      const bytes = await toParquetBytes(tables, {
        table: "split",
        orderBy: ["scheduled_at", "carrier", "flight"],
      });
      ctx.log.info("joined", { ...split.rowCounts, withoutWeather: joined.unmatched });
      return {
        table: await ctx.artifacts.put("joined.parquet", bytes, { kind: "table" }),
        months: months.map((row) => String(row["month"])),
        rowCounts: { ...split.rowCounts },
        labelsTooLate: split.labelsTooLate,
        withoutWeather: joined.unmatched,
      };
    });
  },
});

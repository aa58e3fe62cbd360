/**
 * Drops what has no label, samples, and says of each flight when its label was known.
 *
 * The data has no landing times. We take an hour on the ground plus 420 mph in the air, later than
 * any timetable would have it, plus the delay: a label is never used before it was known, at the
 * price of being used a little late.
 */
import {
  countRows,
  createTable,
  readParquet,
  sampleByKey,
  toParquetBytes,
  withTables,
} from "@coppice/data";
import { artifactSchema, defineStep } from "@coppice/sdk";
import { z } from "zod";

/** What an airline itself calls late. */
const LATE_MINUTES = 15;

export const prepare = defineStep({
  description: "Drops cancelled flights, samples, adds the label and when it was known",
  inputs: z.object({ flights: artifactSchema, sample: z.number().min(0.01).max(1) }),
  output: z.object({ flights: artifactSchema, kept: z.number(), dropped: z.number() }),
  run: async (ctx, inputs) => {
    const path = await ctx.artifacts.file(inputs.flights);
    return withTables({ dir: ctx.dir, signal: ctx.signal }, async (tables) => {
      await readParquet(tables, { into: "flights", path });
      await createTable(tables, "landed", "select * from flights where arr_delay is not null");
      await sampleByKey(tables, {
        from: "landed",
        into: "sample",
        key: ["scheduled_at", "carrier", "flight"],
        fraction: inputs.sample,
      });
      const kept = await createTable(
        tables,
        "prepared",
        `select *, (arr_delay >= ${LATE_MINUTES})::integer as late,
           scheduled_at
             + to_minutes((60 + distance / 7 + greatest(arr_delay, 0))::integer) as known_at
         from sample`,
      );
      const dropped = (await countRows(tables, "flights")) - kept;
      const bytes = await toParquetBytes(tables, {
        table: "prepared",
        orderBy: ["scheduled_at", "carrier", "flight"],
      });
      ctx.log.info("prepared", { kept, dropped });
      return {
        flights: await ctx.artifacts.put("prepared.parquet", bytes, { kind: "table" }),
        kept,
        dropped,
      };
    });
  },
});

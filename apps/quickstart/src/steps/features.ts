/**
 * What is known of each flight of one month at the minute it was due: the flight itself, the
 * weather, and how late the flights were that had landed by then.
 *
 * Only the past: a flight counts in another's features once its label was known, whatever part of
 * the split it belongs to. The model learns how to read recent lateness, not what happened.
 */
import { createTable, readParquet, type Tables, toParquetBytes, withTables } from "@coppice/data";
import { artifactSchema, defineStep } from "@coppice/sdk";
import { z } from "zod";

/** Columns of numbers that the models take, in this order. */
export const NUMBERS = [
  "hour",
  "hour_squared",
  "hour_sin",
  "hour_cos",
  "distance_log",
  "temp",
  "dewp",
  "dew_spread",
  "wind_speed",
  "precip_log",
  "pressure",
  "visib",
  "late_origin_3h",
  "late_all_3h",
  "late_all_24h",
  "late_carrier_14d",
  "delay_all_3h",
] as const;
/** Columns of texts, and how many of their values count. */
export const CATEGORIES = { carrier: 12, origin: 3, weekday: 7, dest: 20 } as const;

/** Few flights say little: a share of late ones is drawn towards one in four. */
const lateShare = (late: string, count: string, weight: number): string =>
  `ln((coalesce(${late}, 0) + ${weight} * 0.25) /
      (coalesce(${count}, 0) - coalesce(${late}, 0) + ${weight} * 0.75))`;

const recentlyLanded = `
  select f.scheduled_at, f.carrier, f.flight,
    count(*) as day_count, sum(p.late) as day_late,
    count(*) filter (where p.known_at > f.scheduled_at - interval 3 hour) as all_count,
    sum(p.late) filter (where p.known_at > f.scheduled_at - interval 3 hour) as all_late,
    count(*) filter (where p.known_at > f.scheduled_at - interval 3 hour and p.origin = f.origin)
      as origin_count,
    sum(p.late) filter (where p.known_at > f.scheduled_at - interval 3 hour and p.origin = f.origin)
      as origin_late,
    avg(greatest(-30, least(120, p.arr_delay)))
      filter (where p.known_at > f.scheduled_at - interval 3 hour) as delay_all_3h
  from month f join joined p
    on p.known_at <= f.scheduled_at and p.known_at > f.scheduled_at - interval 24 hour
  group by all`;

const carrierLately = `
  select f.scheduled_at, f.carrier, f.flight, count(*) as count, sum(p.late) as late
  from month f join joined p on p.carrier = f.carrier
    and p.known_at <= f.scheduled_at and p.known_at > f.scheduled_at - interval 14 day
  group by all`;

const buildFeatures = async (tables: Tables, month: string): Promise<number> => {
  await tables.run(
    `create table month as select * from joined
     where part is not null and strftime(scheduled_at, '%Y-%m') = ?`,
    [month],
  );
  await createTable(tables, "recent", recentlyLanded);
  await createTable(tables, "carrier_lately", carrierLately);
  return createTable(
    tables,
    "features",
    `select scheduled_at, carrier, flight, part, month.late, origin, dest,
       isodow(scheduled_at)::varchar as weekday,
       (hour(scheduled_at) + minute(scheduled_at) / 60.0) as hour,
       (hour - 13) ** 2 as hour_squared,
       sin(hour / 24 * 2 * pi()) as hour_sin, cos(hour / 24 * 2 * pi()) as hour_cos,
       ln(distance) as distance_log, "temp", dewp, "temp" - dewp as dew_spread, wind_speed,
       ln(1 + 50 * precip) as precip_log, pressure, visib,
       ${lateShare("origin_late", "origin_count", 4)} as late_origin_3h,
       ${lateShare("all_late", "all_count", 4)} as late_all_3h,
       ${lateShare("day_late", "day_count", 10)} as late_all_24h,
       ${lateShare("c.late", "c.count", 20)} as late_carrier_14d,
       delay_all_3h
     from month
     left join recent using (scheduled_at, carrier, flight)
     left join carrier_lately c using (scheduled_at, carrier, flight)`,
  );
};

export const features = defineStep({
  description: "Features of one month's flights, from what was known at the time",
  inputs: z.object({ month: z.string().regex(/^\d{4}-\d{2}$/), joined: artifactSchema }),
  output: z.object({ month: z.string(), rows: z.number(), table: artifactSchema }),
  run: async (ctx, { month, joined }) => {
    const path = await ctx.artifacts.file(joined);
    return withTables({ dir: ctx.dir, signal: ctx.signal }, async (tables) => {
      await readParquet(tables, { into: "joined", path });
      const rows = await buildFeatures(tables, month);
      const bytes = await toParquetBytes(tables, {
        table: "features",
        orderBy: ["scheduled_at", "carrier", "flight"],
      });
      ctx.log.info("features built", { month, rows });
      const table = await ctx.artifacts.put(`features-${month}.parquet`, bytes, { kind: "table" });
      return { month, rows, table };
    });
  },
});

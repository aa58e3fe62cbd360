/**
 * Casts the tables and holds them to what the rest of the pipeline believes about them. Impossible
 * numbers of single instruments become missing, and are counted; a broken promise ends the run.
 */
import {
  checkTable,
  createTable,
  readCsv,
  requireValid,
  type TableRule,
  type Tables,
  toParquetBytes,
  withTables,
} from "@coppice/data";
import { type ArtifactRef, artifactSchema, defineStep, type StepContext } from "@coppice/sdk";
import { z } from "zod";

const AIRPORTS = ["EWR", "JFK", "LGA"];
/** The strongest wind ever measured on the ground was 253 mph. */
const WIND_MPH_MAX = 253;

const FLIGHT_RULES: readonly TableRule[] = [
  { rule: "rowCount", atLeast: 1000 },
  { rule: "unique", columns: ["scheduled_at", "carrier", "flight"] },
  { rule: "notNull", column: "scheduled_at" },
  { rule: "notNull", column: "carrier" },
  { rule: "notNull", column: "dest" },
  { rule: "oneOf", column: "origin", values: AIRPORTS },
  { rule: "range", column: "distance", atLeast: 50, atMost: 6000 },
  { rule: "range", column: "arr_delay", atLeast: -120, atMost: 1500 },
  { rule: "nullShare", column: "arr_delay", atMost: 0.1 },
];

const WEATHER_RULES: readonly TableRule[] = [
  { rule: "rowCount", atLeast: 1000 },
  { rule: "unique", columns: ["origin", "observed_at"] },
  { rule: "notNull", column: "observed_at" },
  { rule: "oneOf", column: "origin", values: AIRPORTS },
  { rule: "range", column: "temp", atLeast: -30, atMost: 120 },
  { rule: "range", column: "wind_speed", atLeast: 0, atMost: WIND_MPH_MAX },
  { rule: "range", column: "pressure", atLeast: 900, atMost: 1100 },
  { rule: "nullShare", column: "pressure", atMost: 0.2 },
];

const readFlights = (tables: Tables, path: string): Promise<number> =>
  readCsv(tables, {
    into: "flights",
    path,
    columns: {
      scheduled_at: "timestamp",
      carrier: "text",
      flight: "integer",
      origin: "text",
      dest: "text",
      distance: "float",
      arr_delay: "integer",
    },
  });

const readWeather = async (tables: Tables, path: string): Promise<number> => {
  await readCsv(tables, {
    into: "weather_raw",
    path,
    columns: {
      origin: "text",
      observed_at: "timestamp",
      temp: "float",
      dewp: "float",
      wind_speed: "float",
      precip: "float",
      pressure: "float",
      visib: "float",
    },
  });
  await createTable(
    tables,
    "weather",
    `select * replace (case when wind_speed <= ${WIND_MPH_MAX} then wind_speed end as wind_speed)
     from weather_raw`,
  );
  const [row] = await tables.rows(
    `select count(*) as n from weather_raw where wind_speed > ${WIND_MPH_MAX}`,
  );
  return Number(row?.["n"]);
};

const keepTable = async (
  ctx: StepContext,
  tables: Tables,
  table: string,
  orderBy: readonly string[],
): Promise<ArtifactRef> => {
  const bytes = await toParquetBytes(tables, { table, orderBy });
  return ctx.artifacts.put(`${table}.parquet`, bytes, { kind: "table" });
};

export const check = defineStep({
  description: "Casts both tables and checks what the pipeline relies on",
  inputs: z.object({ flights: artifactSchema, weather: artifactSchema }),
  output: z.object({
    flights: artifactSchema,
    weather: artifactSchema,
    flightCount: z.number(),
    weatherCount: z.number(),
    impossibleWinds: z.number(),
  }),
  run: async (ctx, inputs) => {
    const flightsPath = await ctx.artifacts.file(inputs.flights);
    const weatherPath = await ctx.artifacts.file(inputs.weather);
    return withTables({ dir: ctx.dir, signal: ctx.signal }, async (tables) => {
      await readFlights(tables, flightsPath);
      const impossibleWinds = await readWeather(tables, weatherPath);
      const flights = requireValid(await checkTable(tables, "flights", FLIGHT_RULES));
      const weather = requireValid(await checkTable(tables, "weather", WEATHER_RULES));
      ctx.log.info("checked", {
        rules: flights.rulesChecked + weather.rulesChecked,
        impossibleWinds,
      });
      return {
        flights: await keepTable(ctx, tables, "flights", ["scheduled_at", "carrier", "flight"]),
        weather: await keepTable(ctx, tables, "weather", ["observed_at", "origin"]),
        flightCount: flights.rowCount,
        weatherCount: weather.rowCount,
        impossibleWinds,
      };
    });
  },
});

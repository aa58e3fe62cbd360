/** Which of tomorrow's flights from New York will be late? The whole way, from file to verdict. */
import { definePipeline } from "@coppice/sdk";
import { z } from "zod";
import { check } from "../steps/check.ts";
import { evaluate } from "../steps/evaluate.ts";
import { features } from "../steps/features.ts";
import { fetch } from "../steps/fetch.ts";
import { join } from "../steps/join.ts";
import { prepare } from "../steps/prepare.ts";
import { report } from "../steps/report.ts";
import { train } from "../steps/train.ts";

export const lateFlights = definePipeline({
  name: "late-flights",
  description: "Learns which flights will be late, and compares with two baselines",
  params: z.object({
    seed: z.number().int().default(7),
    /** Share of the flights that is used. */
    sample: z.number().min(0.01).max(1).default(1),
    epochsMax: z.number().int().min(1).max(500).default(40),
  }),
  timeout: "10m",
  steps: ({ params, step, run }) => {
    const flights = step("fetch-flights", fetch, {
      with: { file: "flights.csv" },
      retry: { attempts: 3 },
    });
    const weather = step("fetch-weather", fetch, {
      with: { file: "weather.csv" },
      retry: { attempts: 3 },
    });
    const checked = step("check", check, {
      with: { flights: flights.output.table, weather: weather.output.table },
    });
    const prepared = step("prepare", prepare, {
      with: { flights: checked.output.flights, sample: params.sample },
    });
    const joined = step("join", join, {
      with: { flights: prepared.output.flights, weather: checked.output.weather },
    });
    const perMonth = step("features", features, {
      map: { over: joined.output.months },
      with: ({ item }) => ({ month: item, joined: joined.output.table }),
    });
    const training = {
      months: perMonth.output.table,
      seed: params.seed,
      epochsMax: params.epochsMax,
    };
    const logistic = step("train-logistic", train, {
      with: { ...training, family: "logistic" },
      timeouts: { run: "5m" },
    });
    const network = step("train-network", train, {
      with: { ...training, family: "network" },
      timeouts: { run: "5m" },
    });
    const judged = step("evaluate", evaluate, {
      with: {
        months: perMonth.output.table,
        logistic: logistic.output.model,
        network: network.output.model,
      },
    });
    step("report", report, {
      finally: true,
      with: { status: run.status, metrics: judged.output.metrics },
    });
  },
});

/**
 * What is measured, by name, with its target for two cores. Every row runs in a process of its
 * own, so that one row's garbage and warm code are not another's.
 */
import { fanPipeline, mapPipeline, measureSteps } from "./engine-rows.ts";
import { measureChildren, measureFleet, measureScaleOut } from "./fleet-rows.ts";
import { measureGrowth } from "./growth-row.ts";
import { measureChain, measureSequential, measureSubmit } from "./latency-rows.ts";
import { measureMap } from "./map-row.ts";
import type { Figure, Row } from "./row.ts";
import type { DoorbellKind } from "./servers.ts";

/** One without its name and without what the runner adds. */
export type MeasuredRow = Omit<Row, "name" | "loadBefore">;

export interface Bench {
  readonly about: string;
  /** @param isQuick sizes that show whether it works rather than how fast it is */
  readonly measure: (isQuick: boolean) => Promise<readonly MeasuredRow[]>;
}

/** Steps in hand at a time. More than this no longer helps: bells on PostgreSQL cost more then. */
const SLOTS: Readonly<Record<DoorbellKind, number>> = { redis: 1024, postgres: 128 };

const stepsBench = (kind: DoorbellKind, runs: number, target: number): Bench => {
  const where = kind === "redis" ? "Redis" : "embedded doorbell";
  const figure = (what: string): Omit<Figure, "measured"> => ({
    what: `durable steps/s, 1→10→1, ${what}, ${where}, one process`,
    unit: "steps/s",
    target,
    isFloor: true,
  });
  return {
    about: `durable steps/s in one process, ${where}`,
    measure: async (isQuick) => {
      const size = { kind, runs: isQuick ? 60 : runs, slots: SLOTS[kind] };
      const fan = await measureSteps({ ...size, pipeline: fanPipeline });
      const map = await measureSteps({ ...size, pipeline: mapPipeline });
      return [
        { ...figure("ten steps"), ...fan },
        { ...figure("map of ten"), ...map },
      ];
    },
  };
};

export const BENCHES: Readonly<Record<string, Bench>> = {
  "steps-redis": stepsBench("redis", 2000, 4000),
  "steps-fleet": {
    about: "durable steps/s, API, scheduler and two workers as processes",
    measure: measureFleet,
  },
  "steps-embedded": stepsBench("postgres", 500, 900),
  "steps-children": {
    about: "real user steps/s through reused children of one worker",
    measure: measureChildren,
  },
  "chain-latency": { about: "submit → done of a 3-step chain", measure: measureChain },
  "sequential-40": { about: "submit → done of 40 steps in a row", measure: measureSequential },
  "map-10000": { about: "a map of 10,000 items: time per item, heap", measure: measureMap },
  "submit-latency": { about: "submit → 201 at 50 clients", measure: measureSubmit },
  "scale-out": { about: "1 → 4 workers on 100 ms steps", measure: measureScaleOut },
  growth: { about: "cost per step as finished runs grow", measure: measureGrowth },
};

/** The quickstart as its reader would try it: every step on the real data, then on broken data. */
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openTables, readParquet } from "@coppice/data";
import type { ArtifactRef } from "@coppice/sdk";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import project from "../coppice.config.ts";
import { type InProcessResult, runInProcess } from "../testing/run-in-process.ts";
import { lateFlights } from "./pipelines/late-flights.ts";
import type { Metrics } from "./steps/evaluate.ts";
import { NUMBERS } from "./steps/features.ts";

const projectDir = fileURLToPath(new URL("..", import.meta.url));
const LIMIT_MS = 60_000;

let run: InProcessResult;
const outputOf = <T>(step: string): T => run.outputs[step] as T;

/** Queries the table that an artifact holds. */
const query = async (ref: ArtifactRef, sql: string) => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-query-"));
  const tables = await openTables({ dir });
  try {
    const path = join(dir, "t.parquet");
    await writeFile(path, await run.readArtifact(ref));
    await readParquet(tables, { into: "t", path });
    return await tables.rows(sql);
  } finally {
    tables.close();
    await rm(dir, { recursive: true, force: true });
  }
};

beforeAll(async () => {
  run = await runInProcess(lateFlights, { projectDir });
}, LIMIT_MS);
afterAll(() => run.close());

describe("late-flights on the real data", () => {
  test("the project names its pipeline and carries its data", () => {
    expect(project.pipelines.map(({ name }) => name)).toEqual(["late-flights"]);
    expect(project.files).toEqual(["data/*.csv"]);
  });

  test("both sources pass their checks, but for one impossible wind", () => {
    expect(outputOf("check")).toMatchObject({
      flightCount: 30_522,
      weatherCount: 26_112,
      impossibleWinds: 1,
    });
  });

  test("cancelled flights are dropped, and no label is known before landing", async () => {
    const { kept, dropped, flights } = outputOf<{
      kept: number;
      dropped: number;
      flights: ArtifactRef;
    }>("prepare");
    expect(kept + dropped).toBe(30_522);
    expect(dropped / 30_522).toBeCloseTo(0.029, 3);
    const [row] = await query(
      flights,
      `select count(*) filter (
           where known_at < scheduled_at + to_minutes(60 + greatest(arr_delay, 0))) as early,
         count(*) filter (where (arr_delay >= 15) <> (late = 1)) as mislabelled from t`,
    );
    expect(row).toEqual({ early: 0, mislabelled: 0 });
  });

  test("the split follows time, and labels that came too late count nowhere", async () => {
    const { months, rowCounts, labelsTooLate, table } = outputOf<{
      months: string[];
      rowCounts: Record<string, number>;
      labelsTooLate: number;
      table: ArtifactRef;
    }>("join");
    expect(months).toEqual(["2013-04", "2013-05", "2013-06", "2013-07"]);
    expect(Object.keys(rowCounts)).toEqual(["train", "tune", "test"]);
    expect(labelsTooLate).toBeGreaterThan(0);
    const [row] = await query(
      table,
      `select
         max(known_at) filter (where part = 'train')
           <= min(scheduled_at) filter (where part = 'tune') as a,
         max(known_at) filter (where part = 'tune')
           <= min(scheduled_at) filter (where part = 'test') as b
       from t`,
    );
    expect(row).toEqual({ a: true, b: true });
  });

  test("each month's features hold that month alone and every flight once", async () => {
    const parts = outputOf<{ month: string; rows: number; table: ArtifactRef }[]>("features");
    const { rowCounts } = outputOf<{ rowCounts: Record<string, number> }>("join");
    const total = Object.values(rowCounts).reduce((sum, count) => sum + count, 0);
    expect(parts.reduce((sum, part) => sum + part.rows, 0)).toBe(total);
    for (const { month, table } of parts) {
      const [row] = await query(
        table,
        `select
           count(*) filter (where strftime(scheduled_at, '%Y-%m') <> '${month}') as foreign_rows,
           count(*) filter (where ${NUMBERS.filter((name) => name.startsWith("late_"))
             .map((name) => `${name} is null`)
             .join(" or ")}) as missing,
           count(*) - count(distinct (scheduled_at, carrier, flight)) as twice
         from t`,
      );
      expect(row).toEqual({ foreign_rows: 0, missing: 0, twice: 0 });
    }
  });

  test("recent lateness equals a count by hand, of landed flights only", async () => {
    const [july] = outputOf<{ month: string; table: ArtifactRef }[]>("features").toReversed();
    const { table } = outputOf<{ table: ArtifactRef }>("join");
    const [subject] = await query(
      july!.table,
      `select scheduled_at, carrier, flight, origin, late_origin_3h from t
       where origin = 'JFK' and hour(scheduled_at) = 17 order by all limit 1`,
    );
    const [counted] = await query(
      table,
      `select count(*) as n, coalesce(sum(late), 0)::integer as late from t
       where origin = 'JFK' and known_at <= timestamp '${String(subject?.["scheduled_at"])}'
         and known_at > timestamp '${String(subject?.["scheduled_at"])}' - interval 3 hour`,
    );
    const late = Number(counted?.["late"]);
    const onTime = Number(counted?.["n"]) - late;
    expect(Number(counted?.["n"])).toBeGreaterThan(0);
    expect(subject?.["late_origin_3h"]).toBeCloseTo(Math.log((late + 1) / (onTime + 3)), 6);
  });

  test("the network beats the base rate and the logistic regression", () => {
    const { metrics } = outputOf<{ metrics: Metrics }>("evaluate");
    expect(metrics.network.logLoss).toBeLessThan(metrics.logistic.logLoss);
    expect(metrics.logistic.logLoss).toBeLessThan(metrics.baseRate.logLoss - 0.05);
    expect(metrics.network.areaUnderCurve).toBeGreaterThan(0.72);
    expect(metrics.network.calibrationError).toBeLessThan(metrics.baseRate.calibrationError);
    expect(metrics.gainOverLogistic.mean).toBeGreaterThan(
      2 * metrics.gainOverLogistic.standardError,
    );
    expect(metrics.beatsBaselines).toBe(true);
    expect(metrics.calibration.reduce((sum, bin) => sum + bin.count, 0)).toBe(metrics.testRows);
  });

  test("every epoch left its metrics, and the report says what was measured", async () => {
    const { epochs } = outputOf<{ epochs: number }>("train-network");
    const tuned = run.metrics.filter((m) => m.step === "train-network" && m.key === "tuneLogLoss");
    expect(tuned.map(({ at }) => at)).toEqual(Array.from({ length: epochs }, (_, i) => i + 1));
    const { report } = outputOf<{ report: ArtifactRef }>("report");
    const { metrics } = outputOf<{ metrics: Metrics }>("evaluate");
    expect(Buffer.from(await run.readArtifact(report)).toString()).toContain(
      `| network | ${metrics.network.logLoss.toFixed(4)} |`,
    );
  });

  test(
    "the same seed gives the same weights; another seed others",
    async () => {
      const params = { epochsMax: 1, sample: 0.5 };
      const digests: string[] = [];
      for (const seed of [7, 7, 8]) {
        const other = await runInProcess(lateFlights, { projectDir, params: { ...params, seed } });
        const { weightsSha256 } = other.outputs["train-network"] as { weightsSha256: string };
        digests.push(weightsSha256);
        await other.close();
      }
      expect(digests[1]).toBe(digests[0]);
      expect(digests[2]).not.toBe(digests[0]);
    },
    LIMIT_MS,
  );
});

describe("late-flights on broken data", () => {
  const withFlights = async (change: (csv: string) => string): Promise<unknown> => {
    const dir = await mkdtemp(join(tmpdir(), "coppice-broken-"));
    try {
      await mkdir(join(dir, "data"));
      await copyFile(join(projectDir, "data/weather.csv"), join(dir, "data/weather.csv"));
      const csv = await readFile(join(projectDir, "data/flights.csv"), "utf8");
      await writeFile(join(dir, "data/flights.csv"), change(csv));
      const broken = await runInProcess(lateFlights, { projectDir: dir });
      await broken.close();
      return "no error";
    } catch (error) {
      return error;
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  };

  test("an airport that New York does not have ends the run", async () => {
    expect(await withFlights((csv) => csv.replaceAll(",LGA,", ",LGW,"))).toMatchObject({
      code: "CPC_DATA_INVALID",
      message: expect.stringMatching(
        /rule oneOf\(origin\): expected one of EWR, JFK, LGA\. Found: \d+ other/,
      ),
    });
  });

  test("a doubled file and a text for a number are found", async () => {
    const doubled = (csv: string) => csv + csv.slice(csv.indexOf("\n") + 1);
    expect(await withFlights(doubled)).toMatchObject({
      message: expect.stringContaining("rule unique(scheduled_at, carrier, flight)"),
    });
    expect(await withFlights((csv) => csv.replace(",1069,", ",far,"))).toMatchObject({
      message: expect.stringContaining(
        'distance: expected float, found 1 other values such as "far"',
      ),
    });
  });
});

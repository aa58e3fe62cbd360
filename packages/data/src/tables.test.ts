/** The data room against small tables, the bad ones included. One real DuckDB per test. */
import { createHash } from "node:crypto";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  checkTable,
  countRows,
  createTable,
  fromParquetBytes,
  joinAsOf,
  keyPositionSql,
  openTables,
  readCsv,
  readMatrix,
  readTexts,
  requireValid,
  sampleByKey,
  splitByTime,
  type Tables,
  toParquetBytes,
} from "./index.ts";
import { unpackedFloats } from "./vectors.ts";

let dir: string;
let tables: Tables;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "coppice-data-"));
  tables = await openTables({ dir });
});
afterEach(async () => {
  tables.close();
  await rm(dir, { recursive: true, force: true });
});

const joinWeather = (maxAgeMs?: number) =>
  joinAsOf(tables, {
    into: "joined",
    left: { table: "flights", at: "at" },
    right: { table: "weather", at: "observed", columns: ["temp", "visib"] },
    by: ["origin"],
    ...(maxAgeMs === undefined ? {} : { maxAgeMs }),
  });

const part = (name: string, from: string, to: string) => ({ name, from, to });

const file = async (text: string, name = "t.csv"): Promise<string> => {
  const path = join(dir, name);
  await writeFile(path, text);
  return path;
};

describe("reading CSV", () => {
  test("casts by name, keeps empty fields null and ignores other columns", async () => {
    const path = await file("b,a,extra\n1.5,007,x\n,8,y\n");
    const rows = await readCsv(tables, { into: "t", path, columns: { a: "text", b: "float" } });
    expect(rows).toBe(2);
    expect(await tables.rows("select * from t")).toEqual([
      { a: "007", b: 1.5 },
      { a: "8", b: null },
    ]);
  });

  test("a value of another type is an error that names column, count and example", async () => {
    const path = await file("a,b\n1,x\n2,y\nthree,z\n");
    await expect(
      readCsv(tables, { into: "t", path, columns: { a: "integer", b: "text" } }),
    ).rejects.toMatchObject({
      code: "CPC_DATA_INVALID",
      message: expect.stringContaining('a: expected integer, found 1 other values such as "three"'),
    });
  });

  test("a missing column is named, and so are those found", async () => {
    const path = await file("a,b\n1,2\n");
    await expect(
      readCsv(tables, { into: "t", path, columns: { a: "integer", delay: "integer" } }),
    ).rejects.toMatchObject({ code: "CPC_DATA_INVALID", data: { missing: ["delay"] } });
  });

  test("a ragged row is refused", async () => {
    const path = await file("a,b\n1,2\n3,4,5\n");
    await expect(
      readCsv(tables, { into: "t", path, columns: { a: "integer" } }),
    ).rejects.toMatchObject({ code: "CPC_DATA_INVALID" });
  });

  test("a missing file, a pattern and an address are no files", async () => {
    const columns = { a: "integer" } as const;
    await file("a\n1\n");
    for (const path of [join(dir, "no.csv"), join(dir, "*.csv"), "https://127.0.0.1/t.csv"]) {
      await expect(readCsv(tables, { into: "t", path, columns })).rejects.toMatchObject({
        code: "CPC_INPUT_UNAVAILABLE",
      });
    }
  });

  test("a path that looks like a pattern is that one file", async () => {
    await file("a\n1\n", "step3.csv");
    const path = await file("a\n2\n", "step[3].csv");
    await readCsv(tables, { into: "t", path, columns: { a: "integer" } });
    expect(await tables.rows("select a from t")).toEqual([{ a: 2 }]);
  });

  test("a quote in a path or in a column's name stays text", async () => {
    const path = await file(`"a""; drop table t; --"\n1\n`, "it's.csv");
    const columns = { 'a"; drop table t; --': "integer" } as const;
    expect(await readCsv(tables, { into: "t", path, columns })).toBe(1);
  });

  test("the machine's own zone does not move a timestamp", async () => {
    const path = await file("at\n2013-03-10T02:30\n");
    await readCsv(tables, { into: "t", path, columns: { at: "timestamp" } });
    expect(await tables.rows(`select "at", hour("at") as h from t`)).toEqual([
      { at: "2013-03-10T02:30:00", h: 2 },
    ]);
  });
});

describe("checking", () => {
  test("reports every violation with rule, expected and found", async () => {
    await createTable(
      tables,
      "t",
      `select * from (values (1, 'a', 5.0), (1, 'b', -3.0), (2, null, 'nan'::double))
        v(id, kind, x)`,
    );
    const report = await checkTable(tables, "t", [
      { rule: "rowCount", atLeast: 10 },
      { rule: "notNull", column: "kind" },
      { rule: "nullShare", column: "kind", atMost: 0.1 },
      { rule: "unique", columns: ["id"] },
      { rule: "range", column: "x", atLeast: 0 },
      { rule: "oneOf", column: "kind", values: ["a"] },
    ]);
    expect(report.rowCount).toBe(3);
    expect(report.violations.map(({ rule }) => rule)).toEqual([
      "rowCount",
      "notNull(kind)",
      "nullShare(kind)",
      "unique(id)",
      "range(x)",
      "oneOf(kind)",
    ]);
    expect(report.violations[0]).toEqual({
      rule: "rowCount",
      expected: "at least 10 rows",
      found: "3 rows",
    });
    expect(report.violations[4]?.found).toMatch(/^2 rows outside/);
    expect(() => requireValid(report)).toThrow(
      expect.objectContaining({
        code: "CPC_DATA_INVALID",
        message: expect.stringContaining("rule range(x): expected at least 0. Found: 2 rows"),
      }),
    );
  });

  test("a table that keeps its promises passes, nulls included", async () => {
    await createTable(tables, "t", "select * from (values (1, 'a'), (2, null)) v(id, kind)");
    const report = await checkTable(tables, "t", [
      { rule: "rowCount", atLeast: 2, atMost: 2 },
      { rule: "unique", columns: ["id", "kind"] },
      { rule: "range", column: "id", atLeast: 1, atMost: 2 },
      { rule: "oneOf", column: "kind", values: ["a"] },
    ]);
    expect(requireValid(report)).toEqual({
      table: "t",
      rowCount: 2,
      rulesChecked: 4,
      violations: [],
    });
  });
});

describe("sampling by key", () => {
  test("the place of a key is its sha256, whoever computes it", async () => {
    await createTable(tables, "t", "select 'UA' as carrier, 17 as flight");
    const [row] = await tables.rows(
      `select ${keyPositionSql(["carrier", "flight"], "salt")} as p from t`,
    );
    const digest = createHash("sha256").update("salt\u001fUA\u001f17").digest("hex");
    expect(Number(row?.["p"])).toBeCloseTo(Number.parseInt(digest.slice(0, 8), 16) / 2 ** 32, 12);
  });

  test("a larger fraction contains the smaller, in whatever order", async () => {
    await createTable(tables, "t", "select i as id from range(5000) r(i)");
    await createTable(tables, "u", "select i as id from range(5000) r(i) order by i desc");
    const small = await sampleByKey(tables, { from: "t", into: "s", key: ["id"], fraction: 0.1 });
    await sampleByKey(tables, { from: "u", into: "l", key: ["id"], fraction: 0.3 });
    expect(small).toBeGreaterThan(400);
    expect(small).toBeLessThan(600);
    const [row] = await tables.rows(
      "select count(*) as n from s where id not in (select id from l)",
    );
    expect(row).toEqual({ n: 0 });
  });

  test("a fraction outside 0 to 1 is refused", async () => {
    await createTable(tables, "t", "select 1 as id");
    for (const fraction of [-0.1, 1.1, Number.NaN]) {
      await expect(
        sampleByKey(tables, { from: "t", into: "s", key: ["id"], fraction }),
      ).rejects.toMatchObject({ code: "CPC_INVALID_INPUT" });
    }
  });
});

describe("joining as of", () => {
  beforeEach(async () => {
    await createTable(
      tables,
      "flights",
      `select * from (values
        (1, 'EWR', timestamp '2013-04-01 06:00'), (2, 'EWR', timestamp '2013-04-01 07:30'),
        (3, 'JFK', timestamp '2013-04-01 06:00'), (4, 'JFK', timestamp '2013-04-02 06:00'),
        (5, 'LGA', timestamp '2013-04-01 06:00')) v(id, origin, "at")`,
    );
    await createTable(
      tables,
      "weather",
      `select * from (values
        ('EWR', timestamp '2013-04-01 06:00', 40, 1), ('EWR', timestamp '2013-04-01 07:31', 99, 2),
        ('JFK', timestamp '2013-04-01 05:00', 60, 3), ('JFK', timestamp '2013-04-01 05:00', 50, 4),
        ('JFK', null, 1, 5)) v(origin, observed, "temp", visib)`,
    );
  });

  test("takes the last row at or before, never a later one, and removes ties first", async () => {
    expect(await joinWeather()).toEqual({ rowCount: 5, unmatched: 1, tiesRemoved: 1 });
    expect(await tables.rows(`select id, "temp", visib from joined order by id`)).toEqual([
      { id: 1, temp: 40, visib: 1 },
      { id: 2, temp: 40, visib: 1 },
      { id: 3, temp: 50, visib: 4 },
      { id: 4, temp: 50, visib: 4 },
      { id: 5, temp: null, visib: null },
    ]);
    expect(
      await tables.rows("select * from duckdb_tables() where table_name like 'coppice%'"),
    ).toEqual([]);
  });

  test("an observation older than allowed is no observation", async () => {
    expect(await joinWeather(3_600_000)).toMatchObject({ rowCount: 5, unmatched: 3 });
    expect(await tables.rows(`select "temp" from joined where id = 4`)).toEqual([{ temp: null }]);
  });

  test("a column that both tables have is refused", async () => {
    await expect(
      joinAsOf(tables, {
        into: "joined",
        left: { table: "flights", at: "at" },
        right: { table: "weather", at: "observed", columns: ["origin"] },
        by: ["origin"],
      }),
    ).rejects.toMatchObject({ code: "CPC_INVALID_INPUT" });
  });
});

describe("splitting by time", () => {
  test("a row counts only where its label was known when the part closed", async () => {
    await createTable(
      tables,
      "t",
      `select * from (values
        (1, timestamp '2013-04-01 00:00', timestamp '2013-04-01 03:00'),
        (2, timestamp '2013-04-30 23:00', timestamp '2013-05-01 02:00'),
        (3, timestamp '2013-05-01 00:00', timestamp '2013-05-01 01:00'),
        (4, timestamp '2013-06-01 00:00', timestamp '2013-06-01 01:00')) v(id, "at", known)`,
    );
    const result = await splitByTime(tables, {
      from: "t",
      into: "split",
      at: "at",
      knownAt: "known",
      parts: [part("train", "2013-04-01", "2013-05-01"), part("test", "2013-05-01", "2013-06-01")],
    });
    expect(result).toEqual({ rowCounts: { train: 1, test: 1 }, labelsTooLate: 1, outside: 1 });
    expect(await tables.rows("select id, part from split order by id")).toEqual([
      { id: 1, part: "train" },
      { id: 2, part: null },
      { id: 3, part: "test" },
      { id: 4, part: null },
    ]);
  });

  test("overlapping parts and times that are none are refused", async () => {
    await createTable(tables, "t", `select timestamp '2013-04-01' as "at"`);
    const split = (parts: ReturnType<typeof part>[]) =>
      splitByTime(tables, { from: "t", into: "s", at: "at", parts });
    for (const parts of [
      [part("a", "2013-01-01", "2013-03-01"), part("b", "2013-02-01", "2013-04-01")],
      [part("a", "2013-03-01", "2013-01-01")],
      [part("a", "2013-01-01", "2013-02-01' or true --")],
      [],
    ]) {
      await expect(split(parts)).rejects.toMatchObject({ code: "CPC_INVALID_INPUT" });
    }
  });
});

describe("matrices", () => {
  test("both ways of reading give the rows in the named order, over many chunks", async () => {
    const count = 5000;
    await createTable(
      tables,
      "t",
      `select i::integer as id, (i * 0.5)::float as x, -i::bigint as y
       from range(${count}) r(i) order by hash(i)`,
    );
    const options = { from: "t", columns: ["x", "y"], orderBy: ["id"] };
    const fast = await readMatrix(tables, options);
    const slow = await readMatrix(tables, options, () => undefined);
    expect(fast).toMatchObject({ rowCount: count, columnCount: 2 });
    expect(fast.values).toEqual(
      Float32Array.from({ length: count * 2 }, (_, i) => (i % 2 === 0 ? i / 4 : 0 - (i - 1) / 2)),
    );
    expect(slow.values).toEqual(fast.values);
  });

  test("the fast way is really taken with this version of DuckDB", async () => {
    await createTable(tables, "t", "select i::float as x from range(3000) r(i)");
    for await (const chunk of tables.chunks("select [x, x]::float[2] from t")) {
      const { packedFloats } = await import("./vectors.ts");
      expect(packedFloats(chunk, 2)).toEqual(unpackedFloats(chunk, 2));
    }
  });

  test("a null is an error with its column, or NaN where asked, never 0", async () => {
    await createTable(tables, "t", "select * from (values (1, 2.0), (2, null)) v(id, x)");
    const options = { from: "t", columns: ["id", "x"], orderBy: ["id"] };
    await expect(readMatrix(tables, options)).rejects.toMatchObject({
      code: "CPC_DATA_INVALID",
      data: { columns: { x: 1 } },
    });
    const matrix = await readMatrix(tables, { ...options, nulls: "nan" });
    expect([...matrix.values]).toEqual([1, 2, 2, Number.NaN]);
  });

  test("texts come as lists", async () => {
    await createTable(tables, "t", "select * from (values (2, 'b'), (1, 'a'), (3, null)) v(id, c)");
    const texts = await readTexts(tables, { from: "t", columns: ["c"], orderBy: ["id"] });
    expect(texts).toEqual({ c: ["a", "b", ""] });
  });
});

describe("Parquet", () => {
  test("equal rows give equal bytes, which give the same table again", async () => {
    await createTable(tables, "t", "select i as id, 'x' || i as name from range(3000) r(i)");
    await createTable(tables, "u", "select * from t order by hash(id)");
    const bytes = await toParquetBytes(tables, { table: "t", orderBy: ["id"] });
    const again = await toParquetBytes(tables, { table: "u", orderBy: ["id"] });
    expect(Buffer.compare(bytes, again)).toBe(0);
    expect(await fromParquetBytes(tables, { into: "back", bytes })).toBe(3000);
    const [row] = await tables.rows("select count(*) as n from (from back except from t)");
    expect(row).toEqual({ n: 0 });
    expect((await readdir(dir)).filter((name) => name.endsWith(".parquet"))).toEqual([]);
  });

  test("bytes that are no Parquet are refused", async () => {
    for (const text of ["", "PAR1 nonsense PAR1", "a,b\n1,2\n"]) {
      await expect(
        fromParquetBytes(tables, { into: "t", bytes: Buffer.from(text) }),
      ).rejects.toMatchObject({ code: "CPC_DATA_INVALID" });
    }
  });
});

describe("the instance", () => {
  test("a query over the memory limit fails by its own code", async () => {
    tables.close();
    tables = await openTables({ dir, memoryLimitMb: 32 });
    await expect(
      tables.rows("select len(list(i)) from range(20000000) r(i)"),
    ).rejects.toMatchObject({ code: "CPC_OUT_OF_MEMORY" });
  });

  test("an abort interrupts the query that runs", async () => {
    const controller = new AbortController();
    const own = await openTables({ dir, signal: controller.signal });
    const query = own.rows("select count(*) from range(100000000000) a(i) where i % 7 = 3");
    // At once: before DuckDB has even begun, which is when an interrupt used to be lost.
    controller.abort(new Error("cancelled by the test"));
    await expect(query).rejects.toThrow("cancelled by the test");
    own.close();
  });

  test("bad SQL says what DuckDB said; closing twice is fine", async () => {
    await expect(tables.rows("selec 1")).rejects.toMatchObject({
      code: "CPC_QUERY_FAILED",
      message: expect.stringContaining("selec"),
    });
    expect(await countRows(tables, "range").catch((error: { code: string }) => error.code)).toBe(
      "CPC_QUERY_FAILED",
    );
    tables.close();
    tables.close();
  });
});

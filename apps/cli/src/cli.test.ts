/** The command line without a server: arguments, precedence, exit codes, and how things look. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";

import type { RunDetail, RunEvent } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";
import { afterEach, describe, expect, test } from "vitest";

import { resolveConnection } from "./connection.ts";
import { exitCodeOf } from "./exit-code.ts";
import { formatLogLine } from "./log-line.ts";
import { main } from "./main.ts";
import { metricsTable } from "./metrics-table.ts";
import { createOutput, fit, tame } from "./output.ts";
import { formatFailures, formatTree } from "./run-format.ts";
import { applyEvent, createRunView, hasEnded, stateOf } from "./run-model.ts";
import { parseParams } from "./run-params.ts";
import { looksLikeRun, parseStepAddress } from "./step-address.ts";
import { formatTable } from "./table.ts";

const folders: string[] = [];
const newFolder = async (): Promise<string> => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-cli-"));
  folders.push(dir);
  return dir;
};
afterEach(async () => {
  await Promise.all(folders.splice(0).map((dir) => rm(dir, { recursive: true, force: true })));
});

const textStream = (isTTY = false) => {
  const parts: string[] = [];
  return {
    isTTY,
    columns: 60,
    write: (text: string) => void parts.push(text),
    text: () => parts.join(""),
  };
};

const run = async (argv: readonly string[], cwd: string, env: Record<string, string> = {}) => {
  const stdout = textStream();
  const stderr = textStream();
  const exitCode = await main({ argv, env, cwd, stdin: process.stdin, stdout, stderr });
  return { exitCode, stdout: stdout.text(), stderr: stderr.text() };
};

describe("the program", () => {
  test("shows every command in its help and ends with 0", async () => {
    const { exitCode, stdout } = await run(["--help"], "/");
    expect(exitCode).toBe(0);
    for (const name of [
      ..."dev demo run runs show logs cancel workers queues pipelines why deploy doctor".split(" "),
      ..."worker api scheduler migrate token gc".split(" "),
    ]) {
      expect(stdout).toMatch(new RegExp(`^ {2}${name}\\b`, "m"));
    }
  });

  test("ends with 2 on unknown commands, unknown options and bad values", async () => {
    const cwd = await newFolder();
    const server = ["--server", "http://127.0.0.1:9"];
    for (const argv of [
      [],
      ["nothing"],
      ["runs", "--nothing"],
      ["runs", "--limit", "many"],
      ["cancel", "run_1/x[y]", ...server],
      ["runs", "--state", "broken", ...server],
      ["runs", "--server", "not a url"],
    ]) {
      expect([argv, (await run(argv, cwd)).exitCode]).toEqual([argv, 2]);
    }
  });

  test("ends with 5 where nothing names a server and where none answers", async () => {
    const cwd = await newFolder();
    const unnamed = await run(["runs"], cwd);
    expect(unnamed.exitCode).toBe(5);
    expect(unnamed.stderr).toMatch(/^error: .*\n {2}No --server.*\nhint: Start `coppice dev` here/);
    // Port 9 (discard) has no listener here.
    const silent = await run(["runs", "--server", "http://127.0.0.1:9"], cwd);
    expect(silent.exitCode).toBe(5);
  });

  test("ends with 3 outside of a project", async () => {
    const { exitCode, stderr } = await run(["deploy"], await newFolder());
    expect(exitCode).toBe(3);
    expect(stderr).toContain("CPC_PROJECT_NOT_FOUND");
  });

  test("with --json leaves stdout empty on an error and says it as JSON on stderr", async () => {
    const { exitCode, stdout, stderr } = await run(["runs", "--json"], await newFolder());
    expect(exitCode).toBe(5);
    expect(stdout).toBe("");
    expect(JSON.parse(stderr)).toMatchObject({
      error: { code: "CPC_SERVER_UNREACHABLE", hint: expect.stringContaining("coppice dev") },
    });
  });

  test("a doctor without anything names what is missing and ends with 1", async () => {
    const { exitCode, stdout } = await run(["doctor", "--json"], await newFolder());
    expect(exitCode).toBe(1);
    const report = JSON.parse(stdout) as { findings: { check: string; status: string }[] };
    expect(report.findings.map(({ check, status }) => [check, status])).toEqual([
      ["node", "ok"],
      ["project", "skipped"],
      ["server", "failed"],
      ["database", "skipped"],
      ["redis", "skipped"],
    ]);
  });
});

describe("exit codes", () => {
  test.each([
    ["CPC_RUN_NOT_FOUND", 3],
    ["CPC_PROJECT_NOT_FOUND", 3],
    ["CPC_UNAUTHENTICATED", 4],
    ["CPC_FORBIDDEN", 4],
    ["CPC_SERVER_UNREACHABLE", 5],
    ["CPC_INVALID_PARAMS", 2],
    ["CPC_INDEX_FAILED", 2],
    ["CPC_STEP_FAILED", 1],
    ["CPC_INTERNAL", 1],
  ] as const)("%s is %i", (code, exitCode) => {
    expect(exitCodeOf(code)).toBe(exitCode);
  });
});

describe("the connection", () => {
  const devFile = async (server: string, pid = process.pid) => {
    const dir = await newFolder();
    await mkdir(join(dir, ".coppice"));
    await mkdir(join(dir, "src", "deep"), { recursive: true });
    const content = { server, token: "cpc_dev", project: "p", pid };
    await writeFile(join(dir, ".coppice", "dev.json"), JSON.stringify(content));
    return join(dir, "src", "deep");
  };

  test("comes from a flag, then from the environment, then from a running dev", async () => {
    const cwd = await devFile("http://127.0.0.1:1");
    const env = { COPPICE_SERVER_URL: "http://127.0.0.1:2", COPPICE_TOKEN: "cpc_env" };
    const tokenFile = join(cwd, "token");
    await writeFile(tokenFile, "cpc_flag\n");
    expect(resolveConnection({ server: "http://127.0.0.1:3", tokenFile }, env, cwd)).toMatchObject({
      server: "http://127.0.0.1:3",
      token: "cpc_flag",
    });
    expect(resolveConnection({}, env, cwd)).toMatchObject({
      server: "http://127.0.0.1:2",
      token: "cpc_env",
    });
    expect(resolveConnection({}, {}, cwd)).toMatchObject({
      server: "http://127.0.0.1:1",
      token: "cpc_dev",
    });
  });

  test("never sends the token of dev to another server", async () => {
    const cwd = await devFile("http://127.0.0.1:1");
    expect(resolveConnection({ server: "http://127.0.0.1:3" }, {}, cwd).token).toBeUndefined();
    expect(
      resolveConnection({}, { COPPICE_SERVER_URL: "http://example.test" }, cwd).token,
    ).toBeUndefined();
  });

  test("reads the token from COPPICE_TOKEN_FILE and says which file can't be read", async () => {
    const cwd = await newFolder();
    await writeFile(join(cwd, "t"), "cpc_file\n");
    const server = { COPPICE_SERVER_URL: "http://127.0.0.1:2" };
    const good = { ...server, COPPICE_TOKEN_FILE: join(cwd, "t") };
    expect(resolveConnection({}, good, cwd).token).toBe("cpc_file");
    const bad = { ...server, COPPICE_TOKEN_FILE: join(cwd, "none") };
    expect(() => resolveConnection({}, bad, cwd)).toThrow(/COPPICE_TOKEN_FILE/);
  });

  test("takes no notice of the file of a dev that is gone", async () => {
    // No process has a number this high.
    const cwd = await devFile("http://127.0.0.1:1", 2 ** 30);
    expect(() => resolveConnection({}, {}, cwd)).toThrow(
      expect.objectContaining({ code: "CPC_SERVER_UNREACHABLE" }) as Error,
    );
  });
});

describe("arguments", () => {
  test("an address names a run, a step, or an item", () => {
    expect(parseStepAddress("run_1")).toEqual({ run: "run_1", step: undefined, item: undefined });
    expect(parseStepAddress("run_1/a-b")).toEqual({ run: "run_1", step: "a-b", item: undefined });
    expect(parseStepAddress("run_1/a[12]")).toEqual({ run: "run_1", step: "a", item: 12 });
    for (const bad of ["", "run_1/", "run_1/a[", "run_1/a[x]", "a/b/c", "run_1/1a"]) {
      expect(() => parseStepAddress(bad)).toThrow(CoppiceError);
    }
  });

  test("a run's id is told from a pipeline's name", () => {
    expect(looksLikeRun("run_01k4")).toBe(true);
    expect(looksLikeRun("run-fast")).toBe(false);
    expect(looksLikeRun("late-flights")).toBe(false);
  });

  test("parameters are JSON where they can be, and text where the schema wants text", () => {
    const schema = { properties: { tag: { type: "string" }, seed: { type: "integer" } } };
    expect(
      parseParams(["seed=7", "tag=7", "list=[1,2]", "word=a=b"], '{"seed":1,"more":true}', schema),
    ).toEqual({ seed: 7, tag: "7", list: [1, 2], word: "a=b", more: true });
    expect(() => parseParams(["seed"], undefined, schema)).toThrow(/--param name=value/);
    expect(() => parseParams([], "[1]", schema)).toThrow(/JSON object/);
  });
});

const detail = {
  id: "run_1",
  pipeline: "p",
  createdAt: "2024-01-01T00:00:00Z",
  steps: [
    { key: "load", isMapped: false, isFinally: false, total: 1 },
    { key: "map", isMapped: true, isFinally: false, total: 3 },
    { key: "report", isMapped: false, isFinally: true, total: 1 },
  ],
} as unknown as RunDetail;

let seq = 0;
const event = (
  step: string | null,
  state: string,
  second: number,
  more: Partial<RunEvent> = {},
): RunEvent => ({
  seq: (seq += 1),
  at: new Date(Date.UTC(2024, 0, 1, 0, 0, second)).toISOString(),
  step,
  item: step === null ? null : 0,
  name: null,
  attempt: step === null ? null : 1,
  state,
  workerId: null,
  reason: null,
  error: null,
  ...more,
});

const colors = createOutput({
  stdout: textStream(),
  stderr: textStream(),
  isJson: false,
  env: {},
}).colors;

describe("a run's tree", () => {
  test("shows each step's state, time, attempt and a map's counts", () => {
    const view = createRunView(detail);
    const events = [
      event("load", "running", 0),
      event("load", "retrying", 1, { error: { code: "CPC_STEP_FAILED", message: "no file" } }),
      event("load", "running", 2, { attempt: 2 }),
      event("load", "succeeded", 5, { attempt: 2 }),
      event("map", "running", 5),
      event("map", "succeeded", 6),
      event("map", "running", 6, { item: 1 }),
    ];
    for (const entry of events) applyEvent(view, entry);
    expect(formatTree(view, Date.UTC(2024, 0, 1, 0, 0, 8), colors)).toEqual([
      "  ✓ load      succeeded           5.0s  attempt 2",
      "  ● map       running             3.0s  1/3, 1 running",
      "  · report    pending",
    ]);
    expect(hasEnded(view)).toBe(false);
  });

  test("counts an event once, however often it comes", () => {
    const view = createRunView(detail);
    const again = event("load", "running", 0);
    expect(applyEvent(view, again)).toBe(true);
    expect(applyEvent(view, again)).toBe(false);
    expect(applyEvent(view, event("unknown", "running", 0))).toBe(false);
  });

  test("a map is not done while items are missing", () => {
    const view = createRunView(detail);
    applyEvent(view, event("map", "succeeded", 1));
    const map = view.steps.get("map");
    expect(map && stateOf(map)).toBe("pending");
    applyEvent(view, event("map", "succeeded", 1, { item: 1 }));
    applyEvent(view, event("map", "failed", 1, { item: 2 }));
    expect(map && stateOf(map)).toBe("failed");
  });

  test("ends with what failed, its place in the code, and what to type next", () => {
    const view = createRunView(detail);
    const error = {
      code: "CPC_STEP_FAILED",
      message: "boom",
      stack: "Error: boom\n    at run (src/steps/map.ts:3:1)\n    at x (y.ts:1:1)",
    };
    applyEvent(view, event("map", "failed", 3, { item: 2, error }));
    expect(formatFailures(view, colors)).toEqual([]);
    applyEvent(view, event(null, "failed", 4));
    expect(formatFailures(view, colors)).toEqual([
      "",
      "✗ map[2] CPC_STEP_FAILED boom",
      "    at run (src/steps/map.ts:3:1)",
      "    at x (y.ts:1:1)",
      "  coppice logs run_1/map[2]",
    ]);
  });
});

describe("output", () => {
  test("has no colour where stdout is no terminal, with NO_COLOR, and with --json", () => {
    const paint = (isTTY: boolean, env: Record<string, string>, isJson = false) =>
      createOutput({ stdout: textStream(isTTY), stderr: textStream(), isJson, env }).colors.red(
        "x",
      );
    expect(paint(true, {})).not.toBe("x");
    expect(paint(false, {})).toBe("x");
    expect(paint(true, { NO_COLOR: "1" })).toBe("x");
    expect(paint(true, {}, true)).toBe("x");
  });

  test("shows what would steer the terminal instead of obeying it, and keeps colours", () => {
    expect(tame("\u001B[31mred\u001B[0m\u001B[2J\u001B]0;title\u0007 a\tb\r\u009B1A")).toBe(
      "\u001B[31mred\u001B[0m\uFFFD[2J\uFFFD]0;title\uFFFD a\tb\uFFFD\uFFFD1A",
    );
  });

  test("redraws over the lines drawn before and cuts them to the width", () => {
    const stdout = textStream(true);
    const output = createOutput({ stdout, stderr: textStream(), isJson: false, env: {} });
    output.draw(["a", "b"]);
    output.draw(["x".repeat(100)]);
    expect(stdout.text()).toBe(`\u001B[0Ja\nb\n\u001B[2A\u001B[0J${"x".repeat(59)}…\n`);
  });

  test("cuts by what is seen, not by what is sent", () => {
    expect(fit("\u001B[31mabc\u001B[39m", 3)).toBe("\u001B[31mabc\u001B[39m");
    expect(stripVTControlCharacters(fit("\u001B[31mabcd\u001B[39m", 3))).toBe("ab…");
  });

  test("makes lines of a log readable and leaves other lines alone", () => {
    const line = (value: unknown) => formatLogLine(JSON.stringify(value), colors);
    expect(line({ level: "info", message: "done", rows: 3, file: "a b" })).toBe(
      'done rows=3 file="a b"',
    );
    expect(line({ level: "warn", message: "slow" })).toBe("warn slow");
    expect(line({ other: 1 })).toBe('{"other":1}');
    expect(formatLogLine("{broken", colors)).toBe("{broken");
  });

  test("sets columns out by their widest cell", () => {
    const table = formatTable({
      head: ["NAME", "N"],
      rows: [
        ["a", "10"],
        ["longer", "9"],
      ],
      right: [1],
    });
    expect(table).toEqual(["NAME     N", "a       10", "longer   9"]);
  });

  test("finds the scores inside a step's output", () => {
    const table = metricsTable(
      {
        metrics: {
          rows: 12,
          network: { areaUnderCurve: 0.7, logLoss: 0.51234 },
          gain: { mean: 0.1, standardError: 0.01 },
          baseRate: { areaUnderCurve: null, logLoss: 0.6 },
        },
      },
      { rows: ["baseRate"], columns: ["logLoss"] },
      (text) => text,
    );
    expect(table).toEqual([
      "             log-loss     AUC",
      "  base rate    0.6000       –",
      "  network      0.5123  0.7000",
    ]);
    const none = { rows: [], columns: [] };
    expect(metricsTable({ rows: 1 }, none, (text) => text)).toEqual([]);
  });
});

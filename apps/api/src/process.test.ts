/** The api and the scheduler as processes, started from source as an operator starts their bins. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { createClient } from "@coppice/contract";
import { silentLogger } from "@coppice/core";
import { openDatabase } from "@coppice/store";
import { tempDir, testDoorbellDatabase, testPostgres, waitUntil } from "@coppice/testing";
import { afterEach, expect, test } from "vitest";
import { openTestApi } from "../testing/test-api.ts";
import { buildApp } from "./app.ts";

const source = (path: string): string => new URL(path, import.meta.url).pathname;
const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const start = (main: string, args: readonly string[], env: Record<string, string>) => {
  const child = spawn(
    process.execPath,
    [
      "--conditions=@coppice/source",
      "--no-warnings",
      "--input-type=module",
      "--eval",
      `import { main } from ${JSON.stringify(source(main))}; await main(process.argv.slice(1));`,
      "--",
      ...args,
    ],
    { env: { PATH: process.env["PATH"] ?? "", ...env }, stdio: ["ignore", "pipe", "pipe"] },
  );
  children.push(child);
  const output = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output.stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    output.stderr += text;
  });
  const ended = new Promise<Finished>((resolve) => {
    child.once("close", (code) => resolve({ code, ...output }));
  });
  return { child, output, ended };
};

const portIn = (text: string, pattern: RegExp): string | undefined => pattern.exec(text)?.[1];

test("an operator migrates, makes tokens and serves; SIGTERM ends it with 0", async () => {
  await using database = await testPostgres();
  await using doorbell = await testDoorbellDatabase();
  await using folder = await tempDir("api");
  const tokenFile = join(folder.path, "secrets", "admin-token");
  const env = {
    COPPICE_DATABASE_URL: database.url,
    COPPICE_DOORBELL_DATABASE_URL: doorbell.url,
    COPPICE_ARTIFACTS: join(folder.path, "artifacts"),
    COPPICE_BOOTSTRAP_TOKEN_FILE: tokenFile,
    COPPICE_PORT: "0",
    COPPICE_SCHEDULER_PORT: "0",
  };
  expect((await start("main.ts", ["migrate"], env).ended).stdout).toMatch(/nothing to do/);
  const made = await start("main.ts", ["token", "create", "--scope", "read", "-q"], env).ended;
  expect(made.stdout).toMatch(/^cpc_\S+\n$/);
  const wrong = await start("main.ts", ["token", "create", "--scope", "root"], env).ended;
  expect([wrong.code, wrong.stdout]).toEqual([1, ""]);

  const api = start("main.ts", [], env);
  const port = await waitUntil(() => portIn(api.output.stdout, /127\.0\.0\.1:(\d+)/), {
    what: "the api to listen",
    timeoutMs: 20_000,
  });
  const server = `http://127.0.0.1:${port}`;
  const admin = (await readFile(tokenFile, "utf8")).trim();
  expect((await stat(tokenFile)).mode & 0o777).toBe(0o600);
  const client = createClient({ server, token: admin });
  expect((await client.projects.list()).items.map(({ name }) => name)).toEqual(["default"]);
  expect((await client.health.ready()).status).toBe("ok");
  const reader = createClient({ server, token: made.stdout.trim() });
  expect((await reader.runs.list()).items).toEqual([]);

  const scheduler = start("../../scheduler/src/main.ts", [], env);
  const health = await waitUntil(() => portIn(scheduler.output.stdout, /"port":(\d+)/), {
    what: "the scheduler to run",
    timeoutMs: 20_000,
  });
  const metrics = await fetch(`http://127.0.0.1:${health}/metrics`);
  expect(await metrics.text()).toContain("coppice_oldest_ready_seconds");
  expect((await fetch(`http://127.0.0.1:${health}/livez`)).status).toBe(200);

  api.child.kill("SIGTERM");
  scheduler.child.kill("SIGTERM");
  const ends = await Promise.all([api.ended, scheduler.ended]);
  expect(ends.map(({ code }) => code)).toEqual([0, 0]);
  const log = ends.map(({ stdout, stderr }) => stdout + stderr).join("");
  expect(log).not.toContain(admin);
  expect(log).not.toContain(new URL(database.url).password);

  const again = start("main.ts", [], env);
  await waitUntil(() => portIn(again.output.stdout, /127\.0\.0\.1:(\d+)/), {
    what: "the api to listen again",
    timeoutMs: 20_000,
  });
  expect((await readFile(tokenFile, "utf8")).trim()).toBe(admin);
  const collected = await start("main.ts", ["gc"], env).ended;
  expect(JSON.parse(collected.stdout)).toEqual({ runs: 0, logChunks: 0, uploads: 0, artifacts: 0 });
}, 60_000);

test("without its database the api says so, never that all is well or that a token is wrong", async () => {
  await using api = await openTestApi();
  const db = openDatabase({
    url: "postgres://nobody@127.0.0.1:1/none",
    applicationName: "test",
    logger: silentLogger,
  });
  const app = await buildApp({ ...api.deps, db });
  const headers = { authorization: `Bearer ${api.tokens.submit}` };
  const answers = await Promise.all([
    app.inject({ url: "/v1/runs", headers }),
    app.inject({ method: "POST", url: "/v1/runs", headers, payload: { pipeline: "x" } }),
    app.inject({ url: "/readyz" }),
  ]);
  for (const answer of answers) {
    expect(answer.statusCode).toBe(503);
    expect(answer.headers["retry-after"]).toBe("1");
    expect(answer.json()).toMatchObject({ code: "CPC_DATABASE_UNREACHABLE" });
  }
  expect((await app.inject({ url: "/livez" })).statusCode).toBe(200);
  await app.close();
  await db.close();
});

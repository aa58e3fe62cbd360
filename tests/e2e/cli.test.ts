/**
 * A person's first day: the README's pipeline copied into an empty project, `coppice dev` in one
 * terminal, every other command in a second one, a change of the code, Ctrl-C.
 */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { tempDir, waitUntil } from "@coppice/testing";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { aliveOf, type Ended, type Program, processesNaming, run, start } from "./program.ts";
import { treeOf } from "./program.ts";
import { newProject, type Project, readmePipeline } from "./project.ts";

/** What the person adds later: a step that fails and one that waits. */
const MORE = `
import { definePipeline, defineStep } from "@coppice/sdk";
import { z } from "zod";

const fail = defineStep({
  run: () => {
    throw new Error("the disk is on fire");
  },
});
export const failing = definePipeline({
  name: "failing",
  steps: ({ step }) => void step("fail", fail),
});

const wait = defineStep({
  inputs: z.object({ seconds: z.number() }),
  run: async (ctx, { seconds }) => {
    for (let tick = 1; tick <= seconds * 10; tick += 1) {
      if (ctx.signal.aborted) return;
      ctx.log.info("tick", { tick });
      // A user's step that takes its time: the test waits for its log, not for this.
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  },
});
export const waiting = definePipeline({
  name: "waiting",
  params: z.object({ seconds: z.number().default(2) }),
  steps: ({ params, step }) => void step("wait", wait, { with: { seconds: params.seconds } }),
});
`;

let project: Project;
let dev: Program;
let server: string;
let signIn: string;

const coppice = async (args: string, env: Record<string, string> = {}): Promise<Ended> =>
  run("coppice", args.split(" "), { cwd: project.dir, env });

/** @returns the JSON values that it printed, one a line */
const json = async <T = Record<string, unknown>>(args: string): Promise<T[]> => {
  const { code, stdout, stderr } = await coppice(`${args} --json`);
  expect([code, stderr]).toEqual([0, ""]);
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
};

const startRun = async (args: string): Promise<string> => {
  const [started] = await json<{ id: string }>(`run ${args}`);
  return started?.id ?? "";
};

beforeAll(async () => {
  project = await newProject({ "coppice.config.ts": readmePipeline() });
  dev = start("coppice", ["dev", "--slots", "4"], { cwd: project.dir });
  [, server = ""] = await dev.said(/Server\s+(http:\/\/127\.0\.0\.1:\d+)/, 90_000);
  [, signIn = ""] = await dev.said(/Sign in\s+(http:\/\/\S+)/);
  await dev.said(/watching\n/);
}, 120_000);

afterAll(async () => {
  await dev?.[Symbol.asyncDispose]();
  await project?.[Symbol.asyncDispose]();
}, 60_000);

describe("coppice dev", () => {
  test("says where everything is, and no secret", async () => {
    const banner = dev.stdout();
    for (const line of [
      /coppice \d+\.\d+\.\d+ {2}ready in [\d.]+ ?m?s/,
      new RegExp(`API docs ${server}/docs`),
      /Store\s+\.coppice\/ \(embedded PostgreSQL; doorbell: embedded PostgreSQL\)/,
      /Worker\s+\S+ · 4 slots/,
      /Code\s+first · 1 pipeline · bundle [0-9a-f]{8}/,
      /coppice run squares --watch/,
    ]) {
      expect(banner).toMatch(line);
    }
    expect(banner + dev.stderr()).not.toMatch(/cpc_|postgres:\/\//);
  });

  test("keeps its tokens in files for their owner alone", async () => {
    for (const name of ["dev.json", "admin-token", "postgres/credentials.json"]) {
      const info = await stat(join(project.dir, ".coppice", name));
      expect([name, (info.mode & 0o777).toString(8)]).toEqual([name, "600"]);
    }
    const admin = (await readFile(join(project.dir, ".coppice/admin-token"), "utf8")).trim();
    const devFile = await readFile(join(project.dir, ".coppice/dev.json"), "utf8");
    expect(devFile).not.toContain(admin);
    expect(await readFile(join(project.dir, ".coppice/.gitignore"), "utf8")).toBe("*\n");
  });

  test("signs one browser in, once, with a cookie that scripts and other sites can't use", async () => {
    const first = await fetch(signIn, { redirect: "manual" });
    expect(first.status).toBe(303);
    const cookie = first.headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/; Path=\/(;|$)/);
    expect(cookie).toMatch(/; HttpOnly(;|$)/);
    expect(cookie).toMatch(/; SameSite=Strict(;|$)/);
    expect(cookie).toMatch(/; Max-Age=43200(;|$)/);
    const headers = { cookie: cookie.split(";")[0] ?? "" };
    expect((await fetch(`${server}/queues`, { headers })).status).toBe(200);
    expect((await fetch(`${server}/queues`)).status).toBe(401);
    const second = await fetch(signIn, { redirect: "manual" });
    expect(second.status).toBe(401);
    expect(second.headers.get("set-cookie")).toBeNull();
  });

  test("is alone in its folder", async () => {
    const { code, stderr } = await coppice("dev");
    expect(code).toBe(2);
    expect(stderr).toContain("already runs here");
    expect(stderr).toContain(server);
  });
});

describe("a run of the README's pipeline", () => {
  test("is followed to its end, a line per change, and ends with 0", async () => {
    const { code, stdout, stderr } = await coppice("run squares --param count=5 --watch");
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/list\b.*succeeded/);
    expect(stdout).toMatch(/square\[4\].*succeeded/);
    expect(stdout).toMatch(/sum\b.*succeeded/);
    // Nothing that belongs to a terminal.
    // oxlint-disable-next-line no-control-regex
    expect(stdout).not.toMatch(/\u001B/);
  });

  test("is listed, shown, and its log is printed", async () => {
    const [page] = await json<{ items: { id: string; state: string }[] }>("runs");
    const id = page?.items[0]?.id ?? "";
    expect(page?.items).toMatchObject([{ pipeline: "squares", state: "succeeded" }]);
    expect((await coppice("runs")).stdout).toMatch(
      new RegExp(`^RUN +PIPELINE +STATE.*\\n${id} +squares +succeeded`),
    );
    const shown = await coppice(`show ${id}`);
    expect(shown.stdout).toMatch(/✓ square +succeeded.*5\/5/);
    expect(shown.stdout).toContain('params {"count":5}');
    // Any unique end of the id will do, and `run` shows one as well.
    expect((await coppice(`run ${id.slice(-8)}`)).stdout).toBe(
      (await coppice(`show ${id}`)).stdout,
    );
    const log = await coppice(`logs ${id}/square[2]`);
    expect(log.stdout).toBe("squaring n=3\n");
    const lines = await json<{ item: number; line: string }>(`logs ${id}/square`);
    expect(lines.map(({ item }) => item).toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4]);
    const [outcome] = await json(`why ${id}`);
    expect(outcome).toEqual({ runId: id, state: "succeeded", steps: [] });
  });

  test("--watch --json is the run and then every change of it", async () => {
    const [started, ...events] = await json("run squares --param count=2 --watch");
    expect(started).toMatchObject({ pipeline: "squares", params: { count: 2 } });
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_event, index) => index + 1));
    expect(events.at(-1)).toMatchObject({ step: null, state: "succeeded" });
  });

  test("workers, queues and pipelines are tables for people and JSON for scripts", async () => {
    // A worker tells its free slots with each heartbeat: the run before may still be counted.
    await waitUntil(async () => /alive +0\/4/.test((await coppice("workers")).stdout), {
      what: "the worker to tell that its slots are free",
    });
    expect((await coppice("workers")).stdout).toMatch(/^WORKER +STATE +SLOTS.*\n\S+ +alive +0\/4/);
    expect((await json("workers"))[0]).toMatchObject({ items: [{ slots: 4, isAlive: true }] });
    expect((await coppice("queues")).stdout).toMatch(/^CLASS +READY.*\n\S+ +0 +0 +0/);
    expect((await json("queues"))[0]).toMatchObject({ items: [{ ready: 0, workers: 1 }] });
    expect((await coppice("pipelines")).stdout).toContain("count: integer = 10");
    expect((await json("pipelines"))[0]).toMatchObject({ items: [{ name: "squares" }] });
    expect((await json("deploy"))[0]).toMatchObject({ isNew: false });
  });
});

describe("a change of the code", () => {
  test("is deployed when it is saved, and a mistake is named and changes nothing", async () => {
    const readme = readmePipeline();
    await project.write({ "coppice.config.ts": `${readme}\nconst = 1;\n` });
    await waitUntil(() => /coppice\.config\.ts:\d+:\d+/.test(dev.stderr()), {
      what: "dev to name the mistake's place",
      timeoutMs: 30_000,
    });
    expect((await json<{ items: unknown[] }>("pipelines"))[0]?.items).toHaveLength(1);
    await project.write({
      "more.ts": MORE,
      "coppice.config.ts": `import { failing, waiting } from "./more.ts";\n${readme.replace(
        "pipelines: [squares]",
        "pipelines: [squares, failing, waiting]",
      )}`,
    });
    await dev.said(/deployed [0-9a-f]{8}….*failing version 1/, 30_000);
    const [page] = await json<{ items: { name: string }[] }>("pipelines");
    expect(page?.items.map(({ name }) => name).toSorted()).toEqual([
      "failing",
      "squares",
      "waiting",
    ]);
  }, 60_000);

  test("a failed run ends with 1 and names the step, the error and its place in the code", async () => {
    const { code, stdout } = await coppice("run failing --watch");
    expect(code).toBe(1);
    expect(stdout).toMatch(/✗ fail CPC_STEP_FAILED .*the disk is on fire/);
    expect(stdout).toMatch(/more\.ts:7:11/);
  });

  test("a log is followed as it grows, to the end of its run", async () => {
    const id = await startRun("waiting --param seconds=2");
    const { code, stdout } = await coppice(`logs -f ${id}/wait`);
    expect(code).toBe(0);
    const ticks = [...stdout.matchAll(/tick tick=(\d+)/g)].map(([, tick]) => Number(tick));
    expect(ticks).toEqual(Array.from({ length: 20 }, (_, index) => index + 1));
  });

  test("a run is told why it waits, cancelled, and its watcher ends with 1", async () => {
    const args = ["run", "waiting", "-p", "seconds=600", "--watch", "--json"];
    const watcher = start("coppice", args, { cwd: project.dir });
    const [, id = ""] = await watcher.said(/"id":"(run_\w+)"/);
    const follower = start("coppice", ["logs", "-f", id], { cwd: project.dir });
    await follower.said(/tick=3/);
    const [why] = await json(`why ${id}`);
    expect(why).toMatchObject({ steps: [{ step: "wait", reason: "running" }] });
    const [cancelled] = await json(`cancel ${id} --reason enough`);
    expect(cancelled).toEqual({ id, step: null, item: null });
    expect((await watcher.ended).code).toBe(1);
    expect((await follower.ended).code).toBe(0);
    const [shown] = await json(`show ${id}`);
    expect(shown).toMatchObject({ id, state: "cancelled", isCancelRequested: true });
  });

  test("Ctrl-C leaves the watched run alone and ends with 130", async () => {
    const watching = start("coppice", ["run", "waiting", "-p", "seconds=600", "--watch"], {
      cwd: project.dir,
    });
    await watching.said(/wait.*running/);
    watching.kill("SIGINT");
    const { code, stderr } = await watching.ended;
    expect(code).toBe(130);
    const id = /run_\w+/.exec(stderr)?.[0] ?? "";
    expect(stderr).toContain(`coppice cancel ${id}`);
    expect((await json(`show ${id}`))[0]).toMatchObject({ state: "running" });
    expect((await coppice(`cancel ${id}`)).code).toBe(0);
  });
});

describe("what goes wrong", () => {
  const ends = async (args: string, code: number, says: RegExp, env = {}): Promise<void> => {
    const ended = await coppice(args, env);
    expect([args, ended.code, ended.stdout]).toEqual([args, code, ""]);
    expect(ended.stderr).toMatch(says);
    const machine = await coppice(`${args} --json`, env);
    expect([machine.code, machine.stdout]).toEqual([code, ""]);
    const { error } = JSON.parse(machine.stderr) as { error: { code: string } };
    expect(ended.stderr).toContain(error.code);
  };

  test("has a code and an exit code of its own", async () => {
    await ends("run nothing", 3, /CPC_PIPELINE_NOT_FOUND[^]*hint: /);
    await ends("show run_00000000", 3, /CPC_RUN_NOT_FOUND/);
    await ends("run squares --param count=many", 2, /CPC_INVALID_PARAMS[^]*\/count/);
    await ends("run squares --param cuont=1", 2, /CPC_INVALID_PARAMS[^]*cuont/);
    await ends("runs", 4, /CPC_UNAUTHENTICATED/, { COPPICE_TOKEN: "cpc_wrong" });
    await ends("runs --server http://127.0.0.1:9", 5, /CPC_SERVER_UNREACHABLE[^]*127\.0\.0\.1:9/);
    // Of all that, nothing became a run.
    const [page] = await json<{ items: { state: string }[] }>("runs --state running");
    expect(page?.items).toEqual([]);
  }, 60_000);

  test("a doctor finds all well here, and says what is wrong elsewhere", async () => {
    const { code, stdout } = await coppice("doctor");
    expect([code, stdout]).toEqual([0, stdout]);
    expect(stdout).toMatch(/✓ project +first: squares, failing, waiting/);
    expect(stdout).toMatch(/✓ workers +1 alive, 4 slots/);
    await using elsewhere = await tempDir("elsewhere");
    const sick = await run("coppice", ["doctor", "--json"], {
      cwd: elsewhere.path,
      env: { COPPICE_SERVER_URL: server, COPPICE_TOKEN: "cpc_wrong" },
    });
    expect(sick.code).toBe(1);
    const { findings } = JSON.parse(sick.stdout) as {
      findings: { check: string; status: string }[];
    };
    expect(findings).toContainEqual(expect.objectContaining({ check: "token", status: "failed" }));
  });
});

describe("Ctrl-C", () => {
  test("ends dev with 0 and leaves nothing running, a running step and PostgreSQL included", async () => {
    const id = await startRun("waiting --param seconds=600");
    const isRunning = async (): Promise<boolean> =>
      (await coppice(`logs ${id}`)).stdout.includes("tick");
    await waitUntil(isRunning, { what: "the step to run" });
    const pids = treeOf(dev.pid);
    // dev, API, scheduler, worker, a child of the worker, PostgreSQL and its own.
    expect(pids.length).toBeGreaterThan(6);
    const startedAt = performance.now();
    dev.kill("SIGINT");
    const { code, stderr } = await dev.ended;
    expect([code, stderr.includes("stopping")]).toEqual([0, true]);
    expect(performance.now() - startedAt).toBeLessThan(14_000);
    expect(aliveOf(pids)).toEqual([]);
    expect(processesNaming(project.dir)).toEqual([]);
    expect((await coppice("runs")).code).toBe(5);
  }, 60_000);
});
